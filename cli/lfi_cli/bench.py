"""lfi bench NAME: benchmarks, each behind a correctness check"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, say, whole_table
from lfi_pipeline.benchmarks.config import (
    CodecConfig,
    ExtractionConfig,
    IndexConfig,
    KernelConfig,
    LoaderConfig,
    MapsConfig,
    ReadsConfig,
    TrainBenchConfig,
)
from lfi_pipeline.core.options import Option, check

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.benchmarks import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Options of every benchmark."""

    csv: Annotated[Path | None, Option("Append one row a measurement to this file (made where absent).")] = None
    quick: Annotated[bool, Option("Tiny sizes: shows that it runs, measures nothing.")] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """Options of `lfi bench codec`."""

    bench: CodecConfig = field(default_factory=CodecConfig)
    output: Output = field(default_factory=Output)


@command(Codec)
def codec(config: Codec) -> Shown:
    """Codecs of maps by bytes, KL and speed, on real maps of the demo teacher.

    Example: lfi bench codec --forms resize,mosaic --csv bench.csv
    """
    from lfi_pipeline.benchmarks.codec import bench_codec

    sizes = replace(config.bench, samples=2, rounds=1) if config.output.quick else config.bench
    return _shown(bench_codec(sizes), config.output.csv)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads:
    """Options of `lfi bench reads`."""

    bench: ReadsConfig = field(default_factory=ReadsConfig)
    output: Output = field(default_factory=Output)


@command(Reads)
def reads(config: Reads) -> Shown:
    """Random reads of whole samples: TargetStore against zarr-python and raw tensorstore.

    Example: lfi bench reads --targets shards/
    """
    from lfi_pipeline.benchmarks.reads import bench_reads

    sizes = (
        ReadsConfig(targets=config.bench.targets, samples=24, samples_per_shard=16, reads=10, batch=4, rounds=1)
        if config.output.quick
        else config.bench
    )
    return _shown(bench_reads(sizes), config.output.csv)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """Options of `lfi bench loader`."""

    bench: LoaderConfig = field(default_factory=LoaderConfig)
    output: Output = field(default_factory=Output)


@command(Loader)
def loader(config: Loader) -> Shown:
    """The image loader of training with targets against the same loader without.

    Example: lfi bench loader --workers 0,2
    """
    from lfi_pipeline.benchmarks.reads import bench_loader

    sizes = replace(config.bench, images=12, batch_size=4, rounds=1) if config.output.quick else config.bench
    return _shown(bench_loader(sizes), config.output.csv)


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """Options of `lfi bench index`."""

    bench: IndexConfig = field(default_factory=IndexConfig)
    output: Output = field(default_factory=Output)


@command(Index)
def index(config: Index) -> Shown:
    """Seconds and memory to open a large index, in a process of its own.

    Example: lfi bench index --samples 1000000
    """
    from lfi_pipeline.benchmarks.reads import bench_index

    sizes = IndexConfig(samples=3000, rounds=1) if config.output.quick else config.bench
    return _shown(bench_index(sizes), config.output.csv)


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """Options of `lfi bench maps`."""

    bench: MapsConfig = field(default_factory=MapsConfig)
    output: Output = field(default_factory=Output)


@command(Maps)
def maps(config: Maps) -> Shown:
    """What a teacher's maps cost over its plain vision forward.

    Example: lfi bench maps --teacher coca_ViT-L-14:random --kinds relevance,agreement
    """
    from lfi_pipeline.benchmarks.extraction import bench_maps

    sizes = replace(config.bench, batch_size=2, rounds=1) if config.output.quick else config.bench
    return _shown(bench_maps(sizes), config.output.csv, sizes.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """Options of `lfi bench extract`."""

    bench: ExtractionConfig = field(default_factory=ExtractionConfig)
    output: Output = field(default_factory=Output)


@command(Extract)
def extract(config: Extract) -> Shown:
    """A whole extraction, files to cache, over the same maps on tensors in memory; and where the time goes.

    Example: lfi bench extract --kind agreement --images 256
    """
    from lfi_pipeline.benchmarks.extraction import bench_extraction

    sizes = replace(config.bench, images=4, batch_size=2, rounds=1) if config.output.quick else config.bench
    return _shown(bench_extraction(sizes), config.output.csv, sizes.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Options of `lfi bench train`."""

    bench: TrainBenchConfig = field(default_factory=TrainBenchConfig)
    output: Output = field(default_factory=Output)


@command(Train)
def train(config: Train) -> Shown:
    """What objectives cost in training, what the cache saves, what students save that share a read.

    Example: lfi bench train --what step,parameters
    """
    from lfi_pipeline.benchmarks.train import bench_train

    sizes = config.bench.tiny() if config.output.quick else config.bench
    return _shown(bench_train(sizes), config.output.csv, sizes.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """Options of `lfi bench kernel`."""

    bench: KernelConfig = field(default_factory=KernelConfig)
    csv: Annotated[Path | None, Option("Append one row a measurement to this file (made where absent).")] = None

    def __post_init__(self) -> None:
        check(self)


@command(Kernel)
def kernel(config: Kernel) -> Shown:
    """The interaction-query block against projected keys and values: time, memory and error.

    Example: lfi bench kernel --models ViT-S/16 --words 16 --csv bench.csv
    """
    from lfi_pipeline.benchmarks.kernel import bench_kernel

    return _shown(bench_kernel(config.bench), config.csv, config.bench.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlotKernel:
    """Options of `lfi bench plot-kernel`."""

    csv: Annotated[Path, Option("What --csv of the kernel benchmark wrote.", positional=True)]
    out: Annotated[Path, Option("The SVG file to write; an older one is replaced.", positional=True)]

    def __post_init__(self) -> None:
        check(self)


@command(PlotKernel)
def plot_kernel(config: PlotKernel) -> Shown:
    """Draw the kernel benchmark's ratios from its CSV, the last run of each device.

    Example: lfi bench plot-kernel bench.csv kernel.svg
    """
    from lfi_pipeline.benchmarks.kernel import plot_kernel as draw

    result: Result = {"plot": str(draw(config.csv, config.out))}
    return Shown(result, lambda console: say(console, result["plot"]))


def _shown(outcome: Outcome, csv: Path | None, device: str = "cpu") -> Shown:
    """Append the rows, and print the outcome as a table or as JSON."""
    from dataclasses import asdict

    from lfi_pipeline.benchmarks import Environment, append_csv
    from lfi_pipeline.core.runtime import resolve_device

    environment = Environment.here(str(resolve_device(device)), outcome.threads)
    if csv is not None:
        append_csv(csv, environment, outcome)
    result: Result = outcome.to_plain() | {"environment": asdict(environment)}

    def render(console: Console) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        for topic, head, rows in outcome.tables():
            folded = ["\n".join(textwrap.wrap(text, 14)) for text in head]
            title = f"lfi bench {outcome.benchmark}" + f": {topic}" * bool(topic)
            table = Table(*folded, title=title, title_style="italic", box=SIMPLE_HEAD)
            for column in table.columns:
                column.justify = "left" if column.header in ("case", "shape") else "right"
            for row in rows:
                table.add_row(*row)
            whole_table(console, table)
        say(console, f"checked first: {outcome.checked}")
        for each in outcome.asked:
            verdict = "holds" if each.met else "FAILS"
            say(console, f"{verdict}: {each.what} {each.value:.4g} (asked {each.limit})")
        for note in outcome.notes:
            say(console, f"note: {note}")

    return Shown(result, render)
