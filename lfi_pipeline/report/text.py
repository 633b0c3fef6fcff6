"""Numbers and tables as text: for the terminal, in Markdown, and as CSV. Numbers as people read them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfi_pipeline.core.errors import OutputWriteError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.evaluation.metrics import HEAD_SCORES, Measure, Unit, without_domains
from lfi_pipeline.report.groups import shown
from lfi_pipeline.report.statistics import LEVEL, Estimate
from lfi_pipeline.training.sweep import shown as shown_setting

if TYPE_CHECKING:
    from lfi_pipeline.report.compare import Block, Cell, Comparison, Gap, Row
    from lfi_pipeline.report.views import Cost, DomainScore, DomainTable, Standing

MISSING = "–"
TEACHER = "(teacher)"
FRAME = 3
"""Characters that a terminal table adds to each column."""
DOMAIN_LEGEND = "Per cent: mean over seeds ± standard error (as DomainBed), and 95 % interval (Student's t)."
_SHOWN: Mapping[Unit, tuple[float, str]] = {
    "share": (100, ".1f"),
    "nats": (1, ".3f"),
    "steps": (1, ",.0f"),
    "seconds": (1, ",.0f"),
    "ratio": (1, ".2f"),
}
"""Unit -> factor and format."""
_UNITS: Mapping[Unit, str] = {"share": "%", "nats": "nats", "steps": "steps", "seconds": "s", "ratio": "×"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A title, headings and rows; a cell may have several lines."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; missing parents are made. Raises OutputWriteError where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise OutputWriteError(f"Cannot write {path}: {error.strerror or error}.") from error


def points(value: float, signed: bool = False) -> str:
    """A share as points with one decimal and a true minus sign: 0.557 -> "55.7"; what rounds to 0 has no sign."""
    return number(value, "share", signed)


def millions(count: int) -> str:
    """A parameter count: "5.7 M", "12.3 k"."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)


def number(value: float, unit: Unit, signed: bool = False) -> str:
    """A value in its unit, without the unit: a share in per cent, a true minus sign, no sign for what rounds to 0."""
    factor, form = _SHOWN[unit]
    text = f"{value * factor:{'+' if signed else ''}{form}}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def value_text(value: Estimate | None, unit: Unit, signed: bool = False) -> str:
    """Mean ± half of the interval; the mean alone for a single seed."""
    if value is None:
        return MISSING
    return number(value.mean, unit, signed) + (f" ± {number(value.half, unit)}" if value.half is not None else "")


def cell_text(row: Row, column: int, unit: Unit) -> str:
    """The value of a cell, and of how many seeds it is where not all of the row's have one."""
    value = row.cells[column].value
    some = value is not None and value.count < len(row.seeds)
    return value_text(value, unit) + (f" (n={value.count})" if some and value else "")


def p_text(p: float) -> str:
    """A p value with three decimals and no zero before the point: ".004", "<.001", "1"."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0").replace("1.000", "1")


def p_texts(gap: Gap) -> str:
    """Both p values of a gap, alone and corrected; empty without a test."""
    if gap.gap.p is None or gap.p_holm is None:
        return ""
    return f"p {p_text(gap.gap.p)} / {p_text(gap.p_holm)}"


def gap_text(gap: Gap, unit: Unit) -> str:
    """A difference with its interval and its mark."""
    return f"{value_text(gap.gap, unit, signed=True)} {gap.mark}".rstrip()


def heading(block: Block, column: int) -> str:
    """Heading of a column with its unit."""
    measure = block.columns[column]
    arrow = {True: "\u00a0↑", False: "\u00a0↓", None: ""}[measure.higher_is_better]
    unit = "" if measure.heading == _UNITS[measure.unit] else f", {_UNITS[measure.unit]}"
    return f"{measure.heading}{unit}{arrow}"


def legend(comparison: Comparison) -> list[str]:
    """What the numbers and marks mean."""
    lines = ["Mean over seeds ± half of the 95 % interval (Student's t). ↑: more is better, ↓: less is."]
    rows = [row for block in comparison.blocks for row in block.rows]
    if any(cell.value is None or cell.value.count < len(row.seeds) for row in rows for cell in row.cells):
        lines.append(f"{MISSING} and n: no seed, or n of them, have a value; a run may never reach a score, say.")
    if comparison.tests or comparison.primary:
        of, which = (" of a primary measure", "primary measures") if comparison.primary else ("", "this comparison")
        lines += [
            "Under it the difference to the control ± half of its 95 % interval, paired by seed where both have the "
            f"same seeds, else Welch's; then{of} p of a two-sided t test, alone / after Holm's correction for all "
            f"{comparison.tests} tests of {which}.",
            f"* p < {LEVEL} alone, which chance alone gives about once in {1 / LEVEL:.0f} tests; "
            f"** p < {LEVEL} after correction. No mark does not show that there is no difference.",
            comparison.caption,
        ]
    if any(cell.best for block in comparison.blocks for row in block.rows for cell in row.cells):
        lines.append(
            "Best control: of the groups that do not learn the teacher's maps (shuffled, moved and uniform maps are among "
            "them, true masks are not: a ceiling), the one with the best mean in that measure, chosen after the fact."
        )
    return lines


def settings_text(block: Block) -> str:
    """What was scored and how, on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in block.settings.items())


