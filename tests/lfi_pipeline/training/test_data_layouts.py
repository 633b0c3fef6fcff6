"""Students cannot tell the layouts of a cache apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.pack import pack
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS, Batch, TargetImages

SIZE = (64, 64)
TICKETS = [(0, 1), (0, 3), (1, 0), (1, 2)]


@pytest.mark.parametrize("workers", ["none", "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batches_of_both_layouts_are_the_same(
    make_config: Callable[..., TrainConfig], tmp_path: Path, workers: str
) -> None:
    config = make_config(objective="lfi")
    pack(config.data.targets, tmp_path / "tars", layout="webdataset")
    reads = frozenset({MAPS, IMAGE_EMBEDDING})
    arrays = TargetImages(TargetStore.open(config.data.targets), config.data, [SIZE], reads)
    store = TargetStore.open(tmp_path / "tars", data_root=tmp_path / "gone")
    tars = TargetImages(store, config.data, [SIZE], reads)
    expected = arrays.__getitems__(TICKETS)
    tars.__getitems__(TICKETS[:1])  # the parent has read before its workers do
    if workers == "none":
        found = tars.__getitems__(TICKETS)
    else:
        loader: DataLoader[Batch] = DataLoader(
            tars,
            batch_sampler=[TICKETS],  # type: ignore[arg-type]
            num_workers=1,
            collate_fn=_unchanged,
            multiprocessing_context=workers,
            timeout=60,
        )
        (found,) = loader
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert (one is None) == (other is None)
        if field.name == "images":
            one, other = one[SIZE], other[SIZE]
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


def _unchanged(batch: Batch) -> Batch:
    return batch
