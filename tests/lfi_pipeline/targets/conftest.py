"""Synthetic targets: a small spec, its plan, vocabulary and payloads, the same on every call."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest

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
    ZeroShot,
)

SAMPLES, PER_SHARD, LAYERS, WORDS, GRID, DIM, VOCABULARY = 10, 4, 2, 3, (5, 6), 8, 7


def make_spec(**changes: object) -> TargetSpec:
    fields: dict[str, object] = {
        "teacher": TeacherSpec(name="tiny-coca", tag="test", weights_sha256="ab" * 32, family="coca"),
        "preprocessing": PreprocessingSpec(
            image_size=(64, 64), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        ),
        "dataset": DatasetSpec(
            name="scenes", split="train", classes=("cat", "dog"), listing_sha256="cd" * 32, samples=SAMPLES
        ),
        "kind": "relevance",
        "layers": tuple(LayerSpec(name=f"block.{i}", depth=(i + 1) / LAYERS) for i in range(LAYERS)),
        "row": "emitting",
        "text": TextSpec(mode="captions", captions="first", stop_words_sha256="ef" * 32),
        "words_per_sample": WORDS,
        "grid": GRID,
        "views": ("full", "hflip"),
        "embedding_dim": DIM,
        "codec": CodecSpec(),
        "samples_per_shard": PER_SHARD,
    }
    return TargetSpec(**{**fields, **changes})  # type: ignore[arg-type]


def make_plan() -> list[PlannedSample]:
    return [
        PlannedSample(key=f"{i:03d}", path=f"images/{i}.jpg", labels=(i % 2,), domain="photo", caption=f"a cat {i}")
        for i in range(SAMPLES)
    ]


def make_vocabulary() -> Vocabulary:
    embeddings = np.random.default_rng(5).normal(size=(VOCABULARY, DIM)).astype(np.float16)
    return Vocabulary(words=tuple(f"word{i}" for i in range(VOCABULARY)), embeddings=embeddings)


def make_zero_shot() -> ZeroShot:
    embeddings = np.random.default_rng(6).normal(size=(2, DIM))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return ZeroShot(
        names=("cat", "dog"),
        templates=("a photo of a {}.", "a drawing of a {}."),
        logit_scale=31.4,
        embeddings=embeddings.astype(np.float16),
    )


ZERO_SHOT = make_zero_shot()


def make_image(position: int) -> bytes:
    """Stands for the image file of a sample; nothing here decodes images."""
    return np.random.default_rng([7, position]).bytes(100 + 37 * position)


def random_maps(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    logits = 2 * rng.normal(size=shape)
    maps = np.exp(logits - logits.max(axis=(-1, -2), keepdims=True))
    normalised: npt.NDArray[np.float32] = (maps / maps.sum(axis=(-1, -2), keepdims=True)).astype(np.float32)
    return normalised


def make_payload(spec: TargetSpec, shard: int) -> ShardPayload:
    """Sample 5 (shard 1) is quarantined; the last word of every even sample is a pad."""
    positions = spec.shard_range(shard)
    views = {}
    for number, view in enumerate(spec.views):
        rng = np.random.default_rng([shard, number])
        n = len(positions)
        words = rng.integers(0, VOCABULARY, (n, WORDS)).astype(np.int32)
        words[::2, -1] = -1
        views[view] = ViewArrays(
            maps=random_maps(rng, n, LAYERS, WORDS, *GRID),
            words=words,
            image_embedding=rng.normal(size=(n, DIM)).astype(np.float32),
            kept=rng.uniform(0.1, 1, (n, LAYERS, WORDS)).astype(np.float32),
        )
    images = [make_image(position) for position in positions]
    return ShardPayload(
        views=views,
        image_crc32c=np.array([google_crc32c.value(image) for image in images], dtype=np.uint32),
        image_size=np.array([len(image) for image in images]),
        quarantined={i: "cannot be decoded" for i, position in enumerate(positions) if position == 5},
        images=[None if position == 5 else make_image(position) for position in positions],
    )


def open_writer(
    path: Path,
    spec: TargetSpec | None = None,
    layout: str = "zarr",
    data_root: str | Path = "/data/scenes",
    zero_shot: ZeroShot | None = ZERO_SHOT,
) -> TargetWriter:
    return TargetWriter.open(
        path, spec or make_spec(), make_plan(), make_vocabulary(), data_root, layout=layout, zero_shot=zero_shot
    )


def extract(
    path: Path,
    limit: int | None = None,
    layout: str = "zarr",
    data_root: str | Path = "/data/scenes",
    zero_shot: ZeroShot | None = ZERO_SHOT,
) -> TargetWriter:
    """What the extract command does: open, then claim and commit every pending shard (at most `limit`)."""
    writer = open_writer(path, layout=layout, data_root=data_root, zero_shot=zero_shot)
    for shard in writer.pending_shards()[:limit]:
        with writer.claim(shard) as ours:
            assert ours
            writer.commit(shard, make_payload(writer.spec, shard))
    writer.finish()
    return writer


def tree(path: Path) -> dict[str, str]:
    """Digest of every file below a directory."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def write_images(root: Path) -> Path:
    """The images of the plan as files."""
    for position, sample in enumerate(make_plan()):
        (root / sample.path).parent.mkdir(parents=True, exist_ok=True)
        (root / sample.path).write_bytes(make_image(position))
    return root


@dataclass(frozen=True)
class Synthetic:
    """The helpers above, for tests that are imported without a package."""

    spec: Callable[..., TargetSpec] = make_spec
    plan: Callable[[], list[PlannedSample]] = make_plan
    vocabulary: Callable[[], Vocabulary] = make_vocabulary
    zero_shot: Callable[[], ZeroShot] = make_zero_shot
    image: Callable[[int], bytes] = make_image
    write_images: Callable[[Path], Path] = write_images
    payload: Callable[[TargetSpec, int], ShardPayload] = make_payload
    maps: Callable[..., npt.NDArray[np.float32]] = random_maps
    open_writer: Callable[..., TargetWriter] = open_writer
    extract: Callable[..., TargetWriter] = extract
    tree: Callable[[Path], dict[str, str]] = tree
    per_shard: int = PER_SHARD


@pytest.fixture(scope="session")
def synthetic() -> Synthetic:
    return Synthetic()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache; read only."""
    path = tmp_path_factory.mktemp("finished") / "targets"
    extract(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the caches below; read only."""
    return write_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, Path]:
    """A complete cache in each layout, with its images in `pictures`; read only."""
    paths = {layout: tmp_path_factory.mktemp("both") / layout for layout in ("zarr", "webdataset")}
    for layout, path in paths.items():
        extract(path, layout=layout, data_root=pictures)
    return paths


@pytest.fixture(params=["zarr", "webdataset"])
def layout(request: pytest.FixtureRequest) -> str:
    """Each layout in turn."""
    return str(request.param)


@pytest.fixture
def copy(tmp_path: Path, both: dict[str, Path], layout: str) -> Path:
    """A copy of the complete cache of `layout`, to be damaged."""
    return Path(shutil.copytree(both[layout], tmp_path / "copy"))
