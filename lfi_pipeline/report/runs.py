"""Find run directories, and load what training and evaluation left in them, as frozen records.

`config.json` and `metrics.jsonl` must be there. `summary.json` is missing when a run was stopped, results of evaluation
and the gallery when it was not evaluated. What is there and wrong is a `RunError`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.schema import Count, Share, read_as, wrong
from lfi_pipeline.evaluation.protocols import EVALUATION, is_of_validation, latest_results
from lfi_pipeline.training.run_dir import (
    CONFIG,
    SUMMARY,
    TRAINED,
    config_fields,
    is_run,
    read_json,
    read_metrics,
    summary_fields,
)


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the runs that `paths` name, each once, and notes on directories that were passed over.

    Args:
        paths: runs, directories that hold runs, or patterns; files beside runs, which `runs/*` also names, are ignored.

    Raises:
        RunError: something that is not there, or no run at all.
    """
    runs: dict[Path, None] = {}
    notes: list[str] = []
    for path in [match for one in paths for match in _expanded(one)]:
        if not path.is_dir():
            continue
        inside = [path] if is_run(path) else sorted(child for child in path.iterdir() if is_run(child))
        if not inside:
            notes.append(f"{path} was passed over: neither it nor a directory directly below it is a run.")
        runs |= dict.fromkeys(inside)
    if not runs:
        raise RunError(
            f"Give directories of training runs, or a directory that holds some: {', '.join(map(str, paths))} must "
            f"have {' and '.join(TRAINED)}. `lfi train` makes one."
        )
    return list(runs), notes


def _expanded(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not matches:
        raise RunError(f"{path} must be a training run, or a directory that holds some, and is not there.")
    return matches


_INSIDE = {name: f"dataset.{name}" for name in ("split", "train_samples", "val_samples")} | {"dataset": "dataset.name"}


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename=_INSIDE | {"fingerprint": "targets_fingerprint"}):
    """The part of `config.json` that the report reasons about; `raw` is all of it."""

    name: str
    student: str
    objective: str
    maps: str = "teacher"
    state: str = "persistent"
    seed: Count
    epochs: Count
    batch_size: Count
    learning_rate: float
    lambda_int: float | None = None
    image_size: Count
    hold_out: tuple[str, ...]
    targets: str = ""
    fingerprint: str = ""
    teacher: str = ""
    kind: str = ""
    dataset: str
    split: str = ""
    train_samples: Count
    val_samples: Count
    command: str = ""
    raw: Mapping[str, Any]


class TrainPoint(msgspec.Struct, frozen=True, kw_only=True, rename={"interaction_loss": "lfi_loss"}):
    """One logged training step; a loss that the objective does not have is None."""

    step: Count
    loss: float
    task_loss: float | None = None
    interaction_loss: float | None = None
    step_ms: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Means:
    map_seen: Share | None = None
    map_heldout: Share | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ValPoint(_Means):
    """One evaluation during training; mAP in [0, 1]."""

    step: Count


