"""Everything that determines a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import QueryConfig, StudentConfig

OBJECTIVES = ("none", "embedding", "lfi")
MAPS = ("teacher", "shuffled", "uniform")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run.

    Attributes:
        targets: the cache.
        data_root: where its images lie; None takes what the cache recorded.
        val_split: split of the same data set to score on after every epoch.
        student: which backbone.
        queries: shape of the interaction queries.
        objective: `none` (task loss alone), `embedding` (plus cosine to the teacher's image embedding) or `lfi` (plus
            the interaction loss).
        maps: `teacher`, or a control: `shuffled` gives each image the maps of another, `uniform` flat ones.
        lambda_int: weight of the interaction loss (or of the embedding loss).
        hold_out: domains left out of training and scored apart.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: peak, reached after `warmup_epochs`, then cosine to zero.
        weight_decay: of AdamW, on matrices only.
        warmup_epochs: linear warm-up.
        augmentation: crops and flips, replayed on the maps.
        mirror_maps: allow mirroring a stored map where the cache has no `hflip` view.
        seed: of initialisation, order and augmentation.
        workers: loader processes; 0 loads in the training process.
        precision: `fp32`, or `bf16` autocast.
        device: `auto` takes CUDA where there is one.
    """

    targets: Path
    data_root: Path | None = None
    val_split: str = "val"
    student: StudentConfig = field(default_factory=StudentConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    objective: str = "lfi"
    maps: str = "teacher"
    lambda_int: float = 0.1
    hold_out: tuple[str, ...] = ()
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    mirror_maps: bool = False
    seed: int = 0
    workers: int = 0
    precision: str = "fp32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for kind, value, choices in (
            ("objective", self.objective, OBJECTIVES),
            ("maps", self.maps, MAPS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise UnknownNameError(kind, value, choices)
        if self.maps != "teacher" and self.objective != "lfi":
            raise ConfigError(f"maps {self.maps!r} is a control of objective 'lfi', got objective {self.objective!r}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.lambda_int < 0 or self.workers < 0 or self.warmup_epochs < 0:
            raise ConfigError(
                "learning_rate must be positive, lambda_int, workers and warmup_epochs 0 or more, got "
                f"{self.learning_rate}, {self.lambda_int}, {self.workers}, {self.warmup_epochs}."
            )
        if self.seed < 0 or self.weight_decay < 0:
            raise ConfigError(f"seed and weight_decay must be 0 or more, got {self.seed}, {self.weight_decay}.")
