"""Time is charged to the right phase, and advice comes only when waiting bounds the step."""

from __future__ import annotations

import pytest
import torch

from lfi_pipeline.training.monitor import PHASES, EpochClock, advice


class FakeTime:
    def __init__(self) -> None:
        self.value = 100.0

    def __call__(self) -> float:
        return self.value


def test_laps_add_up_by_phase_and_a_report_begins_anew() -> None:
    now = FakeTime()
    clock = EpochClock(torch.device("cpu"), now=now)
    for _ in range(2):
        with clock.lap("waiting"):
            now.value += 3
        now.value += 50  # between laps nobody is charged
        with clock.lap("forward"):
            now.value += 1
    assert clock.report() == dict.fromkeys(PHASES, 0.0) | {"waiting": 6.0, "forward": 2.0}
    assert clock.report() == dict.fromkeys(PHASES, 0.0)


def test_a_lap_that_fails_is_charged() -> None:
    now = FakeTime()
    clock = EpochClock(torch.device("cpu"), now=now)

    def fails() -> None:
        with clock.lap("backward"):
            now.value += 2
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert clock.report()["backward"] == 2.0


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="one of waiting, forward"), EpochClock(torch.device("cpu")).lap("lunch"):
        pass


class FakeEvent:
    """Stands for a CUDA event: the device's time passes with the fake clock's."""

    now = FakeTime()

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at = self.now()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


def test_on_cuda_kernels_are_timed_by_events_and_waiting_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("a lap must not wait for the device"))
    host = FakeTime()
    clock = EpochClock(torch.device("cuda", 1), now=host)
    for _ in range(1200):  # more than are kept unread
        with clock.lap("forward"):
            FakeEvent.now.value += 2
            host.value += 1
    with clock.lap("waiting"):
        host.value += 5
    assert clock.report() == dict.fromkeys(PHASES, 0.0) | {"forward": 2400.0, "waiting": 5.0}


def seconds(waiting: float, working: float) -> dict[str, float]:
    return {"waiting": waiting, "forward": working / 2, "backward": working / 2, "validation": 900.0}


@pytest.mark.parametrize(("waiting", "working"), [(0, 0), (2, 8), (1, 9), (0, 5)])
def test_no_advice_where_waiting_is_a_fifth_or_less(waiting: float, working: float) -> None:
    assert advice(seconds(waiting, working), workers=0, cpu_count=8) is None


@pytest.mark.parametrize(
    ("waiting", "workers", "load", "wanted"),
    [
        (30, 0, None, 3),  # loading is 30 s against 10 s of work
        (4, 0, None, 1),
        (10, 2, None, 4),  # two workers bound the step for 20 s: 40 s of loading
        (10, 2, 0.7, 7),  # 100 batches of 0.7 s against 10 s
        (90, 2, None, 8),  # never more than there are cores
        (3, 2, 0.05, 3),  # never fewer than now
    ],
)
def test_workers_are_counted_from_loading_against_work(
    waiting: float, workers: int, load: float | None, wanted: int
) -> None:
    text = advice(seconds(waiting, 10), workers=workers, cpu_count=8, load_seconds=load, steps=100)
    assert text is not None
    assert f"Try workers={wanted} (8 cores here)" in text
    assert ("inside the training process" in text) == (workers == 0)


@pytest.mark.parametrize(("workers", "cores"), [(4, 4), (5, 4), (0, 1)])
def test_with_no_core_left_the_read_must_become_cheaper(workers: int, cores: int) -> None:
    text = advice(seconds(50, 50), workers=workers, cpu_count=cores)
    assert text is not None
    assert "50% of the step's time" in text
    assert "zarr on a local disk" in text
    assert "Try --workers" not in text
