"""The comparison: rows and columns of the results, the right control, differences and their tests."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.report.compare import Block, Comparison, Row, compare
from lfi_pipeline.report.text import (
    FRAME,
    block_tables,
    column_width,
    comparison_csv,
    comparison_markdown,
    cost_table,
    legend,
    tidy,
)


def several(
    scored: Any,
    objective: str,
    values: Sequence[float],
    name: str = "map_seen",
    seeds: Sequence[int] = (),
    **options: Any,
) -> list[Path]:
    """One run a value, of seeds 0, 1, ..., with a result of `classification`."""
    seeds = seeds or range(len(values))
    return [
        scored(objective, seed, {"classification": {name: value}}, **options)
        for seed, value in zip(seeds, values, strict=True)
    ]


def row(block: Block, label: str) -> Row:
    return next(row for row in block.rows if row.label == label)


def test_means_differences_and_tests_are_those_of_scipy(scored: Any) -> None:
    none, lfi, embedding = [0.30, 0.34, 0.31], [0.41, 0.43, 0.45], [0.33, 0.32, 0.36, 0.31]
    runs = several(scored, "none", none) + several(scored, "lfi", lfi) + several(scored, "embedding", embedding)
    made = compare(runs)
    (block,) = made.blocks
    assert [r.label for r in block.rows] == ["none", "embedding", "lfi"]
    assert [(r.seeds, r.control) for r in block.rows] == [
        ((0, 1, 2), None),
        ((0, 1, 2, 3), "none"),
        ((0, 1, 2), "none"),
    ]
    (cell,) = row(block, "lfi").cells
    paired = stats.ttest_rel(lfi, none)
    low, high = paired.confidence_interval()
    assert cell.value is not None
    assert cell.gap is not None
    assert cell.value.mean == pytest.approx(sum(lfi) / 3)
    assert (cell.gap.gap.low, cell.gap.gap.high) == (pytest.approx(low), pytest.approx(high))
    assert cell.gap.gap.p == pytest.approx(paired.pvalue)
    assert cell.gap.gap.paired
    (other,) = row(block, "embedding").cells
    welch = stats.ttest_ind(embedding, none, equal_var=False)
    assert other.gap is not None
    assert other.gap.gap.p == pytest.approx(welch.pvalue)
    assert not other.gap.gap.paired
    assert row(block, "none").cells[0].gap is None


def test_lfi_meets_the_best_control_and_every_test_counts_once(scored: Any) -> None:
    runs = several(scored, "none", [0.30, 0.32, 0.31]) + several(scored, "embedding", [0.50, 0.49, 0.52])
    runs += several(scored, "lfi", [0.40, 0.43, 0.45]) + several(scored, "lfi", [0.2, 0.21, 0.19], maps="shuffled")
    made = compare(runs)
    (cell,) = row(made.blocks[0], "lfi").cells
    assert cell.gap is not None
    assert cell.best is not None
    assert (cell.gap.control, cell.best.control) == ("none", "embedding")
    assert cell.gap.gap.mean > 0 > cell.best.gap.mean
    assert row(made.blocks[0], "lfi · shuffled maps").cells[0].best is None
    tested = [cell.gap.gap.p, cell.best.gap.p]
    tested += [row(made.blocks[0], name).cells[0].gap.gap.p for name in ("embedding", "lfi · shuffled maps")]  # type: ignore[union-attr]
    assert made.tests == len(tested) == 4
    assert cell.best.p_holm == pytest.approx(cell.best.gap.p * (4 - sorted(tested).index(cell.best.gap.p)))  # type: ignore[type-var, operator]


def test_the_best_control_that_is_the_control_is_no_second_test(scored: Any) -> None:
    made = compare(several(scored, "none", [0.30, 0.32]) + several(scored, "lfi", [0.40, 0.43]))
    (cell,) = row(made.blocks[0], "lfi").cells
    assert cell.best == cell.gap
    assert made.tests == 1
    assert cell.gap is not None
    assert cell.gap.p_holm == cell.gap.gap.p


def test_where_less_is_better_the_best_control_has_least(scored: Any) -> None:
    runs = [scored("none", s, {"convergence": {"steps": 900 + s}}) for s in range(2)]
    runs += [scored("embedding", s, {"convergence": {"steps": 700 + s}}) for s in range(2)]
    runs += [scored("lfi", s, {"convergence": {"steps": 300 + s}}) for s in range(2)]
    (cell,) = row(compare(runs).blocks[0], "lfi").cells
    assert cell.best is not None
    assert cell.best.control == "embedding"


def test_runs_that_never_got_there_are_told_and_not_left_out(scored: Any) -> None:
    runs = [scored("lfi", s, {"convergence": {"steps": v}}) for s, v in enumerate((300.0, None, 320.0))]
    runs += [scored("embedding", s, {"convergence": {"steps": None}}) for s in range(3)]
    made = compare(runs)
    (table,) = block_tables(made.blocks[0], 100)
    assert [cells[1] for cells in table.rows] == ["3", "3"]
    assert table.rows[0][2] == "–"
    assert table.rows[1][2].startswith("310 ± 127 (n=2)")
    assert any(line.startswith("– and n") for line in legend(made))


def test_marks_follow_the_p_values(scored: Any) -> None:
    steady = several(scored, "none", [0.30, 0.31, 0.32]) + several(scored, "lfi", [0.401, 0.41, 0.419])
    (cell,) = row(compare(steady).blocks[0], "lfi").cells
    assert cell.gap is not None
    assert cell.gap.mark == "**"
    noisy = several(scored, "embedding", [0.30, 0.39, 0.28])
    (cell,) = row(compare(steady + noisy).blocks[0], "embedding").cells
    assert cell.gap is not None
    assert cell.gap.mark == ""


def test_a_test_that_does_not_outlive_the_correction_has_one_star(scored: Any) -> None:
    runs = [
        scored("none", s, {"detection": {"box_ap": v, "mask_ap": 0.1 * (s + 1)}})
        for s, v in enumerate((0.1, 0.12, 0.14))
    ]
    runs += [
        scored("lfi", s, {"detection": {"box_ap": v, "mask_ap": m}})
        for s, v, m in ((0, 0.2, 0.3), (1, 0.25, 0.1), (2, 0.21, 0.2))
    ]
    box, mask = row(compare(runs).blocks[0], "lfi").cells
    assert box.gap is not None
    assert mask.gap is not None
    assert box.gap.gap.p is not None
    assert box.gap.gap.p < 0.05 < 2 * box.gap.gap.p == pytest.approx(box.gap.p_holm)
    assert (box.gap.mark, mask.gap.mark) == ("*", "")


def test_only_measures_that_some_run_has_and_the_teacher_once(scored: Any) -> None:
    scores = {"pointing": 0.5, "iou": None, "teacher_pointing": 0.9, "teacher_iou": None}
    (block,) = compare([scored("lfi", 0, {"grounding": scores}), scored("lfi", 1, {"grounding": scores})]).blocks
    assert [column.name for column in block.columns] == ["pointing"]
    assert block.teacher == (pytest.approx(0.9),)
    assert "teacher" in block_tables(block, 100)[0].rows[-1][0]
    assert "90.0" in block_tables(block, 100)[0].rows[-1]


def test_settings_that_differ_are_blocks_of_their_own(scored: Any) -> None:
    short, long = {"iterations": 90, "seed": 0}, {"iterations": 200, "seed": 0}
    runs = [
        scored("lfi", 0, {"detection": [(short, {"box_ap": 0.1}), (long, {"box_ap": 0.3})]}),
        scored("lfi", 1, {"detection": [(short, {"box_ap": 0.2}), (long | {"seed": 1}, {"box_ap": 0.5})]}),
    ]
    first, second = compare(runs).blocks
    assert (first.title, second.title) == ("detection (iterations 90)", "detection (iterations 200)")
    values = [block.rows[0].cells[0].value for block in (first, second)]
    assert [(v.mean, v.count) for v in values if v] == [(pytest.approx(0.15), 2), (pytest.approx(0.4), 2)]


def test_a_run_scored_with_several_seeds_counts_once(scored: Any) -> None:
    found = [({"seed": s}, {"box_ap": v}) for s, v in ((0, 0.1), (1, 0.3))]
    (block,) = compare([scored("lfi", 0, {"detection": found}), scored("lfi", 1, {"detection": found[:1]})]).blocks
    assert block.rows[0].cells[0].value is not None
    assert block.rows[0].cells[0].value.count == 2
    assert block.rows[0].cells[0].value.mean == pytest.approx((0.2 + 0.1) / 2)


def test_domains_left_out_are_averaged_where_a_seed_has_them_all(scored: Any) -> None:
    runs = []
    for objective, gain in (("none", 0.0), ("lfi", 0.1)):
        for seed, (domain, value) in itertools.product(range(2), (("a", 0.2), ("b", 0.4))):
            result = [({"domains": [domain]}, {"map": value + gain + 0.01 * seed})]
            runs.append(scored(objective, seed, {"cross-domain": result}, hold_out=[domain]))
    extra = [({"domains": ["a"]}, {"map": 0.9})]
    runs.append(scored("lfi", 2, {"cross-domain": extra}, hold_out=["a"]))
    (block,) = compare(runs).blocks
    assert [r.label for r in block.rows] == ["none", "lfi"]
    assert [c.heading.split(": ")[1] for c in block.columns] == ["mean of 2", "a", "b"]
    mean, first, second = row(block, "lfi").cells
    assert mean.value is not None
    assert first.value is not None
    assert second.value is not None
    assert (mean.value.mean, mean.value.count) == (pytest.approx(0.405), 2)
    assert (first.value.count, second.value.count) == (3, 2)
    assert mean.gap is not None
    assert mean.gap.gap.mean == pytest.approx(0.1)


def left_out(scored: Any, objective: str, gain: float, epochs: dict[str, int]) -> list[Path]:
    """Two seeds for each domain, of runs that trained for that domain's epochs."""
    runs = []
    for domain, seed in itertools.product(epochs, range(2)):
        result = [({"domains": [domain]}, {"top1": 0.5 + gain + 0.01 * seed * (1 + gain)})]
        options = {"hold_out": [domain], "epochs": epochs[domain]}
        runs.append(scored(objective, seed, {"cross-domain": result}, **options))
    return runs


