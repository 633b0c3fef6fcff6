"""Settings of evaluation: what all protocols share, and the options of each. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import DEVICE, Option, build, check, declared
from lfi_pipeline.evaluation.metrics import HEAD_SCORES

WEIGHTS = ("last", "best")
SOURCES = ("run", "scratch")
CLASS_AND_FIELD, FIELD = "class-and-field", "field"
GROUPS = (CLASS_AND_FIELD, FIELD)
MACHINE, TARGETS, GROUNDING = (
    "Weights and machine",
    "Protocols grounding, zero-shot, classification",
    "Protocol grounding",
)
CROSS_DOMAIN, ZERO_SHOT, DETECTION = "Protocol cross-domain", "Protocol zero-shot", "Protocol detection"
CLASSIFICATION, CONVERGENCE = "Protocol classification", "Protocol convergence"
SPLIT, WORST_GROUP = "Protocols classification, worst-group and grounding", "Protocol worst-group"
"""Headings of the help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Which weights of a run to score, and on what machine."""

    weights: Annotated[str, Option("Which checkpoint.", panel=MACHINE, choices=WEIGHTS)] = "last"
    device: Annotated[str, Option(DEVICE, panel=MACHINE)] = "auto"
    data_root: Annotated[
        Path | None, Option("Where the run's data set lies, if it has moved since the run.", panel=MACHINE)
    ] = None
    workers: Annotated[int, Option("Loader processes.", panel=MACHINE, ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


_SPLIT = "Split to score; left out: the run's validation split."
_SCORED = (
    "Cache by the run's teacher: of the split that is scored (grounding: its words, and where it looks; classification: "
    "the teacher's own answers), or of any data set with classes (zero-shot)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """Options of the protocol classification."""

    split: Annotated[str | None, Option(_SPLIT, panel=SPLIT)] = None
    targets: Annotated[Path | None, Option(_SCORED, panel=TARGETS)] = None
    probes: Annotated[
        bool,
        Option("k-NN and linear probe on frozen features: a pass over the training images.", panel=CLASSIFICATION),
    ] = True
    probe_limit: Annotated[
        int | None,
        Option("Training images for the probes at most, evenly spaced; left out: all.", panel=CLASSIFICATION, ge=1),
    ] = None
    knn_k: Annotated[int, Option("Neighbours that vote.", panel=CLASSIFICATION, ge=1)] = 20
    knn_temperature: Annotated[float, Option("Of a neighbour's vote.", panel=CLASSIFICATION, gt=0)] = 0.07

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstGroupConfig:
    """Options of the protocol worst-group."""

    split: Annotated[str | None, Option(_SPLIT, panel=SPLIT)] = None
    groups: Annotated[
        str,
        Option(
            "What a group is: the images of one class and one value of the group field, or of one value alone.",
            panel=WORST_GROUP,
            choices=GROUPS,
            noun="kind of groups",
        ),
    ] = CLASS_AND_FIELD
    least_images: Annotated[
        int, Option("Groups of fewer images are left out, and counted.", panel=WORST_GROUP, ge=1)
    ] = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossDomainConfig:
    """Options of the protocol cross-domain."""

    splits: Annotated[
        tuple[str, ...],
        Option(
            "Split whose images of the left-out domain are scored, each once; left out: `all` where the data set "
            "has it, else every split.",
            panel=CROSS_DOMAIN,
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotConfig:
    """Options of the protocol zero-shot."""

    targets: Annotated[Path, Option(_SCORED, panel=TARGETS)]
    scored_root: Annotated[
        Path | None,
        Option(
            "Where the images of the targets lie, if they moved; of the run's own data set data_root will do.",
            panel=ZERO_SHOT,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingConfig:
    """Options of the protocol grounding."""

    targets: Annotated[Path, Option(_SCORED, panel=TARGETS)]
    split: Annotated[str | None, Option(_SPLIT, panel=SPLIT)] = None
    gallery: Annotated[
        int, Option("Samples to keep in the run with their maps, for the report; 0: none.", panel=GROUNDING, ge=0)
    ] = 12

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionConfig:
    """How the detector is made. The defaults are for COCO on a GPU."""

    detection_data: Annotated[
        Path | None,
        Option(
            "Directory in COCO's layout: annotations/instances_*.json and the images; left out: the run's data.",
            panel=DETECTION,
        ),
    ] = None
    detection_train: Annotated[
        str | None,
        Option(
            "Split to fine-tune on, instances_SPLIT*.json; left out: train, of the run's own data its training split.",
            panel=DETECTION,
        ),
    ] = None
    detection_val: Annotated[
        str | None, Option("Split to score; left out: val, or the run's own.", panel=DETECTION)
    ] = None
    class_agnostic: Annotated[
        bool,
        Option("Take all objects as of one category: for data too small to learn to name them.", panel=DETECTION),
    ] = False
    iterations: Annotated[
        int,
        Option(
            "Steps of the fine-tuning; the default suits COCO, 500 to 2000 a few thousand images.",
            panel=DETECTION,
            ge=1,
        ),
    ] = 90_000
    batch_size: Annotated[int, Option("Images a step.", panel=DETECTION, ge=1)] = 16
    lr: Annotated[
        float,
        Option(
            "Peak of the schedule; 0.001 for a short fine-tuning.", panel=DETECTION, gt=0, aliases=("learning_rate",)
        ),
    ] = 1e-4
    image_size: Annotated[
        int | None,
        Option(
            "Pixels of the longer side, filled up to a square; left out: as the student was trained.",
            panel=DETECTION,
            ge=1,
        ),
    ] = None
    detection_width: Annotated[
        int, Option("Channels of pyramid and heads; 64 is quick on a CPU.", panel=DETECTION, ge=1)
    ] = 256
    seed: Annotated[
        int | None,
        Option("Of first weights, order and sampled regions; left out: the run's own.", panel=DETECTION, ge=0),
    ] = None
    source: Annotated[
        str,
        Option(
            "Backbone to start from: the run's, or from scratch, the same with random weights, as a control.",
            panel=DETECTION,
            choices=SOURCES,
            noun="source of the backbone",
            flags=("from",),
        ),
    ] = "run"
    keep_detections: Annotated[
        bool, Option("Keep them in RUN/evaluation/ as COCO results, .json.gz.", panel=DETECTION)
    ] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvergenceConfig:
    """Options of the protocol convergence."""

    references: Annotated[
        tuple[Path, ...],
        Option(
            "A finished run whose final score is to be reached. Of several kinds of control the one with the best mean is "
            "taken; a run is held against its run of the same seed, else against the mean of all.",
            name="reference",
            aliases=("references",),
            panel=CONVERGENCE,
        ),
    ] = ()
    score: Annotated[
        str | None,
        Option(
            "Validation score that must be reached; left out: the task's main one.",
            panel=CONVERGENCE,
            choices=tuple(HEAD_SCORES),
        ),
    ] = None

    smooth: Annotated[
        int,
        Option(
            "Validations that each point of a curve is averaged over, an odd number: noise crosses a score early. 1 takes "
            "curves as they are.",
            panel=CONVERGENCE,
            ge=1,
        ),
    ] = 3

    def __post_init__(self) -> None:
        check(self)
        if self.smooth % 2 == 0:
            raise ConfigError(f"smooth must be an odd number, got {self.smooth}.", argument="smooth")
        if not self.references:
            raise ConfigError(
                "The protocol convergence needs a finished run to compare with, got none. Give `reference=RUN`."
            )


PROTOCOL_CONFIGS: Mapping[str, type[Any]] = {
    "classification": ClassificationConfig,
    "worst-group": WorstGroupConfig,
    "cross-domain": CrossDomainConfig,
    "zero-shot": ZeroShotConfig,
    "grounding": GroundingConfig,
    "detection": DetectionConfig,
    "convergence": ConvergenceConfig,
}
"""Class of the options of each protocol, in the order in which they are told."""


def evaluation_configs(
    protocols: Sequence[str], options: Mapping[str, Any], ignored: Sequence[str] = ()
) -> tuple[EvaluationConfig, dict[str, Any]]:
    """Return what all protocols share and the config of each of `protocols`.

    Args:
        protocols: names.
        options: by name, of any of them.
        ignored: options that may be of none of them.

    Raises:
        UnknownNameError: there is no such protocol or option.
        ConfigError: an option that none of the protocols has, so that no one believes it had an effect; one that a
            protocol needs is missing or has a value that cannot work.
    """
    for name in protocols:
        if name not in PROTOCOL_CONFIGS:
            raise UnknownNameError("protocol", name, PROTOCOL_CONFIGS, argument="protocol")
    kinds: list[Any] = [EvaluationConfig, *(PROTOCOL_CONFIGS[name] for name in protocols)]
    for option in options:
        if option not in ignored and not any(_has(kind, option) for kind in kinds):
            _refuse(option, protocols)
    for name, kind in zip(protocols, kinds[1:], strict=True):
        for option, each in declared(kind).items():
            if each.required and options.get(option) is None:
                raise ConfigError(f"Protocol {name} needs `{option}`.")
    common, *configs = (build(kind, {n: v for n, v in options.items() if _has(kind, n)}) for kind in kinds)
    return common, dict(zip(protocols, configs, strict=True))


def _has(kind: Any, option: str) -> bool:
    return any(option == name or option in {a.name for a in each.aliases} for name, each in declared(kind).items())


def _refuse(option: str, protocols: Sequence[str]) -> None:
    owners = " or ".join(name for name, kind in PROTOCOL_CONFIGS.items() if _has(kind, option))
    if not owners:
        names = {name for kind in (EvaluationConfig, *PROTOCOL_CONFIGS.values()) for name in declared(kind)}
        raise UnknownNameError("option", option, difflib.get_close_matches(option, names, n=5, cutoff=0.0))
    raise ConfigError(
        f"{option} is an option of protocol {owners}; asked for: {', '.join(protocols)}. Leave it out, or add "
        f"`protocol={owners}`.",
        argument=option,
    )
