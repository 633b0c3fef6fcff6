"""Turn a recipe and a data root into splits, a sweep of runs, and the list of commands to run."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from lfi_pipeline.core.errors import ConfigError, DatasetError, OutputExistsError, OutputWriteError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.options import command_line, command_words, defaults
from lfi_pipeline.core.settings_file import read_toml
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.recipes.recipe import Evaluation, Recipe, Splits
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.sweep import PlannedRun, plan_sweep, read_sweep

RECIPE, SWEEP, COMMANDS = "recipe.toml", "sweep.toml", "commands.sh"
_SHARD = 1024  # samples, where a recipe does not say


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One public command.

    Attributes:
        title: what it is for.
        words: after `lfi`.
        once: whether it would do its work again, so that whoever runs the recipe must note that it was done.
    """

    title: str
    words: tuple[str, ...]
    once: bool = False

    @property
    def line(self) -> str:
        """The command line as it is typed."""
        return shlex.join(["lfi", *self.words])


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a recipe runs.

    Attributes:
        data_root: of the data set.
        out: directory of everything that is made.
        zero_shot: data set -> data root of those that students are scored on without training.
        device: as for every command.
        workers: loader processes.
        together: runs fed from one read.
    """

    data_root: Path
    out: Path
    zero_shot: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    workers: int = 0
    together: int = 1

    @property
    def shards(self) -> Path:
        """Cache of the training split."""
        return self.out / "shards"

    def val_shards(self, splits: Splits) -> Path:
        """Cache of the split that is scored on."""
        return self.shards if splits.val == splits.train else self.out / "shards-val"

    @property
    def test_shards(self) -> Path:
        """Cache of the test split."""
        return self.out / "shards-test"


def sweep_table(recipe: Recipe, place: Place, splits: Splits, train: Dataset) -> dict[str, Any]:
    """Return the sweep of a recipe, as `lfi sweep` reads it; its targets are those of `place`.

    Raises:
        ConfigError: a value of `hold_out` leaves nothing to train on.
    """
    base = {"targets": str(place.shards.resolve()), "val_split": splits.val, **recipe.base}
    grid = {name: list(values) for name, values in recipe.grid.items()}
    where = [*recipe.where, *_budgets(recipe, train)]
    table = {"out": str((place.out / "runs").resolve()), "base": base, "grid": grid, "where": where}
    return table | ({"variant": [dict(each) for each in recipe.variant]} if recipe.variant else {})


def _budgets(recipe: Recipe, train: Dataset) -> list[dict[str, Any]]:
    """Epochs that come to `recipe.steps` steps at least, for each choice of domains that are left out."""
    if not recipe.steps:
        return []
    from lfi_pipeline.training.sampler import epochs_for  # needs torch

    batch = int(recipe.base.get("batch_size", defaults(TrainConfig)["batch_size"]))
    domains = Counter(sample.domain for sample in train.samples)
    choices = recipe.grid.get("hold_out") or [recipe.base.get("hold_out", [])]
    budgets = []
    for left_out in choices:
        images = sum(count for domain, count in domains.items() if domain not in left_out)
        if not images:
            raise ConfigError(
                f"Without {', '.join(left_out)} there must be images left to train on, found none among the domains "
                f"{', '.join(sorted(domains))}."
            )
        epochs = epochs_for(recipe.steps, images, batch)
        budgets.append({"match": {"hold_out": list(left_out)}, "set": {"epochs": epochs}})
    return budgets


def planned_runs(sweep: Mapping[str, Any], out: Path) -> list[PlannedRun]:
    """Return the runs of a sweep, each with the directory below `out` that it will have or has.

    Raises:
        LFIError: as `read_sweep` and `plan_sweep`.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-recipe-") as scratch:
        path = Path(scratch) / SWEEP
        path.write_text(tomli_w.dumps(sweep), encoding="utf-8")
        return plan_sweep(read_sweep(path), out / "runs")


def commands_of(
    recipe: Recipe, place: Place, splits: Splits, runs: Iterable[PlannedRun], sizes: Mapping[str, int]
) -> list[Command]:
    """Return the commands, in order.

    Args:
        recipe: what to run.
        place: where.
        splits: one of the recipe's.
        runs: of its sweep.
        sizes: images of each split that is extracted, by split; of a zero-shot data set by its name.
    """
    runs = list(runs)
    commands = [
        _extract(recipe, place, recipe.dataset, place.data_root, splits.train, place.shards, sizes[splits.train])
    ]
    val = place.val_shards(splits)
    own = [(splits.val, val)] if val != place.shards else []
    own += [(splits.test, place.test_shards)] if splits.test else []
    scored = [(recipe.dataset, place.data_root, split, cache, sizes[split]) for split, cache in own]
    scored += [(name, root, "all", place.out / f"shards-{name}", sizes[name]) for name, root in place.zero_shot.items()]
    commands += [_extract(recipe, place, *each, views="full") for each in scored]
    grounded = any(each.protocol == "grounding" for each in recipe.evaluate)
    seen = command_words("inspect", place.test_shards if splits.test else val, pointing=grounded or None)
    commands.append(Command(title="what the teacher sees", words=seen))
    machine = {"together": place.together, "workers": place.workers, "device": place.device}
    sweep = command_words("sweep", place.out / SWEEP, choose=list(recipe.choose) or None, **machine)
    commands.append(Command(title=f"{len(runs)} students", words=sweep))
    for each in recipe.evaluate:
        commands += _evaluations(each, place, splits, runs, val)
    folders = [run.folder for run in runs]
    primary = list(recipe.primary) or None
    kinds = {"markdown": "md", "csv": "csv"}
    if any(each.protocol != "convergence" for each in recipe.evaluate):  # which has nothing in per cent to draw
        kinds["plot"] = "svg"
    written = {name: place.out / f"results.{kind}" for name, kind in kinds.items()}
    if not recipe.choose:
        table = command_words("compare", *folders, primary=primary, **written)
        commands.append(Command(title="the table", words=table))
    page = command_words(
        "report", *folders, primary=primary, out=place.out / "report.html", title=f"Recipe {recipe.name}"
    )
    commands.append(Command(title="the page", words=page))
    return commands


