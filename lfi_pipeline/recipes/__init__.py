"""Full-scale recipes: a data set, a teacher, a grid of students and the protocols that suit it, as public commands."""

from lfi_pipeline.recipes.commands import Command, Place, commands_of
from lfi_pipeline.recipes.recipe import Evaluation, Recipe, Splits, load_recipe, recipe_names

__all__ = ["Command", "Evaluation", "Place", "Recipe", "Splits", "commands_of", "load_recipe", "recipe_names"]
