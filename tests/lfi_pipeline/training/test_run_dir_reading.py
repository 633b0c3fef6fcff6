"""What training left is read in one place: torn lines, repeated steps, errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.training.run_dir import config_fields, is_run, read_metrics, summary_fields


def written(run: Path, *events: dict[str, Any], tail: str = "") -> Path:
    (run / "config.json").write_text('{"name": "a"}')
    (run / "metrics.jsonl").write_bytes(
        ("".join(json.dumps(event) + "\n" for event in events) + tail).encode(errors="surrogateescape")
    )
    return run


def test_a_resumed_run_repeats_steps_and_the_later_lines_count(tmp_path: Path) -> None:
    events = [{"event": "train", "step": step} for step in (10, 20, 30)]
    events.insert(2, {"event": "val", "step": 20, "map_seen": 0.9})
    again = [{"event": "train", "step": 20}, {"event": "val", "step": 20, "map_seen": 0.2}]
    metrics = read_metrics(written(tmp_path, *events, *again, tail='{"event": "train", "st'))
    assert [event.step for event in metrics.train] == [10, 20]
    assert metrics.curve("map_seen") == [(20.0, 0.2)]


def test_a_curve_leaves_out_what_is_missing_or_not_finite(tmp_path: Path) -> None:
    values = (0.1, None, float("nan"), 0.4)
    events = [{"event": "val", "step": step, "map_seen": value} for step, value in enumerate(values, start=1)]
    metrics = read_metrics(written(tmp_path, *events, {"event": "time", "step": 4}))
    assert metrics.curve("map_seen") == [(1.0, 0.1), (4.0, 0.4)]
    assert metrics.curve("top1_seen") == []


def test_a_run_is_known_by_its_files_and_a_finished_one_has_a_summary(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    for read in (config_fields, read_metrics):
        with pytest.raises(RunError, match="must be a training run, but has no"):
            read(tmp_path)
    run = written(tmp_path)
    assert is_run(run)
    assert config_fields(run) == {"name": "a"}
    assert summary_fields(run) is None
    (run / "summary.json").write_text('{"steps": 3}')
    assert summary_fields(run) == {"steps": 3}


LINES = ["nonsense", "[]", '{"event": "val"}', '{"step": 1}', '{"event": "val", "step": -1}', '{"event": "\udcff"}']


@pytest.mark.parametrize("line", [*LINES, f'{{"event": "val", "step": {10**400}}}'])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
        read_metrics(written(tmp_path, {"event": "train", "step": 1}, tail=line + "\n"))