def _extract(
    recipe: Recipe, place: Place, dataset: str, root: Path, split: str, out: Path, images: int, views: str = ""
) -> Command:
    options = dict(recipe.extract) | ({"views": [views]} if views else {})
    shards = None
    if 0 < recipe.most_images < images:
        shard = int(options.get("samples_per_shard", _SHARD))
        shards = f"0:{math.ceil(recipe.most_images / shard)}"
    words = command_words(
        "extract-teacher",
        **{"dataset": dataset, "data_root": root, "split": split, "out": out, "teacher": recipe.teacher or None},
        **options,
        **{"shards": shards, "device": place.device},
    )
    return Command(title=f"maps of {dataset}, {split}", words=words)


def scored_by(evaluation: Evaluation, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return the runs that an evaluation of a recipe scores."""
    scored = [run for run in runs if not evaluation.objectives or run.config.objective in evaluation.objectives]
    return [run for run in scored if run.config.objective != evaluation.references]


def _evaluations(
    evaluation: Evaluation, place: Place, splits: Splits, runs: list[PlannedRun], val: Path
) -> list[Command]:
    scored = scored_by(evaluation, runs)
    caches: list[Path | None] = [None]
    own = {"val": val, "test": place.test_shards}
    if evaluation.targets in own:
        caches = [own[evaluation.targets]]
    elif evaluation.targets == "zero-shot":
        caches = [place.out / f"shards-{name}" for name in place.zero_shot]
    options = {name.replace("-", "_"): value for name, value in evaluation.options.items()}
    groups = [scored]
    if evaluation.one_by_one:
        groups = [[run] for run in scored]
    elif evaluation.references:
        choices = dict.fromkeys(_comparable(run) for run in scored)
        groups = [[run for run in scored if _comparable(run) == alike] for alike in choices]
    return [
        Command(
            title=evaluation.protocol + (f" of {group[0].name}" if len(groups) > 1 else ""),
            words=command_words(
                "evaluate",
                *(run.folder for run in group),
                **{"protocol": evaluation.protocol, "weights": splits.weights, "targets": cache},
                **{"reference": _references(evaluation, runs, group)},
                **options,
                **{"workers": place.workers, "device": place.device},
            ),
            once=True,
        )
        for cache in caches
        for group in groups
        if group
    ]


def _references(evaluation: Evaluation, runs: list[PlannedRun], group: list[PlannedRun]) -> tuple[Path, ...]:
    """Return the folders of the reference runs that the runs of `group` are compared with."""
    alike = {_comparable(run) for run in group}
    fit = [run for run in runs if run.config.objective == evaluation.references and _comparable(run) in alike]
    return tuple(run.folder for run in fit)


def _comparable(run: PlannedRun) -> tuple[tuple[str, ...], str]:
    """Return what a run and its reference must share: the domains that are left out, and the student."""
    return run.config.data.hold_out, run.config.student.name


def require_place(place: Place, recipe: Recipe) -> None:
    """Check that `place.out` is free, or holds this recipe already.

    Raises:
        OutputExistsError: it holds something else.
    """
    out, held = place.out, place.out / RECIPE
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} must be a directory, found a file.")
    if held.is_file():
        there = read_toml(held)
        for name in ("name", "dataset", "teacher", "most_images"):
            wanted = recipe.to_plain().get(name)
            if there.get(name) != wanted:
                raise OutputExistsError(
                    f"{out} holds another recipe ({name}: {there.get(name)!r} there, {wanted!r} asked); choose another "
                    "`out`, or move it away."
                )
    elif out.is_dir() and any(out.iterdir()):
        raise OutputExistsError(f"{out} must be empty or hold {RECIPE}, found other files; choose another `out`.")


def write_files(place: Place, recipe: Recipe, sweep: Mapping[str, Any], commands: Iterable[Command]) -> None:
    """Write `recipe.toml`, `sweep.toml` and `commands.sh` to `place.out`.

    Raises:
        OutputWriteError: they cannot be written.
    """
    heading = (
        f"# As it runs here; {command_line('reproduce', place.out / RECIPE, data_root='DIR')} runs it elsewhere.\n\n"
    )
    script = "".join(f"\n# {command.title}\n{command.line}\n" for command in commands)
    texts = {
        RECIPE: heading + tomli_w.dumps(recipe.to_plain()),
        SWEEP: f"# Recipe {recipe.name}: {recipe.title}.\n\n{tomli_w.dumps(sweep)}",
        COMMANDS: f"#!/bin/sh\n# Recipe {recipe.name}, command by command.\nset -e\n{script}",
    }
    try:
        place.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomic(place.out / name, text.encode())
    except OSError as error:
        raise OutputWriteError(f"{place.out} cannot be written: {error.strerror or error}.") from error


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
        left_out: protocols of the recipe that cannot be run here, and what they need.
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
    counts = {splits.val: len(val), splits.train: len(train)}
    if splits.test:
        counts[splits.test] = len(read_dataset(recipe.dataset, place.data_root, splits.test))
    counts |= {name: len(other) for name, other in others.items()}
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
        left_out=("zero-shot: needs another data set, such as `zero_shot=pacs=DIR`",)
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
