"""lfi sweep, with the library's loop stood in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline import training
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import flatten
from lfi_pipeline.training import RuntimeConfig, TrainConfig

Lfi = Callable[..., Any]
Fails = Callable[..., str]

SCORES = {"none": 0.3, "lfi": 0.5}
BEST_RATE = 5e-4  # the usual one


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the runs of each call of `training.train`, which leaves what a run leaves. Seed 9 fails."""
    calls: list[list[str]] = []

    def train(
        runs: Sequence[tuple[TrainConfig, Path]], machine: RuntimeConfig, *, command: str = ""
    ) -> list[Mapping[str, Any]]:
        calls.append([folder.name for _, folder in runs])
        assert machine == RuntimeConfig(workers=1, track=())
        for config, folder in runs:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps({"settings": flatten(config)}))
            if config.data.seed == 9:
                raise ConfigError("The loss is nan.")
            score = SCORES[config.objective] + config.data.seed / 100 - 10 * abs(config.optimizer.lr - BEST_RATE)
            (folder / "summary.json").write_text(json.dumps({"map_seen": score, "map_heldout": None}))
        return [{} for _ in runs]

    monkeypatch.setattr(training, "train", train)
    return calls


@pytest.fixture
def file(tiny_targets: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(
        f"""
        out = "runs"
        [base]
        targets = "{tiny_targets}"
        student = "resnet18"
        batch-size = 8
        epochs = 2
        [grid]
        objective = ["none", "lfi"]
        seed = [0, 1]
        [[where]]
        match = {{objective = "none"}}
        set = {{epochs = 1}}
        """
    )
    return path


OPTIONS = ("--workers", 1, "--track", "none")


def test_a_dry_run_lists_runs_and_steps(lfi: Lfi, file: Path, trained: list[list[str]]) -> None:
    shown = lfi("sweep", file, "--dry-run").out
    for line in ("none-0", "lfi-1", "6 steps", "3 steps", "18, of them 18 to do"):
        assert line in shown
    planned = lfi("sweep", file, "--dry-run", "--json").json
    assert planned["runs"][0] == {"name": "none-0", "steps": 3, "finished": False}
    assert (len(planned["runs"]), planned["steps"]) == (4, 18)
    assert trained == []
    assert not (file.parent / "runs").exists()


def test_runs_and_leaderboard(lfi: Lfi, file: Path, trained: list[list[str]]) -> None:
    ended = lfi("sweep", file, "--together", 2, *OPTIONS)
    assert ended.code == 0
    assert trained == [["none-0"], ["none-1"], ["lfi-0"], ["lfi-1"]]  # epochs differ, so no two share a stream
    assert "run 3 of 4: lfi-0" in ended.err
    assert ended.out.index("lfi") < ended.out.index("none")
    assert "50.5 ± 6.4" in ended.out
    out = file.parent / "runs"
    assert "| 2 | lfi | 2 | 50.5 ± 6.4 |" in (out / "leaderboard.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((out / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["objective"] for row in rows] == ["lfi", "none"]

    again = lfi("sweep", file, *OPTIONS, "--json")
    assert len(trained) == 4
    assert again.json["failed"] == {}
    assert [row["scores"]["map_seen"]["mean"] for row in again.json["leaderboard"]] == pytest.approx([0.505, 0.305])


def test_a_changed_file_adds_runs(lfi: Lfi, file: Path, trained: list[list[str]]) -> None:
    lfi("sweep", file, *OPTIONS)
    file.write_text(file.read_text().replace("seed = [0, 1]", "seed = [1, 2]"))
    ended = lfi("sweep", file, *OPTIONS, "--json")
    assert trained[4:] == [["none-2"], ["lfi-2"]]
    assert ended.json["leaderboard"][0]["seeds"] == [0, 1, 2]  # old ones stay


def test_the_best_trials_are_settings_of_the_next_sweep(lfi: Lfi, file: Path, trained: list[list[str]]) -> None:
    text = file.read_text()
    rates = "lr = [2e-4, 5e-4, 1e-3]"
    file.write_text(text.replace("[grid]", f"[grid]\n{rates}").replace("set = {epochs = 1}", "set = {lr = 2e-3}"))
    ended = lfi("sweep", file, *OPTIONS, "--choose", "lr")
    chosen = (file.parent / "runs/chosen.toml").read_text(encoding="utf-8")
    assert chosen in ended.out
    assert "best of 3 trials: map_seen 50.5 ± 6.4" in chosen  # two seeds each
    assert "best of 1 trials: map_seen 29.0 ± 6.4" in chosen  # [[where]] made them one

    file.write_text(text.replace("seed = [0, 1]", "seed = [2]") + chosen)
    planned = lfi("sweep", file, "--dry-run", "--json").json["runs"]
    assert len(planned) == 2
    trained.clear()
    lfi("sweep", file, *OPTIONS)
    rate = {
        run: json.loads((file.parent / "runs" / run / "config.json").read_text())["settings"]["lr"]
        for (run,) in trained
    }
    assert rate == {"none": 2e-3, "lfi": 5e-4}


def test_only_settings_that_have_a_best_value_are_chosen(fails: Fails, file: Path, trained: list[list[str]]) -> None:
    assert "weight_decay" in fails("UnknownNameError", "sweep", file, "--choose", "seed")
    assert trained == []


def test_a_failing_run_is_told_at_the_end(lfi: Lfi, file: Path, trained: list[list[str]]) -> None:
    file.write_text(file.read_text().replace("seed = [0, 1]", "seed = [9, 1]"))
    ended = lfi("sweep", file, *OPTIONS)
    assert ended.code == 1
    assert len(trained) == 4
    assert "lfi-9: The loss is nan." in ended.out
    assert "Traceback" not in ended.err
    machine = lfi("sweep", file, *OPTIONS, "--json")
    assert machine.code == 1
    assert machine.json["failed"] == {"none-9": "The loss is nan.", "lfi-9": "The loss is nan."}
    assert len(machine.json["leaderboard"]) == 2


def test_nothing_starts_where_something_is_wrong(fails: Fails, file: Path, trained: list[list[str]]) -> None:
    text = file.read_text()
    file.write_text(text.replace('"lfi"]', '"lfi", "lif"]'))
    assert "objective = 'lif', seed = 0: Unknown objective" in fails("ConfigError", "sweep", file)
    file.write_text(text.replace("resnet18", "resnt18"))
    assert "none-0: Unknown student" in fails("ConfigError", "sweep", file)
    file.write_text(text.replace('out = "runs"', ""))
    assert "--out" in fails("ConfigError", "sweep", file)
    assert trained == []
    assert not (file.parent / "runs").exists()


def test_out_on_the_command_line_goes_first(lfi: Lfi, file: Path, trained: list[list[str]], tmp_path: Path) -> None:
    assert lfi("sweep", file, "--out", tmp_path / "there", *OPTIONS).code == 0
    assert (tmp_path / "there/lfi-0/summary.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_two_real_runs(lfi: Lfi, tiny_targets: Path, tmp_path: Path) -> None:
    """The one test here without a stand-in: what the loop leaves is what a sweep and its leaderboard read."""
    path = tmp_path / "sweep.toml"
    path.write_text(
        f"""
        out = "runs"
        [base]
        targets = "{tiny_targets}"
        image-size = 64
        student-arg = {{depth = 3, embed_dim = 32, num_heads = 2}}
        query-width = 16
        query-heads = 2
        batch-size = 8
        epochs = 1
        [grid]
        objective = ["none", "lfi"]
        """
    )
    words = ("sweep", path, "--together", 2, "--device", "cpu", "--track", "none")
    ended = lfi(*words, "--json")
    assert ended.code == 0
    assert "runs 1-2 of 2: none, lfi" in ended.err
    rows = ended.json["leaderboard"]
    assert {row["settings"]["objective"] for row in rows} == {"none", "lfi"}
    assert all(0 <= row["scores"]["map_seen"]["mean"] <= 1 for row in rows)
    summary = (tmp_path / "runs/lfi/summary.json").read_bytes()

    assert lfi(*words).code == 0
    saved = lfi("train", "--config", tmp_path / "runs/lfi/config.toml", "--out", tmp_path / "runs/lfi", "--json")
    assert saved.code == 0  # the very run, finished
    assert saved.json["map_seen"] == json.loads(summary)["map_seen"]
    assert (tmp_path / "runs/lfi/summary.json").read_bytes() == summary
