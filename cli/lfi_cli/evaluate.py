"""lfi evaluate, lfi predict; and how scores are shown: one run as facts, several as a table over seeds"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, percent, show_tree, whole_table
from lfi_pipeline.core.options import DEVICE, Option, check
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS, EvaluationConfig, evaluation_configs

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from lfi_pipeline.evaluation.metrics import Measure
    from lfi_pipeline.evaluation.protocols import ProtocolResult
    from lfi_pipeline.exporting.predict import EncodeText
    from lfi_pipeline.report.views import DomainTable, SeedRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """Options of `lfi predict`."""

    images: Annotated[
        tuple[Path, ...], Option("Image files, or directories of them.", positional=True, at_least_one=True)
    ]
    model: Annotated[Path, Option("A directory made by lfi export.")]
    words: Annotated[
        tuple[str, ...], Option("Names to ask for; left out: the model's classes.", separator=",", metavar="NAME,...")
    ] = ()
    top: Annotated[int, Option("Answers an image, the best ones; of words all.", ge=1)] = 5
    save: Annotated[
        Path | None, Option("Directory for pictures of the answers with their maps, and a page of them all.")
    ] = None
    teacher: Annotated[
        str | None,
        Option("Whose text encoder reads words that the model does not know: the teacher that it was taught by."),
    ] = None
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)


def _encoder(name: str, wanted: tuple[str, str]) -> EncodeText:
    """Return a function that embeds V words by the teacher called `name`: fp32 [V, E], rounded to fp16 as in the cache.

    It loads the teacher when it is called, and refuses one whose name and tag are not `wanted`.
    """

    def encode(words: Sequence[str]) -> Tensor:
        from lfi_pipeline.core.errors import ConfigError
        from lfi_pipeline.teachers import load_teacher

        teacher = load_teacher(name)
        identity = teacher.identity.name, teacher.identity.tag
        if identity != wanted:
            raise ConfigError(f"`teacher` must be the model's, {':'.join(wanted)}, got {':'.join(identity)}.")
        return teacher.embed_words(words).half().float()

    return encode


@command(Predict)
def predict(config: Predict) -> Shown:
    """Say what is in pictures, and where the student looked for it.

    Example: lfi predict photos/ --model exported/ --save answers/
    """
    from lfi_pipeline.core.runtime import resolve_device
    from lfi_pipeline.exporting import load
    from lfi_pipeline.exporting.predict import INDEX, find_images, predict_images, save_predictions

    paths = find_images(config.images)
    model = load(config.model, device=resolve_device(config.device))
    words = [word.strip() for word in config.words if word.strip()] or None
    encode = _encoder(config.teacher, model.config.teacher) if config.teacher is not None else None
    predictions = predict_images(model, paths, words, top=config.top, encode=encode, skip_unreadable=len(paths) > 1)
    shown = list(save_predictions(predictions, config.save) if config.save is not None else predictions)
    result: Result = {"model": str(config.model), "images": [each.to_plain() for each in shown]}
    if config.save is not None:
        result["page"] = str(config.save / INDEX)

    def render(console: Console) -> None:
        from rich.table import Table

        table = Table("image", "answers")
        for each in shown:
            answers = ", ".join(f"{answer.name} {answer.score:.0%}" for answer in each.answers)
            table.add_row(each.source, answers or each.error)
        whole_table(console, table)
        if config.save is not None:
            console.print(f"pictures: {config.save / INDEX}")

    return Shown(result, render)


FILES = {
    "evaluation/*.json": "results by protocol and settings, a file each",
    "gallery.*": "samples with the student's and the teacher's maps, for the report",
    "evaluation/detections-*.json.gz": "detections as COCO results",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Options of `lfi evaluate` beside those of the protocols."""

    runs: Annotated[tuple[Path, ...], Option("Run directories made by lfi train.", positional=True, at_least_one=True)]
    protocol: Annotated[
        tuple[str, ...],
        Option(
            "Which protocol. Left out: classification, and grounding where words of the targets have masks.",
            choices=tuple(PROTOCOL_CONFIGS),
        ),
    ] = ()


