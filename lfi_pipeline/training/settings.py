"""A run as a TOML file: what `lfi train` reads as its config and what a run saves of itself.

    targets = "shards"
    student = "vit_small_patch16_224"
    learning-rate = 1e-3            # or learning_rate
    weight = {lfi = "0.3:cosine"}

Names are those of the options of `TrainConfig`. A relative path in a file is relative to the file, so that it means the same
wherever it is read from; a file that is written holds absolute ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfi_pipeline.core.options import command_line, declared
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig

RUN_FILE = SettingsFile(
    TrainConfig,
    elsewhere=declared(RuntimeConfig),
    reason="says how a run is carried out, not what it is.",
)
"""Files that hold the settings of one run."""


def config_text(flat: Mapping[str, Any], path: Path) -> str:
    """Return what `write_config` writes."""
    return RUN_FILE.text(flat, _rerun(path))


def write_config(path: Path, flat: Mapping[str, Any]) -> None:
    """Write the settings of a run, as `options.flatten` gives them, to the file `path`; what is None is left out.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    RUN_FILE.write(path, flat, _rerun(path))


def _rerun(path: Path) -> str:
    return command_line("train", config=path.resolve())
