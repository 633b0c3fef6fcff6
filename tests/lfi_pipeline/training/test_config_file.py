"""A run written to TOML and read back; what a person may write, and what is refused with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, OutputWriteError, UnknownNameError
from lfi_pipeline.core.options import build, declared, defaults, flatten
from lfi_pipeline.training.config import RUN_FILE, TrainConfig, write_config

FULL: dict[str, Any] = {
    "targets": "/data/shards",
    "hold_out": ["grey", "outline"],
    "student_arg": {"depth": 6, "act": "gelu", "sizes": [1, 2]},
    "taps": [1, 3],
    "weight": {"lfi": "0.3:cosine", "embedding": 2.0},
    "objective": "lfi+embedding",
    "ema": 0.999,
    "lr": 1e-3,
    "hflip": 0,
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    config = build(TrainConfig, FULL)
    path = tmp_path / "config.toml"
    write_config(path, flatten(config))
    flat = RUN_FILE.read(path)
    assert build(TrainConfig, flat) == config
    assert set(declared(TrainConfig)) - set(flat) == {
        "data_root",
        "words",
        "image_size",
        "patch_size",
        "layer_decay",
    }  # None is left out
    assert [each.name for each in tmp_path.iterdir()] == ["config.toml"]


def test_the_file_says_how_to_run_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a run").mkdir()
    write_config(Path("a run/config.toml"), flatten(build(TrainConfig, {"targets": "x"})))
    text = (tmp_path / "a run/config.toml").read_text()
    assert text.startswith(f"# lfi train --config '{tmp_path.resolve()}/a run/config.toml'\n")


def test_a_written_file_holds_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_config(Path("runs/config.toml"), {"targets": "shards", "data_root": "../images"})
    written = tomllib.loads((tmp_path / "runs/config.toml").read_text())
    assert written == {
        "targets": str(tmp_path.resolve() / "shards"),
        "data_root": str(tmp_path.resolve().parent / "images"),
    }


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "lfi.toml").write_text('targets = "../shards"\ndata-root = "/images"\nval_split = "shards"\n')
    there = {"targets": str(tmp_path.resolve() / "shards"), "data_root": "/images", "val_split": "shards"}
    assert RUN_FILE.read(folder / "lfi.toml") == there
    monkeypatch.chdir(folder)
    assert RUN_FILE.read(Path("lfi.toml")) == there


def test_keys_with_either_sign(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("learning-rate = 1\nbatch_size = 8\n[student-arg]\nembed_dim = 32\n")
    assert RUN_FILE.read(path) == {"lr": 1, "batch_size": 8, "student_arg": {"embed_dim": 32}}
    path.write_text("warmup-epochs = 1\nwarmup_epochs = 2\n")
    with pytest.raises(ConfigError, match=r"run\.toml: warmup_epochs must be given once"):
        RUN_FILE.read(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"a = 1\nepochs = = 3", ConfigError, r"run\.toml must be TOML: .*line 2, column 10"),
        (b"student = '\xff'", ConfigError, r"run\.toml must be TOML.*UTF-8"),
        (b"lerning-rate = 1", UnknownNameError, r"run\.toml.*'lerning-rate'. Did you mean 'lr'"),
        (b"epochs = '3'", ConfigError, r"run\.toml: epochs must be a whole number, got '3'"),
        (b"student-arg = {since = 2020-01-01}", ConfigError, "plain values"),
        (b"workers = 4", ConfigError, r"workers says how a run is carried out.*`workers`"),
        (b"checkpoint_minutes = 4", ConfigError, "`checkpoint_minutes`"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, error: type[Exception], words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        RUN_FILE.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"{path}(: No such file| must be a file| cannot be read)"):
            RUN_FILE.read(path)
    with pytest.raises(OutputWriteError, match="cannot be written"):
        write_config(tmp_path / "nowhere" / "config.toml", defaults(TrainConfig))
