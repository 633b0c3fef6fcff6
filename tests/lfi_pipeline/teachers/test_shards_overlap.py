"""Reading, the teacher and writing go on at the same time: each test stands still where one waits for another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.targets import TargetWriter
from lfi_pipeline.teachers import CocaTeacher, InteractionMaps, shards
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.extract import extract

SECONDS = 30.0
"""After which a wait for something that never comes is an error."""

Patched = Callable[[Any, str, Callable[..., Any]], None]


def await_(event: threading.Event, what: str) -> None:
    if not event.wait(SECONDS):
        raise AssertionError(f"{what} was waited for in vain")


@pytest.fixture
def run(tiny_teacher: CocaTeacher, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Extract 24 images, 4 at a time."""
    monkeypatch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)

    def extracted(samples_per_shard: int) -> None:
        config = ExtractConfig(
            dataset="scenes",
            data_root=scenes_root,
            words=6,
            views=("full",),
            layers=1,
            samples_per_shard=samples_per_shard,
            batch_size=4,
            device="cpu",
        )
        extract(config, tmp_path / "out")

    return extracted


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Patched:
    """(owner, name, first) calls `first` with the arguments, before the method that it stands in for."""

    def patch(owner: Any, name: str, first: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def both(*args: Any, **options: Any) -> Any:
            first(*args, **options)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, both)

    return patch


def test_writing_a_shard_does_not_keep_the_teacher_from_the_next(run: Any, before: Patched) -> None:
    """The first batch of the next shard is at work before this one is handed over; the others need its writer to wait."""
    batches: list[int] = []
    last = threading.Event()

    def make(_: Any, shard: Any, *__: Any) -> None:
        batches.append(shard.number)
        if batches.count(1) == 3:
            last.set()

    before(shards.ShardMaker, "_make", make)
    before(TargetWriter, "commit", lambda _, shard, __: await_(last, "the teacher") if shard == 0 else None)
    run(samples_per_shard=12)


def test_images_of_later_batches_are_read_while_the_teacher_works(run: Any, before: Patched) -> None:
    positions: set[int] = set()
    later = threading.Event()

    def read(_: Any, position: int) -> None:
        positions.add(position)
        if len(positions) >= 4 * (1 + shards.AHEAD):
            later.set()

    before(shards.ShardMaker, "_read", read)
    before(shards.ShardMaker, "_make", lambda *_: await_(later, "reading"))
    run(samples_per_shard=24)


def test_texts_of_the_next_shard_are_read_while_the_teacher_works(run: Any, before: Patched) -> None:
    at_work = threading.Event()
    before(shards.ShardMaker, "_make", lambda *_: at_work.set())
    before(shards.ShardMaker, "_begin", lambda _, number: await_(at_work, "the teacher") if number == 1 else None)
    run(samples_per_shard=12)


def test_maps_are_fetched_when_the_next_batch_is_at_work(
    run: Any, before: Patched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, fetching waits for the device, which would have nothing to do until the next batch comes."""
    events: list[str] = []
    ready = threading.Event()
    laid_out = shards.ShardMaker._laid_out

    def count(self: shards.ShardMaker, *args: Any) -> Any:
        result = laid_out(self, *args)
        events.append("ready")
        if events.count("ready") == 1 + shards.AHEAD:
            ready.set()
        return result

    monkeypatch.setattr(shards.ShardMaker, "_laid_out", count)
    before(shards.ShardMaker, "_make", lambda *_: await_(ready, "reading") or events.append("make"))
    before(shards.ShardMaker, "_fetch", lambda *_: events.append("fetch"))
    run(samples_per_shard=24)
    order = [event for event in events if event != "ready"]
    assert order[:5] == ["make", "make", "fetch", "make", "fetch"]
    assert (order.count("make"), order.count("fetch")) == (6, 6)


def test_a_batch_that_has_to_be_waited_for_leaves_time_to_fetch_the_last(run: Any, before: Patched) -> None:
    fetched = threading.Event()
    rows_read: list[int] = []

    def read(_: Any, position: int) -> None:
        rows_read.append(position)
        if len(rows_read) > 20:  # of the last batch
            await_(fetched, "fetching")

    before(shards.ShardMaker, "_read", read)
    before(shards.ShardMaker, "_fetch", lambda *_: fetched.set())
    run(samples_per_shard=24)


def test_the_payload_does_not_depend_on_what_was_ready_when(
    tiny_teacher: CocaTeacher, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    made: list[Any] = []
    commit = TargetWriter.commit
    monkeypatch.setattr(
        TargetWriter, "commit", lambda self, shard, payload: (made.append(payload), commit(self, shard, payload))
    )
    run(samples_per_shard=24)
    monkeypatch.setattr(shards, "AHEAD", 0)
    (tmp_path / "out").rename(tmp_path / "first")
    run(samples_per_shard=24)
    assert len(made) == 2
    for name in ("maps", "words", "kept", "image_embedding"):
        assert np.array_equal(*(getattr(each.views["full"], name) for each in made))
    assert np.array_equal(made[0].image_crc32c, made[1].image_crc32c)


def test_maps_leave_before_the_next_batch_is_at_work_and_only_they_are_waited_for(
    run: Any, before: Patched, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def leave(maps: InteractionMaps) -> Any:
        number = sum(event.startswith("leave") for event in events)
        events.append(f"leave {number}")
        return maps, lambda: events.append(f"wait for {number}")

    monkeypatch.setattr(InteractionMaps, "leave", leave)
    monkeypatch.setattr(shards.Future, "done", lambda _: True)  # no batch has to be waited for
    before(shards.ShardMaker, "_make", lambda *_: events.append("make"))
    run(samples_per_shard=24)
    assert events[:8] == ["make", "leave 0", "make", "leave 1", "wait for 0", "make", "leave 2", "wait for 1"]
    assert events[-2:] == ["wait for 4", "wait for 5"]


def test_maps_leave_a_gpu_without_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU notes in which order it is asked for what."""
    events: list[str] = []
    empty = torch.empty

    class OnGpu(torch.Tensor):
        is_cuda = True

    class Stream:
        def record_event(self) -> Any:
            events.append("record")
            return SimpleNamespace(synchronize=lambda: events.append("wait"))

    class Pinned(torch.Tensor):
        def copy_(self, source: Any, non_blocking: bool = False) -> Any:
            events.append(f"copy, non_blocking={non_blocking}")
            return super().copy_(source.as_subclass(torch.Tensor))

    def pinned(*size: Any, pin_memory: bool, **options: Any) -> Any:
        assert pin_memory
        return empty(*size, **options).as_subclass(Pinned)

    maps = InteractionMaps(*(torch.rand(shape).as_subclass(OnGpu) for shape in ((2, 1, 3, 4, 4), (2, 1, 3), (2, 8))))
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    left, arrive = maps.leave()
    assert events == ["copy, non_blocking=True"] * 3 + ["record"]
    arrive()
    assert events[-1] == "wait"
    for name in ("maps", "kept", "image_embedding"):
        assert np.array_equal(getattr(left, name).numpy(), getattr(maps, name).numpy())
