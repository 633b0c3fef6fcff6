"""A step against cached targets over a step that asks the teacher anew."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfi_pipeline.benchmarks.extraction import KL_TOLERANCE, read
from lfi_pipeline.benchmarks.maps import CONTENT_WORDS
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.photo_cache import photo_cache
from lfi_pipeline.benchmarks.timing import median_ratio, rounds_of
from lfi_pipeline.benchmarks.training_runs import cut_for, make_run, one_batch, step
from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.targets import codec_kl, decode_maps, encode_maps
from lfi_pipeline.teachers import Teacher, load_teacher
from lfi_pipeline.training.active import ActiveRun
from lfi_pipeline.training.clock import EpochClock
from lfi_pipeline.training.config import StreamConfig
from lfi_pipeline.training.data import Batch
from lfi_pipeline.training.learner import TOTAL

_WORDS = 16
_NO_CROP = Augmentation(least_area=1.0, aspect=1.0, flip=0.0)
_LOSS_TOLERANCE = 1e-3
_ASKED = 5.0  # of a GPU


def bench_online(
    student: StudentConfig, *, teacher: str, kind: str, layers: int, batch_size: int, rounds: int, device: torch.device
) -> Outcome:
    """Time a step of `lfi` that reads its targets from the cache, and one that lets the teacher make them.

    Raises:
        BenchmarkError: the cache does not hold what the teacher says, or a step's loss depends on where maps come from.
    """
    asker = _Teacher(load_teacher(teacher, device=device), kind, layers, batch_size)
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = photo_cache(Path(scratch), batch_size, maps_of=asker.of_files)
        codec = store.spec.codec.name
        stream = StreamConfig(targets=store.path, batch_size=batch_size, augmentation=_NO_CROP)
        run = make_run(store, student, "lfi", device=device, stream=stream)
        again = make_run(store, student, "lfi", device=device, stream=stream)
        batch = one_batch(store, stream, [run], device)
        clock, positions = EpochClock(device), store.usable[:batch_size]

        def cached(run: ActiveRun = run) -> float:
            found = store.read_many(positions)
            return _step(run, batch, found.maps, found.scale, codec, clock)

        def online(run: ActiveRun = run) -> float:
            return _step(run, batch, *encode_maps(asker.maps(), codec), codec, clock)

        stored = store.read_many(positions)
        off = codec_kl(asker.maps(), decode_maps(stored.maps, stored.scale, codec))
        require(off < KL_TOLERANCE, f"Cached maps must be the teacher's, they differ by {off:.3g} nats.")
        losses = cached(run), online(again)
        same = abs(losses[0] - losses[1]) <= _LOSS_TOLERANCE * abs(losses[0])
        require(same, f"The loss must not depend on where maps come from, got {losses[0]:.6g} and {losses[1]:.6g}.")
        seconds = rounds_of(
            {"cached targets": cached, "teacher online": online}, rounds, name="cached, online", warm_up=0
        )
    ratio = median_ratio(seconds["teacher online"], seconds["cached targets"])
    shape = f"{student.name}, {teacher}, {kind}, {layers} layers, {_WORDS} words, batch {batch_size}"
    measured = []
    for case, taken in seconds.items():
        for metric, value, unit in (
            ("step", median(taken) * 1e3, "ms"),
            ("online over cached", ratio if case == "teacher online" else 1.0, ""),
        ):
            measured.append(
                Measurement(case=f"{student.name}, {case}", shape=shape, metric=metric, value=value, unit=unit)
            )
    what = f"step with the teacher online over cached targets, {student.name}"
    return Outcome(
        benchmark="train",
        checked="the teacher's maps are those of the cache, and give the same loss",
        measurements=tuple(measured),
        asked=(Asked(what=what, value=ratio, least=_ASKED),) if device.type == "cuda" else (),
        notes=(
            f"Online: {teacher} makes {kind} maps of the whole batch in every step, images and captions in memory; "
            "cached: the step reads them from the cache.",
        ),
    )


class _Teacher:
    """A teacher with captions, and the images that it is asked about."""

    def __init__(self, teacher: Teacher, kind: str, layers: int, images: int) -> None:
        self.teacher, self.kind = teacher, kind
        self.layers = teacher.layers(kind, layers)
        total = len(CONTENT_WORDS)
        captions = (" and ".join(CONTENT_WORDS[(b + i) % total] for i in range(_WORDS)) for b in range(images))
        self.texts = [teacher.encode_text(caption) for caption in captions]
        self.images = torch.empty(0)

    def of_files(self, paths: list[Path]) -> npt.NDArray[np.float32]:
        """Keep the images of these files, normalised; return their maps."""
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (self.teacher.mean, self.teacher.std))
        pixels = torch.stack([torch.from_numpy(read(path, self.teacher)) for path in paths])
        self.images = ((pixels.float() - mean) / std).to(self.teacher.device)
        return self.maps()

    def maps(self) -> npt.NDArray[np.float32]:
        """Ask the teacher: [B, L, M, gh, gw]."""
        words = [text.words[:_WORDS] for text in self.texts]
        found: Tensor = self.teacher.interaction_maps(
            self.images, self.texts, words, kind=self.kind, layers=self.layers
        ).maps
        maps: npt.NDArray[np.float32] = found.float().cpu().numpy()
        return maps


def _step(
    run: ActiveRun,
    batch: Batch,
    maps: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16],
    codec: str,
    clock: EpochClock,
) -> float:
    """Take one step with these maps; returns its loss."""
    device = batch.positions.device
    told = replace(batch, maps=torch.from_numpy(maps).to(device), scale=torch.from_numpy(scale).to(device))
    loss = step(run, told, cut_for(run, told, codec), clock)[TOTAL]
    clock.report()  # waits for a CUDA device
    return loss
