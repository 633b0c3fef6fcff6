"""The flat names by which a run is written down: the options of `lfi train`, config.toml, sweeps and config.json."""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lfi_pipeline.core import parse
from lfi_pipeline.core.errors import ConfigError, OutputWriteError, UnknownNameError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.data.augment import Augmentation, Photometric
from lfi_pipeline.data.mixing import MixConfig
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.training.config import Machine, OptimizerConfig, StreamConfig, TrainConfig, Weight

FIELDS: Mapping[str, str] = {
    "targets": "stream.targets",
    "data_root": "stream.data_root",
    "hold_out": "stream.hold_out",
    "maps": "stream.maps",
    "words": "stream.words",
    "mirror_maps": "stream.mirror_maps",
    "least_area": "stream.augmentation.least_area",
    "aspect": "stream.augmentation.aspect",
    "flip": "stream.augmentation.flip",
    "randaugment": "stream.photometric.ops",
    "magnitude": "stream.photometric.magnitude",
    "magnitude_spread": "stream.photometric.spread",
    "randaugment_pool": "stream.photometric.pool",
    "mixup": "stream.mix.mixup",
    "cutmix": "stream.mix.cutmix",
    "mix_probability": "stream.mix.probability",
    "epochs": "stream.epochs",
    "batch_size": "stream.batch_size",
    "seed": "stream.seed",
    "student": "student.name",
    "image_size": "student.image_size",
    "patch_size": "student.patch_size",
    "student_arg": "student.kwargs",
    "pretrained": "student.pretrained",
    "taps": "student.taps",
    "queries": "queries.mode",
    "slots": "queries.slots",
    "readout": "queries.readout",
    "query_width": "queries.width",
    "query_heads": "queries.heads",
    "state": "queries.state",
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "layer_decay": "optimizer.layer_decay",
    "clip": "optimizer.clip",
    "schedule": "optimizer.schedule",
    "warmup_epochs": "optimizer.warmup_epochs",
    "ema": "optimizer.ema",
    "objective": "objective",
    "weight": "weights",
    "task": "task",
    "val_split": "val_split",
    "precision": "precision",
    "accumulate": "accumulate",
}
"""Flat name -> place in a `TrainConfig`."""

_GROUPS: Mapping[str, type] = {
    "stream.augmentation": Augmentation,
    "stream.photometric": Photometric,
    "stream.mix": MixConfig,
    "stream": StreamConfig,
    "student": StudentConfig,
    "queries": QueryConfig,
    "optimizer": OptimizerConfig,
    "": TrainConfig,
}
"""Inner ones first: each is an argument of the one around it."""

