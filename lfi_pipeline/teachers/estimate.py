"""Before a run: what an extraction will take, from a few batches of the real data set on the real device.

The trial is an extraction like any other, of samples spread over the split, into a temporary cache: the same reading,
teacher, encoding and writing. One batch more runs before, since a first batch pays for what a run pays once.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.runtime import OperationCounter, cpu_threads, progress_bar, resolve_device
from lfi_pipeline.data import Dataset
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.commits import summarise
from lfi_pipeline.teachers.config import ExtractConfig, PlanConfig, ShardAssignment
from lfi_pipeline.teachers.extract import open_job, read_split
from lfi_pipeline.teachers.text import resolve_mode, telling_sample

MARGIN = 0.1
"""Share of the cache's estimated size that must be free beyond it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What was measured. Seconds are of one process and per image, all views together.

    Attributes:
        teacher_name: `NAME:TAG` of the teacher that was tried.
        kind: of map.
        precision: of the teacher's trunk.
        device: where the teacher ran.
        images: that were timed.
        quarantined: of them (and of the batch before) that cannot be read.
        words: different words of these images.
        bytes_per_image: in the trial's cache.
        waiting: for images to be read and decoded, beyond what other threads did while the teacher ran.
        teacher: from pixels to maps in main memory.
        writing: encoding and writing; a run does most of it while the teacher runs.
        captioning: the teacher writing captions, where it does.
        other: tokenising, and putting the shard together.
        operations: floating-point operations of the teacher per image, all views together, counted in the batch that is
            not timed (a multiplication and an addition are two); None where there is no such batch.
    """

    teacher_name: str
    kind: str
    precision: str
    device: str
    images: int
    quarantined: int
    words: int
    bytes_per_image: float
    waiting: float
    teacher: float
    writing: float
    captioning: float
    other: float
    operations: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds per image in all: as if nothing but the reading ran beside the teacher."""
        return self.waiting + self.teacher + self.writing + self.captioning + self.other


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What an extraction will take.

    Attributes:
        trial: what was measured.
        images: of the split.
        shards: that they make.
        bytes_total: of the cache, without its vocabulary.
        disk: the nearest directory above the cache that exists.
        bytes_free: there.
        fits: whether `bytes_total` and `MARGIN` more are free.
        images_per_second: of one process.
        hours: of one process.
        processes: that share the work.
        hours_shared: of each of them.
        online_hours_per_epoch: the teacher's hours for one view of each image, were it run beside a student.
        break_even_epochs: epochs after which running the teacher beside the students has cost more.
        break_even_students: the same in students of `epochs` epochs.
        epochs: of a student.
        students: to be trained.
        hours_saved: device hours that the cache saves over all students; negative where it saves none.
    """

    trial: Trial
    images: int
    shards: int
    bytes_total: int
    disk: Path
    bytes_free: int
    fits: bool
    images_per_second: float
    hours: float
    processes: int
    hours_shared: float
    online_hours_per_epoch: float
    break_even_epochs: float
    break_even_students: float
    epochs: int
    students: int
    hours_saved: float


def estimate(config: PlanConfig) -> Estimate:
    """Try a few batches and say what the whole split will take.

    Raises:
        LFIError: as `extract` does; DatasetError also where no image of the trial can be read.
    """
    dataset = read_split(config.extract)
    with cpu_threads(config.extract.threads):
        trial = run_trial(config.extract, dataset, config.batches)
    disk = nearest_directory(config.out)
    return extrapolated(trial, config, images=len(dataset), disk=disk, free=shutil.disk_usage(disk).free)


def run_trial(config: ExtractConfig, dataset: Dataset, batches: int) -> Trial:
    """Extract `batches` batches of `dataset`, after one untimed batch, into a temporary cache; raises as `estimate`.

    Fewer images are timed where the split holds fewer. Nothing is compiled, whatever `config` says.
    """
    total = min(len(dataset), (batches + 1) * config.batch_size)
    warm_up = min(config.batch_size, total // (batches + 1))
    timed = total - warm_up  # the first shard; what warms up is the second
    mode = resolve_mode(config.text, telling_sample(dataset.samples))
    # compiling would take longer than the trial, and its programs' operations cannot be counted
    config = replace(config, text=mode, prompts=config.prompts if mode == "prompts" else (), compile=False)
    config = replace(config, samples_per_shard=timed)
    few = replace(dataset, samples=[dataset.samples[i] for i in _spread(len(dataset), total, timed)])
    with tempfile.TemporaryDirectory(prefix="lfi-plan-") as folder:
        job = open_job(config, Path(folder) / "trial", share=ShardAssignment(), dataset=few)
        maker = job.maker
        with progress_bar(total=total, desc=f"trial of {job.label}", unit="image", leave=False) as bar:
            counter = OperationCounter()
            if warm_up:
                with counter:
                    made_first = list(maker.payloads([1], bar.update))
                for shard, payload in made_first:
                    job.writer.commit(shard, payload)
            waiting, teacher, began = maker.seconds_waiting, maker.seconds_teacher, time.perf_counter()
            ((shard, payload),) = maker.payloads([0], bar.update)
            made = time.perf_counter()
            job.writer.commit(shard, payload)
            ended = time.perf_counter()
        quarantined, words = job.writer.summary().quarantined, len(job.writer.vocabulary.words)
        store = TargetStore.open(Path(folder) / "trial")
        summary = summarise(store.spec, [store.records[0]])
    if len(payload.quarantined) == timed:
        raise DatasetError(
            f"At least one of {timed} images tried must be readable, got none; the first: {payload.quarantined[0]}"
        )
    waiting, teacher = maker.seconds_waiting - waiting, maker.seconds_teacher - teacher
    spec = store.spec
    return Trial(
        teacher_name=f"{spec.teacher.name}:{spec.teacher.tag}",
        kind=spec.kind,
        precision=spec.teacher.precision,
        device=str(resolve_device(config.device)),
        images=timed,
        quarantined=quarantined,
        words=words,
        bytes_per_image=summary.bytes_per_sample,
        waiting=waiting / timed,
        teacher=teacher / timed,
        writing=(ended - made) / timed,
        captioning=job.captioning_seconds / total,
        other=max(0.0, made - began - waiting - teacher) / timed,
        operations=counter.total / warm_up if warm_up else None,
    )


def extrapolated(trial: Trial, config: PlanConfig, *, images: int, disk: Path, free: int) -> Estimate:
    """Return what `images` images take if all are like those of the trial.

    With s seconds an image for the extraction, t for the teacher alone and V views, a student that trains E epochs
    beside the teacher costs E * images * t / V: a step sees one view. The cache costs images * s, once; what reading
    it costs is left out, and so is the memory that the teacher would take from the student.
    """
    hours = images * trial.seconds / 3600
    online = images * trial.teacher / len(config.extract.views) / 3600
    total = round(images * trial.bytes_per_image)
    return Estimate(
        trial=trial,
        images=images,
        shards=-(-images // config.extract.samples_per_shard),
        bytes_total=total,
        disk=disk,
        bytes_free=free,
        fits=total * (1 + MARGIN) <= free,
        images_per_second=1 / trial.seconds,
        hours=hours,
        processes=config.processes,
        hours_shared=hours / config.processes,
        online_hours_per_epoch=online,
        break_even_epochs=hours / online,
        break_even_students=hours / online / config.epochs,
        epochs=config.epochs,
        students=config.students,
        hours_saved=config.students * config.epochs * online - hours,
    )


def nearest_directory(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that exists."""
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _spread(images: int, total: int, timed: int) -> list[int]:
    """Positions of `total` samples spread evenly over the split: `timed` of them first, then the others."""
    positions = [i * images // total for i in range(total)]
    others = positions[:: total // (total - timed)][: total - timed] if timed < total else []
    return [position for position in positions if position not in others] + others
