"""Synthetic caches through the public writer: of any size, the same on every call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lfi_pipeline.benchmarks.timing import seconds_of
from lfi_pipeline.targets import (
    CodecSpec,
    DatasetSpec,
    LayerSpec,
    PlannedSample,
    PreprocessingSpec,
    ShardPayload,
    TargetSpec,
    TargetWriter,
    TeacherSpec,
    TextSpec,
    ViewArrays,
    Vocabulary,
)

VOCABULARY = 1000
CLASSES = 80
EMBEDDING_DIM = 512
BANK = 512
"""Different maps in a synthetic cache; they are drawn from these, since drawing every map anew takes minutes."""


def maps_spec(
    *,
    samples: int,
    maps_shape: tuple[int, ...],
    codec: CodecSpec | None = None,
    samples_per_shard: int = 1024,
    views: tuple[str, ...] = ("full",),
    embedding_dim: int = EMBEDDING_DIM,
) -> TargetSpec:
    """Spec of a cache of maps [L, M, gh, gw] a sample."""
    layers, words, rows, columns = maps_shape
    return TargetSpec(
        teacher=TeacherSpec(name="synthetic", tag="benchmark", weights_sha256="0" * 64, family="coca"),
        preprocessing=PreprocessingSpec(
            image_size=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        ),
        dataset=DatasetSpec(
            name="coco",
            split="train",
            classes=tuple(f"class {i}" for i in range(CLASSES)),
            listing_sha256="0" * 64,
            samples=samples,
        ),
        kind="relevance",
        layers=tuple(LayerSpec(name=f"block.{i}", depth=(i + 1) / layers) for i in range(layers)),
        row="emitting",
        text=TextSpec(mode="captions", captions="first", stop_words_sha256="0" * 64),
        words_per_sample=words,
        grid=(rows, columns),
        views=views,
        embedding_dim=embedding_dim,
        codec=codec or CodecSpec(),
        samples_per_shard=samples_per_shard,
    )


def payload_of(
    spec: TargetSpec, maps: npt.NDArray[np.float32], crc32c: npt.NDArray[np.uint32] | None = None
) -> ShardPayload:
    """Payload of n samples with these maps [n, L, M, gh, gw] in every view; words and embeddings are drawn."""
    n, rng = len(maps), np.random.default_rng(len(maps))
    words = rng.integers(0, VOCABULARY, (n, spec.words_per_sample)).astype(np.int32)
    embedding = rng.normal(size=(n, spec.embedding_dim)).astype(np.float32)
    kept = rng.uniform(0.8, 1, maps.shape[:3]).astype(np.float32)
    view = ViewArrays(maps=maps, words=words, image_embedding=embedding, kept=kept)
    checksums = np.arange(1, n + 1, dtype=np.uint32) if crc32c is None else crc32c
    return ShardPayload(views=dict.fromkeys(spec.views, view), image_crc32c=checksums)


def drawn_maps(spec: TargetSpec, positions: range) -> npt.NDArray[np.float32]:
    """Blob-like maps [n, L, M, gh, gw] of samples `positions`, drawn from a bank of `BANK`."""
    bank = _bank(spec.grid)
    shape = (len(positions), len(spec.layers), spec.words_per_sample)
    chosen: npt.NDArray[np.float32] = bank[np.random.default_rng(positions.start).integers(0, len(bank), shape)]
    return chosen


def write_targets(
    out: Path,
    spec: TargetSpec,
    payload: Callable[[range], ShardPayload],
    *,
    data_root: Path | None = None,
    plan: list[PlannedSample] | None = None,
) -> float:
    """Write a whole cache; returns the seconds that its commits took, the making of payloads not counted."""
    words = tuple(sorted(f"word{i}" for i in range(VOCABULARY)))
    embeddings = np.random.default_rng(0).normal(size=(VOCABULARY, spec.embedding_dim)).astype(np.float16)
    samples = plan or planned_samples(spec.dataset.samples)
    vocabulary = Vocabulary(words=words, embeddings=embeddings)
    writer = TargetWriter.open(out, spec, samples, vocabulary, data_root=data_root or out)
    seconds = 0.0
    for shard in tqdm(writer.pending_shards(), desc="synthetic cache", unit="shard", leave=False):
        content = payload(writer.shard_range(shard))
        seconds += seconds_of(lambda shard=shard, content=content: writer.commit(shard, content))  # type: ignore[misc]
    return seconds


def planned_samples(count: int) -> list[PlannedSample]:
    """Index rows of the size that COCO's have."""
    return [
        PlannedSample(
            key=f"{i:012d}",
            path=f"train2017/{i:012d}.jpg",
            labels=labels_of(i),
            domain="",
            caption=f"a synthetic caption of about the length that people write, number {i}",
        )
        for i in range(count)
    ]


def labels_of(position: int) -> tuple[int, ...]:
    """Labels of a synthetic sample: two to four of the classes."""
    return tuple(sorted({(position * step + step) % CLASSES for step in (1, 7, 13, 29)[: 2 + position % 3]}))


def _bank(grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Sums of two blobs on a noisy floor, [BANK, gh, gw], rows summing to 1."""
    rng = np.random.default_rng(7)
    down, across = np.meshgrid(*(np.linspace(0, 1, side) for side in grid), indexing="ij")
    maps = 0.02 * rng.random((BANK, *grid))
    for _ in range(2):
        y, x, width = rng.random((3, BANK, 1, 1))
        maps += np.exp(-((down - y) ** 2 + (across - x) ** 2) / (0.005 + 0.1 * width**2))
    normalised: npt.NDArray[np.float32] = (maps / maps.sum((1, 2), keepdims=True)).astype(np.float32)
    return normalised
