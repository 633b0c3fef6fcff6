"""What each benchmark measures and how often: settings alone, which import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import DEVICE, Option, check

TEACHER = "NAME[:TAG]; NAME:random needs no weights."
PARTS = ("step", "online", "students", "parameters")
OWN_SIZE = "own"
CONTENT_WORDS = (
    *("dog", "table", "plant", "bird", "fence", "cloud", "bicycle", "bridge", "stone", "beach", "chair", "umbrella"),
    *("horse", "window", "river", "tree", "train", "clock", "boat", "flower"),
)
"""Words that captions of benchmarks are made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """Options of the benchmark of codecs."""

    samples: Annotated[int, Option("Samples of 4 layers x 16 words x 16 x 16 cells.", ge=1)] = 64
    forms: Annotated[
        tuple[str, ...],
        Option(
            "How the demo's 8 x 8 maps come to 16 x 16 cells: resize, mosaic (four to one), or both.",
            separator=",",
            at_least_one=True,
            choices=("mosaic", "resize"),
            noun="form",
            metavar="FORM,...",
        ),
    ] = ("resize",)
    rounds: Annotated[int, Option("Rounds of each timing; the median counts.", ge=1)] = 3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadsConfig:
    """Options of the benchmark of reading a cache."""

    targets: Annotated[Path | None, Option("Read this cache; left out: a synthetic one.")] = None
    samples: Annotated[
        int, Option("Samples of the synthetic cache, each 4 layers x 16 words x 16 x 16 cells.", ge=1)
    ] = 4096
    samples_per_shard: Annotated[int, Option("Of the synthetic cache.", ge=1)] = 1024
    reads: Annotated[
        int, Option("Samples that a fast reader reads in a round; zarr-python reads a tenth of them.", ge=1)
    ] = 1000
    batch: Annotated[int, Option("Samples of one read of many.", ge=1)] = 64
    rounds: Annotated[int, Option("Rounds, in which the readers take turns.", ge=1)] = 7

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """Options of the benchmark of loading training batches."""

    images: Annotated[int, Option("JPEG files of 500 x 375 pixels; a round loads each once.", ge=1)] = 512
    batch_size: Annotated[int, Option("Images of one batch.", ge=1)] = 32
    workers: Annotated[
        tuple[int, ...],
        Option("Numbers of loader processes to compare.", separator=",", at_least_one=True, ge=0),
    ] = (0, 1, 2)
    rounds: Annotated[int, Option("Rounds, in which the cases take turns.", ge=1)] = 5

    def __post_init__(self) -> None:
        check(self)
        if self.images < 2 * self.batch_size:
            raise ConfigError(
                f"images must fill two batches of {self.batch_size} or more, got {self.images}.", argument="images"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Options of the benchmark of opening an index."""

    samples: Annotated[int, Option("Samples in the synthetic index.", ge=1)] = 1_000_000
    samples_per_shard: Annotated[int, Option("Index rows of one part.", ge=1)] = 1024
    rounds: Annotated[int, Option("Processes that open it, of which the median counts.", ge=1)] = 3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MapsConfig:
    """Options of the benchmark of a teacher's maps."""

    teacher: Annotated[str, Option(TEACHER)] = "coca_ViT-B-32:random"
    kinds: Annotated[
        tuple[str, ...], Option("Kinds of map, or all of the teacher's. Left out: the teacher's own.", separator=",")
    ] = ()
    batch_size: Annotated[int, Option("Images per forward pass.", ge=1)] = 8
    words: Annotated[
        int,
        Option(
            "Content words in each caption; those within the teacher's context get a map.", ge=1, le=len(CONTENT_WORDS)
        ),
    ] = 12
    layers: Annotated[int, Option("Decoder layers, for kinds that have several.", ge=1)] = 1
    rounds: Annotated[int, Option("Rounds, in which the kinds take turns.", ge=1)] = 5
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionConfig:
    """Options of the benchmark of a whole extraction."""

    teacher: Annotated[str, Option(TEACHER)] = "coca_ViT-B-32:random"
    kind: Annotated[str, Option("Kind of map; the cheaper it is, the more everything around it weighs.")] = "relevance"
    images: Annotated[
        int,
        Option(
            "Images that count, a multiple of the batch size. A round extracts one batch, then one batch more than "
            "these; the difference is free of what a run costs once.",
            ge=1,
        ),
    ] = 128
    batch_size: Annotated[int, Option("Images per forward pass.", ge=1)] = 16
    rounds: Annotated[int, Option("Rounds, in which both take turns.", ge=1)] = 3
    compile: Annotated[bool, Option("Let torch compile the teacher, as an extraction may.")] = False
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.images % self.batch_size:
            raise ConfigError(
                f"images must be a multiple of batch_size, got {self.images} and {self.batch_size}.", argument="images"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBenchConfig:
    """Options of the benchmarks of training."""

    what: Annotated[
        tuple[str, ...],
        Option(
            "What to measure: step, online, students, parameters.",
            separator=",",
            at_least_one=True,
            choices=PARTS,
            noun="measurement",
            metavar="PART,...",
        ),
    ] = PARTS
    students: Annotated[
        tuple[str, ...],
        Option(
            "timm models for step; the first is that of students, the last that of online and parameters.",
            separator=",",
            at_least_one=True,
        ),
    ] = ("vit_tiny_patch16_224", "vit_small_patch16_224")
    student_arg: Annotated[
        Mapping[str, Any], Option("Further argument of timm.create_model, of all students.", metavar="KEY=VALUE")
    ] = field(default_factory=dict)
    image_size: Annotated[int | None, Option("Pixels a side of all students; left out: their own.", ge=1)] = None
    batch_size: Annotated[int, Option("Images of a step, but for online.", ge=1)] = 8
    rounds: Annotated[int, Option("Rounds, in which the cases take turns.", ge=1)] = 5
    maps_shape: Annotated[
        tuple[int, ...], Option("(L, M, gh, gw) of the synthetic targets of step.", ge=1, cli=False)
    ] = (4, 16, 16, 16)
    teacher: Annotated[str, Option("NAME[:TAG], asked online; NAME:random needs no weights.")] = "coca_ViT-L-14:random"
    kind: Annotated[str, Option("Kind of its maps.")] = "relevance"
    layers: Annotated[int, Option("Layers of its maps.", ge=1)] = 1
    online_batch: Annotated[int, Option("Images of a step of online.", ge=1)] = 4
    online_rounds: Annotated[int, Option("Rounds of online.", ge=1)] = 2
    image_sizes: Annotated[
        tuple[int | str, ...],
        Option(
            "Pixels a side for the part students, several to compare; own is the model's.",
            separator=",",
            at_least_one=True,
            metavar="own|INT,...",
        ),
    ] = (OWN_SIZE, 64)
    workers: Annotated[
        tuple[int, ...],
        Option("Numbers of loader processes for the part students.", separator=",", at_least_one=True, ge=0),
    ] = (0, 2)
    steps: Annotated[int, Option("Steps of one pass of the part students.", ge=1)] = 4
    precision: Annotated[str, Option("Of the part step.", choices=("fp32", "bf16"))] = "fp32"
    compile: Annotated[bool, Option("Let torch compile the students of the part step.")] = False
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)
        for size in self.image_sizes:
            if size != OWN_SIZE and (isinstance(size, str) or size < 1):
                raise ConfigError(
                    f"image_sizes must be own or whole numbers of 1 or more, got {size!r}.", argument="image_sizes"
                )

    def tiny(self) -> TrainBenchConfig:
        """The same measurements at sizes that take seconds and measure nothing."""
        return replace(
            self,
            students=("vit_tiny_patch16_224",),
            student_arg={"depth": 3, "embed_dim": 32, "num_heads": 2},
            image_size=32,
            batch_size=2,
            rounds=1,
            maps_shape=(2, 3, 4, 4),
            online_batch=2,
            online_rounds=1,
            image_sizes=(OWN_SIZE,),
            workers=(0,),
            steps=1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """Options of the kernel benchmark. Every combination of the sizes is run; empty: the device's default sizes."""

    models: Annotated[
        tuple[str, ...],
        Option("ViT-T/16, ViT-S/16, ViT-B/16, ViT-L/16; left out: by device.", separator=",", metavar="MODEL,..."),
    ] = ()
    patches: Annotated[
        tuple[str, ...],
        Option("Numbers of patches, such as 196,1024; left out: by device.", separator=",", metavar="INT,..."),
    ] = ()
    words: Annotated[
        tuple[str, ...],
        Option("Numbers of words, such as 16,32; left out: by device.", separator=",", metavar="INT,..."),
    ] = ()
    query_dims: Annotated[
        tuple[str, ...],
        Option("Channels of a query; D: those of a patch. Left out: 128,D.", separator=",", metavar="INT|D,..."),
    ] = ()
    cases: Annotated[
        tuple[str, ...],
        Option("What to compare, such as folded,projected; left out: all.", separator=",", metavar="CASE,..."),
    ] = ()
    rounds: Annotated[int, Option("Rounds, in which the cases take turns; the median counts.", ge=1)] = 20
    tune: Annotated[bool, Option("First measure the kernels' tiles, and keep the fastest: training uses them.")] = False
    device: Annotated[str, Option(DEVICE)] = "auto"
    quick: Annotated[bool, Option("Tiny sizes: shows that it runs, measures nothing.")] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuConfig:
    """Options of the benchmark of a GPU: how long to measure, and where rows go."""

    minutes: Annotated[float, Option("After which no step is begun; the kernels take two thirds at most.", gt=0)] = 8.0
    csv: Annotated[Path, Option("Rows are appended here as soon as they are known.")] = Path("gpu.csv")
    commit: Annotated[str, Option("To record where the code does not lie in a checkout.")] = ""

    def __post_init__(self) -> None:
        check(self)