@command((Evaluate, EvaluationConfig, *PROTOCOL_CONFIGS.values()), raw=True)
def evaluate(settings: Mapping[str, Any]) -> Shown:
    """Score runs by one protocol or several; results are kept in RUN/evaluation/. Several runs are also shown by seeds.

    Example: lfi evaluate runs/lfi-0 --targets shards-val/
    """
    options = {name: value for name, value in settings.items() if name not in ("runs", "protocol")}
    runs, names = [Path(run) for run in settings["runs"]], tuple(settings.get("protocol", ()))
    protocols_chosen = bool(names)
    if not protocols_chosen:
        from lfi_pipeline.evaluation.protocols import default_protocols

        names = default_protocols(_path(options.get("targets")), _path(options.get("data_root")))
    common, configs = evaluation_configs(names, options, ignored=() if protocols_chosen else ("targets",))
    from lfi_pipeline.evaluation import evaluate_runs

    results = evaluate_runs(runs, configs, common)
    tables, notes = _tables(results)
    domains = _domain_tables(results)
    result: Result = {
        "runs": {
            str(run): {
                name: {k: v for k, v in dataclasses.asdict(r).items() if k != "protocol"} for name, r in of.items()
            }
            for run, of in results.items()
        },
        "tables": {name: [dataclasses.asdict(row) for row in rows] for name, rows in {**tables, **domains}.items()},
    }

    def render(console: Console) -> None:
        for run, by_protocol in results.items():
            show_run(console, run, by_protocol)
        if tables:
            show_tables(console, tables, notes)
        for domain_rows in domains.values():
            show_domain_tables(console, domain_rows)
        show_tree(console, next(iter(results)), FILES)

    return Shown(result, render)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _tables(results: Mapping[Path, Mapping[str, Any]]) -> tuple[Mapping[str, Any], Sequence[str]]:
    from lfi_pipeline.report.views import CROSS_DOMAIN, seed_tables

    others = {run: {name: r for name, r in of.items() if name != CROSS_DOMAIN} for run, of in results.items()}
    return seed_tables(others) if len(results) > 1 and any(others.values()) else ({}, ())


