"""Commits run in a thread of their own, so that the teacher goes on while a shard is encoded and written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from lfi_pipeline.targets import ShardPayload, TargetWriter


class Committer:
    """Commits one shard at a time; memory holds the shard that is written and the one that is made, no more."""

    def __init__(self, writer: TargetWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()

    def commit(self, shard: int, payload: ShardPayload, claim: ExitStack) -> None:
        """Hand over a shard; `claim` is given up once it is committed.

        Raises:
            LFIError: the shard before could not be written.
        """
        try:
            self._wait()
        except BaseException:
            claim.close()
            raise
        self._last = self._pool.submit(self._commit, shard, payload, claim)

    def _commit(self, shard: int, payload: ShardPayload, claim: ExitStack) -> None:
        with claim:
            self._writer.commit(shard, payload)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()
