"""The benchmark of the block: it runs alone, and a wrong case is never timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from torch import Tensor

from lfi_kernels.bench import Shape, cases, compare, shapes

TINY = Shape(model="ViT-T/16", batch=2, words=3, patches=16)


def test_it_runs_as_a_script_with_torch_alone() -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "lfi_kernels.bench", "--quick", "--device", "cpu"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["case"] for row in rows} == {"folded", "projected", "sdpa"}
    assert all(row["value"] > 0 for row in rows if row["metric"] == "forward and backward")


@pytest.mark.parametrize("part", [0, 1])
def test_a_case_that_computes_something_else_is_refused(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> tuple[Tensor, Tensor]:
        found = list(cases.projected(*args))  # type: ignore[arg-type]
        found[part] = found[part] * 1.001
        return found[0], found[1]

    monkeypatch.setitem(cases.PLAIN, "projected", wrong)
    with pytest.raises(ValueError, match=r"projected must be within 2e-05 of the float64 reference, got .*not timed"):
        compare(TINY, "cpu", 1)


def test_what_is_compared() -> None:
    assert {(each.model, each.words) for each in shapes("cpu")} == {
        (model, words) for model in ("ViT-T/16", "ViT-S/16") for words in (8, 16)
    }
    on_gpu = shapes("cuda")
    assert {each.model for each in on_gpu} == set(cases.WIDTHS)
    assert {each.patches for each in on_gpu} == {196, 256, 1024}
    assert {each.words for each in on_gpu} == {16, 32}
