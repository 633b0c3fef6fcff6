"""What a teacher's maps cost over its plain vision forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.timing import interleaved
from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.teachers import Teacher, load_teacher
from lfi_pipeline.teachers.words import EncodedText

CONTENT_WORDS = (
    *("dog", "table", "plant", "bird", "fence", "cloud", "bicycle", "bridge", "stone", "beach", "chair", "umbrella"),
    *("horse", "window", "river", "tree", "train", "clock", "boat", "flower"),
)
VISION = "vision forward"
LIMITS = {"ViT-B-32": 3.0, "ViT-L-14": 2.0}
"""Most times the vision forward that `relevance` may cost, where a limit was set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapsConfig:
    """What to time.

    Attributes:
        teacher: `NAME[:TAG]`; `NAME:random` needs no weights.
        kinds: kinds of map; `("all",)` takes every kind of the teacher.
        batch_size: images.
        words: content words in each caption; those within the teacher's context get a map.
        layers: decoder layers, for kinds that have several.
        rounds: of which the median counts.
        device: where the teacher runs.
    """

    teacher: str = "coca_ViT-B-32:random"
    kinds: tuple[str, ...] = ("relevance",)
    batch_size: int = 8
    words: int = 12
    layers: int = 1
    rounds: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "words", "layers", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.words > len(CONTENT_WORDS):
            raise ConfigError(f"words must be {len(CONTENT_WORDS)} or fewer, got {self.words}.")
        if not self.kinds:
            raise ConfigError("kinds must name at least one kind of map, got none.")


def bench_maps(config: MapsConfig) -> Outcome:
    """Time maps of all words of a batch, embeddings and vision forward included, over the vision forward alone.

    Raises:
        UnknownNameError: unknown teacher or kind.
        BenchmarkError: a row sums neither to 1 nor to 0, or a kind gives no row at all.
    """
    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher, device=device)
    kinds = teacher.kinds if config.kinds == ("all",) else config.kinds
    for kind in kinds:
        if kind not in teacher.kinds:
            raise UnknownNameError("map kind", kind, teacher.kinds)
    images = torch.rand(
        config.batch_size, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).to(device)
    cases: dict[str, Callable[[], object]] = {VISION: lambda: _finished(vision_forward(teacher, images))}
    texts = _texts(teacher, config)
    words = max(len(text.words) for text in texts)
    for kind in kinds:
        cases[kind] = _maker(teacher, images, texts, kind, config.layers)
        _check(kind, cases[kind], words)
    seconds = interleaved(cases, config.rounds, name=f"maps of {config.teacher}")
    shape = f"{config.teacher}, batch {config.batch_size}, {words} words, {teacher.image_size[0]} px"
    measured = []
    for case, value in seconds.items():
        for metric, number, unit in (
            ("time an image", value / config.batch_size * 1e3, "ms"),
            ("over the vision forward", value / seconds[VISION], ""),
        ):
            measured.append(Measurement(case=case, shape=shape, metric=metric, value=number, unit=unit))
    limit = next((most for name, most in LIMITS.items() if config.teacher.startswith(f"coca_{name}")), None)
    asked = [
        Asked(what=f"relevance over the vision forward, {config.teacher}", value=value / seconds[VISION], most=limit)
        for kind, value in seconds.items()
        if kind == "relevance" and limit is not None
    ]
    return Outcome(
        benchmark="maps",
        checked="rows sum to 1, or are zero where there is nothing to show",
        measurements=tuple(measured),
        asked=tuple(asked),
        notes=("Maps include the vision forward and the reading of the caption; images are in memory.",),
    )


def vision_forward(teacher: Teacher, images: Tensor) -> Tensor:
    """The teacher's image embeddings and nothing else, [B, E]."""
    with torch.no_grad():
        embedding: Tensor = teacher.model.encode_image(images)
    return embedding


def _texts(teacher: Teacher, config: MapsConfig) -> list[EncodedText]:
    """Captions that each begin at another word, so that no two are alike."""
    total = len(CONTENT_WORDS)
    some = ([CONTENT_WORDS[(b + i) % total] for i in range(config.words)] for b in range(config.batch_size))
    return [teacher.encode_text(" and ".join(words)) for words in some]


def _maker(teacher: Teacher, images: Tensor, texts: list[EncodedText], kind: str, layers: int) -> Callable[[], Tensor]:
    chosen = teacher.layers(kind, layers)
    words = [text.words for text in texts]
    return lambda: _finished(teacher.interaction_maps(images, texts, words, kind=kind, layers=chosen).maps)


def _check(kind: str, make: Callable[[], object], words: int) -> None:
    maps = make()
    assert isinstance(maps, Tensor)
    sums = maps.double().sum((-1, -2))
    require(maps.shape[2] == words, f"{kind} must give {words} rows an image, got {maps.shape[2]}.")
    off = torch.minimum((sums - 1).abs(), sums.abs()).max().item()
    require(off < 1e-4, f"Rows of {kind} must sum to 1, or to 0 where there is no map; one is off by {off:.2g}.")
    require(bool((sums > 0.5).any()), f"{kind} must give some map, all rows are zero.")


def _finished(result: Tensor) -> Tensor:
    """Wait until a CUDA device has computed `result`."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result
