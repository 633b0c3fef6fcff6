"""lfi study make, lfi study score: ask people which of two runs' maps is better"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, percent

if TYPE_CHECKING:
    from lfi_pipeline.study.score import Preference, StudyScore

app = typer.Typer(
    help="Ask people which of two runs' maps is better: make the page, then score what the raters send back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("make")
@command
def make(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory made by lfi train.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, of the same data set.")],
    targets: Annotated[Path, typer.Option(help="Cache of the validation split: it knows the words of the images.")],
    out: Annotated[Path, typer.Option(help="The HTML file for the raters; its key is written beside it.")] = Path(
        "study.html"
    ),
    maps: Annotated[
        str, typer.Option(help="interaction, gradcam, or auto: the first if both runs have queries, else the second.")
    ] = "auto",
    items: Annotated[int, typer.Option(help="Pairs of image and word, evenly over domains and classes.")] = 60,
    repeat: Annotated[float, typer.Option(help="Share of them shown again with sides swapped.")] = 0.1,
    catch: Annotated[int, typer.Option(help="Trials more: the teacher's map against the same one, shuffled.")] = 0,
    weights: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of items and of whose map is which.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Write one self-contained HTML page that shows image, word and both runs' maps, and collects preferences.

    The page does not tell whose a map is; the key beside it (study-key.json) does, and is not for raters.

    Example: lfi study make runs/lfi-0 runs/none-0 --targets shards-val/ --out study.html
    """
    from lfi_pipeline.study import StudyConfig, make_study

    config = StudyConfig(
        targets=targets,
        items=items,
        maps=maps,
        repeat=repeat,
        catch=catch,
        weights=weights,
        data_root=data_root,
        seed=seed,
        device=device,
    )
    study = make_study(run_a, run_b, out, config)

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

    return finish(asdict(study), as_json, render)


@app.command("score")
@command
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What the raters saved, a file each.")],
    key: Annotated[Path, typer.Option(help="The key that lfi study make wrote.")] = Path("study-key.json"),
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: JsonFlag = False,
) -> Result:
    """Say how often A is preferred to B, with intervals, and how far raters agree with each other and themselves.

    Example: lfi study score answers/*.json --key study-key.json
    """
    from lfi_pipeline.study import score_study

    outcome = score_study(files, key, seed=seed)
    return finish(asdict(outcome), as_json, lambda console: _render(console, outcome))


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