def block_tables(block: Block, width: int) -> list[TextTable]:
    """A block in tables of at most `width` characters: value, difference and p values under one another."""
    lines = [[_lines(row, number, c.unit) for number, c in enumerate(block.columns)] for row in block.rows]
    labels = [[f"{r.label}\n  − {r.control}" if r.control else r.label, str(len(r.seeds))] for r in block.rows]
    rows: list[list[str]] = []
    for row, label, cells in zip(block.rows, labels, lines, strict=True):
        rows.append([*label, *cells])
        if others := _best_lines(block, row.cells, row.control):
            rows.append(["  − best control", "", *others])
    if any(value is not None for value in block.teacher):
        known = zip(block.teacher, block.columns, strict=True)
        rows.append([TEACHER, "", *(MISSING if v is None else number(v, c.unit) for v, c in known)])
    headings = ["objective", "seeds", *(heading(block, column) for column in range(len(block.columns)))]
    return [TextTable(title=block.title, headings=h, rows=r) for h, r in _split(headings, rows, width)]


def _lines(row: Row, column: int, unit: Unit) -> str:
    parts, cell = [cell_text(row, column, unit)], row.cells[column]
    if cell.gap is not None:
        parts += [gap_text(cell.gap, unit), p_texts(cell.gap)]
    return "\n".join(part for part in parts if part)


def _best_lines(block: Block, cells: Sequence[Cell], control: str | None) -> list[str]:
    """Cells of the row against the best control; none where that is the control of the row in every column."""
    if all(cell.best is None or cell.best.control == control for cell in cells):
        return []
    texts = []
    for cell, column in zip(cells, block.columns, strict=True):
        if cell.best is None:
            texts.append(MISSING)
        elif cell.best.control == control:
            texts.append(f"{control}, as above")
        else:
            texts.append("\n".join([cell.best.control, gap_text(cell.best, column.unit), p_texts(cell.best)]).rstrip())
    return texts


def column_width(heading: str, cells: Sequence[str]) -> int:
    """Characters of a column whose cells are not wrapped, and whose heading is where it is long."""
    lines = [len(line) for cell in cells for line in cell.split("\n")]
    return max([*lines, *map(len, heading.split(" ")), min(len(heading), 10)])


def _split(headings: list[str], rows: list[list[str]], width: int) -> list[tuple[list[str], list[list[str]]]]:
    """Columns that fit side by side, the first two repeated. A heading may wrap, a cell may not."""

    def needed(column: int) -> int:
        return column_width(headings[column], [row[column] for row in rows]) + FRAME

    fixed, parts, used = needed(0) + needed(1) + 1, [[0, 1]], 0
    for column in range(2, len(headings)):
        if used and fixed + used + needed(column) > width:
            parts.append([0, 1])
            used = 0
        parts[-1].append(column)
        used += needed(column)
    return [([headings[c] for c in part], [[row[c] for c in part] for row in rows]) for part in parts]


def cost_table(costs: Sequence[Cost]) -> TextTable:
    """Parameters and time of every group."""
    headings = [
        "objective",
        "backbone",
        "head",
        "queries kept",
        "only in training",
        "step, ms",
        "to control",
        "training, s",
    ]
    rows = [
        [
            cost.label,
            *(MISSING if n is None else millions(n) for n in (cost.backbone, cost.head, cost.kept, cost.added)),
            MISSING if cost.step_ms is None else f"{cost.step_ms.mean:,.1f}",
            "" if cost.ratio is None else f"{cost.ratio:.2f}×",
            value_text(cost.seconds, "seconds"),
        ]
        for cost in costs
    ]
    return TextTable(title="Cost: parameters and time", headings=headings, rows=rows)


def comparison_markdown(comparison: Comparison) -> str:
    """Everything in Markdown: for each block the scores, the differences, and lfi against the best control."""
    parts = []
    for block in comparison.blocks:
        units = [column.unit for column in block.columns]
        heads = [heading(block, column) for column in range(len(block.columns))]
        parts += [f"### {block.title}", f"{settings_text(block)}."]
        rows = [
            [row.label, str(len(row.seeds)), *(cell_text(row, column, unit) for column, unit in enumerate(units))]
            for row in block.rows
        ]
        if any(value is not None for value in block.teacher):
            known = zip(block.teacher, units, strict=True)
            rows.append([TEACHER, "", *(MISSING if v is None else number(v, u) for v, u in known)])
        parts.append(markdown_table(["objective", "seeds", *heads], rows))
        for name, pick in (("difference", "gap"), ("difference to the best control of each measure", "best")):
            rows = []
            for row in block.rows:
                gaps: list[Gap | None] = [getattr(cell, pick) for cell in row.cells]
                if all(gap is None or (pick == "best" and gap.control == row.control) for gap in gaps):
                    continue
                cells = [_gap_cell(gap, unit, pick == "best") for gap, unit in zip(gaps, units, strict=True)]
                rows.append([f"{row.label} − {row.control if pick == 'gap' else 'best control'}", *cells])
            parts += [markdown_table([name, *heads], rows)] if rows else []
    table = cost_table(comparison.costs)
    parts += [f"### {table.title}", markdown_table(table.headings, table.rows)]
    parts.append("\n".join(f"- {line}" for line in _remarks(comparison)))
    return "\n\n".join(parts) + "\n"


