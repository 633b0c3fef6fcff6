"""Full-scale recipes: a data set, a teacher, a grid of students and the protocols that suit it, as public commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.recipes.commands import Command, Place, commands_of
    from lfi_pipeline.recipes.recipe import Evaluation, Recipe, Splits, load_recipe, recipe_names

__all__ = ["Command", "Evaluation", "Place", "Recipe", "Splits", "commands_of", "load_recipe", "recipe_names"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "commands": ["Command", "Place", "commands_of"],
            "recipe": ["Evaluation", "Recipe", "Splits", "load_recipe", "recipe_names"],
        },
    )
