"""lfi export, lfi compare, lfi report: what comes of finished runs"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, say, show_tree
from lfi_pipeline.core.options import Option, check

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.report.compare import Comparison
    from lfi_pipeline.report.text import TextTable

_LEAST_WIDTH = 100
RUNS = "Run directories, or directories that hold runs; those that differ in seed are one line."
PRIMARY = Option(
    "Measures that you named before scoring, such as map_seen,grounding:pointing; they alone are tested. Left out: all.",
    separator=",",
    metavar="NAME,...",
)
EXPORTED = {
    "config.json": "what timm builds the model from",
    "model.safetensors": "its weights",
    "head.safetensors": "the trained head, where timm's classifier cannot hold it",
    "model.onnx": "the model for other runtimes",
    "lfi.json": "the whole student: how it is built, its classes and words",
    "lfi.safetensors": "its weights, head included: lfi predict, lfi_pipeline.load",
    "lfi.onnx": "the whole student for other runtimes",
    "checksums.json": "what lfi verify compares these files with",
    "README.md": "the model card: data, settings, scores",
}
_HEADS = {
    "inside": "the trained head is timm's classifier",
    "apart": "pooled features; the trained head is in head.safetensors",
    "queries": "pooled features; the queries that answer are in lfi.safetensors",
    "none": "pooled features; trained without a head",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Options of `lfi export`."""

    run: Annotated[Path, Option("A run directory made by lfi train.", positional=True)]
    out: Annotated[Path, Option("Directory to make; must be absent or empty.")]
    weights: Annotated[
        str | None,
        Option("Which checkpoint; left out: the best, where the run has one.", choices=("last", "best")),
    ] = None
    onnx: Annotated[bool, Option("Write model.onnx too (extra: onnx).")] = False

    def __post_init__(self) -> None:
        check(self)


@command(Export)
def export(config: Export) -> Shown:
    """Write a trained student as a plain timm checkpoint with a model card, checked by loading it through timm.

    Example: lfi export runs/lfi-0 --out exported/
    """
    from lfi_pipeline.exporting import export_run

    out = config.out
    result: Result = export_run(config.run, out, weights=config.weights, onnx=config.onnx)
    check_of = result["check"]

    def render(console: Console) -> None:
        shown = f"{check_of['images']} images and {check_of['noise']} of noise"
        rows = [
            ("model", f"{result['model']}, {result['parameters']:,} parameters"),
            ("output", _HEADS[result["head"]]),
            ("weights", result["weights"]),
            (f"timm alone against the student, {shown}", f"features differ by {check_of['features']:.1e}"),
        ]
        if check_of["logits"] is not None:
            rows.append(("", f"logits differ by {check_of['logits']:.1e}"))
        if config.onnx:
            differs = "not run: no onnxruntime" if check_of["onnx"] is None else f"differs by {check_of['onnx']:.1e}"
            rows.append(("ONNX against PyTorch", differs))
        if cost := result["whole"].get("head_cost"):
            rows.append(("the query head adds", f"{cost['text']}, {cost['time'] - 1:.1%} of its time on one image"))
        rows.append(("load it", f'timm.create_model("local-dir:{out}", pretrained=True)'))
        facts(console, str(out), rows)
        show_tree(console, out, EXPORTED)

    return Shown(result, render)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compare:
    """Options of `lfi compare`."""

    runs: Annotated[tuple[Path, ...], Option(RUNS, positional=True, at_least_one=True)]
    control: Annotated[
        str | None,
        Option("Label of the runs to compare with. Left out: objective none, same student and data."),
    ] = None
    protocol: Annotated[tuple[str, ...], Option("Only this protocol's results. Left out: all there are.")] = ()
    primary: Annotated[tuple[str, ...], PRIMARY] = ()
    markdown: Annotated[Path | None, Option("Write the tables to this Markdown file.")] = None
    csv: Annotated[Path | None, Option("Write one line a group and measure to this CSV file.")] = None

    def __post_init__(self) -> None:
        check(self)


@command(Compare)
def compare(config: Compare) -> Shown:
    """Compare objectives in every protocol that lfi evaluate has scored: intervals over seeds, differences, cost.

    Example: lfi compare runs/ --markdown results.md
    """
    from lfi_pipeline.report.compare import compare as compare_runs
    from lfi_pipeline.report.runs import find_runs
    from lfi_pipeline.report.text import comparison_csv, comparison_markdown, tidy, write_text

    runs, notes = find_runs(config.runs)
    comparison = compare_runs(runs, control=config.control, protocols=config.protocol, primary=config.primary)
    written = [
        (path, text) for path, text in ((config.markdown, comparison_markdown), (config.csv, comparison_csv)) if path
    ]
    for path, text in written:
        write_text(path, text(comparison))
    result: Result = {
        "runs": [str(run) for run in runs],
        "results": tidy(comparison),
        "costs": [asdict(cost) for cost in comparison.costs],
        "tests": comparison.tests,
        "primary": comparison.primary,
        "notes": [*notes, *comparison.notes],
        "missing": [asdict(missing) for missing in comparison.missing],
        "written": [str(path) for path, _ in written],
    }
    return Shown(result, lambda console: _show(console, comparison, result))


def _show(console: Console, comparison: Comparison, result: Result) -> None:
    from lfi_pipeline.report.text import block_tables, cost_table, legend, settings_text

    for block in comparison.blocks:
        console.print(settings_text(block), style="dim", markup=False)
        for table in block_tables(block, max(console.width, _LEAST_WIDTH)):
            _draw(console, table, lines=True)
    _draw(console, cost_table(comparison.costs))
    if comparison.blocks:
        for line in legend(comparison):
            console.print(line, markup=False, highlight=False)
    for note in result["notes"]:
        console.print(f"Note: {note}", markup=False, highlight=False)
    for missing in comparison.missing:
        say(console, f"Missing: {missing.what} This makes it:", f"  {missing.command}")
    for path in result["written"]:
        say(console, f"Written: {path}")


def _draw(console: Console, table: TextTable, lines: bool = False) -> None:
    from rich.table import Table

    from lfi_pipeline.report.text import column_width

    drawn = Table(title=table.title, title_justify="left", show_lines=lines)
    for place, heading in enumerate(table.headings):
        width = column_width(heading, [row[place] for row in table.rows])
        drawn.add_column(heading, justify="right" if place else "left", width=width)
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Options of `lfi report`."""

    runs: Annotated[tuple[Path, ...], Option(RUNS, positional=True, at_least_one=True)]
    out: Annotated[Path, Option("The HTML file to write.")] = Path("report.html")
    title: Annotated[str | None, Option("Heading of the page.")] = None
    primary: Annotated[tuple[str, ...], PRIMARY] = ()

    def __post_init__(self) -> None:
        check(self)


@command(Report)
def report(config: Report) -> Shown:
    """Write one self-contained HTML page: scores, learning curves and a gallery of maps.

    Example: lfi report runs/ --out report.html
    """
    from lfi_pipeline.report import write_report
    from lfi_pipeline.report.runs import find_runs

    runs, notes = find_runs(config.runs)
    path = write_report(runs, config.out, title=config.title, primary=config.primary)

    def render(console: Console) -> None:
        say(console, *(f"Note: {note}" for note in notes), f"Report: {path.resolve()}")

    return Shown({"report": str(path), "notes": notes}, render)
