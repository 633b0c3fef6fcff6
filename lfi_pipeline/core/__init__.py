"""Shared ground of the library: errors, files, schemas, devices and model hubs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562) that imports a name of a package when it is first asked for.

    So `import lfi_pipeline` costs milliseconds, and a command waits only for what it uses.

    Args:
        package: dotted name of the package.
        modules: module of the package -> names that it gives to the package. A name must not be that of a module.

    Raises:
        AttributeError: by the function, for a name that the package does not have.
    """
    where = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{where[name]}"), name)

    return get
