"""lfi evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, percent


@command
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory made by lfi train.")],
    targets: Annotated[
        Path | None,
        typer.Option(help="Cache of the validation split by the same teacher: needed to score where queries look."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    weights: Annotated[str, typer.Option(help="Which checkpoint: last or best.")] = "last",
    gallery: Annotated[int, typer.Option(help="Samples to keep with their maps, for the report.")] = 12,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Score a run: mAP on seen and held-out domains, pointing game and mass-in-mask of its maps per tap.

    Example: lfi evaluate runs/lfi-0 --targets shards-val/
    """
    from lfi_pipeline.evaluation import evaluate_run
    from lfi_pipeline.training.names import SCORES

    result: Result = evaluate_run(
        run, targets=targets, data_root=data_root, weights=weights, gallery=gallery, device=device
    )
    teacher = result["teacher"]

    def render(console: Console) -> None:
        facts(
            console,
            run.name,
            [
                *((heading, percent(result[name])) for name, heading in SCORES.items() if name in result),
                *((f"mAP, {domain}", percent(value)) for domain, value in result.get("map_per_domain", {}).items()),
                *(
                    (
                        f"tap {tap['index']}",
                        f"peak in mask {percent(tap['pointing'])}, mass in mask {percent(tap['mass_in_mask'])}",
                    )
                    for tap in result["taps"]
                ),
                *(
                    [("slots", "each word by the slot that the teacher's map of it matches: an upper reading")]
                    if result.get("slots_matched_by_teacher")
                    else []
                ),
                *(
                    [
                        (
                            "teacher",
                            f"peak in mask {percent(teacher['pointing'])}, mass in mask "
                            f"{percent(teacher['mass_in_mask'])} (chance {percent(teacher['area'])})",
                        )
                    ]
                    if teacher
                    else []
                ),
            ],
        )

    return finish(result, as_json, render)
