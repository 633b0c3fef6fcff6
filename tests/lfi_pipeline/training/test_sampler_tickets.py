"""Which images make up which step, however it is cut and wherever it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import DataConfig, TrainConfig
from lfi_pipeline.training.sampler import ResumableBatchSampler, Ticket, training_positions

MakeConfig = Callable[..., TrainConfig]


def flat(batches: Sequence[Sequence[Ticket]]) -> list[Ticket]:
    return [ticket for batch in batches for ticket in batch]


def test_each_epoch_visits_every_position_once(make_config: MakeConfig) -> None:
    tickets = ResumableBatchSampler(np.arange(5, 29), make_config(epochs=3).data)
    batches = list(tickets)
    assert len(batches) == len(tickets) == 9
    assert tickets.steps_per_epoch == 3
    orders = []
    for epoch in range(3):
        order = [position for e, position in flat(batches) if e == epoch]
        assert sorted(order) == list(range(5, 29))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert batches == list(ResumableBatchSampler(np.arange(5, 29), make_config(epochs=3).data))
    assert batches != list(ResumableBatchSampler(np.arange(5, 29), make_config(epochs=3, seed=1).data))


@pytest.mark.parametrize("start", [1, 3, 4, 8, 9])
def test_a_later_start_gives_the_tail(make_config: MakeConfig, start: int) -> None:
    whole = list(ResumableBatchSampler(np.arange(24), make_config(epochs=3).data))
    tail = ResumableBatchSampler(np.arange(24), make_config(epochs=3).data, start=start)
    assert list(tail) == whole[start:]
    assert len(tail) == len(whole) - start


def test_batches_are_full_unless_there_is_less_than_one(make_config: MakeConfig) -> None:
    assert [len(batch) for batch in ResumableBatchSampler(np.arange(20), make_config(epochs=1).data)] == [8, 8]
    few = list(ResumableBatchSampler(np.arange(3), make_config(epochs=2).data))
    assert [sorted(p for _, p in batch) for batch in few] == [[0, 1, 2]] * 2


def test_training_positions_leave_held_out_domains_and_quarantined_samples_out(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    assert training_positions(store, ()).tolist() == list(range(24))
    kept = training_positions(store, ("grey", "colour")).tolist()
    assert kept == [i for i, domain in enumerate(store.index.domains) if domain == "outline"]
    assert 0 < len(kept) < 24
    store.__dict__["usable"] = np.array([0, 2, 3])
    assert training_positions(store, ()).tolist() == [0, 2, 3]


@given(images=st.integers(4, 40), batch=st.integers(4, 16), processes=st.integers(1, 3), parts=st.integers(1, 2))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_pieces_put_together_are_the_batch_and_leave_pairs_together(
    images: int, batch: int, processes: int, parts: int
) -> None:
    data = DataConfig(targets=Path("shards"), epochs=2, batch_size=batch)
    whole, pieces = ResumableBatchSampler(np.arange(images), data), processes * parts
    if (whole.size + 1) // 2 < pieces:
        with pytest.raises(ConfigError, match="cannot be shared"):
            ResumableBatchSampler(np.arange(images), data, pieces=pieces)
        return
    shares = [range(rank * parts, (rank + 1) * parts) for rank in range(processes)]
    given_out = [ResumableBatchSampler(np.arange(images), data, start=1, pieces=pieces, mine=mine) for mine in shares]
    lists = [list(tickets) for tickets in given_out]
    assert all(
        len(each) == len(tickets) == (whole.steps - 1) * parts for each, tickets in zip(lists, given_out, strict=True)
    )
    for step, expected in enumerate(list(whole)[1:]):
        cut = [piece for each in lists for piece in each[step * parts : (step + 1) * parts]]
        assert flat(cut) == expected
        assert all(piece for piece in cut)
        assert all(len(piece) % 2 == 0 for piece in cut[:-1])