def test_a_budget_of_steps_keeps_the_mean_over_domains_that_is_tested(scored: Any) -> None:
    epochs = {"art": 61, "cartoon": 64, "photo": 59}
    runs = left_out(scored, "none", 0.0, epochs) + left_out(scored, "lfi", 0.1, epochs)
    made = compare(runs, primary=["cross-domain:top1"])
    (block,) = made.blocks
    assert [(r.label, r.control) for r in block.rows] == [("none", None), ("lfi", "none")]
    mean = row(block, "lfi").cells[0]
    assert mean.gap is not None
    assert (mean.gap.gap.mean, made.tests) == (pytest.approx(0.1005), 1)
    assert not any("Primary measures without a result" in note for note in made.notes)


def test_a_control_that_lacks_a_domain_is_compared_where_it_has_one(scored: Any) -> None:
    epochs = {"art": 61, "cartoon": 64, "photo": 59}
    runs = left_out(scored, "none", 0.0, {name: epochs[name] for name in ("cartoon", "photo")})
    runs += left_out(scored, "embedding", 0.05, epochs) + left_out(scored, "lfi", 0.1, epochs)
    made = compare(runs)
    (block,) = made.blocks
    assert [(r.label, r.control) for r in block.rows] == [("none", None), ("embedding", "none"), ("lfi", "none")]
    cells = row(block, "lfi").cells
    assert [c.gap is not None for c in cells] == [False, False, True, True]  # mean, art, cartoon, photo
    assert [c.best is not None and c.best.control for c in cells] == ["embedding"] * 4
    assert not any("nothing is compared" in note for note in made.notes)


