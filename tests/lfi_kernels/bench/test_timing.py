"""What lies between the marks, and in which order cases are captured and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from lfi_kernels.bench import timing
from tests.lfi_kernels.bench.stand_in import stand_in, tick, tiny_work


class Ticking:
    """Passes that take as long as they are told, and tell when they ran."""

    def __init__(self, pass_time: Callable[[float], None], forward: float, backward: float, log: list[str]) -> None:
        self._pass_time, self._seconds, self._log = pass_time, (forward, backward), log

    def forward(self) -> None:
        self._log.append("f")
        self._pass_time(self._seconds[0])

    def backward(self) -> None:
        self._log.append("b")
        self._pass_time(self._seconds[1])


def test_each_pass_is_timed_alone_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    log: list[str] = []
    passes = {"a": Ticking(wait, 1, 2, log), "b": Ticking(wait, 3, 5, [])}
    seconds = timing.take_turns(passes, 3, is_cuda=False)
    assert seconds["a"].medians() == {"forward": 1, "backward": 2, "both": 3}
    assert seconds["b"].medians() == {"forward": 3, "backward": 5, "both": 8}
    assert len(seconds["a"].both) == 3
    assert log == ["f", "b"] * 4  # one round does not count


def test_on_a_gpu_untimed_passes_keep_it_busy_while_the_timed_ones_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    log: list[str] = []
    seconds = timing.take_turns({"a": Ticking(tick, 1, 2, log)}, 2, is_cuda=True)
    assert seconds["a"].medians() == pytest.approx({"forward": 1, "backward": 2, "both": 3})
    assert log == ["f", "b"] * 6


def test_the_backward_graph_shares_the_memory_of_the_forward_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stand_in(monkeypatch)
    passes = timing.passes_of("a", tiny_work(log), is_cuda=True)
    assert isinstance(passes, timing.Replayed)
    assert log == [
        *["forward"] * 4,  # tuning and workspaces come before the capture
        *("capture graph 1", "forward", "captured graph 1"),
        *("capture graph 2 in pool of graph 1", "captured graph 2"),
    ]
    log.clear()
    passes.forward()
    passes.backward()
    assert log == ["replay graph 1", "replay graph 2"]


def test_what_cannot_be_captured_is_called_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)

    @contextmanager
    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.warns(UserWarning, match=r"^a is timed by calls, .*not permitted when stream"):
        passes = timing.passes_of("a", tiny_work(), is_cuda=True)
    assert isinstance(passes, timing.Called)
    for _ in range(2):  # each backward pass has a graph of its own
        passes.forward()
        passes.backward()


def test_plain_calls_need_no_gpu() -> None:
    seconds = timing.take_turns({"a": timing.passes_of("a", tiny_work(), is_cuda=False)}, 2, is_cuda=False)["a"]
    for forward, backward, both in zip(seconds.forward, seconds.backward, seconds.both, strict=True):
        assert 0 < forward < both
        assert both == pytest.approx(forward + backward)
