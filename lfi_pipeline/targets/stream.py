"""Samples of a cache in the webdataset layout, front to back: every byte checked, shard after shard, shuffled.

The tars are read front to back through the `webdataset` library, as plain bytes: none of its decoders is used, since
some of them unpickle what a tar holds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from torch.utils.data import IterableDataset

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, UnknownNameError
from lfi_pipeline.core.io import crc32c_hex
from lfi_pipeline.targets.commits import CheckedStream, CommitRecord, remedy, tar_file
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.store import SampleTargets, TargetStore
from lfi_pipeline.targets.tar import ViewCodec, image_extension, member_names, parse_json, read_members


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TarSample:
    """One sample of a tar, its members checked and its arrays still compressed.

    Attributes:
        position: in the data set.
        key, labels: as of `PlannedSample`.
        quarantine: why it has no targets; None where it has.
        image: the image file's bytes, b"" where quarantined.
        views: content of the `.zst` member by view, empty where quarantined.
    """

    position: int
    key: str
    labels: tuple[int, ...]
    quarantine: str | None
    image: bytes
    views: Mapping[str, bytes]


class DamagedSampleError(CorruptTargetsError):
    """A shard whose damage was found at one sample, of position `sample`."""

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


def shard_members(root: Path, spec: TargetSpec, record: CommitRecord) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member of a shard's tar; the whole file is compared with the record at its end.

    Raises:
        DamagedSampleError: the file is missing or damaged, or holds a member that does not belong there (a link, a
            device, a path with folders, a sample of another shard).
    """
    positions, place = spec.shard_range(record.shard), tar_file(record.shard)
    due = positions.start
    try:
        with CheckedStream(root / place, record.files[place]) as stream:
            for name, _, content in read_members(stream, record.files[place].size):
                position = _position(name)
                if position not in (due, due - 1) or position not in positions:
                    raise ValueError(f"member {name} stands where one of sample {due} must")
                due = position + 1
                yield name, content
            if due != positions.stop:
                raise ValueError(f"it ends before sample {due}")
            stream.finish()
    except (ValueError, CorruptTargetsError) as error:
        text = str(error).removesuffix(".")
        message = f"Cannot read shard {record.shard}, {root / place}: {text}. {remedy(root, record.shard)}"
        sample = due if isinstance(error, ValueError) and due in positions else None
        raise DamagedSampleError(message, sample) from error


class SampleParser:
    """Checks the members of one sample after another."""

    def __init__(self, root: Path, spec: TargetSpec) -> None:
        """
        Args:
            root: the cache.
            spec: of the cache.
        """
        self._root, self._spec = root, spec
        self._fingerprint, self._classes = spec.fingerprint, len(spec.dataset.classes)

    def parse(self, shard: int, stem: str, members: Mapping[str, bytes]) -> TarSample:
        """Check the members of one sample.

        Args:
            shard: number of its shard.
            stem: the common part of the members' names.
            members: their contents, by what follows the stem and a dot, in order.

        Raises:
            DamagedSampleError: a member is damaged, missing, or does not belong there.
        """
        position = _position(f"{stem}.")
        try:
            return self._parse(position, members)
        except ValueError as error:
            raise DamagedSampleError(
                f"Cannot read shard {shard}, sample {position} of {self._root}: {error}. {remedy(self._root, shard)}",
                position,
            ) from error

    def _parse(self, position: int, members: Mapping[str, bytes]) -> TarSample:
        body = parse_json(members.get("json", b""))
        key, path, labels, reason = (body.get(name) for name in ("key", "path", "labels", "quarantine"))
        if not isinstance(key, str) or not isinstance(path, str) or not isinstance(labels, list):
            raise ValueError("the JSON lacks a field, or has one of another type")
        if not (reason is None or isinstance(reason, str)):
            raise ValueError("the JSON lacks a field, or has one of another type")
        if not all(type(label) is int and 0 <= label < self._classes for label in labels):
            raise ValueError("the JSON has labels that no class has")
        if body.get("fingerprint") != self._fingerprint:
            raise ValueError("the JSON belongs to other targets")
        extension = None if reason is not None else image_extension(path, next(iter(members.values())))
        names = [name.partition(".")[2] for name in member_names(self._spec, position, extension)]
        if list(members) != names:
            raise ValueError(f"its members are {', '.join(members)}, not {', '.join(names)}")
        checksums = {name: crc32c_hex(content) for name, content in members.items() if name != "json"}
        if body.get("crc32c") != checksums:
            raise ValueError("a member does not match its crc32c")
        return TarSample(
            position=position,
            key=key,
            labels=tuple(labels),
            quarantine=reason,
            image=b"" if reason is not None else members[names[0]],
            views={view: members[f"{view}.zst"] for view in self._spec.views} if reason is None else {},
        )


