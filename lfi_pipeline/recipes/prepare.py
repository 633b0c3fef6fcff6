"""A recipe meets the data: which splits there are, which runs that makes, and what to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.errors import DatasetError
from lfi_pipeline.recipes.commands import Command, Place, commands_of, planned_runs, require_place, sweep_table
from lfi_pipeline.recipes.recipe import Recipe, Splits
from lfi_pipeline.training.sweep import PlannedRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A recipe that can run.

    Attributes:
        recipe: what.
        place: where.
        splits: of the recipe's, the first that the data root has.
        train: the training split.
        val: the split that is scored on.
        images: that are extracted of each split, by split; of a zero-shot data set by its name.
        sweep: its table.
        runs: of the sweep.
        commands: in order.
        left_out: protocols of the recipe that nothing is there for, and what they need.
    """

    recipe: Recipe
    place: Place
    splits: Splits
    train: Dataset
    val: Dataset
    images: Mapping[str, int]
    sweep: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]
    commands: tuple[Command, ...]
    left_out: tuple[str, ...]

    @property
    def extracted(self) -> float:
        """Images of all caches together; those of one view count for their share of the training split's views."""
        views = len(self.recipe.views)
        return sum(count if split == self.splits.train else count / views for split, count in self.images.items())


def prepare(recipe: Recipe, place: Place) -> Prepared:
    """Read the data sets and make the list of commands; nothing is written.

    Raises:
        LFIError: a data root that is missing or laid out otherwise, an `out` that holds something else, or settings
            that no run can be made of.
    """
    splits, train, val = read_splits(recipe, place.data_root)
    others = {name: read_dataset(name, root, "all") for name, root in place.zero_shot.items()}
    require_place(place, recipe)
    counts = {splits.val: len(val), splits.train: len(train)} | {name: len(other) for name, other in others.items()}
    sweep = sweep_table(recipe, place, splits, train)
    runs = tuple(planned_runs(sweep, place.out))
    asks_zero_shot = any(each.targets == "zero-shot" for each in recipe.evaluate)
    return Prepared(
        recipe=recipe,
        place=place,
        splits=splits,
        train=train,
        val=val,
        images={name: min(count, recipe.most_images or count) for name, count in counts.items()},
        sweep=sweep,
        runs=runs,
        commands=tuple(commands_of(recipe, place, splits, runs, counts)),
        left_out=("zero-shot: needs another data set, such as --zero-shot pacs=DIR",)
        if asks_zero_shot and not others
        else (),
    )


def read_splits(recipe: Recipe, root: Path) -> tuple[Splits, Dataset, Dataset]:
    """Return the first of the recipe's splits that can be read from `root`, and both data sets.

    Raises:
        LFIError: none can; the error is that of the first, which is the one that the recipe would rather have.
    """
    first: DatasetError | None = None
    for splits in recipe.splits:
        try:
            train = read_dataset(recipe.dataset, root, splits.train)
            val = train if splits.val == splits.train else read_dataset(recipe.dataset, root, splits.val)
        except DatasetError as error:
            first = first or error
            continue
        if len(train) and len(val):
            return splits, train, val
        first = first or DatasetError(f"{root} must hold images of {splits.train} and {splits.val}, found none.")
    assert first is not None  # a recipe has splits
    raise first
