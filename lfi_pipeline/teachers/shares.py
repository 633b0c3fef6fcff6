"""Which shards a process makes: a range of its own, a rank's share under torchrun, and what others leave."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lfi_pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A process's share of the work.

    Attributes:
        first: the first shard that it may make.
        end: the shard after the last one; None for the end of the cache.
        rank: its number among `world` processes of one launch.
        world: processes of that launch.
        local_rank: its number among those of its machine; chooses its GPU.
    """

    first: int = 0
    end: int | None = None
    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or (self.end is not None and self.end <= self.first):
            raise ConfigError(f"shards must be A:B with 0 <= A < B, got {self.first}:{self.end}.")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"RANK must be in 0..WORLD_SIZE - 1, got {self.rank} of {self.world}.")

    def order(self, pending: Sequence[int]) -> list[int]:
        """Return the shards of `pending` that this process may make: its own first, then those of other ranks.

        Another rank's shards come from the end, where that rank arrives last.
        """
        mine = [shard for shard in pending if shard >= self.first and (self.end is None or shard < self.end)]
        own = [shard for shard in mine if shard % self.world == self.rank]
        return own + [shard for shard in reversed(mine) if shard % self.world != self.rank]


def share_of(shards: str = "", environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share of this process.

    Args:
        shards: `A:B`, `A:` or `:B`, shards A to B-1; empty for all.
        environment: RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them.

    Raises:
        ConfigError: not such a range; ranks that are not numbers.
    """
    found = re.fullmatch(r"(\d*):(\d*)", shards) if shards else None
    if shards and (found is None or shards == ":"):
        raise ConfigError(f"shards must be A:B (shards A to B-1, either may be left out), got {shards!r}.")
    first, end = (found[1], found[2]) if found else ("", "")
    try:
        rank, world, local = (
            int(environment.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}.") from error
    return Share(first=int(first or 0), end=int(end) if end else None, rank=rank, world=world, local_rank=local)
