"""`scenes`: the embedded data set, rendered deterministically from a seed."""

from lfi_pipeline.data.scenes.categories import NAMES
from lfi_pipeline.data.scenes.domains import DOMAINS
from lfi_pipeline.data.scenes.write import ScenesConfig, write_scenes

__all__ = ["DOMAINS", "NAMES", "ScenesConfig", "write_scenes"]