_KINDS: Mapping[str, str] = {
    "Path": "a path",
    "Mapping[str, Weight]": "a table of terms and weights, such as lfi = 0.1 or lfi = '0.1:cosine'",
    "Mapping[str, Any]": "a table of names and plain values",
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a list of whole numbers",
    "float": "a finite number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
}
"""Type of a field, as it is written in its dataclass -> what it asks of a value."""
_NEAR_NAMES = 5


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return `config` under its flat names, as plain JSON values; `config_of` undoes it."""
    flat: dict[str, Any] = {}
    for name, place in FIELDS.items():
        value: Any = config
        for part in place.split("."):
            value = getattr(value, part)
        flat[name] = _plain(value)
    return flat


def default_settings() -> dict[str, Any]:
    """Return what every setting is where nobody gives it, as `flat_settings` does; `targets` has no default."""
    flat = flat_settings(TrainConfig(stream=StreamConfig(targets=Path())))
    return flat | {"targets": None}


def config_of(flat: Mapping[str, Any]) -> TrainConfig:
    """Return the run that `flat` describes; names left out, or None, take their defaults.

    Raises:
        UnknownNameError: a name that is no setting, or a value that is no choice.
        ConfigError: a value of the wrong type or out of range.
    """
    arguments: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    for name, value in flat.items():
        typed = typed_setting(name, value)
        if typed is not None:
            group, _, field = FIELDS[name].rpartition(".")
            arguments[group][field] = typed
    if "targets" not in arguments["stream"]:
        raise ConfigError("targets must name a cache, as made by lfi extract-teacher, got none.")
    for group, kind in _GROUPS.items():
        built = kind(**arguments[group])
        if not group:
            return built  # type: ignore[no-any-return]
        outer, _, field = group.rpartition(".")
        arguments[outer][field] = built
    raise AssertionError("the outermost group is last")


def typed_setting(name: str, value: Any) -> Any:
    """Return a plain value as the type of its field in a `TrainConfig`; None stays None.

    Raises:
        UnknownNameError: `name` is no setting; lists near ones.
        ConfigError: a value of the wrong type.
    """
    if name not in FIELDS:
        raise UnknownNameError("setting", name, near_settings(name))
    if value is None:
        return None
    group, _, field = FIELDS[name].rpartition(".")
    kind = next(str(f.type) for f in dataclasses.fields(_GROUPS[group]) if f.name == field)
    return _typed(name, value, kind.removesuffix(" | None"))


def near_settings(name: str) -> list[str]:
    """Return the settings whose names are most like `name`."""
    return difflib.get_close_matches(name, FIELDS, n=_NEAR_NAMES, cutoff=0.0)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Weight) and value.schedule == "constant":
        return value.value
    return str(value) if isinstance(value, Path | Weight) else value


def _typed(name: str, value: Any, kind: str) -> Any:
    try:
        match kind:
            case "Path":
                return Path(_require(value, str, Path))
            case "Mapping[str, Weight]":
                return {term: _weight(term, weight) for term, weight in _require(value, Mapping).items()}
            case "Mapping[str, Any]":
                return {key: _require_plain(inner) for key, inner in _require(value, Mapping).items()}
            case "tuple[str, ...]":
                return tuple(_require(entry, str) for entry in _require(value, list, tuple))
            case "tuple[int, ...]":
                return tuple(_require(entry, int) for entry in _require(value, list, tuple))
            case "float":
                number = float(_require(value, int, float))
                if not math.isfinite(number):
                    raise TypeError
                return number
            case "int" | "str" | "bool":
                wanted: type = {"int": int, "str": str, "bool": bool}[kind]
                return _require(value, wanted)
    except TypeError:
        raise ConfigError(f"{name} must be {_KINDS[kind]}, got {value!r}.") from None
    raise AssertionError(f"{name}: no rule for type {kind}")


def _weight(term: str, value: Any) -> Weight:
    if isinstance(value, Weight):
        return value
    try:
        return Weight.parse(_require(value, int, float, str))
    except ConfigError as error:
        raise ConfigError(f"weight of {term}: {error}") from error


def _require(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError
    return value


def _require_plain(value: Any) -> Any:
    """A value that JSON and TOML can both hold, so that a run can be written down in either."""
    if isinstance(value, Mapping):
        return {_require(key, str): _require_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_require_plain(inner) for inner in value]
    return _require(value, bool, int, float, str)


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in the file `path`, by flat name and of plain type; paths are absolute.

    Raises:
        ConfigError: the file cannot be read, is not TOML (with line and column), or a value has the wrong type.
        UnknownNameError: a name that is no setting; lists near ones.
    """
    return settings_in(read_toml(path), path)


def write_config(path: Path, flat: Mapping[str, Any]) -> None:
    """Write `flat`, as `settings.flat_settings` gives it, to the file `path`; what is None is left out.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    try:
        write_atomic(path, config_text(flat, path).encode())
    except OSError as error:
        raise OutputWriteError(f"{path} cannot be written: {error.strerror or error}.") from error


def config_text(flat: Mapping[str, Any], path: Path) -> str:
    """Return what `write_config` writes."""
    told = {name: _absolute(name, value) for name, value in flat.items() if value is not None}
    again = shlex.join(["lfi", "train", "--config", str(path.resolve())])
    return f"# {again}\n\n{tomli_w.dumps(told)}"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML; says where in the file.
    """
    return parse.read_toml(path, error=ConfigError)


def settings_in(table: Mapping[str, Any], path: Path, where: str = "") -> dict[str, Any]:
    """Return one table of the file `path` as settings; `where` names the table in messages.

    Raises:
        ConfigError, UnknownNameError: as `read_config`.
    """
    told = f"{path}, [{where}]" if where else str(path)
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = setting_name(key, told)
        if name in flat:
            raise ConfigError(f"{told}: {name} must be given once, found it with '-' and with '_'.")
        flat[name] = setting_value(name, value, path, told)
    return flat


def setting_name(key: str, where: str) -> str:
    """Return the flat name for a key of a file, which may be written with `-`.

    Raises:
        ConfigError: it is an option of the machine.
        UnknownNameError: it is no setting.
    """
    name = key.replace("-", "_")
    if name in Machine.__dataclass_fields__:
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"{where}: {key} says how a run is carried out, not what it is. Give it as {option}.")
    if name not in FIELDS:
        raise UnknownNameError(f"setting in {where}:", key, near_settings(name))
    return name


def setting_value(name: str, value: Any, path: Path, where: str) -> Any:
    """Return the value of the setting `name`, of plain type; a path becomes absolute, from the file `path`.

    Raises:
        ConfigError: the wrong type.
    """
    try:
        typed = typed_setting(name, value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return str((path.resolve().parent / typed.expanduser()).resolve()) if isinstance(typed, Path) else value


def _absolute(name: str, value: Any) -> Any:
    typed = typed_setting(name, value)
    return str(typed.resolve()) if isinstance(typed, Path) else value