def _domain_tables(results: Mapping[Path, Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """Return the tables of domains that were left out of training; none unless two runs or more have such a score.

    They are apart from those of `_tables`: runs that leave out different domains are columns of one row here.
    """
    from lfi_pipeline.report.views import CROSS_DOMAIN, domain_tables

    cross_domain = {run: of[CROSS_DOMAIN] for run, of in results.items() if CROSS_DOMAIN in of}
    return {CROSS_DOMAIN: domain_tables(cross_domain)} if len(cross_domain) > 1 else {}


_SHOWN = {"share": (100, 1), "nats": (1, 3), "steps": (1, 0), "seconds": (1, 1), "ratio": (1, 2)}
_UNITS = {"share": " %", "nats": " nats", "seconds": " s"}


def show_run(console: Console, run: Path, results: Mapping[str, ProtocolResult]) -> None:
    """Print one run's results, the details of its protocols included."""
    from lfi_pipeline.evaluation.metrics import MEASURES, without_domains

    for protocol, result in results.items():
        scores = {name: score for name, score in result.scores.items() if score is not None}
        scored = without_domains([each for each in MEASURES[protocol] if each.name in scores])
        rows = [(each.heading, _value(each, scores[each.name]) + _UNITS.get(each.unit, "")) for each in scored]
        details = _DETAILS[protocol](result.details) if protocol in _DETAILS else []
        facts(console, f"{run.name}: {protocol}", [*rows, *details, ("seconds", f"{result.seconds:.1f}")])


def show_tables(console: Console, tables: Mapping[str, Sequence[SeedRow]], notes: Sequence[str]) -> None:
    """Print a table for each protocol, then the notes."""
    from rich.table import Table

    from lfi_pipeline.evaluation.metrics import MEASURES

    for protocol, rows in tables.items():
        shown = [measure for measure in MEASURES[protocol] if any(measure.name in row.scores for row in rows)]
        table = Table("", "seeds", *(measure.heading for measure in shown), title=protocol, title_justify="left")
        for row in rows:
            estimates = (row.scores.get(measure.name) for measure in shown)
            cells = [
                "–" if each is None else _value(measure, each.mean, each.half) + _of(each.count, len(row.seeds))
                for measure, each in zip(shown, estimates, strict=True)
            ]
            table.add_row(row.label, str(len(row.seeds)), *cells)
        whole_table(console, table)
    console.print("shares in per cent; mean over seeds ± half of the 95 % interval (Student's t)", style="dim")
    for note in notes:
        console.print(note, style="dim", soft_wrap=True)


def show_domain_tables(console: Console, tables: Sequence[DomainTable]) -> None:
    """Print each table with its legend and notes."""
    from rich.table import Table

    from lfi_pipeline.report.text import DOMAIN_LEGEND, domain_cells

    for table in tables:
        headings, rows = domain_cells(table)
        shown = Table(*headings, title=table.title, title_justify="left")
        for row in rows:
            shown.add_row(*("\n".join(cell) for cell in row))
        whole_table(console, shown)
        console.print(DOMAIN_LEGEND, style="dim", soft_wrap=True)
        for note in table.notes:
            console.print(note, style="dim", soft_wrap=True)


def _of(count: int, seeds: int) -> str:
    """Return " (COUNT of SEEDS)" where some seeds have no score, as when they never reach a reference; else nothing.

    Without it those seeds would vanish in the mean.
    """
    return "" if count == seeds else f" ({count} of {seeds})"


def _value(measure: Measure, value: float, half: float | None = None) -> str:
    factor, decimals = _SHOWN[measure.unit]
    return f"{factor * value:.{decimals}f}" + (f" ± {factor * half:.{decimals}f}" if half is not None else "")


def _classification(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    domains = details.get("map_per_domain", {}).items()
    rows: list[tuple[str, object]] = [(f"mAP, {domain}", percent(value)) for domain, value in domains if domain]
    if (probes := details.get("probes")) is not None:
        fitted = (
            f"{probes['training_images']:,} training images; L2 {probes['l2']:.1e} by {probes['held_back']:,} of them"
        )
        rows.append(("probes fitted on", fitted))
    return rows


def _grounding(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [(f"tap {tap['index']}", _looks(tap)) for tap in details["taps"]]
    rows += [(f"teacher, {layer['name']}", _looks(layer)) for layer in details["teacher_layers"]]
    if details["cam"]:
        rows.append(("class maps", _looks(details["cam"])))
    return [*rows, ("chance", percent(details["area"]))]


def _looks(scores: Mapping[str, Any]) -> str:
    summary = f"peak in mask {percent(scores['pointing'])}, mass in mask {percent(scores['mass_in_mask'])}"
    summary += f", IoU {percent(scores['iou'])} at {scores['threshold']:.2f} of the maximum"
    divergence = scores["divergence"]
    return summary if divergence is None else f"{summary}, {divergence:.3f} nats from the one before"


def _convergence(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    reference, third = details["reference"], details["score_at_third"]
    seeds = "of the same seed" if reference["same_seed"] else "mean of other seeds"
    goal = f"{percent(details['goal'])}, at the end of {reference['steps']:,.0f} steps ({seeds})"
    rows: list[tuple[str, object]] = [
        ("reference", f"{', '.join(reference['runs'])}: {goal}"),
        ("reached", "yes" if details["reached"] else f"never; best {percent(details['best'])}"),
    ]
    if third is not None:
        rows.append(("at a third of the reference's steps", percent(third)))
    return rows


def _cross_domain(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    domains = details["domains"]
    rows: list[tuple[str, object]] = [
        (domain, f"{_named(scores, ('top1', 'map'))} ({scores['images']} images)") for domain, scores in domains.items()
    ]
    return [*rows, ("trained on", ", ".join(details["trained_on"]))]


def _worst_group(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("worst group", _group(details["worst"]))]
    for group in details["groups"]:
        seen = f"{percent(group['training_share'])} of training"
        rows.append((_group(group), f"top-1 {percent(group['accuracy'])} ({group['images']} images; {seen})"))
    if left_out := details["left_out"]:
        rows.append(("left out", "; ".join(f"{_group(each)} ({each['images']} images)" for each in left_out)))
    return rows


def _group(group: Mapping[str, Any]) -> str:
    return ", ".join(group[part] for part in ("class", "field") if part in group)


def _zero_shot(details: Mapping[str, Any]) -> list[tuple[str, object]]:
    names, seen, queries = ("top1", "top5", "map"), details["trained_on"], details["class_queries"]
    rows: list[tuple[str, object]] = [("chance", _named(details["chance"], names))]
    for domain, scores in details["domains"].items():
        teacher = _named({name: scores.get(f"teacher_{name}") for name in names}, names)
        rows.append((domain, f"{_named(scores, names)}; teacher: {teacher}"))
    of = f"of {details['classes']} classes"
    rows.append(("queries", f"{queries['words']} {of} by the name as a word, {queries['prompts']} by prompts"))
    rows.append(("trained on", f"{seen['images']} of {details['images']} images, {seen['labelled_classes']} {of}"))
    return rows


def _named(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    shown = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
    named_scores = [f"{shown[name]} {percent(scores[name])}" for name in names if scores.get(name) is not None]
    return ", ".join(named_scores) or "none"


_DETAILS = {
    "classification": _classification,
    "worst-group": _worst_group,
    "cross-domain": _cross_domain,
    "zero-shot": _zero_shot,
    "grounding": _grounding,
    "convergence": _convergence,
}
