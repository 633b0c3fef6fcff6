"""Settings in TOML files: the keys are the names of the options, written with `-` or with `_`.

    targets = "shards"
    student = "vit_small_patch16_224"
    warmup-epochs = 5
    weight = {lfi = "0.3:cosine"}

A relative path in a file is relative to the file, so that it means the same wherever it is read from; a file that is
written holds absolute ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputWriteError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.options import current_names, declared, typed, unknown_name


class SettingsFile:
    """Reads and writes files of one config class.

    Attributes:
        kind: the config class.
        elsewhere: names that a user may look for in such a file and that belong on the command line, and why.
    """

    def __init__(self, kind: Any, elsewhere: Iterable[str] = (), reason: str = "") -> None:
        self.kind = kind
        self.elsewhere = frozenset(elsewhere)
        self.reason = reason

    def read(self, path: Path) -> dict[str, Any]:
        """Return the settings in the file `path`, by current name and of plain type; paths are absolute.

        Raises:
            ConfigError: the file cannot be read, is not TOML (with line and column), or a value has the wrong type.
            UnknownNameError: a name that is no setting; lists near ones.
        """
        return self.table(read_toml(path), path)

    def table(self, table: Mapping[str, Any], path: Path, where: str = "") -> dict[str, Any]:
        """Return one table of the file `path` as settings; `where` names the table in messages.

        Raises:
            ConfigError, UnknownNameError: as `read`.
        """
        source = f"{path}, [{where}]" if where else str(path)
        flat: dict[str, Any] = {}
        for key, value in table.items():
            name, current = self.entry(key, value, path, source)
            if name in flat:
                raise ConfigError(f"{source}: {name} must be given once, found it under two spellings.")
            flat[name] = current
        return flat

    def name(self, key: str, where: str) -> str:
        """Return the current name for a key of a file.

        Raises:
            ConfigError: it is not for this kind of file.
            UnknownNameError: it is no setting.
        """
        name = key.replace("-", "_")
        if name in self.elsewhere:
            raise ConfigError(f"{where}: {key} {self.reason} Give `{name}` beside the file.")
        for current, each in declared(self.kind).items():
            if name == current or name in (alias.name for alias in each.aliases):
                return current
        raise unknown_name(f"setting in {where}:", self.kind, key)

    def entry(self, key: str, value: Any, path: Path, where: str) -> tuple[str, Any]:
        """Return the current name and plain value of one entry; a path becomes absolute, from the file `path`.

        Raises:
            ConfigError, UnknownNameError: as `read`.
        """
        name = self.name(key, where)
        try:
            value = current_names(self.kind, {key.replace("-", "_"): value})[name]
            fitting = None if value is None else typed(declared(self.kind)[name], value)
        except LFIError as error:
            raise error.within(where) from error
        return name, _absolute(fitting, value, path.resolve().parent)

    def text(self, flat: Mapping[str, Any], first_line: str = "") -> str:
        """Return `flat`, as `options.flatten` gives it, as TOML; what is None is left out, paths become absolute."""
        settings = {name: self._absolute_here(name, value) for name, value in flat.items() if value is not None}
        return (f"# {first_line}\n\n" if first_line else "") + tomli_w.dumps(settings)

    def write(self, path: Path, flat: Mapping[str, Any], first_line: str = "") -> None:
        """Write `text` to the file `path`.

        Raises:
            OutputWriteError: the file cannot be written.
        """
        try:
            write_atomic(path, self.text(flat, first_line).encode())
        except OSError as error:
            raise OutputWriteError(f"{path} cannot be written: {error.strerror or error}.") from error

    def _absolute_here(self, name: str, value: Any) -> Any:
        return _absolute(typed(declared(self.kind)[name], value), value, Path.cwd())


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
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} must be TOML of sizes that can be read: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


def _absolute(value: Any, otherwise: Any, folder: Path) -> Any:
    """Return paths as absolute texts, and anything else as `otherwise`."""
    if isinstance(value, Path):
        return str((folder / value.expanduser()).resolve())
    if isinstance(value, tuple) and value and all(isinstance(each, Path) for each in value):
        return [_absolute(each, each, folder) for each in value]
    return otherwise
