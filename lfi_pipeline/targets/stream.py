"""Samples of a cache in the webdataset layout, shard after shard and shuffled: for what random reads cannot serve.

The tars are read front to back through the `webdataset` library, as plain bytes: none of its decoders is used, since
some of them unpickle what a tar holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import webdataset as wds
from torch.utils.data import IterableDataset

from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets.reader import SampleTargets, TargetStore
from lfi_pipeline.targets.tarsamples import DamagedSampleError, SampleParser, TarSample, shard_members
from lfi_pipeline.targets.tarshard import ViewCodec

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
