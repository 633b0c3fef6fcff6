"""Inputs of benchmarks: synthetic caches of any size, files that cost what photographs cost, real maps.

How a sample is made, none of it invented:

- `scenes` are rendered and read by `scenes-coca` with their own captions; every content word gives one row.
- The 4 layers are 4 kinds of map of that word, from the smoothest to the sparsest: `attention` and `gradcam` at the
  last decoder layer, `relevance`, and the default `agreement`. Words that have no map in one of them are left out.
- A caption of `scenes` has fewer than 16 content words, so rows are packed: the words of the first scene in reading
  order, then those of the next, until 16 are together. Every row stays the whole map of one word of one image.
- The teacher's grid is 8 x 8. `resize` enlarges it bilinearly (cells' middles aligned) and renormalises: smoother than
  a real 16 x 16 map, so easier for a lossless compressor. `mosaic` lays four rows of one kind side by side, a quarter
  of the mass each: as rough as maps get, a bound from the other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from lfi_pipeline.benchmarks.outcome import seconds_of
from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.scenes import write_scenes
from lfi_pipeline.targets import (
    CodecSpec,
    DatasetSpec,
    LayerSpec,
    PlannedSample,
    PreprocessingSpec,
    ShardPayload,
    TargetSpec,
    TargetStore,
    TargetWriter,
    TeacherSpec,
    TextSpec,
    ViewArrays,
    Vocabulary,
)
from lfi_pipeline.teachers import load_teacher
from lfi_pipeline.teachers.teacher import normalised_images

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
    classes = spec.dataset.classes  # words too, so that a query head has its seeds
    words = tuple(sorted([*classes, *(f"word{i}" for i in range(VOCABULARY - len(classes)))]))
    embeddings = np.random.default_rng(0).normal(size=(VOCABULARY, spec.embedding_dim)).astype(np.float16)
    samples = plan or planned_samples(spec.dataset.samples)
    vocabulary = Vocabulary(words=words, embeddings=embeddings)
    writer = TargetWriter.open(out, spec, samples, vocabulary, data_root=data_root or out)
    seconds = 0.0
    for shard in progress_bar(writer.pending_shards(), desc="synthetic cache", unit="shard", leave=False):
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


SIZE = (375, 500)
QUALITY = 90
# Six content words each, as COCO's captions have on average, and equally many tokens of CLIP's, so that it does not
# matter which captions share a batch.
CAPTIONS = (
    "a brown dog on a wooden table with some green plants",
    "a white bird on a stone wall with some dark clouds",
    "a red horse on a metal bridge with some yellow chairs",
    "a black cat on a glass window with some small boats",
)


def write_photo(path: Path, seed: int) -> None:
    """Write one colour texture of 500 x 375 pixels with the 1/f spectrum of natural images (Field, 1987)."""
    rng = np.random.default_rng(seed)
    rows, columns = SIZE
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = 1.0
    noise = np.fft.rfft2(rng.normal(size=(3, *SIZE))) / frequency
    texture = np.fft.irfft2(noise, s=SIZE)
    grey = texture[:1]  # the channels of a photograph are mostly one brightness
    mixed = 0.8 * grey + 0.4 * texture
    mixed = (mixed - mixed.mean((1, 2), keepdims=True)) / mixed.std((1, 2), keepdims=True)
    pixels = (mixed * 55 + 118).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=QUALITY)


def write_photos(root: Path, count: int, *, folder: str = "train2017") -> list[str]:
    """Write `count` photos; returns their POSIX paths below `root`."""
    paths = [f"{folder}/{i:012d}.jpg" for i in range(count)]
    for i, path in enumerate(progress_bar(paths, desc="images", unit="image", leave=False)):
        write_photo(root / path, i)
    return paths


def write_coco(root: Path, paths: list[str]) -> None:
    """Describe photos, with one caption each and no objects, as the data set `coco`, split `train`."""
    images = [
        {"id": i, "file_name": Path(path).name, "height": SIZE[0], "width": SIZE[1]} for i, path in enumerate(paths)
    ]
    captions = [{"id": i, "image_id": i, "caption": CAPTIONS[i % len(CAPTIONS)]} for i in range(len(paths))]
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in (
        ("captions", {"images": images, "annotations": captions}),
        ("instances", {"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}),
    ):
        (folder / f"{name}_train2017.json").write_text(json.dumps(body), encoding="utf-8")


MAPS_SHAPE = (4, 16, 16, 16)
"""Layers, words, rows and columns of the targets."""


def photo_cache(
    root: Path,
    images: int,
    *,
    maps_shape: tuple[int, ...] = MAPS_SHAPE,
    maps_of: Callable[[list[Path]], npt.NDArray[np.float32]] | None = None,
) -> TargetStore:
    """Write `images` JPEG files of 500 x 375 pixels and a cache with the views full and hflip, both alike.

    Args:
        root: an empty directory.
        images: how many.
        maps_shape: (L, M, gh, gw) of synthetic maps.
        maps_of: gives maps [images, L, M, gh, gw] for the files, in place of synthetic ones.
    """
    paths = write_photos(root, images)
    checksums = np.array([google_crc32c.value((root / path).read_bytes()) for path in paths], dtype=np.uint32)
    maps = maps_of([root / path for path in paths]) if maps_of is not None else None
    spec = maps_spec(samples=images, maps_shape=maps_shape if maps is None else maps.shape[1:], views=("full", "hflip"))
    plan = [
        PlannedSample(key=Path(path).stem, path=path, labels=labels_of(i), domain="", caption="")
        for i, path in enumerate(paths)
    ]

    def payload(positions: range) -> ShardPayload:
        rows = slice(positions.start, positions.stop)
        return payload_of(spec, drawn_maps(spec, positions) if maps is None else maps[rows], checksums[rows])

    write_targets(root / "targets", spec, payload, data_root=root, plan=plan)
    return TargetStore.open(root / "targets")


LAYER_KINDS = ("attention", "gradcam", "relevance", "agreement")
WORDS = 16
GRID = 16
WORDS_A_SCENE = 3
"""Fewer than any caption of `scenes` has on average; decides how many scenes are rendered at first."""


def demo_maps(samples: int, form: str, scratch: Path, *, batch_size: int = 32) -> npt.NDArray[np.float32]:
    """Make maps of `samples` samples to encode: fp32 [samples, 4, 16, 16, 16], rows sum to 1.

    Args:
        samples: how many.
        form: `resize` or `mosaic`.
        scratch: an empty folder in which scenes may be rendered.
        batch_size: scenes per pass of the teacher.

    Raises:
        UnknownNameError: no such form.
    """
    if form not in FORMS:
        raise UnknownNameError("form of maps", form, FORMS)
    wanted = samples * WORDS * (4 if form == "mosaic" else 1)
    rows: list[Tensor] = []  # each [words, 4, 8, 8]
    row_count = scenes = 0
    with progress_bar(total=wanted, desc="maps of scenes", unit="row", leave=False) as bar:
        while row_count < wanted:  # a few words have no map in one of the kinds, so the first rendering may fall short
            count = max(batch_size, (wanted - row_count) // WORDS_A_SCENE)
            for part in _rows(scratch / f"scenes-{scenes}", count, scenes, batch_size):
                rows.append(part)
                row_count += len(part)
                bar.update(len(part))
                if row_count >= wanted:
                    break
            scenes += count
    packed = FORMS[form](torch.cat(rows)[:wanted])  # [samples * 16, 4, 16, 16]
    maps = packed.view(samples, WORDS, len(LAYER_KINDS), GRID, GRID).transpose(1, 2)
    return np.ascontiguousarray(maps.numpy(), dtype=np.float32)


def _rows(root: Path, count: int, seed: int, batch_size: int) -> list[Tensor]:
    write_scenes(root, ScenesConfig(train=count, val=1, seed=seed), workers=1)
    dataset = read_dataset("scenes", root, "train")
    teacher = load_teacher("scenes-coca")
    parts = []
    for first in range(0, count, batch_size):
        samples = dataset.samples[first : first + batch_size]
        pixels = [view_image(read_image(root, s.path)[0], WHOLE, teacher.image_size) for s in samples]
        images = normalised_images(teacher, pixels)
        texts = [teacher.encode_text(sample.captions[0]) for sample in samples]
        words = [text.words for text in texts]
        kinds = [
            teacher.interaction_maps(images, texts, words, kind=kind, layers=teacher.layers(kind, 1)).maps[:, 0]
            for kind in LAYER_KINDS
        ]
        maps = torch.stack(kinds, dim=2).flatten(0, 1)  # [B * M, 4, 8, 8]
        parts.append(maps[(maps.flatten(2).sum(-1) > 0).all(1)])
    return parts


def _resize(rows: Tensor) -> Tensor:
    large = nn.functional.interpolate(rows, size=(GRID, GRID), mode="bilinear", align_corners=False)
    return large / large.sum((-2, -1), keepdim=True)


def _mosaic(rows: Tensor) -> Tensor:
    quarters = rows.view(-1, 4, *rows.shape[1:])  # [R, 4, L, 8, 8]
    top, bottom = torch.cat([quarters[:, 0], quarters[:, 1]], -1), torch.cat([quarters[:, 2], quarters[:, 3]], -1)
    return torch.cat([top, bottom], -2) / 4


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"resize": _resize, "mosaic": _mosaic}
