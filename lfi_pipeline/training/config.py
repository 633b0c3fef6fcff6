"""A run as a TOML file: what `lfi train` reads as its config and what a run saves of itself.

    targets = "shards"
    student = "vit_small_patch16_224"
    learning-rate = 1e-3            # or learning_rate
    weight = {lfi = "0.3:cosine"}

Names are those of the options of `TrainConfig`. A relative path in a file is relative to the file, so that it means the same
wherever it is read from; a file that is written holds absolute ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import DEVICE, THREADS, Option, check, command_line, declared
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.data.config import Augmentation, MixConfig, Photometric
from lfi_pipeline.students.config import HEADS, QueryConfig, StudentConfig

WEIGHT_SCHEDULES = ("constant", "cosine", "linear")
AUTO = "auto"
NO_SPLIT = "none"
BCE, ASL = "bce", "asl"
DEFAULT_SHARE = 0.5
"""Of the task's gradient, that a term weighs where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Weight of a term: `50%` is half of the task's gradient, `0.1` a constant; `:cosine` and `:linear` let it fall.

    Attributes:
        value: at the start of the run.
        schedule: one of `WEIGHT_SCHEDULES`; `cosine` and `linear` reach zero at the end of the run.
        relative: whether `value` is a share of the task's gradient, see `training.monitor.GradientBalance`.
    """

    value: float
    schedule: str = "constant"
    relative: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in WEIGHT_SCHEDULES:
            raise UnknownNameError("weight schedule", self.schedule, WEIGHT_SCHEDULES)
        if not 0 <= self.value < math.inf:
            raise ConfigError(f"The weight of a term must be 0 or more, got {self.value}.")

    @classmethod
    def parse(cls, text: str | float) -> Weight:
        """Read `auto` (the default share), `50%`, `0.1` or `0.1:cosine`.

        Raises:
            ConfigError: not a number.
            UnknownNameError: no such schedule.
        """
        number, colon, schedule = str(text).partition(":")
        relative = number == AUTO or number.endswith("%")
        try:
            decimal = Decimal(number.removesuffix("%")) if number != AUTO else Decimal(repr(100 * DEFAULT_SHARE))
            value = float(decimal / 100 if relative else decimal)  # 3.7 is 370% to the last bit
        except (InvalidOperation, ValueError):
            raise ConfigError(
                f"A weight must be auto, a share of the task's gradient such as 50%, or a number such as 0.1, each "
                f"followed by :cosine or :linear or nothing, got {text!r}."
            ) from None
        return cls(value, schedule if colon else "constant", relative)

    def plain(self) -> float | str:
        """Return the weight as it is written in JSON and TOML."""
        return self.value if self.schedule == "constant" and not self.relative else str(self)

    def __str__(self) -> str:
        number = f"{Decimal(repr(self.value)) * 100:f}%" if self.relative else repr(self.value)
        return number if self.schedule == "constant" else f"{number}:{self.schedule}"

    def at(self, progress: float) -> float:
        """Value, or share, at `progress` in [0, 1] of the run."""
        match self.schedule:
            case "cosine":
                return self.value * 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                return self.value * (1 - progress)
        return self.value


DEFAULT_WEIGHT = Weight(DEFAULT_SHARE, relative=True)


MAPS = ("teacher", "shuffled", "moved", "uniform", "masks")
NONE = "none"
WORD_WEIGHTS = ("mass", "peaked")
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("cosine", "linear", "constant")
TASKS = ("auto", "classification", "multi-label", "none")
TERMS = ("lfi", "embedding", "logits", "presence", "attention")
DATA, STUDENT, QUERIES, OBJECTIVE = "Data", "Student", "Queries", "Objective"
OPTIMISER, AUGMENTATION, MACHINE = "Optimiser", "Augmentation", "Machine (changes nothing that is learned)"
"""Headings of the help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which samples are read, in which order, and how they are augmented. Runs with equal values can share one read."""

    targets: Annotated[Path, Option("The cache made by lfi extract-teacher, or its URL.", panel=DATA)]
    data_root: Annotated[
        Path | None, Option("Where the images lie; left out: where the cache says they do.", panel=DATA)
    ] = None
    hold_out: Annotated[
        tuple[str, ...], Option("Domain that is left out of training and scored apart.", panel=DATA)
    ] = ()
    maps: Annotated[
        str,
        Option(
            "The teacher's maps, or a control: shuffled gives each image the maps of another, moved its own in the wrong "
            "place, uniform flat ones, and masks the true masks of the objects that words name (a ceiling).",
            panel=OBJECTIVE,
            choices=MAPS,
        ),
    ] = "teacher"
    words: Annotated[
        int | None,
        Option("Words of an image to read, the first ones; left out: all of the cache.", panel=QUERIES, ge=1),
    ] = None
    label_share: Annotated[
        float,
        Option(
            "Share of the training images whose labels are used, chosen by their keys: a larger share holds a smaller one. "
            "The others teach by what the teacher says of them alone.",
            panel=DATA,
            gt=0,
            le=1,
        ),
    ] = 1.0
    map_share: Annotated[
        float, Option("Share of the training images whose maps are used, chosen alike.", panel=OBJECTIVE, gt=0, le=1)
    ] = 1.0
    mirror_maps: Annotated[
        bool,
        Option("Mirror stored maps where the cache has no hflip view (an approximation).", panel=AUGMENTATION),
    ] = False
    draft: Annotated[
        bool,
        Option(
            "Decode JPEGs at a half, a quarter or an eighth where that still has twice the pixels that a student sees of "
            "them: large photographs are read faster, and differ a little.",
            panel=AUGMENTATION,
        ),
    ] = False
    augmentation: Annotated[Augmentation, Option(panel=AUGMENTATION)] = field(default_factory=Augmentation)
    photometric: Annotated[Photometric, Option(panel=AUGMENTATION)] = field(default_factory=Photometric)
    mix: Annotated[MixConfig, Option(panel=AUGMENTATION)] = field(default_factory=MixConfig)
    epochs: Annotated[int, Option("Passes over the training images.", panel=DATA, ge=1)] = 15
    batch_size: Annotated[int, Option("Images per step of the optimizer, over all processes.", panel=DATA, ge=1)] = 64
    seed: Annotated[int, Option("Of initialisation, order and augmentation.", panel=DATA, ge=0, lt=2**63)] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.label_share < 1 and self.mix.active:
            raise ConfigError(
                "A label_share below 1 leaves images without a label to mix; train without mixup, cutmix and mix.",
                argument="label_share",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer and schedule of the learning rate."""

    name: Annotated[
        str, Option("Any optimizer of timm, such as adamw, sgd, lamb or lion.", name="opt", aliases=("optimizer",))
    ] = "adamw"
    lr: Annotated[
        float, Option("Peak of the learning rate, reached after the warm-up.", gt=0, aliases=("learning_rate",))
    ] = 5e-4
    weight_decay: Annotated[float, Option("On matrices only.", ge=0)] = 0.05
    query_lr: Annotated[
        float, Option("Factor on the rate of the interaction queries and of the head that is made of them.", gt=0)
    ] = 1.0
    layer_decay: Annotated[
        float | None,
        Option("Factor on the rate from each block to the one before it; left out: one rate for all.", gt=0, lt=1),
    ] = None
    clip_grad: Annotated[float, Option("Largest norm of the gradient.", gt=0, aliases=("clip",))] = 1.0
    schedule: Annotated[
        str, Option("cosine or linear to zero at the end, or constant; stepped at every update.", choices=SCHEDULES)
    ] = "cosine"
    warmup_epochs: Annotated[int, Option("Linear warm-up.", ge=0)] = 1
    ema: Annotated[
        float | None,
        Option("Decay of a moving average of the weights, which is then what is scored and kept.", gt=0, lt=1),
    ] = None

    def __post_init__(self) -> None:
        check(self)


