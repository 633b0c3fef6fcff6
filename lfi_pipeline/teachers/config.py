"""What stage one makes, tries and checks: settings alone, which import no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import DEVICE, THREADS, Option, check

VIEWS = ("full", "hflip")
TEXT_MODES = ("auto", "captions", "prompts", "generate")
CAPTION_CHOICES = ("first", "longest", "all")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ROWS = ("emitting", "reading")
ARTEFACTS = ("fill", "keep")
READING_KINDS = ("attention",)
_OWN_ROOT = Path("data/DATASET")


def layouts() -> tuple[str, ...]:
    """Names of the layouts of a cache."""
    from lfi_pipeline.targets.commits import LAYOUTS

    return LAYOUTS


def codec_names() -> tuple[str, ...]:
    """Names of the codecs of maps."""
    from lfi_pipeline.targets.codec import CODECS

    return tuple(CODECS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """What to extract."""

    dataset: Annotated[
        str,
        Option(
            "A folder of images, a data set of lfi datasets, such as scenes or coco, or the path of your own manifest."
        ),
    ]
    data_root: Annotated[Path, Option("Where its files lie; a folder is its own.")] = _OWN_ROOT
    split: Annotated[str, Option("Which split of the data set.")] = "train"
    teacher: Annotated[
        str,
        Option(
            "NAME[:TAG] of lfi teachers, with one of open_clip's tags, a checkpoint's path, or 'random' (timing only); or "
            "local-dir:PATH or hf-hub:ORG/REPO, saved by open_clip or transformers. Left out: the data set's own."
        ),
    ] = ""
    precision: Annotated[
        str,
        Option("auto is bf16 on CUDA, else fp32; maps are always made in fp32.", choices=PRECISIONS),
    ] = "auto"
    kind: Annotated[
        str,
        Option(
            "How a map is made; lfi teachers NAME lists the choices, auto compares them on images of the data. "
            "Left out: the teacher's own."
        ),
    ] = ""
    row: Annotated[
        str, Option("Rows of attention maps: of the step that emits the word, or that reads it.", choices=ROWS)
    ] = "emitting"
    layers: Annotated[
        int | tuple[int, ...] | None,
        Option(
            "Teacher layers, for kinds that have several: how many, or which, as 2,5,8,11. Left out: 4, or all.",
            metavar="N|I,J,...",
        ),
    ] = None
    steps: Annotated[
        int, Option("Steps of integrated gradients, for kinds that have them; 0: the kind's own number.", ge=0)
    ] = 0
    artefacts: Annotated[
        str,
        Option(
            "Patches that the teacher uses as a store (high-norm tokens) look at nothing: fill takes their mass from their "
            "neighbours, keep leaves them in the maps.",
            choices=ARTEFACTS,
            noun="treatment of artefacts",
        ),
    ] = "fill"
    text: Annotated[
        str,
        Option(
            "What the teacher reads: captions, prompts (made of class names), generate (it writes captions itself), or "
            "auto: the first of these that the data set allows.",
            choices=TEXT_MODES,
            noun="text mode",
        ),
    ] = "auto"
    captions: Annotated[
        str,
        Option(
            "Which captions (or prompts) of an image are read; maps of all are averaged.",
            choices=CAPTION_CHOICES,
            noun="caption choice",
        ),
    ] = "first"
    prompts: Annotated[
        tuple[str, ...],
        Option(
            "A template with one {} for the class name, in place of the data set's.",
            name="prompt",
            aliases=("prompts",),
        ),
    ] = ()
    words: Annotated[int, Option("The most words of an image that get a map.", ge=1)] = 16
    vocabulary: Annotated[
        tuple[str, ...],
        Option(
            "Words to look for, for images without captions and labels: each image gets those that the teacher scores "
            "above chance.",
            separator=",",
            metavar="WORD,...",
        ),
    ] = ()
    views: Annotated[
        tuple[str, ...],
        Option(
            "What the teacher sees: full, or full,hflip so that training can mirror images.",
            choices=VIEWS,
            noun="view",
            separator=",",
            metavar="VIEW,...",
        ),
    ] = VIEWS
    layout: Annotated[
        str, Option("zarr (images stay where they are) or webdataset (tars with images and targets).", choices=layouts)
    ] = "zarr"
    codec: Annotated[str, Option("How maps become bytes; uint5_cbrt takes half of them.", choices=codec_names)] = (
        "uint8_sqrt"
    )
    samples_per_shard: Annotated[int, Option("Samples in one commit unit.", ge=1)] = 1024
    batch_size: Annotated[int, Option("Images per forward pass; changes nothing in the cache's spec.", ge=1)] = 64
    workers: Annotated[int, Option("Threads that read images; 0 chooses.", ge=0)] = 0
    device: Annotated[str, Option(DEVICE)] = "auto"
    threads: Annotated[int, Option(THREADS, ge=0)] = 0
    compile: Annotated[
        bool,
        Option(
            "Let torch compile the teacher's vision blocks, and of a CoCa its contrastive maps: the first batch waits for "
            "it. On CUDA, blocks of less than 100 M parameters together run as CUDA graphs. Maps change by rounding."
        ),
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.data_root == _OWN_ROOT:
            object.__setattr__(self, "data_root", own_root(self.dataset))
        if self.kind not in ("", "auto"):
            require_row(self.row, self.kind)
        if "full" not in self.views:
            raise ConfigError(f"views must include 'full', got {', '.join(self.views) or 'none'}.", argument="views")
        if self.prompts and self.text not in ("auto", "prompts"):
            raise ConfigError(f"prompts are for the text mode 'prompts', got {self.text!r}.")
        if self.vocabulary:
            tidy = tuple(" ".join(word.split()) for word in self.vocabulary)
            object.__setattr__(self, "vocabulary", tidy)
            if self.text not in ("auto", "generate"):
                raise ConfigError(f"vocabulary stands for captions: text must be auto or generate, got {self.text!r}.")
            if not all(tidy) or len(set(tidy)) < len(tidy) or any("," in word for word in tidy):
                raise ConfigError(
                    f"vocabulary must be different words without commas, got {', '.join(map(repr, tidy))}.",
                    argument="vocabulary",
                )


def own_root(dataset: str) -> Path:
    """Return where the files of a data set lie where nobody says so: data/NAME, or the folder that it names."""
    named = Path("data") / Path(dataset).stem
    return Path(dataset) if Path(dataset).is_dir() and not named.is_dir() else named


def require_row(row: str, kind: str) -> None:
    """Raise UnknownNameError or ConfigError unless maps of this kind have this row of attention."""
    if row not in ROWS:
        raise UnknownNameError("row", row, ROWS, argument="row")
    if row == "reading" and kind not in READING_KINDS:
        raise ConfigError(f"row 'reading' exists for the kind 'attention' only, got kind {kind!r}.", argument="row")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """What to plan."""

    extract: ExtractConfig
    out: Annotated[Path, Option("Where the cache is to be; nothing is written there.")] = Path("shards")
    batches: Annotated[int, Option("Batches to time, after one that is not timed.", ge=1)] = 3
    processes: Annotated[int, Option("Processes that are to share the work, each on a device of its own.", ge=1)] = 1
    epochs: Annotated[int, Option("Epochs that a student trains.", ge=1)] = 100
    students: Annotated[int, Option("Students to be trained from the cache.", ge=1)] = 10

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PointingConfig:
    """Which kinds of map to score against masks, with the teacher that is run anew."""

    kinds: Annotated[
        tuple[str, ...],
        Option(
            "Run the teacher and score these kinds of map (or all) beside the cached.",
            separator=",",
            metavar="KIND,...",
        ),
    ] = ("all",)
    images: Annotated[int, Option("With kinds: images with masks to score, evenly spaced.", ge=1)] = 200
    teacher: Annotated[
        str, Option("With kinds or artefacts: NAME:PATH of the cache's own weights, where its name does not find them.")
    ] = ""
    batch_size: Annotated[int, Option("Images per forward pass.", ge=1, cli=False)] = 16
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeConfig:
    """Which samples of a cache the teacher makes anew, to compare."""

    share: Annotated[
        float | None,
        Option(
            "Let the teacher make this share of the samples anew (0.01: 1 %) and compare; none: do not.",
            name="recompute",
            gt=0,
            le=1,
            metavar="SHARE",
        ),
    ] = 0.01
    teacher: Annotated[
        str, Option("To recompute: NAME:PATH of the teacher's weights; left out: as the cache names it.")
    ] = ""
    device: Annotated[str, Option(DEVICE)] = "auto"
    seed: Annotated[
        int | None, Option("To recompute: choose the same samples each time; left out: others each time.", ge=0)
    ] = None
    batch_size: Annotated[int, Option("Images per forward pass.", ge=1, cli=False)] = 16
    workers: Annotated[int, Option("Threads that read images; 0 chooses.", ge=0, cli=False)] = 0
    progress: Annotated[bool, Option("Show a bar on stderr.", cli=False)] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardAssignment:
    """A process's share of the work.

    Attributes:
        first: the first shard that it may make.
        end: the shard after the last one; None for the end of the cache.
        rank: its number among `world` processes of one launch.
        world: processes of that launch.
        local_rank: its number among those of its machine; chooses its GPU.
    """

    first: int = 0
    end: int | None = None
    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or (self.end is not None and self.end <= self.first):
            raise ConfigError(f"shards must be A:B with 0 <= A < B, got {self.first}:{self.end}.")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"RANK must be in 0..WORLD_SIZE - 1, got {self.rank} of {self.world}.")

    def order(self, pending: Sequence[int]) -> list[int]:
        """Return the shards of `pending` that this process may make: its own first, then those of other ranks.

        Another rank's shards come from the end, where that rank arrives last.
        """
        mine = [shard for shard in pending if shard >= self.first and (self.end is None or shard < self.end)]
        own = [shard for shard in mine if shard % self.world == self.rank]
        return own + [shard for shard in reversed(mine) if shard % self.world != self.rank]


def assign_shards(shards: str = "", environment: Mapping[str, str] = os.environ) -> ShardAssignment:
    """Return the share of this process.

    Args:
        shards: `A:B`, `A:` or `:B`, shards A to B-1; empty for all.
        environment: RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them.

    Raises:
        ConfigError: not such a range; ranks that are not numbers.
    """
    match = re.fullmatch(r"(\d*):(\d*)", shards) if shards else None
    if shards and (match is None or shards == ":"):
        raise ConfigError(f"shards must be A:B (shards A to B-1, either may be left out), got {shards!r}.")
    first, end = (match[1], match[2]) if match else ("", "")
    try:
        rank, world, local = (
            int(environment.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}.") from error
    return ShardAssignment(
        first=int(first or 0), end=int(end) if end else None, rank=rank, world=world, local_rank=local
    )
