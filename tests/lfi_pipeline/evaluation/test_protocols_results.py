from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.evaluation.metrics import MEASURES
from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult, latest_results, read_results, write_result


def _result(**changes: Any) -> ProtocolResult:
    made = ProtocolResult(
        protocol="detection",
        settings={"dataset": "scenes", "iterations": 10},
        scores={"box_ap": 0.25, "mask_ap": None},
        details={"per_class": [0.5, None]},
        seconds=1.5,
    )
    return dataclasses.replace(made, **changes)


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_result(tmp_path, _result())
    assert read_results(tmp_path) == [_result()]
    assert read_results(tmp_path, "grounding") == []
    assert latest_results(tmp_path).get("grounding") is None


def test_other_settings_keep_the_old_result_and_the_same_settings_replace_it(tmp_path: Path) -> None:
    write_result(tmp_path, _result(scores={"box_ap": 0.1}))
    write_result(tmp_path, _result())
    other = _result(settings={"dataset": "scenes", "iterations": 20})
    path = write_result(tmp_path, other)
    os.utime(path, ns=(1, 1))
    assert read_results(tmp_path, "detection") == [other, _result()]
    assert latest_results(tmp_path).get("detection") == _result()


def test_the_order_of_settings_does_not_matter() -> None:
    assert _result().file_name == _result(settings={"iterations": 10, "dataset": "scenes"}).file_name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, 10**400])
def test_a_score_must_be_a_finite_number(value: float) -> None:
    with pytest.raises(ValueError, match="box_ap must be a finite number"):
        _result(scores={"box_ap": value})


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="mask_ap"):
        _result(scores={"mask_app": 0.1})
    with pytest.raises(UnknownNameError, match="detection"):
        _result(protocol="detections")
    with pytest.raises(UnknownNameError, match="grounding"):
        read_results(tmp_path, "groundin")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"protocol": "detection"}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / EVALUATION).mkdir()
    (tmp_path / EVALUATION / "detection-x.json").write_text(text)
    with pytest.raises(RunError, match="detection-x"):
        read_results(tmp_path)


def test_measures_have_one_name_and_heading_each() -> None:
    for protocol, measures in MEASURES.items():
        assert len({m.name for m in measures}) == len({m.heading for m in measures}) == len(measures), protocol
