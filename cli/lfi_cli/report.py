"""lfi export, lfi compare, lfi report, lfi study: what comes of finished runs"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, percent, say, show_tree
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.study.answers import StudyConfig

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.report.compare import Comparison
    from lfi_pipeline.report.text import TextTable
    from lfi_pipeline.study.score import Preference, StudyScore

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
    plot: Annotated[Path | None, Option("Draw the scores with their intervals, as an SVG file.")] = None

    def __post_init__(self) -> None:
        check(self)


@command(Compare)
def compare(config: Compare) -> Shown:
    """Compare objectives in every protocol that lfi evaluate has scored: intervals over seeds, differences, cost.

    Example: lfi compare runs/ --markdown results.md
    """
    from lfi_pipeline.report.compare import compare as compare_runs
    from lfi_pipeline.report.figures import scores_svg
    from lfi_pipeline.report.runs import find_runs
    from lfi_pipeline.report.text import comparison_csv, comparison_markdown, tidy, write_text

    runs, notes = find_runs(config.runs)
    comparison = compare_runs(runs, control=config.control, protocols=config.protocol, primary=config.primary)
    texts = (config.markdown, comparison_markdown), (config.csv, comparison_csv), (config.plot, scores_svg)
    written = [(path, text(comparison)) for path, text in texts if path]  # all of them, or an error and none
    for path, text in written:
        write_text(path, text)
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
        console.print(settings_text(block), style="dim")
        for table in block_tables(block, max(console.width, _LEAST_WIDTH)):
            _draw(console, table, lines=True)
    _draw(console, cost_table(comparison.costs))
    if comparison.blocks:
        for line in legend(comparison):
            console.print(line, highlight=False)
    for note in result["notes"]:
        console.print(f"Note: {note}", highlight=False)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeStudy:
    """Options of `lfi study make`."""

    run_a: Annotated[Path, Option("A run directory made by lfi train.", positional=True)]
    run_b: Annotated[Path, Option("Another, of the same data set.", positional=True)]
    study: StudyConfig
    out: Annotated[Path, Option("The HTML file for the raters; its key is written beside it.")] = Path("study.html")

    def __post_init__(self) -> None:
        check(self)


@command(MakeStudy)
def make(config: MakeStudy) -> Shown:
    """Write one self-contained HTML page that shows image, word and both runs' maps, and collects preferences.

    The page does not tell whose a map is; the key beside it (study-key.json) does, and is not for raters.

    Example: lfi study make runs/lfi-0 runs/none-0 --targets shards-val/ --out study.html
    """
    from lfi_pipeline.study.make import make_study

    study = make_study(config.run_a, config.run_b, config.out, config.study)

    def render(console: Console) -> None:
        domains = ", ".join(f"{name or 'one domain'} {count}" for name, count in study.domains.items())
        lacking = {"a": "words without a map of A", "b": "words without a map of B", "image": "unreadable images"}
        over = ", ".join(f"{count} {lacking[name]}" for name, count in study.passed_over.items())
        facts(
            console,
            f"study {study.id}",
            [
                ("page", f"{study.page.resolve()} (give this to the raters)"),
                ("key", f"{study.key.resolve()} (keep this from them)"),
                ("maps", study.maps),
                ("items", f"{study.items} ({domains}), {study.repeated} shown twice, {study.catch} catch trials"),
                *([("passed over", over)] if over else []),
                ("then", f"lfi study score ANSWERS.json... --key {study.key}"),
            ],
        )

    return Shown(asdict(study), render)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Options of `lfi study score`."""

    files: Annotated[
        tuple[Path, ...],
        Option("What the raters saved, a file each.", positional=True, at_least_one=True, metavar="FILE"),
    ]
    key: Annotated[Path, Option("The key that lfi study make wrote.")] = Path("study-key.json")
    seed: Annotated[int, Option("Of the bootstrap.", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


@command(Score)
def score(config: Score) -> Shown:
    """Say how often A is preferred to B, with intervals, and how far raters agree with each other and themselves.

    Example: lfi study score answers/*.json --key study-key.json
    """
    from lfi_pipeline.study.score import score_study

    outcome = score_study(config.files, config.key, seed=config.seed)
    return Shown(asdict(outcome), lambda console: _render(console, outcome))


def _render(console: Console, outcome: StudyScore) -> None:
    preference, repeats = outcome.preference, outcome.repeats
    rows = [
        ("A", outcome.a),
        ("B", outcome.b),
        ("preferred", f"A {preference.a}, B {preference.b}, neither {preference.ties}"),
        ("ratio A : B", f"{_times(outcome.ratio, preference)}{_ratio_ends(outcome.ratio_interval)}"),
        ("share for A", percent(preference.share)),
        ("  95 %, raters and items drawn anew", _ends(outcome.bootstrap)),
        ("  95 %, as if answers were independent (Wilson)", _ends(preference.wilson)),
        ("sign test, one vote an item", _p(outcome.sign_test)),
        ("sign test, as if answers were independent", _p(outcome.sign_test_answers)),
        ("agreement between raters (Krippendorff's alpha)", _alpha(outcome.agreement)),
        ("same answer when shown again", f"{repeats.same} of {repeats.count}"),
    ]
    rows += [(f"domain {name}", _line(each)) for name, each in outcome.domains.items() if name]
    for rater in outcome.raters:
        parts = [_line(rater.preference), f"again the same {rater.repeats.same} of {rater.repeats.count}"]
        parts += [f"left {percent(rater.left)}"] if rater.left is not None else []
        parts += [f"catch {percent(rater.catch)}"] if rater.catch is not None else []
        rows.append((f"rater {rater.rater}", ", ".join([*parts, f"{rater.seconds:.1f} s an answer"])))
    facts(console, f"study {outcome.study}, {outcome.maps} maps", [*rows, *(("note", note) for note in outcome.notes)])


def _line(preference: Preference) -> str:
    return f"A {preference.a}, B {preference.b}, neither {preference.ties}: {percent(preference.share)} for A"


def _times(ratio: float | None, preference: Preference) -> str:
    if ratio is None:
        return "– (nobody preferred B)" if preference.a else "–"
    return f"{ratio:.2f}x"


def _ratio_ends(interval: tuple[float | None, float | None] | None) -> str:
    if interval is None or interval == (None, None):
        return ""
    return " (95 % " + " to ".join("unbounded" if end is None else f"{end:.2f}x" for end in interval) + ")"


def _ends(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"p = {value:.2g}"


def _alpha(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
