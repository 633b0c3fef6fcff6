"""lfi extract-teacher"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, facts, finish, names
from lfi_pipeline.core.errors import ConfigError, UnknownNameError


@command
def extract_teacher(
    dataset: Annotated[
        str, typer.Option(help="A data set of lfi datasets, such as scenes or coco, or the path of your own manifest.")
    ],
    data_root: Annotated[Path | None, typer.Option(help="Where its files lie. Default: data/DATASET.")] = None,
    out: Annotated[Path, typer.Option(help="The cache to write; the same command finishes an interrupted one.")] = Path(
        "shards"
    ),
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "train",
    teacher: Annotated[
        str,
        typer.Option(
            help="NAME[:TAG] of lfi teachers, with one of open_clip's tags, a checkpoint's path, or 'random' (timing "
            "only). Default: the data set's own."
        ),
    ] = "",
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on CUDA, else fp32), fp32, bf16 or fp16; maps are always made in fp32.")
    ] = "auto",
    kind: Annotated[
        str, typer.Option(help="How a map is made; lfi teachers NAME lists the choices. Default: the teacher's own.")
    ] = "",
    row: Annotated[
        str, typer.Option(help="Rows of attention maps: emitting (the step that emits the word) or reading.")
    ] = "emitting",
    layers: Annotated[
        str,
        typer.Option(
            help="Teacher layers, for kinds that have several: how many, or which, as 2,5,8,11. Default: 4, or all."
        ),
    ] = "",
    text: Annotated[
        str,
        typer.Option(
            help="What the teacher reads: captions, prompts (made of class names), generate (it writes captions "
            "itself), or auto: the first of these that the data set allows."
        ),
    ] = "auto",
    captions: Annotated[
        str, typer.Option(help="Which captions (or prompts) of an image: first, longest, or all (maps are averaged).")
    ] = "first",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A template with one {} for the class name, in place of the data set's; may be repeated."),
    ] = None,
    words: Annotated[int, typer.Option(help="The most words of an image that get a map.")] = 16,
    views: Annotated[
        str,
        typer.Option(help="What the teacher sees: full, or full,hflip so that training can mirror images."),
    ] = "full,hflip",
    layout: Annotated[
        str, typer.Option(help="zarr (images stay where they are) or webdataset (tars with images and targets).")
    ] = "zarr",
    codec: Annotated[
        str, typer.Option(help="How maps become bytes: uint8_sqrt, uint8_linear, or uint5_cbrt (half the bytes).")
    ] = "uint8_sqrt",
    samples_per_shard: Annotated[int, typer.Option(help="Samples in one commit unit.")] = 1024,
    shards: Annotated[
        str, typer.Option(help="A:B makes shards A to B-1 only, for an array of jobs. Under torchrun ranks share.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help="local, or ray: shards as tasks on a Ray cluster (pip install 'lfi-pipeline[ray]').")
    ] = "local",
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="The cache may hold fewer images, layers, views or words; the teacher makes what is missing.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    workers: Annotated[int, typer.Option(help="Threads that read images; 0 chooses.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> Result:
    """Stage one: run the teacher once and cache its interaction maps.

    Killed at any moment, the same command goes on at the first shard that is not committed; any number of processes may
    work on one cache.

    Example: lfi extract-teacher --dataset scenes --data-root data/scenes --out shards/

    On eight GPUs: torchrun --nproc-per-node 8 -m lfi_cli extract-teacher --dataset coco --out shards/
    """
    from lfi_pipeline.teachers.extract import ExtractConfig, extract
    from lfi_pipeline.teachers.shards import share_of

    config = ExtractConfig(
        dataset=dataset,
        data_root=data_root or Path("data") / Path(dataset).stem,
        split=split,
        teacher=teacher,
        precision=precision,
        kind=kind,
        row=row,
        layers=parse_layers(layers),
        text=text,
        captions=captions,
        prompts=tuple(prompt or ()),
        words=words,
        views=names(views),
        layout=layout,
        codec=codec,
        samples_per_shard=samples_per_shard,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    share = share_of(shards)
    if engine == "local":
        summary, seconds = extract(config, out, share=share, extend=extend)
    elif engine == "ray":
        from lfi_pipeline.teachers.ray_engine import extract_on_ray

        summary, seconds = extract_on_ray(config, out, share=share, extend=extend)
    else:
        raise UnknownNameError("engine", engine, ("local", "ray"))
    if share.rank:
        return {}  # the first rank speaks for all
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


def parse_layers(text: str) -> int | tuple[int, ...] | None:
    """Return how many layers, or which; None for as many as the teacher has, up to four."""
    if not text:
        return None
    try:
        numbers = tuple(int(part) for part in names(text))
    except ValueError:
        numbers = ()
    if not numbers:
        raise ConfigError(f"layers must be a number, or layer indices such as 2,5,8,11; got {text!r}.")
    return numbers[0] if "," not in text else numbers