def test_the_control_has_the_same_student_and_can_be_chosen(scored: Any) -> None:
    small, large = {"student": "small"}, {"student": "large"}
    runs = several(scored, "none", [0.1, 0.12], **small) + several(scored, "none", [0.3, 0.31], **large)
    runs += several(scored, "lfi", [0.5, 0.52], **large) + several(scored, "embedding", [0.4, 0.41], student="other")
    made = compare(runs)
    controls = {r.label: r.control for r in made.blocks[0].rows}
    assert controls == {
        "none · student small": None,
        "none · student large": None,
        "lfi": "none · student large",
        "embedding": None,
    }
    chosen = compare(runs, control="none · student small")
    assert {r.control for r in chosen.blocks[0].rows if r.label != "none · student small"} == {"none · student small"}
    with pytest.raises(UnknownNameError, match="Unknown control 'nil'"):
        compare(runs, control="nil")


def test_a_control_tuned_apart_is_still_the_control(scored: Any) -> None:
    runs = several(scored, "none", [0.1, 0.2], learning_rate=0.0005)
    runs += several(scored, "lfi", [0.4, 0.41])
    assert row(compare(runs).blocks[0], "lfi").control == "none"


def test_one_seed_has_no_test(scored: Any) -> None:
    made = compare(several(scored, "none", [0.3]) + several(scored, "lfi", [0.4]))
    (cell,) = row(made.blocks[0], "lfi").cells
    assert cell.gap is not None
    assert (cell.gap.gap.p, cell.gap.p_holm, cell.gap.mark, made.tests) == (None, None, "", 0)
    assert block_tables(made.blocks[0], 100)[0].rows[1][2] == "40.0\n+10.0"


def test_what_is_missing_comes_with_its_command(scored: Any) -> None:
    bare = scored("lfi", 0, {})
    assert compare([bare]).blocks == ()
    (only,) = compare([bare]).missing
    assert only.command == f"lfi evaluate {bare} --protocol classification"
    queries = {"zero-shot": {"map": 0.1}, "classification": {"map_seen": 0.1}, "convergence": {"steps": 1.0}}
    runs = [scored("lfi+presence", 0, queries), scored("lfi+presence", 1, {}), scored("none", 0, {})]
    missing = {m.what.split(":")[0]: m for m in compare(runs).missing}
    assert missing["zero-shot"].command == f"lfi evaluate {runs[1]} --protocol zero-shot --targets TARGETS"
    assert missing["classification"].command == f"lfi evaluate {runs[2]} {runs[1]} --protocol classification"
    assert "none (seed 0); lfi+presence (seed 1)" in missing["classification"].what
    assert str(runs[2]) not in missing["convergence"].command


