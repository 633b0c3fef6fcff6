"""TOML files of any config class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputWriteError, UnknownNameError
from lfi_pipeline.core.options import Alias, Option, build, check, flatten
from lfi_pipeline.core.settings_file import SettingsFile, read_toml


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What a file holds."""

    data_root: Annotated[Path | None, Option("Where.")] = None
    references: Annotated[tuple[Path, ...], Option("Others.")] = ()
    warmup_epochs: Annotated[int, Option("How long.", ge=0)] = 1
    scale: Annotated[
        tuple[float, float], Option("Crop.", aliases=(Alias("least_area", float, lambda low: (low, 1.0)),))
    ] = (0.5, 1.0)

    def __post_init__(self) -> None:
        check(self)


FILE = SettingsFile(Config, elsewhere=("workers",), reason="is of the machine.")


def test_there_and_back(tmp_path: Path) -> None:
    config = Config(data_root=tmp_path / "a", references=(tmp_path / "b",), scale=(0.1, 0.9))
    FILE.write(tmp_path / "c.toml", flatten(config), "made by a test")
    assert (tmp_path / "c.toml").read_text().startswith("# made by a test\n\n")
    assert build(Config, FILE.read(tmp_path / "c.toml")) == config


def test_paths_are_relative_to_the_file_and_keys_have_either_sign(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('data-root = "images"\nreferences = ["../x", "y"]\nwarmup_epochs = 3\n')
    flat = FILE.read(tmp_path / "c.toml")
    root = tmp_path.resolve()
    assert flat == {
        "data_root": str(root / "images"),
        "references": [str(root.parent / "x"), str(root / "y")],
        "warmup_epochs": 3,
    }


def test_older_keys_are_translated(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("least-area = 0.25\n")
    assert FILE.read(tmp_path / "c.toml") == {"scale": (0.25, 1.0)}
    assert FILE.name("least-area", "here") == "scale"


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (b"warmup = = 1", ConfigError, r"c\.toml must be TOML: .*line 1"),
        (b"a = '\xff'", ConfigError, r"c\.toml must be TOML, which is UTF-8"),
        (b"warmup-epochs = '3'", ConfigError, r"c\.toml: warmup_epochs must be a whole number, got '3'"),
        (b"warmup-epoch = 3", UnknownNameError, r"setting in .*c\.toml: 'warmup-epoch'. Did you mean 'warmup_epochs'"),
        (b"least_area = 'much'", ConfigError, r"c\.toml: least_area must be a finite number"),
        (b"scale = [1, 1]\nleast_area = 1", ConfigError, "scale must be given once"),
        (b"warmup-epochs = 1\nwarmup_epochs = 1", ConfigError, "warmup_epochs must be given once"),
        (b"workers = 3", ConfigError, r"c\.toml: workers is of the machine. Give `workers` beside the file"),
        (b"a = " + b"[" * 3000, ConfigError, r"c\.toml must be TOML"),
        (b"warmup-epochs = " + b"9" * 5000, ConfigError, r"c\.toml"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, kind: type[LFIError], told: str) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(kind, match=told):
        FILE.read(tmp_path / "c.toml")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    with pytest.raises(OutputWriteError, match="cannot be written"):
        FILE.write(tmp_path / "no" / "c.toml", flatten(Config()))