def _remarks(comparison: Comparison) -> list[str]:
    lines = [line.replace("*", r"\*").replace("Under it the", "The") for line in legend(comparison)]
    return [*lines, *comparison.notes, *(f"{missing.what} `{missing.command}`" for missing in comparison.missing)]


def _gap_cell(gap: Gap | None, unit: Unit, named: bool) -> str:
    if gap is None:
        return MISSING
    tests = f" ({p_texts(gap)})" if p_texts(gap) else ""
    text = gap_text(gap, unit).replace("*", r"\*") + tests
    return f"{text}, {gap.control}" if named else text


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def tidy(comparison: Comparison) -> list[dict[str, Any]]:
    """One entry for each block, group and measure; values in the measure's unit, None where there is none.

    `tested` says whether differences in this measure are tested at all, be it that there are seeds to test them with.
    """
    return [
        {
            "protocol": block.protocol,
            "settings": settings_text(block),
            "objective": row.label,
            "measure": measure.name,
            "unit": measure.unit,
            "n": cell.value.count,
            "mean": cell.value.mean,
            "low": cell.value.low,
            "high": cell.value.high,
            "control": cell.gap.control if cell.gap else None,
            **_numbers(cell.gap, ""),
            "best_control": cell.best.control if cell.best else None,
            **_numbers(cell.best, "best_"),
            "teacher": teacher,
            "tested": tested,
        }
        for block in comparison.blocks
        for row in block.rows
        for cell, measure, teacher, tested in zip(row.cells, block.columns, block.teacher, block.tested, strict=True)
        if cell.value is not None
    ]


def _numbers(gap: Gap | None, prefix: str) -> dict[str, float | None]:
    value = gap.gap if gap else None
    return {
        f"{prefix}diff": value.mean if value else None,
        f"{prefix}diff_low": value.low if value else None,
        f"{prefix}diff_high": value.high if value else None,
        f"{prefix}p": value.p if value else None,
        f"{prefix}p_holm": gap.p_holm if gap else None,
    }


def comparison_csv(comparison: Comparison) -> str:
    """The entries of `tidy` as CSV."""
    rows = tidy(comparison)
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["protocol"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def standings_table(rows: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells as a person reads them: per cent, mean ± half the interval."""
    settings, scores = _standing_columns(rows)
    cells = [
        [
            *(shown_setting(row.settings[name]) for name in settings),
            str(len(row.seeds)),
            *(value_text(row.scores.get(score.name), "share") for score in scores),
        ]
        for row in rows
    ]
    return [*settings, "seeds", *(score.heading for score in scores)], cells


def standings_markdown(rows: Sequence[Standing]) -> str:
    """Return the table in Markdown, with a line that says what the numbers are."""
    table = markdown_table(*standings_table(rows))
    return f"{table}\n\nPer cent; mean over seeds ± half of the 95 % interval (Student's t).\n"


def standings_csv(rows: Sequence[Standing]) -> str:
    """Return the table as CSV: settings, seeds, and mean, low and high of every score as shares."""
    settings, scores = _standing_columns(rows)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*settings, "seeds", *(f"{score.name}{end}" for score in scores for end in ("", "_low", "_high"))])
    for row in rows:
        estimates = [row.scores.get(score.name) for score in scores]
        numbers = [value for e in estimates for value in ((e.mean, e.low, e.high) if e else (None, None, None))]
        values = (shown_setting(row.settings[name]) for name in settings)
        writer.writerow([*values, " ".join(map(str, row.seeds)), *numbers])
    return text.getvalue()


def _standing_columns(rows: Sequence[Standing]) -> tuple[list[str], tuple[Measure, ...]]:
    """Names of settings, and the scores that some row has."""
    names = [name for name in HEAD_SCORES if any(name in row.scores for row in rows)]
    scores = without_domains([Measure(name=name, heading=HEAD_SCORES[name]) for name in names])
    return list(rows[0].settings) if rows else [], scores


def domain_cells(table: DomainTable) -> tuple[list[str], list[list[list[str]]]]:
    """Return headings, and for each row its cells as lines: per cent ± standard error, then the 95 % interval."""
    cells = [
        [
            [row.label],
            *(_domain_lines(row.domains.get(domain)) for domain in table.domains),
            _domain_lines(row.mean),
            [str(len({seed for score in row.domains.values() for seed in score.seeds}))],
        ]
        for row in table.rows
    ]
    return ["", *table.domains, "mean", "seeds"], cells


def _domain_lines(score: DomainScore | None) -> list[str]:
    if score is None:
        return [MISSING]
    if score.error is None or score.half is None:
        return [points(score.mean)]
    low, high = points(score.mean - score.half), points(score.mean + score.half)
    return [f"{points(score.mean)} ± {points(score.error)}", f"{low} to {high}"]