def test_a_part_of_the_protocols(scored: Any) -> None:
    runs = [scored("lfi", s, {"zero-shot": {"map": 0.1}, "classification": {"map_seen": 0.1}}) for s in range(2)]
    assert [block.protocol for block in compare(runs).blocks] == ["classification", "zero-shot"]
    assert [block.protocol for block in compare(runs, protocols=["zero-shot"]).blocks] == ["zero-shot"]
    with pytest.raises(UnknownNameError, match="zero-shot"):
        compare(runs, protocols=["zero-shots"])
    with pytest.raises(RunError, match="at least one"):
        compare([])


def test_runs_that_are_not_finished_are_told(scored: Any) -> None:
    runs = [
        scored(o, s, {"classification": {"map_seen": 0.1}}, summary=o == "lfi" or s < 1)
        for o in ("none", "lfi")
        for s in range(2)
    ]
    note = "Not finished, and compared as they were when they were scored: none (seed 1)."
    assert note in compare(runs).notes
    assert note not in compare(runs, protocols=["grounding"]).notes
    assert not [each for each in compare([runs[0], *runs[2:]]).notes if "finished" in each]


def test_costs(make_run: Any) -> None:
    made = compare([make_run("a", "none"), make_run("b", "lfi"), make_run("c", "lfi", summary=False, maps="shuffled")])
    none, lfi, stopped = made.costs
    assert (none.backbone, none.head, none.kept, none.added, none.ratio) == (5_524_416, 11_580, 0, 0, None)
    assert (lfi.kept, lfi.added, lfi.control) == (0, 412_160, "none")
    assert lfi.ratio == pytest.approx(71.2 / 61.4)
    assert (stopped.backbone, stopped.seconds) == (None, None)
    assert "1.16×" in cost_table(made.costs).rows[1]


@pytest.fixture
def many(scored: Any) -> Comparison:
    names = ["map_seen", "map_heldout", "knn_map_seen", "knn_map_heldout", "linear_map_seen", "linear_map_heldout"]
    runs = [
        scored(objective, seed, {"classification": {n: base + 0.03 * seed * (i - 2) for i, n in enumerate(names)}})
        for seed in range(3)
        for objective, base in (("none", 0.3), ("embedding", 0.35), ("lfi", 0.5))
    ]
    return compare(runs)


def test_tables_fit_a_hundred_columns_and_lose_no_column(many: Comparison) -> None:
    tables = block_tables(many.blocks[0], 100)
    assert len(tables) > 1
    assert sum(len(table.headings) - 2 for table in tables) == len(many.blocks[0].columns)
    for table in tables:
        assert [r[0] for r in table.rows] == [r[0] for r in tables[0].rows]
        widths = [column_width(h, [r[c] for r in table.rows]) for c, h in enumerate(table.headings)]
        assert sum(width + FRAME for width in widths) + 1 <= 100
    assert len(block_tables(many.blocks[0], 1000)) == 1
    assert any(f"all {many.tests} tests" in line for line in legend(many))


def test_markdown_tables_have_equal_rows_and_escaped_marks(many: Comparison) -> None:
    text = comparison_markdown(many)
    tables = [part.split("\n") for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) >= 3
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1
    assert "lfi − none" in text
    assert "lfi − best control" in text
    assert "embedding − best control" not in text
    assert "*" not in text.replace(r"\*", "")
    assert f"all {many.tests} tests" in text


def test_csv_is_tidy(many: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(many))))
    assert len(rows) == 3 * 6 == len(tidy(many))
    lfi = next(r for r in rows if (r["objective"], r["measure"]) == ("lfi", "map_seen"))
    assert (lfi["control"], lfi["best_control"], lfi["n"], lfi["unit"]) == ("none", "embedding", "3", "share")
    assert float(lfi["diff"]) == pytest.approx(0.2)
    assert float(lfi["best_diff"]) == pytest.approx(0.15)
    none = next(r for r in rows if r["objective"] == "none")
    assert (none["diff"], none["p"], none["control"]) == ("", "", "")
    assert float(none["low"]) <= float(none["mean"]) <= float(none["high"])


def test_headings_do_not_speak_of_seen_domains_where_none_is_held_out(scored: Any) -> None:
    (block,) = compare([scored("lfi", 0, {"classification": {"map_seen": 0.4, "map_heldout": None}})]).blocks
    assert [column.heading for column in block.columns] == ["mAP"]
