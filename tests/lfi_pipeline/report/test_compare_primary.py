"""Measures that were named beforehand are tested, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.report.compare import Comparison, Gap, compare
from lfi_pipeline.report.html import write_report
from lfi_pipeline.report.text import block_tables, comparison_markdown, legend, tidy

VALUES = {"none": (0.30, 0.34, 0.31), "embedding": (0.33, 0.32, 0.36), "lfi": (0.41, 0.43, 0.45)}


@pytest.fixture
def runs(scored: Any) -> list[Path]:
    return [
        scored(
            objective,
            seed,
            {
                "classification": {"map_seen": value, "map_heldout": value / 2 + 0.01 * seed},
                "zero-shot": {"map": 1.5 * value - 0.02 * seed},
                "grounding": {"pointing": 2 * value, "iou": value},
            },
        )
        for objective, of_seeds in VALUES.items()
        for seed, value in enumerate(of_seeds)
    ]


def gaps(made: Comparison) -> dict[str, list[Gap]]:
    """`protocol:measure` -> all differences in it, each once."""
    by_measure: dict[str, list[Gap]] = {}
    for block in made.blocks:
        for place, column in enumerate(block.columns):
            of_column = by_measure.setdefault(f"{block.protocol}:{column.name}", [])
            for cell in (row.cells[place] for row in block.rows):
                of_column += {gap.control: gap for gap in (cell.gap, cell.best) if gap is not None}.values()
    return by_measure


@pytest.mark.parametrize(
    ("primary", "tested"),
    [
        (["map_seen"], ["classification:map_seen"]),
        (["map_heldout", "grounding:pointing"], ["classification:map_heldout", "grounding:pointing"]),
        (["map"], ["zero-shot:map"]),  # of whatever protocol has it
    ],
)
def test_only_primary_measures_are_tested_and_pay_for_one_another(
    primary: Sequence[str], tested: Sequence[str], runs: list[Path]
) -> None:
    whole, made = compare(runs), compare(runs, primary=primary)
    before, after = gaps(whole), gaps(made)
    assert before.keys() == after.keys()
    for name, each in after.items():
        assert [(g.gap.mean, g.gap.half) for g in each] == [(g.gap.mean, g.gap.half) for g in before[name]]
        if name in tested:
            assert [g.gap.p for g in each] == [g.gap.p for g in before[name]]
            corrected = [(g.p_holm, old.p_holm) for g, old in zip(each, before[name], strict=True)]
            assert all(new is not None and old is not None and new <= old for new, old in corrected)
            assert any(new < old for new, old in corrected if new is not None and old is not None)
        else:
            assert {(g.gap.p, g.p_holm, g.mark) for g in each} == {(None, None, "")}
    assert made.tests == sum(len(after[name]) for name in tested)
    assert whole.tests == sum(map(len, before.values()))


def test_captions_say_what_was_named_and_what_the_rest_is(runs: list[Path]) -> None:
    plain, made = compare(runs), compare(runs, primary=["map_seen", "pointing"])
    assert any("The fair way is to name a few before" in line for line in legend(plain))
    (caption,) = [line for line in legend(made) if line.startswith("Primary")]
    assert "map_seen, pointing" in caption
    assert "exploratory" in caption
    assert any(f"all {made.tests} tests of primary measures" in line for line in legend(made))
    text = comparison_markdown(made)
    assert "All else is exploratory" in text
    blocks = {block.protocol: block for block in made.blocks}
    cells = [cell for row in block_tables(blocks["zero-shot"], 1000)[0].rows for cell in row[2:]]
    assert any("±" in cell for cell in cells)
    assert not any(re.search(r"\bp [.<1]|\*", cell) for cell in cells)
    rows = {(row["measure"], row["objective"]): row for row in tidy(made)}
    assert rows["map_seen", "lfi"]["tested"]
    assert rows["map_seen", "lfi"]["p"] is not None
    assert not rows["iou", "lfi"]["tested"]
    assert rows["iou", "lfi"]["p"] is None
    assert rows["iou", "lfi"]["diff_low"] is not None


def test_the_page_tests_what_the_table_tests(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "page.html", primary=["map_seen"]).read_text(encoding="utf-8")
    assert "Primary, named beforehand: map_seen." in page
    assert "Primary, named beforehand" not in write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(UnknownNameError, match="map_seem"):
        write_report(runs, tmp_path / "other.html", primary=["map_seem"])
    assert not (tmp_path / "other.html").exists()


def test_a_primary_measure_without_a_result_is_told(runs: list[Path]) -> None:
    made = compare(runs, primary=["map_seen", "box_ap"])
    assert "Primary measures without a result here: box_ap." in made.notes
    assert made.tests == 3
    other = compare(runs, primary=["map_seen"], protocols=["grounding"])
    assert other.tests == 0
    assert "Primary measures without a result here: map_seen." in other.notes
    assert any(line.startswith("Primary") for line in legend(other))


def test_unknown_names_are_told_with_the_choices(runs: list[Path]) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown measure 'map_seem'\. Did you mean 'map_seen'"):
        compare(runs, primary=["map_seem"])
    with pytest.raises(UnknownNameError, match="Unknown protocol 'groundings'"):
        compare(runs, primary=["groundings:pointing"])
    with pytest.raises(UnknownNameError, match=r"Choices: cam_mass_in_mask, .*pointing"):
        compare(runs, primary=["grounding:map_seen"])
    with pytest.raises(UnknownNameError, match="map_heldout_photo"):  # no result of such a domain
        compare(runs, primary=["map_heldout_photo"])
