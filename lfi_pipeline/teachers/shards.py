"""How images and texts become the payload of a shard: what is read, made and written at the same time.

Threads read the texts of the next shard and the images of the next batches, and lay those of a batch side by side. The
teacher's maps of a batch leave a GPU as soon as they are made, and are fetched when the next batch is at work: neither
waits for the other. The thread of `targets.writer.Committer` encodes and writes the shard before.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, overload

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ImageReadError
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.images import decode_image, read_bytes
from lfi_pipeline.targets import LayerSpec, MapSpec, PlannedSample, ShardPayload, TargetSpec, ViewArrays
from lfi_pipeline.teachers.reuse import ReusableCache, ReusedRows
from lfi_pipeline.teachers.settings import on_device
from lfi_pipeline.teachers.teacher import InteractionMaps, Teacher
from lfi_pipeline.teachers.text import SEPARATOR, TextSource, ViewWords, planned, sample_words, view_words


class Plan(Sequence[PlannedSample]):
    """Rows of the index for a data set and what the teacher reads of it."""

    def __init__(self, samples: Sequence[Sample], source: TextSource) -> None:
        self._samples, self._source = samples, source

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, position: int) -> PlannedSample: ...
    @overload
    def __getitem__(self, position: slice) -> list[PlannedSample]: ...
    def __getitem__(self, position: int | slice) -> PlannedSample | list[PlannedSample]:
        if isinstance(position, slice):
            return [planned(self._samples[i], self._source) for i in range(*position.indices(len(self)))]
        return planned(self._samples[position], self._source)

    def __iter__(self) -> Iterator[PlannedSample]:
        return (planned(sample, self._source) for sample in self._samples)


AHEAD = 4
"""Batches read while the teacher works on one; the texts of the next shard are read when so many are left of this."""

Read = tuple[npt.NDArray[np.uint8], bytes]  # pixels [3, H, W], content of the file
Progress = Callable[[int], object]


@dataclass(slots=True, eq=False)
class _Shard:
    """A shard being made: n samples from `first` on."""

    number: int
    positions: range
    words: list[list[str]]
    views: dict[str, list[ViewWords]]
    donation: ReusedRows
    payload: ShardPayload
    quarantined: dict[int, str]  # of the payload
    images: list[bytes | None] | None  # of the payload
    left: int = 0  # batches that are not done


Ready = tuple[list[int], Tensor | None]  # rows whose images can be read, and their pixels [b, 3, H, W]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Rows of one shard that go through the teacher together, their images being read."""

    shard: _Shard
    rows: list[int]
    images: list[Future[Read]]
    ready: Future[Ready]


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """Maps of a view of some rows at some layers, in main memory once `arrive` has returned."""

    view: str
    rows: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int64]
    maps: InteractionMaps
    arrive: Callable[[], object]


