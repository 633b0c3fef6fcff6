"""`scenes`: the embedded data set, rendered deterministically from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.data.scenes.domains import DOMAINS
    from lfi_pipeline.data.scenes.glyphs import NAMES
    from lfi_pipeline.data.scenes.write import write_scenes

__all__ = ["DOMAINS", "NAMES", "write_scenes"]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(__name__, {"domains": ["DOMAINS"], "glyphs": ["NAMES"], "write": ["write_scenes"]})
