"""lfi evaluate, lfi predict"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, say, show_tree, stderr, whole_table
from lfi_pipeline.core.options import DEVICE, Option, check
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS, EvaluationConfig, evaluation_configs

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from lfi_pipeline.exporting.predict import EncodeText


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
            "Which protocol. Left out: classification, and grounding where the targets have masks.",
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
        if "targets" in options and "grounding" not in names:
            say(stderr(), "The data set of --targets has no masks, so grounding is not scored.")
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
        from lfi_cli.evaluation_tables import show_domain_tables, show_run, show_tables

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