def usual_scale(terms: Collection[str]) -> str:
    """Return which of `students.config.SCALES` `auto` stands for under an objective of these terms."""
    return "1/sqrt(d)" if "lfi" in terms else "1/d"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All settings of one training run."""

    data: DataConfig
    student: Annotated[StudentConfig, Option(panel=STUDENT)] = field(default_factory=StudentConfig)
    head: Annotated[
        str,
        Option(
            "What gives the logits: linear, one layer on the pooled features; or queries, an interaction query for every "
            "class, seeded by the text embedding of its name, which shows where it looked.",
            panel=STUDENT,
            choices=HEADS,
        ),
    ] = "queries"
    queries: Annotated[QueryConfig, Option(panel=QUERIES)] = field(default_factory=QueryConfig)
    optimizer: Annotated[OptimizerConfig, Option(panel=OPTIMISER)] = field(default_factory=OptimizerConfig)
    objective: Annotated[
        str,
        Option(
            "none (the task alone), or terms joined by +: lfi (interaction maps), embedding (cosine to the teacher's "
            "image embedding), logits (KL to its zero-shot class logits), presence (which words the image holds), "
            "attention (maps, compared with where a linear head takes its answer from).",
            panel=OBJECTIVE,
        ),
    ] = "lfi"
    weights: Annotated[
        Mapping[str, Weight],
        Option(
            "Weight of a term: a share of the task's gradient, such as lfi=50% (the default), or a number, such as lfi=0.3; "
            "lfi=0.3:cosine falls to zero (also linear).",
            name="weight",
            panel=OBJECTIVE,
            metavar="TERM=VALUE[:SCHEDULE]",
        ),
    ] = field(default_factory=dict)
    word_weight: Annotated[
        str,
        Option(
            "How much a word counts in the terms of maps: mass, the share of its map that is seen; peaked, that times how far "
            "the map is from flat, since the teacher points worse where it is.",
            panel=OBJECTIVE,
            choices=WORD_WEIGHTS,
        ),
    ] = "mass"
    task: Annotated[
        str,
        Option(
            "classification (one label an image), multi-label, none (distillation alone), or auto: as the labels are.",
            panel=OBJECTIVE,
            choices=TASKS,
        ),
    ] = "auto"
    multi_label_loss: Annotated[
        str,
        Option(
            "bce: binary cross-entropy, the mean over classes; asl: asymmetric loss, their sum (Ridnik et al., 2021), which "
            "passes over classes that are surely absent.",
            panel=OBJECTIVE,
            choices=(BCE, ASL),
        ),
    ] = BCE
    val_split: Annotated[
        str,
        Option(
            "Split of the same data set to score on after every epoch, or none. Of any data set val-0.1 is a tenth, of "
            "which a cache of split train-0.1 holds the others.",
            panel=DATA,
        ),
    ] = "val"
    precision: Annotated[str, Option("fp32, or autocast to bf16.", panel=OPTIMISER, choices=PRECISIONS)] = "fp32"
    grad_accum_steps: Annotated[
        int,
        Option(
            "Forward passes whose gradients make one step; the batch is split between them.",
            panel=OPTIMISER,
            ge=1,
            aliases=("accumulate",),
        ),
    ] = 1

    def __post_init__(self) -> None:
        check(self)
        for term in self.terms:
            if term == NONE:
                raise ConfigError(f"objective 'none' stands alone, got {self.objective!r}.", argument="objective")
            if term == "features":
                raise ConfigError(
                    "Dense alignment (objective 'features') needs the teacher's patch features, which caches do not "
                    "hold: they would take hundreds of kilobytes an image. Choose lfi, embedding or logits."
                )
            if term not in TERMS:
                raise UnknownNameError("objective", term, (NONE, *TERMS), argument="objective")
        if len(set(self.terms)) < len(self.terms):
            raise ConfigError(f"objective must name each term once, got {self.objective!r}.", argument="objective")
        unused = [term for term in self.weights if term not in self.terms]
        if unused:
            raise ConfigError(f"weights must be of terms of the objective ({self.objective!r}), got {unused}.")
        if self.data.maps != "teacher" and not {"lfi", "attention"} & set(self.terms):
            raise ConfigError(
                f"maps {self.data.maps!r} is a control of the term 'lfi', got objective {self.objective!r}.",
                argument="maps",
            )
        if self.task == "none" and not self.terms:
            raise ConfigError("task 'none' leaves nothing to learn with objective 'none'. Choose a term, such as lfi.")
        if "attention" in self.terms and (self.head != "linear" or self.task == "none"):
            raise ConfigError("The attention term teaches a linear head, so it needs a task and head 'linear'.")
        if "logits" in self.terms and self.task == "none":
            raise ConfigError("The logits term teaches the task's classes, so it needs a task, got 'none'.")
        if self.data.batch_size % self.grad_accum_steps:
            raise ConfigError(
                f"grad_accum_steps must divide the batch size {self.data.batch_size}, got {self.grad_accum_steps}.",
                argument="grad_accum_steps",
            )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms beside the task."""
        return () if self.objective == NONE else tuple(self.objective.split("+"))

    @property
    def uses_queries(self) -> bool:
        """Whether the student has interaction queries. A query head has them with every objective."""
        return self.head == "queries" or "lfi" in self.terms or "presence" in self.terms

    @property
    def resolved_queries(self) -> QueryConfig:
        """`queries`, with the scale that `auto` stands for under this objective."""
        if self.queries.scale != "auto":
            return self.queries
        return replace(self.queries, scale=usual_scale(self.terms))

    def weight(self, term: str) -> Weight:
        """Weight of one of `terms`."""
        return self.weights.get(term, DEFAULT_WEIGHT)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Where and how a run is carried out; none of it changes what is learned, and all of it may change on a resume."""

    workers: Annotated[int, Option("Loader processes; 0 loads in the training process.", panel=MACHINE, ge=0)] = 0
    device: Annotated[str, Option(DEVICE, panel=MACHINE)] = "auto"
    threads: Annotated[int, Option(THREADS, panel=MACHINE, ge=0)] = 0
    compile: Annotated[
        bool,
        Option("Let torch compile the student: the first steps wait for it, the others are faster.", panel=MACHINE),
    ] = False
    track: Annotated[
        tuple[str, ...],
        Option(
            "Where metrics go beside metrics.jsonl: tensorboard, wandb, trackio, or none.", panel=MACHINE, empty="none"
        ),
    ] = ("tensorboard",)
    checkpoint_minutes: Annotated[
        float, Option("Minutes between checkpoints within an epoch; there is one after each.", panel=MACHINE, ge=0)
    ] = 10.0
    keep_every: Annotated[
        int,
        Option("Keep the weights of every N-th epoch beside the last and the best; 0: none.", panel=MACHINE, ge=0),
    ] = 0

    def __post_init__(self) -> None:
        check(self)


RUN_FILE = SettingsFile(
    TrainConfig,
    elsewhere=declared(RuntimeConfig),
    reason="says how a run is carried out, not what it is.",
)
"""Files that hold the settings of one run."""


def config_text(flat: Mapping[str, Any], path: Path) -> str:
    """Return the TOML text that `write_config` writes."""
    return RUN_FILE.text(flat, _rerun(path))


def write_config(path: Path, flat: Mapping[str, Any]) -> None:
    """Write the settings of a run, as `options.flatten` gives them, to the file `path`; what is None is left out.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    RUN_FILE.write(path, flat, _rerun(path))


def _rerun(path: Path) -> str:
    return command_line("train", config=path.resolve())
