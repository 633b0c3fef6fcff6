"""A finished run is sealed: each of its files is known, and one flipped bit in any of them is found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.parse import RECORD, recorded, verify_run
from lfi_pipeline.exporting.run import export_run
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training import run_writer as writer
from lfi_pipeline.training.config import RuntimeConfig
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.run_dir import STATE, SUMMARY, read_summary
from lfi_pipeline.training.trainer import Trainer
from tests.lfi_pipeline.training.running import MACHINE, assert_same_run, train_one

MakeConfig = Callable[..., TrainConfig]


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_of_a_run_or_an_export_is_found(make_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_one(make_config(objective="none", epochs=1), run, RuntimeConfig(device="cpu"))
    export_run(run, tmp_path / "exported")
    for folder in (run, tmp_path / "exported"):
        assert verify_run(folder) == []
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        assert {path.relative_to(folder).as_posix() for path in files} == {RECORD, *(recorded(folder) or ())}
        for path in files:
            data = path.read_bytes()
            for at in {0, len(data) // 2, len(data) - 1}:
                flipped(path, at)
                assert [fault.file for fault in verify_run(folder)] == [path.relative_to(folder).as_posix()]
                path.write_bytes(data)


@pytest.mark.parametrize("name", ["config.json", "checkpoints/last.safetensors"])
def test_a_damaged_run_is_not_used(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    train_one(make_config(objective="none", epochs=1), run)
    flipped(run / name, -2)
    with pytest.raises(RunError, match="is damaged"):
        load_run(run, device="cpu")
    with pytest.raises(RunError, match="is damaged"):
        export_run(run, tmp_path / "out", weights="last")
    assert not (tmp_path / "out").exists()


def test_weights_are_checked_before_the_run_is_finished_too(make_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_one(make_config(objective="none", epochs=1), run)
    (run / RECORD).unlink()
    flipped(run / "checkpoints/last.safetensors", -2)
    with pytest.raises(RunError, match="does not match its crc32c"):
        load_run(run, device="cpu")


def test_a_damaged_summary_is_told_and_an_unreadable_one_is_none(make_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train_one(make_config(objective="none", epochs=1), run)
    text = (run / SUMMARY).read_text()
    (run / SUMMARY).write_text(text.replace('"steps": 3', '"steps": 4'))
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        read_summary(run)
    for torn in ("", text[: len(text) // 2], "[]"):
        (run / SUMMARY).write_text(torn)
        assert read_summary(run) is None
    again = train_one(make_config(objective="none", epochs=1), run)
    assert again["map_seen"] == summary["map_seen"]
    assert verify_run(run) == []


def test_the_state_stays_until_the_summary_is_on_disk(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write, unlink = writer.write_json, Path.unlink

    def noted(path: Path, content: object) -> None:
        write(path, content)  # type: ignore[arg-type]
        order.append(path.name)

    def gone(self: Path, missing_ok: bool = False) -> None:
        order.append(self.name)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(writer, "write_json", noted)
    monkeypatch.setattr(Path, "unlink", gone)
    train_one(make_config(objective="none", epochs=1), tmp_path / "run")
    assert order.index(SUMMARY) < order.index(Path(STATE).name)


def test_equal_runs_are_equal_bytes(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_one(make_config(objective="lfi", epochs=1), tmp_path / name)
    for file in ("checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_seconds_count_what_was_trained_within_an_epoch_before_a_stop(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Trainer.train_step

    def slow(self: Trainer, *arguments: object) -> dict[str, float]:
        if self.step == 1:
            time.sleep(0.5)
        if self.step == 2:
            raise RuntimeError("killed")
        return take(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", slow)
        with pytest.raises(RuntimeError, match="killed"):
            train_one(make_config(epochs=1), tmp_path / "run", replace(MACHINE, checkpoint_minutes=0))
    assert train_one(make_config(epochs=1), tmp_path / "run")["seconds"] >= 0.5
    train_one(make_config(epochs=1), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["steps"] == 3
