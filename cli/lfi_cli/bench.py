"""lfi bench NAME: benchmarks, each behind a correctness check"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from lfi_cli.generate import Command, command
from lfi_cli.output import Result, Shown, say, stderr, whole_table
from lfi_pipeline.benchmarks.config import (
    CodecConfig,
    ExtractionConfig,
    GpuConfig,
    IndexConfig,
    KernelConfig,
    LoaderConfig,
    MapsConfig,
    ReadsConfig,
    TrainBenchConfig,
)
from lfi_pipeline.core.options import Option, build, check, declared

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.benchmarks import Outcome

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Options of every benchmark."""

    csv: Annotated[Path | None, Option("Append one row a measurement to this file (made where absent).")] = None
    quick: Annotated[bool, Option("Tiny sizes: shows that it runs, measures nothing.")] = False

    def __post_init__(self) -> None:
        check(self)


def benchmark(
    kind: type[T], quick: Callable[[T], T] = lambda sizes: sizes
) -> Callable[[Callable[[T], Outcome]], Command]:
    """Make a command of a function that measures: the options are those of its settings and of `Output`.

    Args:
        kind: class of the settings.
        quick: what `--quick` makes of them; settings with a `quick` of their own need none.
    """

    def made(measure: Callable[[T], Outcome]) -> Command:
        @functools.wraps(measure)
        def run(options: Mapping[str, Any]) -> Shown:
            output = build(Output, {name: value for name, value in options.items() if name in declared(Output)})
            sizes = build(kind, {name: value for name, value in options.items() if name in declared(kind)})
            sizes = quick(sizes) if output.quick else sizes
            return _shown(measure(sizes), output.csv, getattr(sizes, "device", "cpu"))

        return command((kind, Output), raw=True)(run)

    return made


@benchmark(CodecConfig, lambda sizes: replace(sizes, samples=2, rounds=1))
def codec(sizes: CodecConfig) -> Outcome:
    """Codecs of maps by bytes, KL and speed, on real maps of the demo teacher.

    Example: lfi bench codec --forms resize,mosaic --csv bench.csv
    """
    from lfi_pipeline.benchmarks.codec import bench_codec

    return bench_codec(sizes)


@benchmark(
    ReadsConfig,
    lambda sizes: ReadsConfig(targets=sizes.targets, samples=24, samples_per_shard=16, reads=10, batch=4, rounds=1),
)
def reads(sizes: ReadsConfig) -> Outcome:
    """Random reads of whole samples: TargetStore against zarr-python and raw tensorstore.

    Example: lfi bench reads --targets shards/
    """
    from lfi_pipeline.benchmarks.reads import bench_reads

    return bench_reads(sizes)


@benchmark(LoaderConfig, lambda sizes: replace(sizes, images=12, batch_size=4, rounds=1))
def loader(sizes: LoaderConfig) -> Outcome:
    """The image loader of training with targets against the same loader without.

    Example: lfi bench loader --workers 0,2
    """
    from lfi_pipeline.benchmarks.reads import bench_loader

    return bench_loader(sizes)


@benchmark(IndexConfig, lambda sizes: IndexConfig(samples=3000, rounds=1))
def index(sizes: IndexConfig) -> Outcome:
    """Seconds and memory to open a large index, in a process of its own.

    Example: lfi bench index --samples 1000000
    """
    from lfi_pipeline.benchmarks.reads import bench_index

    return bench_index(sizes)


@benchmark(MapsConfig, lambda sizes: replace(sizes, batch_size=2, rounds=1))
def maps(sizes: MapsConfig) -> Outcome:
    """What a teacher's maps cost over its plain vision forward.

    Example: lfi bench maps --teacher coca_ViT-L-14:random --kinds relevance,agreement
    """
    from lfi_pipeline.benchmarks.extraction import bench_maps

    return bench_maps(sizes)


@benchmark(ExtractionConfig, lambda sizes: replace(sizes, images=4, batch_size=2, rounds=1))
def extract(sizes: ExtractionConfig) -> Outcome:
    """A whole extraction, files to cache, over the same maps on tensors in memory; and where the time goes.

    Example: lfi bench extract --kind agreement --images 256
    """
    from lfi_pipeline.benchmarks.extraction import bench_extraction

    return bench_extraction(sizes)


@benchmark(TrainBenchConfig, TrainBenchConfig.tiny)
def train(sizes: TrainBenchConfig) -> Outcome:
    """What objectives cost in training, what the cache saves, what students save that share a read.

    Example: lfi bench train --what step,parameters
    """
    from lfi_pipeline.benchmarks.train import bench_train

    return bench_train(sizes)


@benchmark(KernelConfig)
def kernel(sizes: KernelConfig) -> Outcome:
    """The interaction-query block against projected keys and values: time, memory and error.

    Example: lfi bench kernel --models ViT-S/16 --words 16 --csv bench.csv
    """
    from lfi_pipeline.benchmarks.kernel import bench_kernel

    return bench_kernel(sizes)


@command(GpuConfig)
def gpu(config: GpuConfig) -> Shown:
    """All that a GPU can be asked in some minutes: kernels right and timed, a training step, extraction.

    A line each as it is known, the most important first: cut off, it has told most. The kernels alone, with torch and
    triton and nothing else installed: python -m lfi_kernels.bench.gpu

    Example: lfi bench gpu --minutes 8 --csv gpu.csv
    """
    from lfi_pipeline.benchmarks.kernel import bench_gpu

    right, outcomes = bench_gpu(config, lambda line: say(stderr(), line))
    result: Result = {
        "csv": str(config.csv),
        "kernels_right": right,
        "outcomes": [each.to_plain() for each in outcomes],
    }
    verdict = "every kernel was right" if right else "A KERNEL WAS WRONG, OR NOT MADE: see above"
    return Shown(result, lambda console: say(console, f"{verdict}; rows in {config.csv}"))


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