def _position(name: str) -> int:
    """The position that a member's name begins with, -1 where it does not begin with one as we write it."""
    match = re.match(r"(\d{9,18})\.", name)
    return int(match[1]) if match and match[1] == f"{int(match[1]):09d}" else -1


SHUFFLE = 1000
"""Samples in the buffer that a stream draws from; they wait there as they are stored, not decoded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StreamSample:
    """One sample of a stream.

    Attributes:
        position: in the data set, as `TargetStore.read` takes it.
        key: of the sample.
        labels: indices into the spec's classes.
        image: the image file's bytes.
        targets: stored targets by view.
    """

    position: int
    key: str
    labels: tuple[int, ...]
    image: bytes
    targets: dict[str, SampleTargets]


class TargetStream(IterableDataset[StreamSample]):
    """Every usable sample once an epoch, over all nodes and loader workers together.

    Shards are shuffled, dealt to nodes (of `torch.distributed`, or as RANK and WORLD_SIZE say) and then to loader
    workers, and samples are drawn from a buffer. The order depends on seed, epoch and the number of nodes and workers
    alone; a node or worker more than there are shards gets nothing. Every byte is checked: a sample before it is given
    out, its shard as a whole when it has been read.

    Example:
        stream = TargetStream(TargetStore.open(path), seed=1)
        for epoch in range(10):
            stream.set_epoch(epoch)
            for sample in DataLoader(stream, batch_size=None, num_workers=2): ...
    """

    def __init__(
        self,
        store: TargetStore,
        *,
        views: tuple[str, ...] = ("full",),
        shuffle: int = SHUFFLE,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        """
        Args:
            store: a cache in the webdataset layout.
            views: views to decode; none gives images alone.
            shuffle: samples in the buffer; 0 gives the order stored, shards included.
            seed: of the shuffling.
            epoch: first epoch; see `set_epoch`.
            start: samples that each worker passes over in that epoch, to go on where a run stopped. They are read but
                not decoded.

        Raises:
            ConfigError: the cache has another layout.
            UnknownNameError: no such view.
        """
        super().__init__()
        if store.layout != "webdataset":
            raise ConfigError(
                f"A stream needs a cache in the webdataset layout, {store.path} has layout {store.layout}. "
                "Make one with lfi pack, or read this one at random."
            )
        for view in views:
            if view not in store.spec.views:
                raise UnknownNameError("view", view, store.spec.views)
        if shuffle < 0 or start < 0:
            raise ConfigError(f"shuffle and start must be 0 or more, got {shuffle} and {start}.")
        self.store, self.views, self.shuffle, self.seed = store, views, shuffle, seed
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives: an epoch, and the samples of each worker to pass over."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[StreamSample]:
        shards = list(self.store.records)
        if self.shuffle:
            random.Random(f"shards {self.seed} {self.epoch}").shuffle(shards)
        buffer = wds.shuffle(self.shuffle, rng=random.Random(f"samples {self.seed} {self.epoch}"))
        samples: Iterable[TarSample] = wds.DataPipeline(
            lambda: iter(shards),
            wds.split_by_node,
            wds.split_by_worker,
            self._members,
            wds.filters.pipelinefilter(wds.tariterators.group_by_keys)(),
            self._samples,
            buffer if self.shuffle else None,
        )
        codec = ViewCodec(self.store.spec)
        for sample in islice(samples, self.start, None):
            yield self._decoded(codec, sample)

    def _members(self, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Members of the shards as `webdataset` groups them into samples."""
        for shard in shards:
            for name, content in shard_members(self.store.path, self.store.spec, self.store.records[shard]):
                yield {"fname": name, "data": content, "__url__": str(shard)}
            yield {}  # the end of a shard

    def _samples(self, groups: Iterable[dict[str, Any]]) -> Iterator[TarSample]:
        parser = SampleParser(self.store.path, self.store.spec)
        for group in groups:
            members = {name: content for name, content in group.items() if not name.startswith("__")}
            sample = parser.parse(int(group["__url__"]), group["__key__"], members)
            if sample.quarantine is None:
                yield sample

    def _decoded(self, codec: ViewCodec, sample: TarSample) -> StreamSample:
        targets = {}
        for view in self.views:
            try:
                arrays: dict[str, Any] = codec.decode(sample.views[view])
            except ValueError as error:
                raise DamagedSampleError(
                    f"Cannot read view {view} of sample {sample.position} of {self.store.path}: {error}.",
                    sample.position,
                ) from error
            targets[view] = SampleTargets(**{name: np.array(array) for name, array in arrays.items()})
        return StreamSample(
            position=sample.position,
            key=sample.key,
            labels=sample.labels,
            image=sample.image,
            targets=targets,
        )
