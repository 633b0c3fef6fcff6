"""lfi train"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, percent
from lfi_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from lfi_pipeline.training import TrainConfig


@command
def train(
    targets: Annotated[Path, typer.Option(help="The cache made by lfi extract-teacher.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run. Default: runs/STUDENT-OBJECTIVE-SEED.")
    ] = None,
    student: Annotated[str, typer.Option(help="A timm model.")] = "vit_tiny_patch16_224",
    objective: Annotated[
        str, typer.Option(help="none (task loss alone), embedding (teacher's image embedding) or lfi.")
    ] = "lfi",
    maps: Annotated[str, typer.Option(help="teacher, or a control: shuffled, uniform.")] = "teacher",
    lambda_int: Annotated[float, typer.Option(help="Weight of the objective's term.")] = 0.1,
    state: Annotated[
        str, typer.Option(help="Queries: persistent from tap to tap, or reset (ablation).")
    ] = "persistent",
    query_width: Annotated[int, typer.Option(help="Channels of an interaction query.")] = 128,
    query_heads: Annotated[int, typer.Option(help="Attention heads at each tap.")] = 4,
    taps: Annotated[str, typer.Option(help="Feature indices such as 1,3,5; default: three, evenly spaced.")] = "",
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; default: the student's own.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="For plain vision transformers.")] = None,
    student_arg: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for timm.create_model, such as depth=6; may be repeated."),
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from timm's weights.")] = False,
    hold_out: Annotated[list[str] | None, typer.Option(help="Leave a domain out of training; may be repeated.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 15,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak of the warm-up and cosine schedule.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, on matrices.")] = 0.05,
    least_area: Annotated[float, typer.Option(help="Smallest crop, as a share of the image; 1: none.")] = 0.5,
    flip: Annotated[float, typer.Option(help="Probability of mirroring an image.")] = 0.5,
    mirror_maps: Annotated[
        bool,
        typer.Option("--mirror-maps", help="Mirror stored maps where the cache has no hflip view (an approximation)."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of initialisation, order and augmentation.")] = 0,
    workers: Annotated[int, typer.Option(help="Loader processes.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    val_split: Annotated[str, typer.Option(help="Split to score on after every epoch.")] = "val",
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Stage two: train a student against cached targets. The teacher is not loaded.

    Example: lfi train --targets shards/ --student vit_tiny_patch16_224 --objective lfi
    """
    from lfi_pipeline.data.replay import Augmentation
    from lfi_pipeline.students import QueryConfig, StudentConfig
    from lfi_pipeline.training import TrainConfig, Trainer

    config = TrainConfig(
        targets=targets,
        data_root=data_root,
        val_split=val_split,
        student=StudentConfig(
            name=student,
            image_size=image_size,
            patch_size=patch_size,
            kwargs=_keywords(student_arg or []),
            pretrained=pretrained,
            taps=_indices(taps),
        ),
        queries=QueryConfig(width=query_width, heads=query_heads, state=state),
        objective=objective,
        maps=maps,
        lambda_int=lambda_int,
        hold_out=tuple(hold_out or ()),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        augmentation=Augmentation(least_area=least_area, flip=flip),
        mirror_maps=mirror_maps,
        seed=seed,
        workers=workers,
        precision=precision,
        device=device,
    )
    out = out or Path("runs") / _run_name(config)
    trainer = Trainer(config, out, command=shlex.join(["lfi", *sys.argv[1:]]))
    pairs = ", ".join(
        f"{tap.index} (depth {tap.depth:.2f}) <- teacher layer {layer}"
        for tap, layer in zip(trainer.student.taps, trainer.layers, strict=True)
    )
    if objective == "lfi":
        sys.stderr.write(f"taps: {pairs}\n")
    result: Result = {"out": str(out)} | trainer.run()
    parameters = result["parameters"]
    rows = [
        ("steps", result["steps"]),
        ("step time", f"{result['step_ms']:.0f} ms (median)"),
        (
            "parameters",
            f"{parameters['backbone']:,} backbone, {parameters['queries']:,} queries (training only)",
        ),
        ("mAP, seen domains", percent(result["map_seen"])),
        ("mAP, held-out domains", percent(result["map_heldout"])),
        ("in", out),
    ]
    return finish(result, as_json, lambda console: facts(console, out.name, rows))


def _run_name(config: TrainConfig) -> str:
    control = "" if config.maps == "teacher" else f"-{config.maps}"
    state = "" if config.queries.state == "persistent" else f"-{config.queries.state}"
    return f"{config.student.name}-{config.objective}{control}{state}-{config.seed}"


def _keywords(pairs: Sequence[str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--student-arg must be KEY=VALUE, such as depth=6, got {pair!r}.")
        try:
            keywords[key] = json.loads(value)
        except json.JSONDecodeError:
            keywords[key] = value
    return keywords


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"--taps must be indices separated by commas, such as 1,3,5, got {text!r}.") from None
