"""Extraction: a whole run against the same maps in memory, and what maps cost over a plain vision forward."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfi_pipeline.benchmarks.config import CONTENT_WORDS, ExtractionConfig, MapsConfig
from lfi_pipeline.benchmarks.inputs import CAPTIONS, maps_spec, payload_of, write_coco, write_photos, write_targets
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, extra_memory, interleaved, require, seconds_of
from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.core.runtime import autocast, progress_bar, resolve_device
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import TargetStore, codec_kl, decode_maps
from lfi_pipeline.teachers import Teacher, load_teacher
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.extract import extract
from lfi_pipeline.teachers.teacher import normalised_images
from lfi_pipeline.teachers.text import EncodedText

VISION = "vision forward"
WORDS = 16
LIMITS = {
    "relevance": {"ViT-B-32": 3.0, "ViT-L-14": 2.0},
    "contrastive": {"ViT-B-32": 1.3, "ViT-L-14": 1.15},
}
"""Most times the vision forward that a kind may cost, where a limit was set."""


def bench_maps(config: MapsConfig) -> Outcome:
    """Time maps of all words of a batch, embeddings and vision forward included, over the vision forward alone.

    Raises:
        UnknownNameError: unknown teacher or kind.
        BenchmarkError: a row sums neither to 1 nor to 0, or a kind gives no row at all.
    """
    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher, device=device)
    kinds = teacher.kinds if config.kinds == ("all",) else config.kinds or (teacher.default_kind,)
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
    requirements = [
        Asked(what=f"{kind} over the vision forward, {config.teacher}", value=value / seconds[VISION], most=most)
        for kind, value in seconds.items()
        for name, most in LIMITS.get(kind, {}).items()
        if config.teacher.startswith(f"coca_{name}")
    ]
    return Outcome(
        benchmark="maps",
        checked="rows sum to 1, or are zero where there is nothing to show",
        measurements=tuple(measured),
        asked=tuple(requirements),
        notes=("Maps include the vision forward and the reading of the caption; images are in memory.",),
    )


def vision_forward(teacher: Teacher, images: Tensor) -> Tensor:
    """The teacher's image embeddings and nothing else, [B, E], in the precision of its trunk."""
    with torch.no_grad(), autocast(teacher.device, teacher.precision):
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
    settings = teacher.map_settings(kind, centre=CONTENT_WORDS)
    return lambda: _finished(
        teacher.interaction_maps(images, texts, words, kind=kind, layers=chosen, settings=settings).maps
    )


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


KL_TOLERANCE = 2e-3
"""Most mean KL in nats of stored maps from those computed in memory; the codec alone costs a twentieth of it."""


def bench_extraction(config: ExtractionConfig) -> Outcome:
    """Time the extraction, the maps alone, and each part of the way.

    Raises:
        BenchmarkError: the cache does not hold the maps that were computed in memory.
    """
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as folder:
        scratch = Path(folder)
        few, many = scratch / "few", scratch / "many"
        write_coco(few, write_photos(few, config.batch_size))
        write_coco(many, write_photos(many, config.batch_size + config.images))
        teacher = load_teacher(config.teacher, device=device, precision="auto")
        inside = _Memory(teacher, many, config)
        _extraction_check(inside, few, scratch / "check", config)
        whole, alone = [], []
        for number in progress_bar(range(config.rounds), desc="extraction", unit="round", leave=False):
            roots = (few, many) if number % 2 else (many, few)
            took = {root: _seconds(config, root, scratch / f"{root.name}-{number}") for root in roots}
            whole.append(took[many] - took[few])
            alone.append(inside.maps())
        parts = _parts(inside, many, scratch, config)
        peak = extra_memory(lambda: extract(_extract(config, few), scratch / "peak"), device)
    ratio = statistics.median(w / a for w, a in zip(whole, alone, strict=True))
    shape = f"{config.teacher}, {config.kind}, {config.images} images, batch {config.batch_size}"
    shape += ", compiled" * config.compile
    total = {"whole extraction": statistics.median(whole), "maps in memory": statistics.median(alone), **parts}
    measured = []
    for case, seconds in total.items():
        for metric, value, unit in (
            ("time an image", seconds / config.images * 1e3, "ms"),
            ("over maps in memory", seconds / statistics.median(alone), ""),
        ):
            measured.append(Measurement(case=case, shape=shape, metric=metric, value=value, unit=unit))
    whole_case, share = "whole extraction", parts["vision"] / statistics.median(whole)
    rates = [
        ("images a second", config.images / statistics.median(whole), "images/s"),
        ("over the bare teacher", share, ""),
    ]
    if peak is not None:
        rates.append(("peak extra memory", peak, "MiB"))
    measured += [
        Measurement(case=whole_case, shape=shape, metric=metric, value=value, unit=unit)
        for metric, value, unit in rates
    ]
    of_bare = f"images/s of the extraction over those of the bare teacher, {config.teacher}"
    return Outcome(
        benchmark="extract",
        checked="the cache holds the maps that were computed in memory",
        measurements=tuple(measured),
        asked=(
            Asked(
                what="whole extraction over maps in memory",
                value=ratio,
                most=1.05 if device.type == "cuda" else 1.10,
            ),
            *((Asked(what=of_bare, value=share, least=0.87),) if device.type == "cuda" else ()),
        ),
        notes=(
            "JPEG files of 500 x 375 pixels; captions with six content words; view full. What a run costs once "
            "(loading the teacher, embedding the vocabulary) is taken off by a second, short run.",
            "Parts are timed alone, one after the other: reading is one thread here and overlaps the teacher in an "
            "extraction. 'maps beyond vision' is maps in memory less the vision forward. The bare teacher: its vision "
            "forward alone, not compiled, of images on the device.",
        ),
    )


