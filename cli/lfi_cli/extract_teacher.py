"""lfi extract-teacher"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, names


@command
def extract_teacher(
    dataset: Annotated[str, typer.Option(help="A data set of data_manifests/, such as scenes or coco.")],
    data_root: Annotated[Path | None, typer.Option(help="Where its files lie. Default: data/DATASET.")] = None,
    out: Annotated[Path, typer.Option(help="The cache to write; the same command finishes an interrupted one.")] = Path(
        "shards"
    ),
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "train",
    teacher: Annotated[
        str,
        typer.Option(
            help="NAME[:TAG]: scenes-coca, or an open_clip CoCa config with a tag, a checkpoint's path, or "
            "'random' (timing only). Default: the data set's own."
        ),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(help="How a map is made: agreement, integrated, relevance, gradcam_pooler, gradcam, attention."),
    ] = "agreement",
    row: Annotated[
        str, typer.Option(help="Rows of attention maps: emitting (the step that emits the word) or reading.")
    ] = "emitting",
    layers: Annotated[int, typer.Option(help="Teacher layers, for kinds that have several.")] = 4,
    captions: Annotated[str, typer.Option(help="Which caption of an image: first or longest.")] = "first",
    words: Annotated[int, typer.Option(help="The most words of a caption that get a map.")] = 16,
    views: Annotated[
        str,
        typer.Option(help="What the teacher sees: full, or full,hflip so that training can mirror images."),
    ] = "full,hflip",
    samples_per_shard: Annotated[int, typer.Option(help="Samples in one commit unit.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Stage one: run the teacher once and cache its interaction maps.

    Killed at any moment, the same command goes on at the first shard that is not committed.

    Example: lfi extract-teacher --dataset scenes --data-root data/scenes --out shards/
    """
    from lfi_pipeline.teachers.extract import ExtractConfig, extract

    config = ExtractConfig(
        dataset=dataset,
        data_root=data_root or Path("data") / dataset,
        split=split,
        teacher=teacher,
        kind=kind,
        row=row,
        layers=layers,
        captions=captions,
        words=words,
        views=names(views),
        samples_per_shard=samples_per_shard,
        batch_size=batch_size,
        device=device,
    )
    summary, seconds = extract(config, out)
    result: Result = {
        "samples": summary.samples,
        "quarantined": summary.quarantined,
        "bytes_per_sample": summary.bytes_per_sample,
        "raw_bytes_per_sample": summary.raw_bytes_per_sample,
        "codec_kl": summary.codec_kl,
        "seconds": seconds,
        "out": str(out),
    }
    rows = [
        ("images", summary.samples),
        ("quarantined", f"{summary.quarantined} (see lfi inspect)" if summary.quarantined else 0),
        (
            "bytes an image",
            f"{summary.bytes_per_sample:,.0f} (maps as raw fp16: {summary.raw_bytes_per_sample:,.0f})",
        ),
        ("codec, mean KL", f"{summary.codec_kl:.2e} nats"),
        ("seconds", f"{seconds:.1f}"),
        ("in", out),
    ]
    return finish(result, as_json, lambda console: facts(console, "Targets", rows))
