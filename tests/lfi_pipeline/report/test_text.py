"""Numbers and tables as text: units, signs, what is missing, and files that are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfi_pipeline.core.errors import OutputWriteError
from lfi_pipeline.evaluation.metrics import Measure, Unit
from lfi_pipeline.report.compare import Block, Cell, Comparison, Gap, Row
from lfi_pipeline.report.statistics import Difference, Estimate
from lfi_pipeline.report.text import (
    TextTable,
    block_tables,
    cell_text,
    column_width,
    comparison_csv,
    cost_table,
    gap_text,
    heading,
    legend,
    markdown_table,
    number,
    p_text,
    p_texts,
    settings_text,
    standings_csv,
    standings_markdown,
    value_text,
    write_text,
)
from lfi_pipeline.report.views import Cost


def gap(mean: float, p: float | None = 0.01, p_holm: float | None = 0.02, half: float | None = 0.02) -> Gap:
    return Gap(control="none", gap=Difference(mean, half, 3, p=p, paired=True), p_holm=p_holm)


def block(*measures: Measure, rows: tuple[Row, ...] = (), teacher: tuple[float | None, ...] = ()) -> Block:
    settings = {"dataset": "scenes", "left_out": ["art", "tv"], "weights": None}
    return Block(
        protocol="grounding",
        title="Grounding",
        settings=settings,
        columns=measures,
        rows=rows,
        teacher=teacher,
        tested=(True,) * len(measures),
    )


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.31249, "share", False, "31.2"),
        (-0.5, "share", True, "−50.0"),
        (-0.0004, "share", True, "0.0"),  # what rounds to 0 has no sign
        (1.23456, "nats", True, "+1.235"),
        (-0.0004, "nats", False, "0.000"),
        (1234567.8, "steps", False, "1,234,568"),
        (-1234.0, "seconds", True, "−1,234"),
        (-0.4, "seconds", True, "0"),
        (0.996, "ratio", True, "+1.00"),
    ],
)
def test_a_number_has_the_digits_of_its_unit_and_a_true_minus(
    value: float, unit: Unit, signed: bool, text: str
) -> None:
    assert number(value, unit, signed) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "<.001"), (0.00099, "<.001"), (0.001, ".001"), (0.0444, ".044"), (0.9996, "1"), (1.0, "1")]
)
def test_a_p_value_has_no_zero_before_the_point(p: float, text: str) -> None:
    assert p_text(p) == text


def test_values_say_their_interval_and_how_many_seeds_they_are_of() -> None:
    assert value_text(None, "share") == "–"
    assert value_text(Estimate(0.5, None, 1), "share") == "50.0"
    assert value_text(Estimate(-0.0301, 0.0125, 3), "share", signed=True) == "−3.0 ± 1.2"
    full, some = Cell(value=Estimate(120.0, 3.0, 3)), Cell(value=Estimate(120.0, 3.0, 2))
    row = Row(label="lfi", slot=3, seeds=(0, 1, 2), control=None, cells=(full, some, Cell(value=None)))
    assert [cell_text(row, column, "steps") for column in range(3)] == ["120 ± 3", "120 ± 3 (n=2)", "–"]


def test_differences_are_marked_as_their_tests_allow() -> None:
    assert gap_text(gap(0.1), "share") == "+10.0 ± 2.0 **"
    assert gap_text(gap(-0.1, 0.01, 0.06), "share") == "−10.0 ± 2.0 *"
    assert gap_text(gap(0.1, 0.06, 0.06), "share") == "+10.0 ± 2.0"
    assert gap_text(gap(0.1, None, None, half=None), "share") == "+10.0"
    assert p_texts(gap(0.1, 0.0004, 0.012)) == "p <.001 / .012"
    assert p_texts(gap(0.1, None, None)) == ""


def test_headings_name_the_unit_once_and_which_end_is_good() -> None:
    made = block(
        Measure(name="a", heading="mass"),
        Measure(name="b", heading="steps", unit="steps", higher_is_better=False),
        Measure(name="c", heading="divergence", unit="nats", higher_is_better=None),
    )
    assert [heading(made, column) for column in range(3)] == ["mass, %\u00a0↑", "steps\u00a0↓", "divergence, nats"]
    assert settings_text(made) == "dataset scenes, left out art+tv, weights none"


def test_a_block_becomes_lines_under_one_another_and_the_teacher_comes_last() -> None:
    better = Cell(value=Estimate(0.4, None, 2), gap=gap(0.1), best=Gap(control="x", gap=gap(0.05).gap, p_holm=0.5))
    rows = (
        Row(label="none", slot=0, seeds=(0, 1), control=None, cells=(Cell(value=Estimate(0.3, 0.01, 2)),) * 2),
        Row(label="lfi", slot=3, seeds=(0, 1), control="none", cells=(better, Cell(value=None))),
    )
    made = block(Measure(name="a", heading="mass"), Measure(name="b", heading="IoU"), rows=rows, teacher=(0.9, None))
    assert block_tables(made, 1000) == [
        TextTable(
            title="Grounding",
            headings=["objective", "seeds", "mass, %\u00a0↑", "IoU, %\u00a0↑"],
            rows=[
                ["none", "2", "30.0 ± 1.0", "30.0 ± 1.0"],
                ["lfi\n  − none", "2", "40.0\n+10.0 ± 2.0 **\np .010 / .020", "–"],
                ["  − best control", "", "x\n+5.0 ± 2.0 *\np .010 / .500", "–"],
                ["(teacher)", "", "90.0", "–"],
            ],
        )
    ]
    narrow = block_tables(made, 1)  # one measure each: the first two columns are repeated
    assert [table.headings[2:] for table in narrow] == [["mass, %\u00a0↑"], ["IoU, %\u00a0↑"]]
    for table in narrow:
        assert [row[0] for row in table.rows] == ["none", "lfi\n  − none", "  − best control", "(teacher)"]
    lines = legend(Comparison(blocks=(made,), costs=(), tests=3, notes=(), missing=()))
    assert [line[:12] for line in lines] == [
        "Mean over se",
        "– and n: no ",
        "Under it the",
        "* p < 0.05 a",
        "No primary m",
        "Best control",
    ]


def test_tables_of_nothing_and_of_awkward_cells() -> None:
    assert markdown_table(["a", "b"], [["x|y", ""]]) == "| a | b |\n| --- | --- |\n| x\\|y |  |"
    assert column_width("a heading of words", ["one\nthree", ""]) == 10  # it wraps, but not to slivers
    assert column_width("unbreakableheading", ["1"]) == 18
    assert comparison_csv(Comparison(blocks=(), costs=(), tests=0, notes=(), missing=())) == "protocol\n"
    assert standings_csv([]) == "seeds\n"
    assert standings_markdown([]).startswith("| seeds |\n| --- |\n\n")
    cost = Cost(
        label="lfi", slot=3, seeds=1, control="none", backbone=5_524_416, head=999, kept=0, added=None, step_ms=None,
        ratio=1.156, seconds=Estimate(3661.0, None, 1),
    )  # fmt: skip
    assert cost_table([cost]).rows == [["lfi", "5.5 M", "999", "0", "–", "–", "1.16×", "3,661"]]


def test_a_text_is_written_whole_or_the_error_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "table.md"
    write_text(path, "± –")
    write_text(path, "−")
    assert path.read_bytes() == "−".encode()
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OutputWriteError, match=r"Cannot write .*table\.md/a/page\.html: Not a directory\."):
        write_text(path / "a" / "page.html", "x")
    assert path.read_text(encoding="utf-8") == "−"
