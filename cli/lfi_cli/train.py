"""lfi train"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.output import JsonFlag, Result, command, finish
from lfi_cli.run_options import (
    CheckpointOption,
    KeepOption,
    TrackOption,
    TrainDeviceOption,
    WorkersOption,
    is_first_process,
    machine_of,
    settings_over,
)
from lfi_cli.run_tables import show_runs
from lfi_pipeline.core.errors import ConfigError

DATA, STUDENT, QUERIES = "Data", "Student", "Queries"
OBJECTIVE, OPTIMISER, AUGMENTATION = "Objective", "Optimiser", "Augmentation"


@command
def train(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, such as a run's config.toml; options go over it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the run; of several students: that of their runs. Default: runs/NAME."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings as TOML and stop.")] = False,
    targets: Annotated[
        Path | None, typer.Option(help="The cache made by lfi extract-teacher.", rich_help_panel=DATA)
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the images lie, if they moved.", rich_help_panel=DATA)
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="Leave a domain out of training; may be repeated.", rich_help_panel=DATA),
    ] = None,
    val_split: Annotated[
        str | None, typer.Option(help="Split to score on after every epoch.", rich_help_panel=DATA)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.", rich_help_panel=DATA)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, over all processes.", rich_help_panel=DATA)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initialisation, order and augmentation.", rich_help_panel=DATA)
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="A timm model; repeat it to train several from one read, each in OUT/NAME.", rich_help_panel=STUDENT
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; left out: the student's own.", rich_help_panel=STUDENT)
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="For plain vision transformers.", rich_help_panel=STUDENT)
    ] = None,
    student_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for timm.create_model, such as depth=6; may be repeated.", rich_help_panel=STUDENT
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from timm's weights.", rich_help_panel=STUDENT),
    ] = None,
    taps: Annotated[
        str | None,
        typer.Option(help="Feature indices such as 1,3,5, or auto: three, evenly spaced.", rich_help_panel=STUDENT),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(
            help="text: seeded by the words, dropped after training; learned: free slots that feed the head.",
            rich_help_panel=QUERIES,
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="How many, of mode learned.", rich_help_panel=QUERIES)] = None,
    readout: Annotated[
        str | None,
        typer.Option(help="How the states of learned slots become class scores.", rich_help_panel=QUERIES),
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="persistent from tap to tap, or reset (ablation).", rich_help_panel=QUERIES)
    ] = None,
    query_width: Annotated[int | None, typer.Option(help="Channels of a query.", rich_help_panel=QUERIES)] = None,
    query_heads: Annotated[
        int | None, typer.Option(help="Attention heads at each tap.", rich_help_panel=QUERIES)
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="none (the task alone), or terms joined by +: lfi, embedding, logits, presence.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="TERM=VALUE[:SCHEDULE], such as lfi=0.3 or lfi=0.3:cosine (to zero; also linear); may be repeated.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    maps: Annotated[
        str | None, typer.Option(help="teacher, or a control: shuffled, uniform.", rich_help_panel=OBJECTIVE)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, multi-label, none (distillation alone), or auto: as the labels are.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Any of timm's, such as adamw, sgd, lamb.", rich_help_panel=OPTIMISER)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.", rich_help_panel=OPTIMISER)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On matrices only.", rich_help_panel=OPTIMISER)] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Factor on the rate from each block to the one before it.", rich_help_panel=OPTIMISER),
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=OPTIMISER)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine or linear to zero, or constant.", rich_help_panel=OPTIMISER)
    ] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="Linear warm-up.", rich_help_panel=OPTIMISER)] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of an average of the weights, which is then scored and kept.", rich_help_panel=OPTIMISER
        ),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Forward passes that share one step and its batch.", rich_help_panel=OPTIMISER)
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or autocast to bf16.", rich_help_panel=OPTIMISER)] = None,
    least_area: Annotated[
        float | None,
        typer.Option(help="Smallest crop, as a share of the image; 1: none.", rich_help_panel=AUGMENTATION),
    ] = None,
    aspect: Annotated[
        float | None, typer.Option(help="Largest change of a crop's ratio of sides.", rich_help_panel=AUGMENTATION)
    ] = None,
    flip: Annotated[
        float | None, typer.Option(help="Probability of mirroring an image.", rich_help_panel=AUGMENTATION)
    ] = None,
    words: Annotated[
        int | None,
        typer.Option(help="Words of an image to read; left out: all that the cache holds.", rich_help_panel=QUERIES),
    ] = None,
    mirror_maps: Annotated[
        bool | None,
        typer.Option(
            "--mirror-maps/--no-mirror-maps",
            help="Mirror stored maps where the cache has no hflip view (an approximation).",
            rich_help_panel=AUGMENTATION,
        ),
    ] = None,
    randaugment: Annotated[
        int | None, typer.Option(help="Changes of colour on each image; 0: none.", rich_help_panel=AUGMENTATION)
    ] = None,
    randaugment_pool: Annotated[
        list[str] | None,
        typer.Option(help="A change of colour to draw from; may be repeated.", rich_help_panel=AUGMENTATION),
    ] = None,
    magnitude: Annotated[
        float | None, typer.Option(help="Mean strength of a change of colour, 0 to 10.", rich_help_panel=AUGMENTATION)
    ] = None,
    magnitude_spread: Annotated[
        float | None, typer.Option(help="Standard deviation of the strength.", rich_help_panel=AUGMENTATION)
    ] = None,
    mixup: Annotated[
        float | None,
        typer.Option(help="Blend pairs of images: parameter of Beta; 0: never.", rich_help_panel=AUGMENTATION),
    ] = None,
    cutmix: Annotated[
        float | None,
        typer.Option(help="Paste a box of one image into another, as mixup; 0: never.", rich_help_panel=AUGMENTATION),
    ] = None,
    mix_probability: Annotated[
        float | None, typer.Option(help="That a pair is mixed at all.", rich_help_panel=AUGMENTATION)
    ] = None,
    workers: WorkersOption = None,
    device: TrainDeviceOption = None,
    track: TrackOption = None,
    checkpoint_minutes: CheckpointOption = None,
    keep_every: KeepOption = None,
    as_json: JsonFlag = False,
) -> Result:
    """Stage two: train students against cached targets. The teacher is not loaded.

    Example: lfi train --targets shards/ --student vit_tiny_patch16_224 --objective lfi
    """
    from lfi_pipeline import training
    from lfi_pipeline.training.run_dir import run_name
    from lfi_pipeline.training.settings import config_of, config_text, flat_settings, read_config

    flat = settings_over(read_config(config) if config else {}, ctx.params | {"student": None})
    if len(set(student or ())) < len(student or ()):
        raise ConfigError(f"--student must name each student once, got {', '.join(student or ())}.")
    configs = [config_of(each) for each in [flat | {"student": name} for name in student or ()] or [flat]]
    folders = [(out or Path("runs")) / run_name(each) for each in configs]
    if out is not None and len(configs) == 1:
        folders = [out]
    runs = list(zip(configs, folders, strict=True))
    if dry_run:
        planned = [{"out": str(folder), "settings": flat_settings(each)} for each, folder in runs]
        text = "\n".join(config_text(flat_settings(each), folder / "config.toml") for each, folder in runs)
        return finish({"runs": planned}, as_json, lambda console: console.out(text, end="", highlight=False))
    summaries = training.train(runs, machine_of(ctx.params), command=shlex.join(["lfi", *sys.argv[1:]]))
    trained = [{"out": str(folder), **summary} for folder, summary in zip(folders, summaries, strict=True)]
    result: Result = trained[0] if len(trained) == 1 else {"runs": trained}
    if not is_first_process():
        return result
    return finish(result, as_json, lambda console: show_runs(console, trained))
