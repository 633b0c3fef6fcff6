"""Many runs from one file: a grid over settings, written in TOML.

    out = "runs/first"              # relative to the file, as all paths in it

    [base]                          # settings of every run, as in a run's config.toml
    targets = "shards"
    epochs = 15

    [grid]                          # every combination of these is a run
    student = ["vit_tiny_patch16_224", "resnet18"]
    objective = ["none", "lfi"]
    seed = [0, 1, 2]

    [[where]]                       # for the runs that match; later ones see what earlier ones set
    match = {objective = "none"}    # a list matches any of its values
    set = {lr = 1e-3}

Settings that go together are variants: each of them is run with every combination of the grid.

    [[variant]]
    name = "control"                # of its runs' directories, before the values of the grid
    set = {objective = "none", lr = 1e-3}

    [[variant]]
    name = "maps"
    set = {objective = "lfi"}
    trials = [                      # one variant each, as when settings are to be chosen
        {lr = 1e-3},
        {lr = 3e-3, weight = {lfi = "100%"}},
    ]

Combinations that come out as the same run are one. A run keeps its directory when the file changes: it is known by its
settings, not by its name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputExistsError, UnknownNameError
from lfi_pipeline.core.options import build, defaults
from lfi_pipeline.core.settings_file import read_toml
from lfi_pipeline.training.config import RUN_FILE, TrainConfig
from lfi_pipeline.training.run_dir import recorded_config

_TABLES = ("out", "base", "variant", "grid", "where")
_SELF_EXPLAINING = ("student", "objective", "maps", "queries", "state", "opt", "student_arg", "weight", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """Settings for the runs that match."""

    match: Mapping[str, Any]
    set: Mapping[str, Any]

    def holds(self, flat: Mapping[str, Any]) -> bool:
        """Whether `flat` has every value of `match`."""
        return all(
            flat[name] == wanted or (isinstance(wanted, list) and flat[name] in wanted)
            for name, wanted in self.match.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Settings that go together, and what runs with them are called."""

    name: str
    set: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFile:
    """Content of a sweep's file; names are flat names of settings, paths are absolute."""

    path: Path
    out: Path | None
    base: Mapping[str, Any]
    variants: tuple[Variant, ...]
    grid: Mapping[str, Sequence[Any]]
    where: tuple[Condition, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a sweep and its directory."""

    folder: Path
    config: TrainConfig

    @property
    def name(self) -> str:
        """Name of its directory."""
        return self.folder.name


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep's file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or a value has the wrong type.
        UnknownNameError: a table or a setting that there is not.
    """
    content = read_toml(path)
    for name in content:
        if name not in _TABLES:
            raise UnknownNameError(f"entry of {path}:", name, _TABLES)
    out = content.get("out")
    if out is not None and not isinstance(out, str):
        raise ConfigError(f"{path}: out must be a path, got {out!r}.")
    base = RUN_FILE.table(_table(content.get("base", {}), path, "base"), path, "base")
    grid = _grid(_table(content.get("grid", {}), path, "grid"), path)
    variants = _variants(content.get("variant", []), path)
    for name, settings in (("[base]", base), *(("[[variant]]", each.set) for each in variants)):
        if twice := sorted(settings.keys() & grid.keys()):
            raise ConfigError(f"{path}: a setting must stand in {name} or in [grid], found {', '.join(twice)} in both.")
    where = content.get("where", [])
    if not isinstance(where, list):
        raise ConfigError(f"{path}: where must be written [[where]], a list of tables.")
    return SweepFile(
        path=path,
        out=None if out is None else (path.resolve().parent / Path(out).expanduser()).resolve(),
        base=base,
        variants=variants,
        grid=grid,
        where=tuple(_condition(table, path, number) for number, table in enumerate(where, start=1)),
    )


def settings_toml(match: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """Return what `read_sweep` reads as `changes` for the runs that match, for all where there is nothing to match.

    Without changes it is empty: there is nothing to say then.
    """
    if not changes:
        return ""
    if not match:
        return "\n".join(["[base]", *_entries(changes), ""])
    return f"[[where]]\nmatch = {_inline(match)}\nset = {_inline(changes)}\n"


def _entries(table: Mapping[str, Any]) -> list[str]:
    keys = {name: tomli_w.dumps({name: 0}).removesuffix(" = 0\n") for name in table}  # quoted where need be
    return [
        f"{keys[name]} = {_inline(value)}" if isinstance(value, Mapping) else tomli_w.dumps({name: value}).strip()
        for name, value in table.items()
    ]


def _inline(table: Mapping[str, Any]) -> str:
    """A table on one line."""
    return f"{{ {', '.join(_entries(table))} }}"


def plan_sweep(sweep: SweepFile, out: Path) -> list[PlannedRun]:
    """Return the runs of a sweep, each with its directory below `out`: the one it has, or a new one.

    Raises:
        ConfigError: no run can be made of some combinations; the message lists them.
        OutputExistsError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} must be a directory, found a file.")
    varying = sorted((name for name, values in sweep.grid.items() if len(values) > 1), key=lambda n: n == "seed")
    wrong: list[str] = []
    chosen: list[tuple[str, TrainConfig]] = []
    variants = sweep.variants or (Variant(name="", set={}),)
    for *values, variant in itertools.product(*sweep.grid.values(), variants):
        picked = dict(zip(sweep.grid, values, strict=True))
        flat = {**defaults(TrainConfig), **sweep.base, **variant.set, **picked}
        for condition in sweep.where:
            if condition.holds(flat):
                flat.update(condition.set)
        try:
            config = build(TrainConfig, flat)
        except LFIError as error:
            parts = [f"{name} = {value!r}" for name, value in picked.items()]
            combination = ", ".join(([f"variant {variant.name!r}"] if variant.name else []) + parts)
            wrong.append(f"{combination or '[base]'}: {error}")
            continue
        if all(config != other for _, other in chosen):
            chosen.append((_name(flat, varying, variant.name), config))
    if wrong:
        raise combinations_error(sweep.path, wrong)
    return _with_folders(chosen, out)


def combinations_error(path: Path, wrong: Sequence[str]) -> ConfigError:
    """Return one error that lists all invalid combinations of a sweep."""
    return ConfigError(f"{path}: these combinations cannot work, so nothing was started.\n  " + "\n  ".join(wrong))


def _with_folders(chosen: Sequence[tuple[str, TrainConfig]], out: Path) -> list[PlannedRun]:
    """Give each run the directory that holds it, else that of its name if only the data moved, else a new one."""
    folders = [folder for folder in sorted(out.iterdir()) if folder.is_dir()] if out.is_dir() else []
    held = {folder: _config_in(folder) for folder in folders}
    places = [next((folder for folder, existing in held.items() if existing == config), None) for _, config in chosen]
    taken = {folder for folder in folders if any(path.is_file() for path in folder.rglob("*"))}
    claimed = {place for place in places if place is not None}
    planned = []
    for (name, config), place in zip(chosen, places, strict=True):
        if place is None:
            names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            free = (out / each for each in names if out / each not in claimed)
            place = next(each for each in free if each not in taken or _is_moved(config, held.get(each)))
            claimed.add(place)
        planned.append(PlannedRun(folder=place, config=config))
    return planned


def _is_moved(config: TrainConfig, existing: TrainConfig | None) -> bool:
    """Whether two configs differ only in the paths of the data; training checks later that the cache is the same."""
    if existing is None:
        return False
    data = replace(existing.data, targets=config.data.targets, data_root=config.data.data_root)
    return replace(existing, data=data) == config


def _config_in(folder: Path) -> TrainConfig | None:
    """Return the config of the run in `folder`; None where it cannot be read."""
    try:
        return recorded_config(folder)
    except LFIError:
        return None


def _name(flat: Mapping[str, Any], varying: Sequence[str], variant: str) -> str:
    parts = [variant] if variant else []
    for name in varying:
        value = Path(flat[name]).name if name in ("targets", "data_root") else shown(flat[name])
        bare = name in _SELF_EXPLAINING and (name != "seed" or parts)
        parts.append(value if bare else f"{name}={value}")
    return re.sub(r"[^\w.=+,%-]+", "-", "-".join(parts)) or "run"


def shown(value: Any) -> str:
    """Return a setting's value as short text."""
    match value:
        case None:
            return "auto"
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case dict():
            return ",".join(f"{name}={shown(inner)}" for name, inner in value.items()) or "none"
        case list() | tuple():
            return "+".join(shown(inner) for inner in value) or "none"
    return str(value)


def _table(value: Any, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} must be a table, got {value!r}.")
    return value


def _require_entries(table: Any, path: Path, section: str, entries: Sequence[str]) -> None:
    for name in _table(table, path, section):
        if name not in entries:
            raise UnknownNameError(f"entry of {path}, [[{section}]]:", name, entries)


def _grid(table: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    grid: dict[str, list[Any]] = {}
    for key, values in table.items():
        location = f"{path}, [grid]"
        name = RUN_FILE.name(key, location)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{location}: {key} must be a list of values to try, got {values!r}.")
        if name in grid:
            raise ConfigError(f"{location}: {name} must be given once, found it under two spellings.")
        grid[name] = [RUN_FILE.entry(key, value, path, location)[1] for value in values]
    return grid


def _variants(tables: Any, path: Path) -> tuple[Variant, ...]:
    if not isinstance(tables, list):
        raise ConfigError(f"{path}: variant must be written [[variant]], a list of tables.")
    variants = []
    for number, table in enumerate(tables, start=1):
        section = f"variant {number}"
        _require_entries(table, path, section, ("name", "set", "trials"))
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(f"{path}, [[{section}]] must have a name of letters, digits and .+-, got {name!r}.")
        changes = RUN_FILE.table(_table(table.get("set", {}), path, f"set of {section}"), path, section)
        trials = table.get("trials", [{}])
        if not isinstance(trials, list) or not trials:
            raise ConfigError(f"{path}, [[{section}]]: trials must be a list of settings to try, got {trials!r}.")
        for trial in trials:
            tried = RUN_FILE.table(_table(trial, path, f"each of trials of {section}"), path, section)
            if twice := sorted(tried.keys() & changes.keys()):
                where = f"{path}, [[{section}]]"
                raise ConfigError(f"{where}: {', '.join(twice)} must stand in set or in trials, found in both.")
            variants.append(Variant(name=_name(tried, list(tried), name), set={**changes, **tried}))
    names = [each.name for each in variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: each [[variant]] must have a name of its own, found {', '.join(twice)} twice.")
    return tuple(variants)


def _condition(table: Any, path: Path, number: int) -> Condition:
    section = f"where {number}"
    _require_entries(table, path, section, ("match", "set"))
    match = {}
    for key, wanted in _table(table.get("match", {}), path, f"match of {section}").items():
        match.update(_wanted(key, wanted, path, f"{path}, [[{section}]]"))
    changes = RUN_FILE.table(_table(table.get("set", {}), path, f"set of {section}"), path, section)
    if not match or not changes:
        raise ConfigError(f"{path}, [[{section}]] must say what to match and what to set.")
    return Condition(match=match, set=changes)


def _wanted(key: str, wanted: Any, path: Path, location: str) -> dict[str, Any]:
    """Return name -> values a run must have to match: any of a list, or the list itself where the setting is one."""
    name = RUN_FILE.name(key, location)
    if not isinstance(wanted, list) or name == key.replace("-", "_"):
        return {name: wanted if isinstance(wanted, list) else RUN_FILE.entry(key, wanted, path, location)[1]}
    return {name: [RUN_FILE.entry(key, value, path, location)[1] for value in wanted]}
