"""lfi study make, lfi study score: ask people which of two runs' maps is better"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Shown, facts, percent
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.study.answers import StudyConfig

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.study.score import Preference, StudyScore


@dataclass(frozen=True, kw_only=True, slots=True)
class Make:
    """Options of `lfi study make`."""

    run_a: Annotated[Path, Option("A run directory made by lfi train.", positional=True)]
    run_b: Annotated[Path, Option("Another, of the same data set.", positional=True)]
    study: StudyConfig
    out: Annotated[Path, Option("The HTML file for the raters; its key is written beside it.")] = Path("study.html")

    def __post_init__(self) -> None:
        check(self)


@command(Make)
def make(config: Make) -> Shown:
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