_PARAMETERS = {name: f"parameters.{name}" for name in ("backbone", "head", "queries", "kept_queries", "terms")}


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename=_PARAMETERS):
    """What a finished run says of itself: steps, seconds, median step time, parameter counts."""

    steps: Count
    seconds: float
    step_ms: float
    backbone: Count
    head: Count
    queries: Count
    kept_queries: Count
    terms: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Tap:
    """How well the maps at one depth point: shares in [0, 1]."""

    index: Count
    depth: Share
    pointing: Share
    mass_in_mask: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The latest evaluation of a run on its validation split: protocols `classification` and `grounding`.

    Each is empty where it was not scored.

    Attributes:
        map_seen, map_heldout: mAP over the domains trained on and over the others; None where there are no such images.
        map_per_domain: mAP of each domain; None where it has no positive label.
        taps: localisation by the maps of each tap.
        teacher_pointing, teacher_mass: of the teacher's own maps.
        area: mean share of the image that a mask covers, which is the chance level.
        scored: protocol -> settings of the result that these are of.
    """

    map_seen: float | None
    map_heldout: float | None
    map_per_domain: Mapping[str, float | None]
    taps: tuple[Tap, ...]
    teacher_pointing: float | None
    teacher_mass: float | None
    area: float | None
    scored: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GallerySample:
    """One validation image with its maps.

    Attributes:
        words: the M words that have a map.
        image: uint8 [H, W, 3].
        teacher: float32 [M, gh, gw], each map sums to 1; None for images that no teacher has seen.
        student: float32 [T, M, gh', gw'], None for a run without queries.
        teacher_correct: per word, whether the teacher's peak lies in the object's mask; None without a mask.
        student_correct: the same per tap and word; empty for a run without queries.
        cam: float32 [M, gh'', gw''], class maps (Grad-CAM) of the words that name a class, zeros for others; None for a
            student without class scores.
        cam_correct: as `teacher_correct`, None for a word that names no class; empty where there is no `cam`.
    """

    key: str
    caption: str
    domain: str
    words: tuple[str, ...]
    image: npt.NDArray[np.uint8]
    teacher: npt.NDArray[np.float32] | None
    student: npt.NDArray[np.float32] | None
    teacher_correct: tuple[bool | None, ...]
    student_correct: tuple[tuple[bool | None, ...], ...]
    cam: npt.NDArray[np.float32] | None = None
    cam_correct: tuple[bool | None, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run. `gallery` is empty where none was written."""

    path: Path
    config: RunConfig
    train: tuple[TrainPoint, ...]
    validation: tuple[ValPoint, ...]
    summary: Summary | None
    scores: Scores | None
    gallery: tuple[GallerySample, ...]

    @property
    def map_seen(self) -> float | None:
        """Final mAP on the seen domains: of the evaluation, else of the last validation in training."""
        if self.classified is not None:
            return self.classified.map_seen
        return self.validation[-1].map_seen if self.validation else None

    @property
    def map_heldout(self) -> float | None:
        """Final mAP on the held-out domains, from the same place as `map_seen`."""
        if self.classified is not None:
            return self.classified.map_heldout
        return self.validation[-1].map_heldout if self.validation else None

    @property
    def classified(self) -> Scores | None:
        """The scores, where the evaluation has some of protocol `classification`."""
        return self.scores if self.scores is not None and self.scores.map_per_domain else None

    @property
    def step_ms(self) -> float | None:
        """Median step time, from the summary or, for a stopped run, from what was logged."""
        if self.summary is not None:
            return self.summary.step_ms
        logged = [point.step_ms for point in self.train if point.step_ms is not None]
        return statistics.median(logged) if logged else None

    @property
    def pointing(self) -> float | None:
        """Pointing game of the last tap, in [0, 1]."""
        return self.scores.taps[-1].pointing if self.scores is not None and self.scores.taps else None


def load_run(path: Path) -> Run:
    """Load one run directory.

    Raises:
        RunError: it is not a run, or a file in it is not what it should be; the message names file and field.
    """
    metrics, summary = read_metrics(path), summary_fields(path)
    return Run(
        path=path,
        config=_config(path),
        train=tuple(read_as(TrainPoint, event.values, event.origin) for event in metrics.train),
        validation=tuple(read_as(ValPoint, event.values, event.origin) for event in metrics.validation),
        summary=None if summary is None else read_as(Summary, _dotted(summary), str(path / SUMMARY)),
        scores=_scores(path, config_fields(path)),
        gallery=load_samples(path) if (path / "gallery.json").is_file() else (),
    )


class _Teacher(msgspec.Struct):
    name: str
    tag: str | None = None


def _config(run: Path) -> RunConfig:
    fields, origin = config_fields(run), str(run / CONFIG)
    recorded = {name: value for name, value in _dotted(fields).items() if value is not None} | {"raw": fields}
    if "teacher" in recorded:
        teacher = read_as(_Teacher, fields["teacher"], origin, "teacher")
        recorded["teacher"] = " ".join([teacher.name, teacher.tag or ""]).strip()
    return read_as(RunConfig, recorded, origin)


