"""lfi evaluate"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lfi_cli.domain_tables import show_domain_tables
from lfi_cli.evaluation_tables import show_run, show_tables
from lfi_cli.output import JsonFlag, Result, command, finish
from lfi_pipeline.core.errors import ConfigError

MACHINE, TARGETS, GROUNDING = "Weights and machine", "Protocols grounding and zero-shot", "Protocol grounding"
CROSS_DOMAIN, ZERO_SHOT, DETECTION = "Protocol cross-domain", "Protocol zero-shot", "Protocol detection"
CONVERGENCE = "Protocol convergence"
CLASSIFICATION = "Protocol classification"
_NO_OPTIONS = ("runs", "protocol", "as_json")


@command
def evaluate(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Run directories made by lfi train.")],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="classification, cross-domain, zero-shot, grounding, detection or convergence; may be repeated. "
            "Default: classification, and grounding where --targets has masks."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which checkpoint: last or best.", rich_help_panel=MACHINE)
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the images lie, if they moved.", rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.", rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes.", rich_help_panel=MACHINE)] = None,
    probes: Annotated[
        bool | None,
        typer.Option(
            "--probes/--no-probes",
            help="k-NN and linear probe on frozen features: a pass over the training images.",
            rich_help_panel=CLASSIFICATION,
        ),
    ] = None,
    probe_limit: Annotated[
        int | None,
        typer.Option(
            help="Training images for the probes at most, evenly spaced; left out: all.",
            rich_help_panel=CLASSIFICATION,
        ),
    ] = None,
    knn_k: Annotated[int | None, typer.Option(help="Neighbours that vote.", rich_help_panel=CLASSIFICATION)] = None,
    knn_temperature: Annotated[
        float | None, typer.Option(help="Of a neighbour's vote.", rich_help_panel=CLASSIFICATION)
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(
            help="Cache by the run's teacher: of the validation split (grounding: its words, and where it looks), or "
            "of any data set with classes (zero-shot).",
            rich_help_panel=TARGETS,
        ),
    ] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option(
            help="Split whose images of the left-out domain are scored; may be repeated. Default: all there are.",
            rich_help_panel=CROSS_DOMAIN,
        ),
    ] = None,
    scored_root: Annotated[
        Path | None, typer.Option(help="Where the images of --targets lie, if they moved.", rich_help_panel=ZERO_SHOT)
    ] = None,
    gallery: Annotated[
        int | None, typer.Option(help="Samples to keep with their maps, for the report.", rich_help_panel=GROUNDING)
    ] = None,
    detection_data: Annotated[
        Path | None,
        typer.Option(
            help="Directory in COCO's layout: annotations/instances_*.json and the images. Default: the run's data.",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    detection_train: Annotated[
        str | None,
        typer.Option(help="Split to fine-tune on, instances_SPLIT*.json. Default: train.", rich_help_panel=DETECTION),
    ] = None,
    detection_val: Annotated[
        str | None, typer.Option(help="Split to score. Default: val.", rich_help_panel=DETECTION)
    ] = None,
    class_agnostic: Annotated[
        bool | None,
        typer.Option(
            "--class-agnostic",
            help="Take all objects as of one category: for data too small to learn to name them.",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps of the fine-tuning; the default suits COCO, 500 to 2000 a few thousand images.",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", rich_help_panel=DETECTION)] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak of the schedule; 0.001 for a short fine-tuning.", rich_help_panel=DETECTION),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Pixels of the longer side. Default: as the student was trained.", rich_help_panel=DETECTION),
    ] = None,
    detection_width: Annotated[
        int | None,
        typer.Option(help="Channels of pyramid and heads; 64 is quick on a CPU.", rich_help_panel=DETECTION),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the fine-tuning. Default: the run's own.", rich_help_panel=DETECTION)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--source",
            help="Backbone to start from: the run's, or from scratch, the same with random weights.",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    keep_detections: Annotated[
        bool | None,
        typer.Option(
            "--keep-detections",
            help="Keep them in RUN/evaluation/ as COCO results, .json.gz.",
            rich_help_panel=DETECTION,
        ),
    ] = None,
    references: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference",
            help="A finished run whose final score is to be reached; repeat it for its seeds.",
            rich_help_panel=CONVERGENCE,
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="Validation score that must be reached; default: the task's main one.", rich_help_panel=CONVERGENCE
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Score runs by one protocol or several; results are kept in RUN/evaluation/. Several runs are also shown by seeds.

    Example: lfi evaluate runs/lfi-0 --targets shards-val/
    """
    from lfi_pipeline.evaluation import EvaluationConfig, evaluate_runs
    from lfi_pipeline.evaluation.protocols import config_of, default_protocols

    options = {n: v for n, v in ctx.params.items() if n not in _NO_OPTIONS and v is not None and v != ()}
    shared = {
        field.name: options.pop(field.name) for field in dataclasses.fields(EvaluationConfig) if field.name in options
    }
    common = EvaluationConfig(**shared)
    names = tuple(protocol or ()) or default_protocols(targets, common.data_root)
    configs = {name: config_of(name, options) for name in names}
    _require_used(options, names, asked=bool(protocol))
    results = evaluate_runs(runs, configs, common)
    tables, notes = _tables(results)
    domains = _domain_tables(results)
    told_tables = {**tables, **domains}
    told: Result = {
        "runs": {
            str(run): {
                name: {k: v for k, v in dataclasses.asdict(r).items() if k != "protocol"} for name, r in of.items()
            }
            for run, of in results.items()
        },
        "tables": {name: [dataclasses.asdict(row) for row in rows] for name, rows in told_tables.items()},
    }

    def render(console: Console) -> None:
        for run, found in results.items():
            show_run(console, run, found)
        if tables:
            show_tables(console, tables, notes)
        for found_tables in domains.values():
            show_domain_tables(console, found_tables)

    return finish(told, as_json, render)


def _require_used(options: Mapping[str, Any], names: Sequence[str], *, asked: bool) -> None:
    """Refuse an option that none of the protocols has, so that no one believes it had an effect.

    Where no protocol was asked for, targets that cannot be used are only told.
    """
    from lfi_pipeline.evaluation.protocols import RUNNABLE, option_names

    used = {option for name in names for option in option_names(name)}
    for option in options:
        if option == "targets" and option not in used and not asked:
            Console(stderr=True).print("The data set of --targets has no masks, so grounding is not scored.")
        elif option not in used:
            owners = " or ".join(name for name in RUNNABLE if option in option_names(name))
            raise ConfigError(
                f"--{option.replace('_', '-')} is an option of protocol {owners}; asked for: {', '.join(names)}. Leave "
                f"it out, or add --protocol {owners}."
            )


def _tables(results: Mapping[Path, Mapping[str, Any]]) -> tuple[Mapping[str, Any], Sequence[str]]:
    from lfi_pipeline.report.views import CROSS_DOMAIN, seed_tables

    others = {run: {name: r for name, r in of.items() if name != CROSS_DOMAIN} for run, of in results.items()}
    return seed_tables(others) if len(results) > 1 and any(others.values()) else ({}, ())


def _domain_tables(results: Mapping[Path, Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """Runs that leave out different domains are columns of one row, so their table is another."""
    from lfi_pipeline.report.views import CROSS_DOMAIN, domain_tables

    found = {run: of[CROSS_DOMAIN] for run, of in results.items() if CROSS_DOMAIN in of}
    return {CROSS_DOMAIN: domain_tables(found)} if len(found) > 1 else {}
