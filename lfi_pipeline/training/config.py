"""Everything that determines a training run, and apart from it the machine that it runs on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data.augment import Augmentation, Photometric
from lfi_pipeline.data.mixing import MixConfig
from lfi_pipeline.students import QueryConfig, StudentConfig

WEIGHT_SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, slots=True)
class Weight:
    """Weight of a term: `0.1` stays, `0.1:cosine` and `0.1:linear` fall to zero at the end of the run.

    Attributes:
        value: at the start.
        schedule: one of `WEIGHT_SCHEDULES`.
    """

    value: float
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.schedule not in WEIGHT_SCHEDULES:
            raise UnknownNameError("weight schedule", self.schedule, WEIGHT_SCHEDULES)
        if not 0 <= self.value < math.inf:
            raise ConfigError(f"The weight of a term must be 0 or more, got {self.value}.")

    @classmethod
    def parse(cls, text: str | float) -> Weight:
        """Read `0.1` or `0.1:cosine`.

        Raises:
            ConfigError: not a number.
            UnknownNameError: no such schedule.
        """
        number, colon, schedule = str(text).partition(":")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"A weight must be a number, such as 0.1 or 0.1:cosine, got {text!r}.") from None
        return cls(value, schedule if colon else "constant")

    def __str__(self) -> str:
        return repr(self.value) if self.schedule == "constant" else f"{self.value!r}:{self.schedule}"

    def at(self, progress: float) -> float:
        """Value at `progress` in [0, 1] of the run."""
        match self.schedule:
            case "cosine":
                return self.value * 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                return self.value * (1 - progress)
        return self.value


DEFAULT_WEIGHTS = {
    "lfi": Weight(0.05),
    "embedding": Weight(0.3),
    "logits": Weight(0.02),
    "presence": Weight(0.1),
}
"""By term: the best of those tried on the scenes (README, "What was measured"); `presence` is not tuned."""


MAPS = ("teacher", "shuffled", "uniform")
NONE = "none"
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("cosine", "linear", "constant")
TASKS = ("auto", "classification", "multi-label", "none")
TERMS = tuple(DEFAULT_WEIGHTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """What is read, in which order and how it is augmented. Runs with equal streams can be fed from one read.

    Attributes:
        targets: the cache.
        data_root: where its images lie; None takes what the cache recorded.
        hold_out: domains left out of training and scored apart.
        maps: `teacher`, or a control: `shuffled` gives each image the maps of another, `uniform` flat ones.
        words: of an image that are read, the first ones of the cache; None: all it holds.
        mirror_maps: allow mirroring a stored map where the cache has no `hflip` view.
        augmentation: crops and flips, replayed on the maps.
        photometric: changes of colour, which leave maps as they are.
        mix: mixup and cutmix, replayed on labels and maps.
        epochs: passes over the training images.
        batch_size: images per step of the optimizer, over all processes.
        seed: of initialisation, order and augmentation.
    """

    targets: Path
    data_root: Path | None = None
    hold_out: tuple[str, ...] = ()
    maps: str = "teacher"
    words: int | None = None
    mirror_maps: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    photometric: Photometric = field(default_factory=Photometric)
    mix: MixConfig = field(default_factory=MixConfig)
    epochs: int = 15
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.maps not in MAPS:
            raise UnknownNameError("maps", self.maps, MAPS)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.words is not None and self.words < 1:
            raise ConfigError(f"words must be 1 or more, got {self.words}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be 0 or more and below 2^63, got {self.seed}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: any optimizer of timm, such as adamw, sgd, lamb or lion.
        learning_rate: peak, reached after `warmup_epochs`.
        weight_decay: on matrices only.
        layer_decay: factor on the learning rate from each block to the one before it; None: one rate for all.
        clip: largest norm of the gradient.
        schedule: `cosine` or `linear` to zero at the end, or `constant`; stepped at every update.
        warmup_epochs: linear warm-up.
        ema: decay of an exponential moving average of the weights, which is then what is scored and kept; None: none.
    """

    name: str = "adamw"
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        for name in ("weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more and finite, got {getattr(self, name)}.")
        for name in ("layer_decay", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run.

    Attributes:
        stream: what is read.
        student: which backbone.
        queries: shape and mode of the interaction queries.
        optimizer: how weights move.
        objective: `none` (the task alone) or terms joined by `+`, such as `lfi` or `lfi+embedding`:
            `lfi` (interaction maps), `embedding` (cosine to the teacher's image embedding), `logits` (KL to the
            teacher's zero-shot class logits), `presence` (which words the image holds, read from the queries).
        weights: of terms, where not the default.
        task: `classification` (one label an image, cross-entropy), `multi-label` (binary cross-entropy), `none` (pure
            distillation); `auto` takes classification where every image has exactly one label.
        val_split: split of the same data set to score on after every epoch.
        precision: `fp32`, or autocast to `bf16`.
        accumulate: forward passes whose gradients make one step; the batch is split between them.
    """

    stream: StreamConfig
    student: StudentConfig = field(default_factory=StudentConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: str = "lfi"
    weights: Mapping[str, Weight] = field(default_factory=dict)
    task: str = "auto"
    val_split: str = "val"
    precision: str = "fp32"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for term in self.terms:
            if term == NONE:
                raise ConfigError(f"objective 'none' stands alone, got {self.objective!r}.")
            if term == "features":
                raise ConfigError(
                    "Dense alignment (objective 'features') needs the teacher's patch features, which caches do not "
                    "hold: they would take hundreds of kilobytes an image. Choose lfi, embedding or logits."
                )
            if term not in TERMS:
                raise UnknownNameError("objective", term, (NONE, *TERMS))
        if len(set(self.terms)) < len(self.terms):
            raise ConfigError(f"objective must name each term once, got {self.objective!r}.")
        for kind, value, choices in (("task", self.task, TASKS), ("precision", self.precision, PRECISIONS)):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)
        unused = [term for term in self.weights if term not in self.terms]
        if unused:
            raise ConfigError(f"weights must be of terms of the objective ({self.objective!r}), got {unused}.")
        if self.stream.maps != "teacher" and "lfi" not in self.terms:
            raise ConfigError(
                f"maps {self.stream.maps!r} is a control of the term 'lfi', got objective {self.objective!r}."
            )
        if self.task == "none" and not self.terms:
            raise ConfigError("task 'none' leaves nothing to learn with objective 'none'. Choose a term, such as lfi.")
        if "presence" in self.terms and self.queries.mode != "text":
            raise ConfigError("The presence term scores words, so it needs queries of mode 'text', got 'learned'.")
        if "logits" in self.terms and self.task == "none":
            raise ConfigError("The logits term teaches the task's classes, so it needs a task, got 'none'.")
        if self.accumulate < 1 or self.stream.batch_size % self.accumulate:
            raise ConfigError(f"accumulate must divide the batch size {self.stream.batch_size}, got {self.accumulate}.")

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms beside the task."""
        return () if self.objective == NONE else tuple(self.objective.split("+"))

    @property
    def uses_queries(self) -> bool:
        """Whether the student carries interaction queries; learned ones feed the head, whatever they are taught by."""
        return "lfi" in self.terms or "presence" in self.terms or self.queries.mode == "learned"

    def weight(self, term: str) -> Weight:
        """Weight of one of `terms`."""
        return self.weights.get(term, DEFAULT_WEIGHTS[term])


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where and how a run is carried out; none of it changes what is learned, and all of it may change on a resume.

    Attributes:
        workers: loader processes; 0 loads in the training process.
        device: `auto` takes CUDA where there is one.
        track: where metrics go beside metrics.jsonl: tensorboard, wandb, trackio.
        checkpoint_minutes: between checkpoints within an epoch; there is one after every epoch in any case.
        keep_every: epochs between checkpoints of the weights that are kept; 0 keeps the last and the best only.
    """

    workers: int = 0
    device: str = "auto"
    track: tuple[str, ...] = ("tensorboard",)
    checkpoint_minutes: float = 10.0
    keep_every: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0 or self.keep_every < 0 or not self.checkpoint_minutes >= 0:
            raise ConfigError(
                "workers, keep_every and checkpoint_minutes must be 0 or more, got "
                f"{self.workers}, {self.keep_every}, {self.checkpoint_minutes}."
            )