def _dotted(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields, and those of objects within them by their ways."""
    objects = {name: value for name, value in fields.items() if isinstance(value, dict)}
    return fields | {f"{name}.{inner}": value for name, each in objects.items() for inner, value in each.items()}


class _Domains(msgspec.Struct):
    map_per_domain: dict[str, Share | None] | None = None


class _Pointing(msgspec.Struct):
    pointing: Share
    mass_in_mask: Share


class _Localisation(msgspec.Struct):
    taps: tuple[Tap, ...]
    teacher: _Pointing | None = None
    area: Share | None = None


def _scores(run: Path, record: Mapping[str, Any]) -> Scores | None:
    latest = latest_results(run, lambda result: is_of_validation(result, record))
    classified, grounded = latest.get("classification"), latest.get("grounding")
    if classified is None and grounded is None:
        return None
    means, domains, maps = _Means(), _Domains(), _Localisation(taps=())
    if classified is not None:
        origin = str(run / EVALUATION / classified.file_name)
        means = read_as(_Means, classified.scores, origin, "scores")
        domains = read_as(_Domains, classified.details, origin, "details")
    if grounded is not None:
        maps = read_as(_Localisation, grounded.details, str(run / EVALUATION / grounded.file_name), "details")
    return Scores(
        map_seen=means.map_seen,
        map_heldout=means.map_heldout,
        map_per_domain=domains.map_per_domain or {},
        taps=maps.taps,
        teacher_pointing=maps.teacher.pointing if maps.teacher else None,
        teacher_mass=maps.teacher.mass_in_mask if maps.teacher else None,
        area=maps.area,
        scored={name: result.settings for name, result in latest.items()},
    )


_Verdicts = tuple[Annotated[bool | None, msgspec.Meta(description="true, false or null")], ...]


class _Sample(msgspec.Struct):
    words: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, description="a list of at least one word")]
    key: str
    caption: str
    teacher_correct: _Verdicts
    student_correct: tuple[_Verdicts, ...] | None = None
    cam_correct: _Verdicts | None = None
    domain: str | None = None


def load_samples(path: Path) -> tuple[GallerySample, ...]:
    """Load `gallery.json` and `gallery.safetensors` of the run directory `path`.

    Raises:
        RunError: one of them is unreadable, or a field or tensor is not what it should be.
    """
    source = path / "gallery.safetensors"
    try:
        tensors = load_file(source)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{source} must be a readable safetensors file, got: {error}.") from error

    def take(name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
        array = tensors.get(name)
        got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        fits = array is not None and np.issubdtype(array.dtype, dtype) and len(array.shape) == len(shape)
        if array is None or not fits or not array.size:
            raise RunError(f"{source}: tensor {name!r} must be {dtype.__name__} {list(shape)}, got {got}.")
        if any(want is not None and want != have for want, have in zip(shape, array.shape, strict=True)):
            raise RunError(f"{source}: tensor {name!r} must have shape {list(shape)}, got {got}.")
        return array

    samples, origin = [], str(path / "gallery.json")
    listed = read_json(path / "gallery.json").get("samples")
    for i, sample in enumerate(read_as(tuple[_Sample, ...], listed, origin, "samples")):
        words, student_correct, cam_correct = sample.words, sample.student_correct or (), sample.cam_correct or ()
        rows = {"teacher_correct": sample.teacher_correct}
        rows |= {f"student_correct[{tap}]": row for tap, row in enumerate(student_correct)}
        rows |= {"cam_correct": cam_correct} if f"cam_{i}" in tensors else {}
        for name, row in rows.items():
            if len(row) != len(words):
                wanted = f"true, false or null for each of {len(words)} words"
                raise wrong(origin, f"samples[{i}].{name}", wanted, list(row))
        student = cam = None
        if f"student_{i}" in tensors:
            shape = (len(student_correct) or None, len(words), None, None)
            student = take(f"student_{i}", np.floating, shape).astype(np.float32)
        if f"cam_{i}" in tensors:
            cam = take(f"cam_{i}", np.floating, (len(words), None, None)).astype(np.float32)
        samples.append(
            GallerySample(
                key=sample.key,
                caption=sample.caption,
                domain=sample.domain or "",
                words=words,
                image=take(f"image_{i}", np.uint8, (None, None, 3)),
                teacher=take(f"teacher_{i}", np.floating, (len(words), None, None)).astype(np.float32),
                student=student,
                teacher_correct=sample.teacher_correct,
                student_correct=student_correct if student is not None else (),
                cam=cam,
                # A class map of nothing points nowhere.
                cam_correct=()
                if cam is None
                else tuple(mark if each.any() else None for each, mark in zip(cam, cam_correct, strict=True)),
            )
        )
    return tuple(samples)