class ShardMaker:
    """Makes payloads, shard after shard, with images of the next batches being read meanwhile.

    Args:
        teacher: makes the maps.
        spec: of the cache.
        dataset: the samples.
        source: what the teacher reads of each.
        vocabulary: every word's id.
        batch_size: images in one pass of the teacher.
        workers: threads that read and decode images; 0 chooses.
        donor: gives rows that another cache holds already.
        images: payloads hold the image files too.
        compiled: let torch compile what the teacher can have compiled, see `Teacher.compiled`.

    Attributes:
        seconds_waiting: spent so far on waiting for images and texts that were not read yet.
        seconds_teacher: spent so far in the teacher, from pixels in main memory to maps in main memory.
    """

    def __init__(
        self,
        teacher: Teacher,
        spec: TargetSpec,
        dataset: Dataset,
        source: TextSource,
        vocabulary: Sequence[str],
        *,
        batch_size: int,
        workers: int = 0,
        donor: ReusableCache | None = None,
        images: bool = False,
        compiled: bool = False,
    ) -> None:
        self._teacher, self._spec, self._dataset, self._source = teacher, spec, dataset, source
        self._ids = {word: i for i, word in enumerate(vocabulary)}
        self._batch_size, self._donor, self._images, self._compiled = batch_size, donor, images, compiled
        self.seconds_waiting = self.seconds_teacher = 0.0
        self._workers = workers or min(8, max(2, os.cpu_count() or 2))
        self._mean = torch.tensor(spec.preprocessing.mean, device=teacher.device).view(3, 1, 1) * 255
        self._std = torch.tensor(spec.preprocessing.std, device=teacher.device).view(3, 1, 1) * 255

    def payloads(self, shards: Iterable[int], progress: Progress) -> Generator[tuple[int, ShardPayload], None, None]:
        """Yield the payload of each shard, in order; the next shard is asked for while the last batches run.

        Args:
            shards: numbers of the shards.
            progress: told how many images are done, batch by batch.
        """
        with ExitStack() as stack:
            if self._compiled:
                stack.enter_context(self._teacher.compiled(self._batch_size, self._spec.words_per_sample))
            pool = stack.enter_context(ThreadPoolExecutor(self._workers, thread_name_prefix="images"))
            texts = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="texts"))
            batcher = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="batches"))
            waiting: deque[_Batch] = deque()
            at_work: tuple[_Batch, list[_Made]] | None = None
            try:
                for batch in self._in_turn(self._batches(shards, waiting, pool, texts, batcher), waiting):
                    last, at_work = at_work, None
                    waits = not batch.ready.done()  # and the device is idle, so the last batch may be fetched at once
                    if last is not None and waits:
                        yield from self._finish(*last, progress)
                    at_work = batch, self._run(batch)
                    if last is not None and not waits:
                        yield from self._finish(*last, progress)
                if at_work is not None:
                    yield from self._finish(*at_work, progress)
            finally:
                for batch in waiting:
                    batch.ready.cancel()
                    for image in batch.images:
                        image.cancel()

    @staticmethod
    def _in_turn(batches: Iterator[_Batch | None], waiting: deque[_Batch]) -> Iterator[_Batch]:
        """Yield batches with `AHEAD` others waiting behind them, fewer while there is none to be had (None)."""
        for batch in batches:
            if batch is not None:
                waiting.append(batch)
            if waiting and (batch is None or len(waiting) > AHEAD):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _batches(
        self,
        shards: Iterable[int],
        waiting: deque[_Batch],
        pool: ThreadPoolExecutor,
        texts: ThreadPoolExecutor,
        batcher: ThreadPoolExecutor,
    ) -> Iterator[_Batch | None]:
        """Batches of a shard's rows that need the teacher; one without rows where none does.

        Rows of like texts go together: a batch costs as much as its wordiest text. While a shard's texts are read and
        batches are `waiting`, it yields None.
        """
        for number in shards:
            begun = texts.submit(self._begin, number)
            while waiting and not begun.done():
                yield None
            began = time.perf_counter()
            shard = begun.result()
            self.seconds_waiting += time.perf_counter() - began
            full = shard.views["full"]
            order = sorted(
                np.flatnonzero(shard.donation.missing.any(axis=(0, 2))).tolist(),
                key=lambda row: (len(shard.words[row]), max(len(text.ids) for text in full[row].texts), row),
            )
            chunks = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)] or [[]]
            shard.left = len(chunks)
            for rows in chunks:
                images = [pool.submit(self._read, shard.positions[row]) for row in rows]
                yield _Batch(shard, rows, images, batcher.submit(self._laid_out, shard, rows, images))

    def _begin(self, number: int) -> _Shard:
        spec, positions = self._spec, self._spec.shard_range(number)
        samples = [self._dataset.samples[position] for position in positions]
        texts = [self._source(sample) for sample in samples]
        encode = cache(self._teacher.encode_text)  # most texts read the same in every view
        words = [sample_words(encode, each, spec.words_per_sample) for each in texts]
        views = {
            view: [view_words(encode, each, row, view) for each, row in zip(texts, words, strict=True)]
            for view in spec.views
        }
        count, shape = len(positions), (len(positions), len(spec.layers), spec.words_per_sample)
        arrays = {}
        for view, view_texts in views.items():
            ids = np.full((count, spec.words_per_sample), -1, np.int32)
            for row, each in enumerate(view_texts):
                for slot in np.flatnonzero(each.present).tolist():
                    ids[row, slot] = self._ids[words[row][slot]]
            arrays[view] = ViewArrays(
                maps=np.zeros((*shape, *spec.grid), np.float32),
                words=ids,
                kept=np.zeros(shape, np.float32),
                image_embedding=np.zeros((count, spec.embedding_dim), np.float32),
            )
        quarantined: dict[int, str] = {}
        images: list[bytes | None] | None = [None] * count if self._images else None
        payload = ShardPayload(
            views=arrays,
            image_crc32c=np.zeros(count, np.uint32),
            quarantined=quarantined,
            image_size=np.zeros(count, np.int64),
            images=images,
        )
        donation = ReusedRows.nothing(spec, count)
        if self._donor is not None:
            captions = [SEPARATOR.join(each.texts) for each in texts]
            donation = self._donor.give([sample.key for sample in samples], captions, words, payload)
            payload = replace(payload, donated=~donation.missing, donated_kl=self._donor.mean_kl)
        return _Shard(number, positions, words, views, donation, payload, quarantined, images)

    def _laid_out(self, shard: _Shard, rows: list[int], images: list[Future[Read]]) -> Ready:
        """Wait for the images of a batch, and lay their pixels side by side."""
        wait(images)
        readable, pixels = [], []
        for row, image in zip(rows, images, strict=True):
            try:
                values, content = image.result()
            except ImageReadError as error:
                shard.quarantined[row] = str(error)
                continue
            self._keep(shard, row, content)
            readable.append(row)
            pixels.append(torch.from_numpy(values))
        together = torch.stack(pixels) if pixels else None
        if together is not None and self._teacher.device.type == "cuda":
            together = together.pin_memory()
        return readable, together

    def _run(self, batch: _Batch) -> list[_Made]:
        """Have the teacher make the maps of a batch; on a GPU it may be at work still when this returns."""
        began = time.perf_counter()
        rows, pixels = batch.ready.result()
        ready = time.perf_counter()
        self.seconds_waiting += ready - began
        made = [] if pixels is None else list(self._made(batch.shard, np.array(rows), pixels))
        self.seconds_teacher += time.perf_counter() - ready
        return made

    def _finish(self, batch: _Batch, made: Sequence[_Made], progress: Progress) -> Iterator[tuple[int, ShardPayload]]:
        """Fetch the maps of a batch; yield its shard where it was the last."""
        shard, began = batch.shard, time.perf_counter()
        for each in made:
            self._fetch(shard, each)
        self.seconds_teacher += time.perf_counter() - began
        shard.left -= 1
        progress(len(batch.rows))
        if not shard.left:
            untouched = np.flatnonzero(~shard.donation.missing.any(axis=(0, 2))).tolist()
            for row in untouched if self._images else ():
                path = self._dataset.samples[shard.positions[row]].path
                self._keep(shard, row, read_bytes(self._dataset.root, path))
            progress(len(untouched))
            yield shard.number, shard.payload

    def _keep(self, shard: _Shard, row: int, content: bytes) -> None:
        """Note what identifies an image, and the image itself where payloads hold it."""
        crc32c = int(google_crc32c.value(content))
        shard.donation.require_same_image(row, crc32c, self._dataset.samples[shard.positions[row]].path)
        shard.payload.image_crc32c[row] = crc32c
        assert shard.payload.image_size is not None
        shard.payload.image_size[row] = len(content)
        if shard.images is not None:
            shard.images[row] = content

    def _read(self, position: int) -> Read:
        path = self._dataset.samples[position].path
        content = read_bytes(self._dataset.root, path)
        seen = self._spec.preprocessing
        return view_image(decode_image(content, path), WHOLE, seen.image_size, seen.interpolation), content

    def _made(self, shard: _Shard, rows: npt.NDArray[np.int64], images: Tensor) -> Iterator[_Made]:
        pixels = (images.to(self._teacher.device, non_blocking=True).float() - self._mean) / self._std
        for v, view in enumerate(self._spec.views):
            missing = shard.donation.missing[v, rows]  # [b, L]
            for wanted in np.unique(missing, axis=0):
                if wanted.any():
                    chosen = np.flatnonzero((missing == wanted).all(axis=1))
                    whole = len(chosen) == len(pixels)
                    seen = pixels if whole else pixels[on_device(torch.from_numpy(chosen), pixels.device)]
                    yield self._make(shard, view, rows[chosen], seen.flip(-1) if view == "hflip" else seen, wanted)

    def _make(
        self, shard: _Shard, view: str, rows: npt.NDArray[np.int64], pixels: Tensor, wanted: npt.NDArray[np.bool_]
    ) -> _Made:
        """Run the teacher over `rows` for the layers `wanted`; a word's map is the mean over the texts that hold it."""
        layers = np.flatnonzero(wanted)
        maps = maps_of_texts(
            self._teacher,
            pixels,
            [shard.views[view][row] for row in rows],
            kind=self._spec.kind,
            layers=[self._spec.layers[i] for i in layers],
            row=self._spec.row,
            settings=self._spec.maps,
        )
        return _Made(view, rows, layers, *maps.leave())

    def _fetch(self, shard: _Shard, made: _Made) -> None:
        """Wait for maps, and put them in their rows of the payload."""
        made.arrive()
        arrays, fetched = shard.payload.views[made.view], made.maps
        assert arrays.kept is not None
        where: Any = np.ix_(made.rows, made.layers, np.arange(fetched.maps.shape[2]))
        arrays.maps[where], arrays.kept[where] = fetched.maps.numpy(), fetched.kept.numpy()
        arrays.image_embedding[made.rows] = fetched.image_embedding.numpy()