def _seconds(config: ExtractionConfig, root: Path, out: Path) -> float:
    return seconds_of(lambda: extract(_extract(config, root), out))


def _extract(config: ExtractionConfig, root: Path) -> ExtractConfig:
    return ExtractConfig(
        dataset="coco",
        data_root=root,
        teacher=config.teacher,
        kind=config.kind,
        layers=1,
        views=("full",),
        words=WORDS,
        batch_size=config.batch_size,
        device=config.device,
        compile=config.compile,
    )


class _Memory:
    """The images that count as normalised tensors, and the maps of their captions."""

    def __init__(self, teacher: Teacher, root: Path, config: ExtractionConfig) -> None:
        self.teacher, self.config = teacher, config
        self.files = sorted((root / "train2017").iterdir())
        self.images = normalised_images(teacher, [read(path, teacher) for path in self.files])
        self.texts = [teacher.encode_text(CAPTIONS[i % len(CAPTIONS)]) for i in range(len(self.files))]
        self.layers = teacher.layers(config.kind, 1)

    def batch(self, first: int) -> Tensor:
        """Maps [B, L, M, gh, gw] of one batch."""
        rows = slice(first, first + self.config.batch_size)
        texts = self.texts[rows]
        words = [text.words for text in texts]
        interaction = self.teacher.interaction_maps(
            self.images[rows], texts, words, kind=self.config.kind, layers=self.layers
        )
        return interaction.maps.cpu()

    def maps(self) -> float:
        """Seconds for the maps of all images that count."""
        size = self.config.batch_size
        with self.teacher.compiled(size, WORDS) if self.config.compile else nullcontext():
            if self.config.compile:
                self.batch(0)  # compiles
            return seconds_of(lambda: [self.batch(first) for first in range(size, len(self.files), size)])

    def vision(self) -> float:
        """Seconds for the vision forward of all images that count."""
        size = self.config.batch_size
        starts = range(size, len(self.files), size)
        return seconds_of(lambda: [vision_forward(self.teacher, self.images[i : i + size]).cpu() for i in starts])


def read(path: Path, teacher: Teacher) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What the teacher sees of a file, uint8 [3, H, W]."""
    return view_image(read_image(path.parent, path.name)[0], WHOLE, teacher.image_size)


def _parts(inside: _Memory, root: Path, scratch: Path, config: ExtractionConfig) -> dict[str, float]:
    """Seconds of each part alone, for the images that count."""
    files = inside.files[config.batch_size :]
    vision = statistics.median(inside.vision() for _ in range(config.rounds))
    maps = statistics.median(inside.maps() for _ in range(config.rounds))
    reading = seconds_of(lambda: [read(path, inside.teacher) for path in files])
    store = TargetStore.open(scratch / "many-0")
    stored = store.read_many(np.arange(len(files)))
    decoded = decode_maps(stored.maps, stored.scale, store.spec.codec.name)
    spec = maps_spec(samples=len(files), maps_shape=decoded.shape[1:], embedding_dim=store.spec.embedding_dim)
    commit = write_targets(scratch / "again", spec, lambda positions: payload_of(spec, decoded[: len(positions)]))
    written = [path.read_bytes() for path in (scratch / "again").rglob("*") if path.is_file() and "views" in path.parts]
    writing = seconds_of(lambda: _write(scratch / "plain", written))
    return {
        "read and decode": reading,
        "vision": vision,
        "maps beyond vision": maps - vision,
        "encode": max(0.0, commit - writing),
        "write": writing,
    }


def _write(folder: Path, contents: list[bytes]) -> None:
    """Write and sync, as the cache's writer does."""
    folder.mkdir()
    for i, content in enumerate(contents):
        with (folder / str(i)).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _extraction_check(inside: _Memory, root: Path, out: Path, config: ExtractionConfig) -> None:
    """The first batch, extracted, must be what the same teacher gives in memory."""
    extract(_extract(config, root), out)
    store = TargetStore.open(out)
    stored = store.read_many(np.arange(config.batch_size))
    decoded = decode_maps(stored.maps, stored.scale, store.spec.codec.name)
    expected = inside.batch(0).numpy()
    slots = expected.shape[2]
    off = codec_kl(expected, decoded[:, :, :slots])
    require(off < KL_TOLERANCE, f"Stored maps must be those of the teacher, they differ by {off:.3g} nats.")
    require(not decoded[:, :, slots:].any(), "Rows without a word must be zero.")
