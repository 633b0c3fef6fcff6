"""Requests to stop, and loader processes that die: what interrupts a training from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, the first Ctrl-C or SIGTERM sets `asked`; the second acts as it always did.

    Signals are left alone outside the main thread, where Python cannot handle them.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


class LoaderDied(Exception):
    """A process that loads data ended without a word of its own; the cause is what the loader then raised."""


def from_loader(batches: Iterator[Any], *, workers: int) -> Iterator[Any]:
    """Yield what a loader gives.

    The data set behind it returns its errors as values (`ErrorsAsValues`), so that what a loader with workers raises is
    never of the data: it could not talk to one of its processes any more.

    Raises:
        LoaderDied: a process of the loader ended.
    """
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not workers:
                raise
            forget_dead_loaders()
            raise LoaderDied(str(error)) from error
        yield item


def forget_dead_loaders() -> None:
    """Take back the signal handler by which torch tells that a loader's process died, once that is known.

    It raises from within whatever runs when the signal is seen, be it the checkpoint that is written for that very
    reason: the read from the process may have failed before.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