def maps_of_texts(
    teacher: Teacher,
    pixels: Tensor,
    read: Sequence[ViewWords],
    *,
    kind: str,
    layers: Sequence[LayerSpec],
    row: str,
    settings: MapSpec,
) -> InteractionMaps:
    """Return the maps of B images, each the mean over those of its texts that hold the word: C = B.

    The one way from texts to maps, for extraction, recomputation and scores of kinds.

    Args:
        teacher: that reads.
        pixels: normalised, [B, 3, H, W] on the teacher's device.
        read: for each image its texts and the words of its rows.
        kind, layers, row, settings: as `Teacher.interaction_maps` takes them.
    """
    image_of = [b for b, each in enumerate(read) for _ in each.texts]
    made = teacher.interaction_maps(
        pixels,
        [text for each in read for text in each.texts],
        [words for each in read for words in each.rows],
        kind=kind,
        layers=layers,
        row=row,
        image_of=image_of,
        settings=settings,
    )
    return InteractionMaps(*_mean_over_texts(made.maps, made.kept, image_of, len(read)), made.image_embedding)


def _mean_over_texts(maps: Tensor, kept: Tensor, image_of: Sequence[int], images: int) -> tuple[Tensor, Tensor]:
    """Average [C, L, M, gh, gw] and [C, L, M] over each image's texts that have the row; [images, ...]."""
    if len(image_of) == images:
        return maps, kept
    owner = on_device(torch.tensor(image_of), maps.device)
    present = (maps.flatten(3).sum(-1) > 0).float()  # [C, L, M]
    count = torch.zeros(images, *present.shape[1:], device=maps.device).index_add_(0, owner, present).clamp_min(1)
    total = torch.zeros(images, *maps.shape[1:], device=maps.device).index_add_(0, owner, maps)
    mass = torch.zeros(images, *kept.shape[1:], device=maps.device).index_add_(0, owner, kept)
    return total / count[..., None, None], mass / count
