"""The race of the probe, in what the compiler makes of it for sm_90; its numbers are tested in `interpreted`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lfi_kernels.interaction_attention.test_triton_report import lines

pytest.importorskip("triton")


def test_a_planted_race_is_seen() -> None:
    planted = lines(str(Path(__file__).parent / "planted.py"))
    assert len(planted) == 3
    for each in planted:
        assert any("feeds registers as well" in what for what in each["once"]), each
        assert any("slots" in what for what in each["once"]), each
        assert each["twice"] == []
