"""Every shard is somebody's, and nobody leaves its range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.teachers.config import ShardAssignment, assign_shards


@given(st.sets(st.integers(0, 60)), st.integers(1, 7), st.integers(0, 50), st.none() | st.integers(1, 30))
def test_ranks_begin_with_different_shards_and_each_may_finish_all(
    pending: set[int], world: int, first: int, length: int | None
) -> None:
    end = None if length is None else first + length
    allowed = {shard for shard in pending if shard >= first and (end is None or shard < end)}
    orders = [ShardAssignment(first=first, end=end, rank=r, world=world).order(sorted(pending)) for r in range(world)]
    own = [[shard for shard in order if shard % world == rank] for rank, order in enumerate(orders)]
    assert sorted(shard for shards in own for shard in shards) == sorted(allowed)
    for order, mine in zip(orders, own, strict=True):
        assert set(order) == allowed
        assert len(order) == len(allowed)
        assert order[: len(mine)] == mine == sorted(mine)


@pytest.mark.parametrize(
    ("text", "expected"), [("", (0, None)), ("3:7", (3, 7)), ("3:", (3, None)), (":7", (0, 7)), ("0:1", (0, 1))]
)
def test_ranges(text: str, expected: tuple[int, int | None]) -> None:
    share = assign_shards(text, {})
    assert (share.first, share.end, share.rank, share.world) == (*expected, 0, 1)


def test_torchrun_names_the_rank() -> None:
    share = assign_shards("", {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (share.rank, share.world, share.local_rank) == (5, 8, 1)


@pytest.mark.parametrize("text", ["7", "7:3", "3:3", ":", "a:b", "-1:4", "1:2:3", ":0"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shards must be A:B"):
        assign_shards(text, {})


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_impossible_ranks_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="RANK"):
        assign_shards("", environment)
