"""Recipes: one declarative TOML file each, shipped in the wheel or written by the user.

A recipe is this project's choice of how to compare the objectives on a data set at full scale; comments in the files
name where a value comes from. The paper's own settings were not known to us when this was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError, LFIError, UnknownNameError
from lfi_pipeline.core.options import Option, build, check, declared, plain, typed
from lfi_pipeline.core.settings_file import read_toml
from lfi_pipeline.data import load_manifest
from lfi_pipeline.evaluation.metrics import PROTOCOLS, check_primary
from lfi_pipeline.teachers.config import VIEWS, ExtractConfig
from lfi_pipeline.training.config import RUN_FILE

EXTRACT = (
    *("kind", "row", "layers", "text", "captions", "precision", "layout", "codec", "views"),
    *("words", "samples_per_shard", "batch_size"),
)
"""Options of `lfi extract-teacher` that a recipe may set."""
TARGETS = ("", "val", "test", "zero-shot")
WEIGHTS = ("last", "best")
_OPTIONS = (str, int, float, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Which splits are trained and scored on. A recipe may list several; the first that the data root has is taken."""

    train: Annotated[str, Option("Split to extract and to train on.")]
    val: Annotated[str, Option("Split to score on after every epoch.")]
    test: Annotated[
        str, Option("Split that protocols score where they say so, on which nothing was chosen; empty: there is none.")
    ] = ""
    weights: Annotated[
        str,
        Option("That the protocols score; best needs a val that is not trained on.", choices=WEIGHTS, noun="weights"),
    ] = "best"
    note: Annotated[str, Option("What a reader of the scores should know.")] = ""
    published: Annotated[int, Option("Images of train, as the data set's authors count them; 0: not known.", ge=0)] = 0
    published_val: Annotated[int, Option("The same of val.", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Splits:
        """Read a table of a recipe."""
        return build(cls, table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One call of `lfi evaluate`."""

    protocol: Annotated[str, Option("Which protocol.", choices=PROTOCOLS)]
    targets: Annotated[
        str,
        Option(
            "The cache that goes with it: none, that of the validation or of the test split, or those of the data sets "
            "that the user gives for zero-shot scores, one call each.",
            choices=TARGETS,
        ),
    ] = ""
    objectives: Annotated[tuple[str, ...], Option("Whose runs are scored; empty: all.")] = ()
    references: Annotated[
        str,
        Option(
            "Objective whose runs the others are held against, as the protocol convergence asks: those that leave out "
            "the same domains; empty: the protocol needs none."
        ),
    ] = ""
    options: Annotated[
        Mapping[str, Any],
        Option("Further options, by name without the dashes; true is a bare flag, false switches it off."),
    ] = field(default_factory=dict)
    one_by_one: Annotated[bool, Option("A command for each run, since one takes hours.")] = False

    def __post_init__(self) -> None:
        check(self)
        for option, value in self.options.items():
            if not isinstance(value, _OPTIONS):
                raise ConfigError(f"option {option} must be text, a number, true or false, got {value!r}.")

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Evaluation:
        """Read a table of a recipe."""
        return build(cls, table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A comparison at full scale: data, teacher, runs and evaluations."""

    name: Annotated[str, Option("Of the recipe.")]
    title: Annotated[str, Option("One line.")]
    dataset: Annotated[str, Option("Name of a data set, or path of a manifest.")]
    splits: Annotated[tuple[Splits, ...], Option("Tables [[splits]].", at_least_one=True)]
    teacher: Annotated[str, Option("NAME[:TAG]; empty takes the data set's own.")] = ""
    most_images: Annotated[
        int, Option("Of each split that are extracted, in whole shards from the first on; 0: all.", ge=0)
    ] = 0
    steps: Annotated[
        int,
        Option(
            "Of each run at least, whatever domains it leaves out: epochs follow from the images; 0: those of base.",
            ge=0,
        ),
    ] = 0
    extract: Annotated[Mapping[str, Any], Option("Options of the extraction, some of `EXTRACT`.")] = field(
        default_factory=dict
    )
    base: Annotated[Mapping[str, Any], Option("Settings of every run.")] = field(default_factory=dict)
    grid: Annotated[Mapping[str, Any], Option("Settings that vary, each with its values.")] = field(
        default_factory=dict
    )
    variant: Annotated[tuple[Mapping[str, Any], ...], Option("As [[variant]] of a sweep.")] = ()
    where: Annotated[tuple[Mapping[str, Any], ...], Option("As [[where]] of a sweep.")] = ()
    choose: Annotated[
        tuple[str, ...],
        Option(
            "Settings that the recipe tries out, as lfi sweep shows the best trials of them; then it compares nothing."
        ),
    ] = ()
    evaluate: Annotated[tuple[Evaluation, ...], Option("Calls of the evaluation.")] = ()
    primary: Annotated[
        tuple[str, ...],
        Option("Measures by which runs are judged, named before they are scored: they alone are tested; empty: all."),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        if any(each.targets == "test" for each in self.evaluate) and not all(each.test for each in self.splits):
            raise ConfigError("A protocol with targets 'test' needs a test split in each of [[splits]].")

    @property
    def views(self) -> tuple[str, ...]:
        """Views of the training split's cache."""
        return tuple(self.extract.get("views", VIEWS))

    def to_plain(self) -> dict[str, Any]:
        """Return the recipe as a TOML table."""
        table: dict[str, Any] = _plain(self)
        return table


def recipe_names() -> tuple[str, ...]:
    """Return the names of all shipped recipes, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    )


def load_recipe(name_or_path: str, *, small: bool = False) -> Recipe:
    """Return the shipped recipe of that name, or the one in the user's own `.toml` file.

    Args:
        name_or_path: of the recipe.
        small: change it as its table `[small]` says, into a trial for any machine.

    Raises:
        UnknownNameError: no such recipe, field, setting or protocol; lists the choices.
        ConfigError: not TOML, a field that is absent or of the wrong type, `small` of a recipe without that table.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        if name_or_path not in recipe_names():
            raise UnknownNameError("recipe", name_or_path, recipe_names())
        with resources.as_file(_folder() / f"{name_or_path}.toml") as path:
            return _parsed(read_toml(path), path, small)
    return _parsed(read_toml(path), path, small)


def _parsed(table: dict[str, Any], path: Path, small: bool) -> Recipe:
    """Check a whole file, `[small]` as well, so that a mistake there is found before anybody needs it."""
    changes = table.pop("small", None)
    full = parse_recipe(table, path)
    if changes is not None and not isinstance(changes, dict):
        raise ConfigError(f"{path}: small must be a table, got {changes!r}.")
    if changes is None:
        if small:
            raise ConfigError(f"{path} must have a table [small] to be scaled down, found none.")
        return full
    scaled = parse_recipe(merged(table, changes), path)
    unknown_sizes = tuple(replace(each, published=0, published_val=0) for each in scaled.splits)  # nothing to compare
    return replace(scaled, splits=unknown_sizes) if small else full


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` with `changes` over it; tables in both are merged, everything else is replaced."""
    result = dict(table)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(table.get(name), Mapping)
        result[name] = merged(table[name], value) if both else value
    return result


def parse_recipe(table: Mapping[str, Any], path: Path) -> Recipe:
    """Check a table and return its recipe; raises as `load_recipe`."""
    try:
        recipe = build(Recipe, table)
        recipe = replace(recipe, extract=dict(_extract_option(*entry) for entry in recipe.extract.items()))
        check_primary(recipe.primary)
    except LFIError as error:
        raise error.within(str(path)) from error
    load_manifest(recipe.dataset)
    RUN_FILE.table(recipe.base, path, "base")
    for key, values in recipe.grid.items():
        RUN_FILE.name(key, f"{path}, [grid]")
        if not isinstance(values, list):
            raise ConfigError(f"{path}: grid, {key} must be a list of values, got {values!r}.")
    return recipe


def _extract_option(name: str, value: Any) -> tuple[str, Any]:
    if name not in EXTRACT:
        raise UnknownNameError("option of [extract]", name, EXTRACT)
    option = declared(ExtractConfig)[name]
    if isinstance(value, str) and option.option.separator is not None:
        value = [part.strip() for part in value.split(option.option.separator)]
    return name, plain(typed(option, value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Recipe | Splits | Evaluation):
        default = {each.name: each.default for each in fields(value)}
        return {
            name: _plain(getattr(value, name))
            for name in default
            if getattr(value, name) not in (default[name], (), {})
        }
    return value


def _folder() -> Traversable:
    return resources.files("lfi_pipeline") / "recipes"
