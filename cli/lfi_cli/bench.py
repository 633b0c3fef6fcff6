"""lfi bench NAME: benchmarks, each behind a correctness check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lfi_cli.bench_output import CsvOption, QuickFlag, show_outcome
from lfi_cli.output import DeviceOption, JsonFlag, Result, command, finish, names

app = typer.Typer(
    help="Time and weigh the parts, each behind a check.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("codec")
@command
def codec(
    samples: Annotated[int, typer.Option(help="Samples of 4 layers x 16 words x 16 x 16 cells.")] = 64,
    forms: Annotated[
        str,
        typer.Option(help="How the demo's 8 x 8 maps come to 16 x 16 cells: resize, mosaic (four to one), or both."),
    ] = "resize",
    rounds: Annotated[int, typer.Option(help="Rounds of each timing; the median counts.")] = 3,
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Codecs of maps by bytes, KL and speed, on real maps of the demo teacher.

    Example: lfi bench codec --forms resize,mosaic --csv bench.csv
    """
    from lfi_pipeline.benchmarks.codec import CodecConfig, bench_codec

    config = CodecConfig(samples=2 if quick else samples, forms=names(forms), rounds=1 if quick else rounds)
    return show_outcome(bench_codec(config), csv, as_json)


@app.command("reads")
@command
def reads(
    targets: Annotated[Path | None, typer.Option(help="Read this cache. Default: a synthetic one.")] = None,
    samples: Annotated[int, typer.Option(help="Samples of the synthetic cache.")] = 4096,
    rounds: Annotated[int, typer.Option(help="Rounds, in which the readers take turns.")] = 7,
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Random reads of whole samples: TargetStore against zarr-python and raw tensorstore.

    Example: lfi bench reads --targets shards/
    """
    from lfi_pipeline.benchmarks.reads import ReadsConfig, bench_reads

    config = ReadsConfig(targets=targets, samples=samples, rounds=rounds)
    if quick:
        config = ReadsConfig(targets=targets, samples=24, samples_per_shard=16, reads=10, batch=4, rounds=1)
    return show_outcome(bench_reads(config), csv, as_json)


@app.command("loader")
@command
def loader(
    images: Annotated[int, typer.Option(help="JPEG files of 500 x 375 pixels; a round loads each once.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Images of one batch.")] = 32,
    workers: Annotated[str, typer.Option(help="Numbers of loader processes to compare.")] = "0,1,2",
    rounds: Annotated[int, typer.Option(help="Rounds, in which the cases take turns.")] = 5,
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """The image loader of training with targets against the same loader without.

    Example: lfi bench loader --workers 0,2
    """
    from lfi_pipeline.benchmarks.reads import LoaderConfig, bench_loader

    counts = tuple(_whole_number("workers", text) for text in names(workers))
    config = LoaderConfig(images=images, batch_size=batch_size, workers=counts, rounds=rounds)
    if quick:
        config = LoaderConfig(images=12, batch_size=4, workers=counts, rounds=1)
    return show_outcome(bench_loader(config), csv, as_json)


@app.command("index")
@command
def index(
    samples: Annotated[int, typer.Option(help="Samples in the synthetic index.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="Processes that open it.")] = 3,
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Seconds and memory to open a large index, in a process of its own.

    Example: lfi bench index --samples 1000000
    """
    from lfi_pipeline.benchmarks.index import IndexConfig, bench_index

    config = IndexConfig(samples=samples, rounds=rounds)
    return show_outcome(bench_index(IndexConfig(samples=3000, rounds=1) if quick else config), csv, as_json)


@app.command("maps")
@command
def maps(
    teacher: Annotated[str, typer.Option(help="NAME[:TAG]; NAME:random needs no weights.")] = "coca_ViT-B-32:random",
    kinds: Annotated[str, typer.Option(help="Kinds of map, or all.")] = "relevance",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    words: Annotated[int, typer.Option(help="Content words in each caption.")] = 12,
    layers: Annotated[int, typer.Option(help="Decoder layers, for kinds that have several.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds, in which the kinds take turns.")] = 5,
    device: DeviceOption = "auto",
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """What a teacher's maps cost over its plain vision forward.

    Example: lfi bench maps --teacher coca_ViT-L-14:random --kinds relevance,agreement
    """
    from lfi_pipeline.benchmarks.extraction import MapsConfig, bench_maps

    config = MapsConfig(
        teacher=teacher,
        kinds=names(kinds),
        batch_size=2 if quick else batch_size,
        words=words,
        layers=layers,
        rounds=1 if quick else rounds,
        device=device,
    )
    return show_outcome(bench_maps(config), csv, as_json, device)


@app.command("extract")
@command
def extract(
    teacher: Annotated[str, typer.Option(help="NAME[:TAG]; NAME:random needs no weights.")] = "coca_ViT-B-32:random",
    kind: Annotated[str, typer.Option(help="Kind of map; a cheap one is the harder test.")] = "relevance",
    images: Annotated[int, typer.Option(help="Images that count, a multiple of the batch size.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds, in which both take turns.")] = 3,
    device: DeviceOption = "auto",
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """A whole extraction, files to cache, over the same maps on tensors in memory; and where the time goes.

    Example: lfi bench extract --kind agreement --images 256
    """
    from lfi_pipeline.benchmarks.extraction import ExtractionConfig, bench_extraction

    config = ExtractionConfig(
        teacher=teacher,
        kind=kind,
        images=4 if quick else images,
        batch_size=2 if quick else batch_size,
        rounds=1 if quick else rounds,
        device=device,
    )
    return show_outcome(bench_extraction(config), csv, as_json, device)


@app.command("train")
@command
def train(
    what: Annotated[
        str, typer.Option(help="What to measure: step, online, students, parameters.")
    ] = "step,online,students,parameters",
    students: Annotated[
        str,
        typer.Option(help="timm models; the first serves --what students, the last online and parameters."),
    ] = "vit_tiny_patch16_224,vit_small_patch16_224",
    batch_size: Annotated[int, typer.Option(help="Images of a step, but for online.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds, in which the cases take turns.")] = 5,
    teacher: Annotated[str, typer.Option(help="NAME[:TAG], asked online; NAME:random needs no weights.")] = (
        "coca_ViT-L-14:random"
    ),
    kind: Annotated[str, typer.Option(help="Kind of its maps.")] = "relevance",
    layers: Annotated[int, typer.Option(help="Layers of its maps.")] = 1,
    online_batch: Annotated[int, typer.Option(help="Images of a step of online.")] = 4,
    online_rounds: Annotated[int, typer.Option(help="Rounds of online.")] = 2,
    image_sizes: Annotated[str, typer.Option(help="Pixels a side of --what students; own is the model's.")] = "own,64",
    workers: Annotated[str, typer.Option(help="Numbers of loader processes of --what students.")] = "0,2",
    steps: Annotated[int, typer.Option(help="Steps of one pass of --what students.")] = 4,
    device: DeviceOption = "auto",
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """What objectives cost in training, what the cache saves, what students save that share a read.

    Example: lfi bench train --what step,parameters
    """
    from lfi_pipeline.benchmarks.train import TrainBenchConfig, bench_train
    from lfi_pipeline.students import StudentConfig

    counts = tuple(_whole_number("workers", text) for text in names(workers))
    sizes = tuple(None if text == "own" else _whole_number("image-sizes", text) for text in names(image_sizes))
    config = TrainBenchConfig(
        what=names(what),
        students=tuple(StudentConfig(name=name) for name in names(students)),
        batch_size=batch_size,
        rounds=rounds,
        teacher=teacher,
        kind=kind,
        layers=layers,
        online_batch=online_batch,
        online_rounds=online_rounds,
        image_sizes=sizes,
        workers=counts,
        steps=steps,
        device=device,
    )
    if quick:
        config = config.tiny()
    return show_outcome(bench_train(config), csv, as_json, device)


@app.command("kernel")
@command
def kernel(
    models: Annotated[str, typer.Option(help="ViT-T/16, ViT-S/16, ViT-B/16, ViT-L/16. Default: by device.")] = "",
    patches: Annotated[str, typer.Option(help="Numbers of patches, such as 196,1024. Default: by device.")] = "",
    words: Annotated[str, typer.Option(help="Numbers of words, such as 16,32. Default: by device.")] = "",
    query_dims: Annotated[str, typer.Option(help="Channels of a query; D: those of a patch. Default: 128,D.")] = "",
    cases: Annotated[str, typer.Option(help="What to compare, such as folded,projected. Default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds, in which the cases take turns.")] = 20,
    tune: Annotated[bool, typer.Option("--tune", help="First measure the kernels' tiles; training uses them.")] = False,
    device: DeviceOption = "auto",
    csv: CsvOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """The interaction-query block against projected keys and values: time, memory and error.

    Example: lfi bench kernel --models ViT-S/16 --words 16 --csv bench.csv
    """
    from lfi_pipeline.benchmarks.kernel import KernelConfig, bench_kernel

    config = KernelConfig(
        models=names(models),
        patches=names(patches),
        words=names(words),
        query_dims=names(query_dims),
        cases=names(cases),
        rounds=rounds,
        tune=tune,
        device=device,
        quick=quick,
    )
    return show_outcome(bench_kernel(config), csv, as_json, device)


@app.command("plot-kernel")
@command
def plot_kernel(
    csv: Annotated[Path, typer.Argument(help="What --csv of the kernel benchmark wrote.")],
    out: Annotated[Path, typer.Argument(help="The SVG file to write; an older one is replaced.")],
    as_json: JsonFlag = False,
) -> Result:
    """Draw the kernel benchmark's ratios from its CSV, the last run of each device.

    Example: lfi bench plot-kernel bench.csv kernel.svg
    """
    from lfi_pipeline.benchmarks.kernel import plot_kernel as draw

    result: Result = {"plot": str(draw(csv, out))}
    return finish(result, as_json, lambda console: console.print(result["plot"], markup=False, soft_wrap=True))


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        from lfi_pipeline.core.errors import ConfigError

        raise ConfigError(f"{name} must be whole numbers of 0 or more, got {text!r}.")
    return int(text)
