"""Recipes: one declarative TOML file each, shipped in the wheel or written by the user.

A recipe is this project's choice of how to compare the objectives on a data set at full scale; comments in the files
name where a value comes from. The paper's own settings were not known to us when this was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data import load_manifest
from lfi_pipeline.evaluation.metrics import PROTOCOLS
from lfi_pipeline.training.settings import read_toml, setting_name, settings_in

EXTRACT = {
    **dict.fromkeys(("kind", "row", "layers", "text", "captions", "precision", "layout", "codec", "views"), str),
    **dict.fromkeys(("words", "samples_per_shard", "batch_size"), int),
}
"""Options of `lfi extract-teacher` that a recipe may set, and their types."""
TARGETS = ("", "val", "zero-shot")
WEIGHTS = ("last", "best")
_OPTIONS = (str, int, float, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Which splits are trained and scored on. A recipe may list several; the first that the data root has is taken.

    Attributes:
        train: split to extract and to train on.
        val: split to score on after every epoch.
        weights: that the protocols score, last or best; best needs a `val` that is not trained on.
        note: what a reader of the scores should know.
        published: images of `train`, as the data set's authors count them; 0: not known.
        published_val: the same of `val`.
    """

    train: str
    val: str
    weights: str = "best"
    note: str = ""
    published: int = 0
    published_val: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One call of `lfi evaluate`.

    Attributes:
        protocol: one of `PROTOCOLS`.
        targets: the cache that goes with it: none, that of the validation split, or those of the data sets that the
            user gives for zero-shot scores, one call each.
        objectives: whose runs are scored; empty: all.
        references: objective whose runs the others are held against, as the protocol convergence asks: those that leave
            out the same domains; empty: the protocol needs none.
        options: further options, by name without the dashes; true is a bare flag.
        one_by_one: a command for each run, since one takes hours.
    """

    protocol: str
    targets: str = ""
    objectives: tuple[str, ...] = ()
    references: str = ""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    one_by_one: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A comparison at full scale: data, teacher, runs and evaluations.

    Attributes:
        name: of the recipe.
        title: one line.
        dataset: name of a data set, or path of a manifest.
        splits: one or more.
        teacher: `NAME[:TAG]`; empty takes the data set's own.
        most_images: of each split that are extracted, in whole shards from the first on; 0: all.
        steps: of each run, whatever domains it leaves out: epochs follow from the images; 0: the `epochs` of `base`.
        extract: options of `lfi extract-teacher`.
        base: settings of every run.
        grid: settings that vary, each with its values.
        where: as `[[where]]` of a sweep.
        evaluate: calls of `lfi evaluate`.
    """

    name: str
    title: str
    dataset: str
    splits: tuple[Splits, ...]
    teacher: str = ""
    most_images: int = 0
    steps: int = 0
    extract: Mapping[str, str | int] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    where: tuple[Mapping[str, Any], ...] = ()
    evaluate: tuple[Evaluation, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        """Views of the training split's cache."""
        return tuple(view.strip() for view in str(self.extract.get("views", "full,hflip")).split(","))

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
    if changes is None:
        if small:
            raise ConfigError(f"{path} must have a table [small] to be scaled down, found none.")
        return full
    scaled = parse_recipe(merged(table, _typed(changes, dict, path, "small")), path)
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
    known = _known(table, Recipe, path, "recipe")
    for name in ("name", "title", "dataset", "teacher"):
        _typed(known.get(name, ""), str, path, name)
    for name in ("most_images", "steps"):
        if _typed(known.get(name, 0), int, path, name) < 0:
            raise ConfigError(f"{path}: {name} must be 0 or more, got {known[name]}.")
    for name in ("extract", "base", "grid"):
        _typed(known.get(name, {}), dict, path, name)
    for name in ("splits", "where", "evaluate"):
        for entry in _typed(known.get(name, []), list, path, name):
            _typed(entry, dict, path, name)
    if not known["splits"]:
        raise ConfigError(f"{path} must have one table [[splits]] or more, got none.")
    load_manifest(known["dataset"])
    for option, value in known.get("extract", {}).items():
        if option not in EXTRACT:
            raise UnknownNameError(f"option of {path}, [extract]:", option, EXTRACT)
        _typed(value, EXTRACT[option], path, f"extract, {option}")
    settings_in(known.get("base", {}), path, "base")
    for key, values in known.get("grid", {}).items():
        setting_name(key, f"{path}, [grid]")
        _typed(values, list, path, f"grid, {key}")
    evaluations = tuple(_evaluation(entry, path) for entry in known.get("evaluate", []))
    splits = tuple(_splits(entry, path) for entry in known["splits"])
    return Recipe(
        **known | {"splits": splits, "where": tuple(known.get("where", ())), "evaluate": evaluations},
    )


def _splits(table: Mapping[str, Any], path: Path) -> Splits:
    known = _known(table, Splits, path, "[[splits]]")
    for name in ("train", "val", "weights", "note"):
        _typed(known.get(name, ""), str, path, f"splits, {name}")
    for name in ("published", "published_val"):
        _typed(known.get(name, 0), int, path, f"splits, {name}")
    splits = Splits(**known)
    if splits.weights not in WEIGHTS:
        raise UnknownNameError(f"weights in {path}:", splits.weights, WEIGHTS)
    return splits


def _evaluation(table: Mapping[str, Any], path: Path) -> Evaluation:
    known = _known(table, Evaluation, path, "[[evaluate]]")
    if _typed(known["protocol"], str, path, "evaluate, protocol") not in PROTOCOLS:
        raise UnknownNameError(f"protocol in {path}:", known["protocol"], PROTOCOLS)
    if _typed(known.get("targets", ""), str, path, "evaluate, targets") not in TARGETS:
        raise UnknownNameError(f"targets in {path}:", known["targets"], TARGETS)
    _typed(known.get("references", ""), str, path, "evaluate, references")
    _typed(known.get("one_by_one", False), bool, path, "evaluate, one_by_one")
    for name in _typed(known.get("objectives", []), list, path, "evaluate, objectives"):
        _typed(name, str, path, "evaluate, objectives")
    for option, value in _typed(known.get("options", {}), dict, path, "evaluate, options").items():
        if not isinstance(value, _OPTIONS):
            raise ConfigError(f"{path}: option {option} must be text, a number or true, got {value!r}.")
    return Evaluation(**known | {"objectives": tuple(known.get("objectives", ()))})


def _known(table: Mapping[str, Any], kind: type, path: Path, what: str) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    for key in table:
        if key not in names:
            raise UnknownNameError(f"field of {path}, {what}:", key, names)
    for each in fields(kind):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in table:
            raise ConfigError(f"{path}: {what} must have the field {each.name}, found none.")
    return dict(table)


_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}


def _typed(value: Any, kind: type, path: Path, name: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: {name} must be {_KINDS[kind]}, got {value!r}.")
    return value


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
