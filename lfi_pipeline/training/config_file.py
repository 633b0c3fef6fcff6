"""A run as a TOML file: what `lfi train --config FILE` reads and what a run saves of itself.

    targets = "shards"
    student = "vit_small_patch16_224"
    learning-rate = 1e-3            # or learning_rate
    weight = {lfi = "0.3:cosine"}

Names are those of `settings.FIELDS`. A relative path in a file is relative to the file, so that it means the same
wherever it is read from; a file that is written holds absolute ones.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lfi_pipeline.errors import ConfigError, OutputWriteError, UnknownNameError
from lfi_pipeline.targets.files import write_atomic
from lfi_pipeline.training.config import Machine
from lfi_pipeline.training.settings import FIELDS, near_settings, typed_setting


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
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} must be TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be TOML, which is UTF-8 text: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


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
