"""Stage one: run the teacher once over a data set and commit its interaction maps shard by shard."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from lfi_pipeline.data import Dataset, load_manifest, read_dataset
from lfi_pipeline.data.directions import DIRECTION_WORDS, mirrored_caption
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.replay import WHOLE, view_image
from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import ConfigError, DatasetError, ImageReadError, UnknownNameError
from lfi_pipeline.targets import (
    CodecSpec,
    DatasetSpec,
    PlannedSample,
    PreprocessingSpec,
    ShardPayload,
    Summary,
    TargetSpec,
    TargetWriter,
    TextSpec,
    ViewArrays,
    Vocabulary,
)
from lfi_pipeline.teachers.coca import CocaTeacher, require_row
from lfi_pipeline.teachers.registry import load_teacher
from lfi_pipeline.teachers.words import EncodedText, Word, stop_words_sha256

VIEWS = ("full", "hflip")
Read = tuple[npt.NDArray[np.uint8], int, int]  # pixels [3, H, W], crc32c and bytes of the file
CAPTION_CHOICES = ("first", "longest")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """What to extract.

    Attributes:
        dataset: name of a manifest.
        data_root: where its files lie.
        split: which split.
        teacher: `NAME[:TAG]`; empty takes the data set's own default.
        kind: kind of map.
        row: `emitting` or `reading`.
        layers: how many teacher layers, for kinds that have several.
        captions: which caption of an image is read: `first` or `longest`.
        words: M, the most words of a caption that get a map.
        views: geometric versions of the image that the teacher sees.
        samples_per_shard: size of one commit unit.
        batch_size: images per forward pass; does not change the spec.
        device: where the teacher runs; `auto` takes CUDA where there is one.
    """

    dataset: str
    data_root: Path
    split: str = "train"
    teacher: str = ""
    kind: str = "agreement"
    row: str = "emitting"
    layers: int = 4
    captions: str = "first"
    words: int = 16
    views: tuple[str, ...] = VIEWS
    samples_per_shard: int = 1024
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.captions not in CAPTION_CHOICES:
            raise UnknownNameError("caption choice", self.captions, CAPTION_CHOICES)
        require_row(self.row, self.kind)
        for view in self.views:
            if view not in VIEWS:
                raise UnknownNameError("view", view, VIEWS)
        if "full" not in self.views:
            raise ConfigError(f"views must include 'full', got {', '.join(self.views) or 'none'}.")
        for name in ("words", "samples_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")


def extract(config: ExtractConfig, out: Path) -> tuple[Summary, float]:
    """Write the cache `out`, or finish it; returns its summary and the seconds this call took.

    Raises:
        LFIError: unknown names, a data root that does not fit, an output that holds something else, a spec that
            differs from the one `out` was begun with.
    """
    began = time.monotonic()
    dataset = read_dataset(config.dataset, config.data_root, config.split)
    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher or load_manifest(config.dataset, config.data_root).teacher, device=device)
    captions = [_choose_caption(sample.captions, config.captions, sample.key) for sample in dataset.samples]
    reads: dict[str, Callable[[str], str]] = {
        "full": str,
        "hflip": mirrored_caption,
    }  # the caption that is true of each view
    texts = {view: [teacher.encode_text(reads[view](caption)) for caption in captions] for view in config.views}
    words = [[word.text for word in text.words[: config.words]] for text in texts["full"]]
    names = tuple(sorted({word for row in words for word in row}))
    vocabulary = Vocabulary(words=names, embeddings=teacher.embed_words(names).numpy().astype(np.float16))
    plan = [
        PlannedSample(key=sample.key, path=sample.path, labels=sample.labels, domain=sample.domain, caption=caption)
        for sample, caption in zip(dataset.samples, captions, strict=True)
    ]
    spec = _spec(config, dataset, teacher)
    writer = TargetWriter.open(out, spec, plan, vocabulary, data_root=dataset.root)
    ids = {word: i for i, word in enumerate(names)}
    word_ids = {
        view: [[-1 if view == "hflip" and word in DIRECTION_WORDS else ids[word] for word in row] for row in words]
        for view in config.views
    }
    reader = _ShardReader(teacher, spec, dataset, texts, words, word_ids, config.batch_size)
    pending = writer.pending_shards()
    total = sum(len(writer.shard_range(shard)) for shard in pending)
    with tqdm(total=total, desc=f"{teacher.identity.name} {config.kind}", unit="image", disable=not total) as bar:
        for shard in pending:
            writer.commit(shard, reader.payload(writer.shard_range(shard), bar))
    return writer.summary(), time.monotonic() - began


def _choose_caption(captions: Sequence[str], choice: str, key: str) -> str:
    if not captions:
        raise DatasetError(
            f"Sample {key} has no caption; every image of the split must have one. Check the captions file."
        )
    return captions[0] if choice == "first" else max(captions, key=len)


def _spec(config: ExtractConfig, dataset: Dataset, teacher: CocaTeacher) -> TargetSpec:
    listing = hashlib.sha256("".join(json.dumps(asdict(sample), sort_keys=True) for sample in dataset.samples).encode())
    return TargetSpec(
        teacher=teacher.identity,
        preprocessing=PreprocessingSpec(
            image_size=teacher.image_size,
            resize="squash",
            interpolation="bicubic",
            mean=teacher.mean,
            std=teacher.std,
        ),
        dataset=DatasetSpec(
            name=dataset.name,
            split=dataset.split,
            classes=dataset.classes,
            listing_sha256=listing.hexdigest(),
            samples=len(dataset),
        ),
        kind=config.kind,
        layers=teacher.layers(config.kind, config.layers),
        row="emitting" if config.row == "emitting" else "reading",
        text=TextSpec(
            mode="captions",
            captions="first" if config.captions == "first" else "longest",
            stop_words_sha256=stop_words_sha256(),
        ),
        words_per_sample=config.words,
        grid=teacher.grid,
        views=config.views,
        embedding_dim=teacher.embedding_dim,
        codec=CodecSpec(),
        samples_per_shard=config.samples_per_shard,
    )


class _ShardReader:
    """Runs the teacher over the samples of a shard."""

    def __init__(
        self,
        teacher: CocaTeacher,
        spec: TargetSpec,
        dataset: Dataset,
        texts: dict[str, list[EncodedText]],
        words: list[list[str]],
        word_ids: dict[str, list[list[int]]],
        batch_size: int,
    ) -> None:
        self.teacher, self.spec, self.dataset = teacher, spec, dataset
        self.texts, self.words, self.word_ids, self.batch_size = texts, words, word_ids, batch_size
        self.mean = torch.tensor(spec.preprocessing.mean, device=teacher.device).view(3, 1, 1) * 255
        self.std = torch.tensor(spec.preprocessing.std, device=teacher.device).view(3, 1, 1) * 255

    def payload(self, positions: range, bar: tqdm) -> ShardPayload:
        spec, count = self.spec, len(positions)
        shape = (count, len(spec.layers), spec.words_per_sample)
        views = {
            view: ViewArrays(
                maps=np.zeros((*shape, *spec.grid), np.float32),
                words=np.full((count, spec.words_per_sample), -1, np.int32),
                kept=np.zeros(shape, np.float32),
                image_embedding=np.zeros((count, spec.embedding_dim), np.float32),
            )
            for view in spec.views
        }
        checksums, sizes = np.zeros(count, np.uint32), np.zeros(count, np.int64)
        quarantined: dict[int, str] = {}
        for chunk in self._batches(positions):
            rows, images = [], []
            for row, image in chunk:
                try:
                    pixels, checksums[row], sizes[row] = image.result()
                except ImageReadError as error:
                    quarantined[row] = str(error)
                    continue
                rows.append(row)
                images.append(torch.from_numpy(pixels))
            if rows:
                self._fill(views, positions, rows, torch.stack(images))
            bar.update(len(chunk))
        return ShardPayload(views=views, image_crc32c=checksums, image_size=sizes, quarantined=quarantined)

    def _batches(self, positions: range) -> Iterator[list[tuple[int, Future[Read]]]]:
        """Yield batches of (row in the shard, its image being read); the next batch is read while the teacher runs.

        Rows of like captions go together: a batch costs as many decoder passes as its wordiest caption has words.
        """
        full = self.texts["full"]
        order = sorted(
            range(len(positions)), key=lambda row: (len(self.words[positions[row]]), len(full[positions[row]].ids), row)
        )
        chunks = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        with ThreadPoolExecutor(max_workers=4) as pool:
            ahead: list[tuple[int, Future[Read]]] = []
            for chunk in [*chunks, []]:
                now, ahead = ahead, [(row, pool.submit(self._read, positions[row])) for row in chunk]
                if now:
                    yield now

    def _read(self, position: int) -> Read:
        image, checksum, size = read_image(self.dataset.root, self.dataset.samples[position].path)
        return view_image(image, WHOLE, self.spec.preprocessing.image_size), checksum, size

    def _fill(self, views: dict[str, ViewArrays], positions: range, rows: list[int], images: Tensor) -> None:
        pixels = (images.to(self.teacher.device).float() - self.mean) / self.std
        for view, arrays in views.items():
            samples = [positions[row] for row in rows]
            found = self.teacher.interaction_maps(
                pixels.flip(-1) if view == "hflip" else pixels,
                [self.texts[view][sample] for sample in samples],
                [self._present(sample, view) for sample in samples],
                kind=self.spec.kind,
                layers=self.spec.layers,
                row=self.spec.row,
            )
            slots = found.maps.shape[2]
            assert arrays.kept is not None
            arrays.maps[rows, :, :slots] = found.maps.cpu().numpy()
            arrays.kept[rows, :, :slots] = found.kept.cpu().numpy()
            arrays.image_embedding[rows] = found.image_embedding.cpu().numpy()
            for row, sample in zip(rows, samples, strict=True):
                ids = self.word_ids[view][sample]
                arrays.words[row, : len(ids)] = ids

    def _present(self, sample: int, view: str) -> list[Word | None]:
        """The sample's words as they stand in the view's caption, None where a row has no word in this view."""
        by_text = {word.text: word for word in self.texts[view][sample].words}
        words = zip(self.words[sample], self.word_ids[view][sample], strict=True)
        return [by_text.get(word) if word_id >= 0 else None for word, word_id in words]
