"""Find run directories, and load what training and evaluation left in them, as frozen dataclasses.

`config.json` and `metrics.jsonl` must be there. `summary.json` is missing when a run was stopped, results of evaluation
and the gallery when it was not evaluated. What is there and wrong is a `RunError`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.schema import Fields
from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult, latest_results
from lfi_pipeline.training.run_dir import TRAINED, config_fields, is_run, read_metrics, summary_fields


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The part of `config.json` that the report reasons about; `raw` is all of it."""

    name: str
    student: str
    objective: str
    maps: str
    state: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    lambda_int: float | None
    image_size: int
    hold_out: tuple[str, ...]
    targets: str
    fingerprint: str
    teacher: str
    kind: str
    dataset: str
    split: str
    train_samples: int
    val_samples: int
    command: str
    raw: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPoint:
    """One logged training step; a loss that the objective does not have is None."""

    step: int
    loss: float
    task_loss: float | None
    interaction_loss: float | None
    step_ms: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ValPoint:
    """One evaluation during training; mAP in [0, 1]."""

    step: int
    map_seen: float | None
    map_heldout: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a finished run says of itself: steps, seconds, median step time, parameter counts."""

    steps: int
    seconds: float
    step_ms: float
    backbone: int
    head: int
    queries: int
    kept_queries: int
    terms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tap:
    """How well the maps at one depth point: shares in [0, 1]."""

    index: int
    depth: float
    pointing: float
    mass_in_mask: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The latest evaluation of a run: protocols `classification` and `grounding`, each empty where it was not scored.

    Attributes:
        map_seen, map_heldout: mAP over the domains trained on and over the others; None where there are no such images.
        map_per_domain: mAP of each domain; None where it has no positive label.
        taps: localisation by the maps of each tap.
        teacher_pointing, teacher_mass: of the teacher's own maps.
        area: mean share of the image that a mask covers, which is the chance level.
    """

    map_seen: float | None
    map_heldout: float | None
    map_per_domain: Mapping[str, float | None]
    taps: tuple[Tap, ...]
    teacher_pointing: float | None
    teacher_mass: float | None
    area: float | None


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
        config=_config(config_fields(path)),
        train=tuple(_train_point(event) for event in metrics.train),
        validation=tuple(
            ValPoint(
                step=event.integer("step"),
                map_seen=event.share_or_none("map_seen"),
                map_heldout=event.share_or_none("map_heldout"),
            )
            for event in metrics.validation
        ),
        summary=_summary(summary) if summary is not None else None,
        scores=_scores(path),
        gallery=load_samples(path) if (path / "gallery.json").is_file() else (),
    )


def _config(fields: Fields) -> RunConfig:
    dataset = fields.child("dataset")
    teacher = fields.child_or_none("teacher")
    return RunConfig(
        name=fields.text("name"),
        student=fields.text("student"),
        objective=fields.text("objective"),
        maps=fields.text_or("maps", "teacher"),
        state=fields.text_or("state", "persistent"),
        seed=fields.integer("seed"),
        epochs=fields.integer("epochs"),
        batch_size=fields.integer("batch_size"),
        learning_rate=fields.number("learning_rate"),
        lambda_int=fields.number_or_none("lambda_int"),
        image_size=fields.integer("image_size"),
        hold_out=fields.texts("hold_out"),
        targets=fields.text_or("targets", ""),
        fingerprint=fields.text_or("targets_fingerprint", ""),
        teacher=" ".join([teacher.text("name"), teacher.text_or("tag", "")]).strip() if teacher else "",
        kind=fields.text_or("kind", ""),
        dataset=dataset.text("name"),
        split=dataset.text_or("split", ""),
        train_samples=dataset.integer("train_samples"),
        val_samples=dataset.integer("val_samples"),
        command=fields.text_or("command", ""),
        raw=fields.values,
    )


def _train_point(event: Fields) -> TrainPoint:
    return TrainPoint(
        step=event.integer("step"),
        loss=event.number("loss"),
        task_loss=event.number_or_none("task_loss"),
        interaction_loss=event.number_or_none("lfi_loss"),
        step_ms=event.number_or_none("step_ms"),
    )


def _summary(fields: Fields) -> Summary:
    parameters = fields.child("parameters")
    return Summary(
        steps=fields.integer("steps"),
        seconds=fields.number("seconds"),
        step_ms=fields.number("step_ms"),
        backbone=parameters.integer("backbone"),
        head=parameters.integer("head"),
        queries=parameters.integer("queries"),
        kept_queries=parameters.integer("kept_queries"),
        terms=parameters.integer("terms"),
    )


def _scores(run: Path) -> Scores | None:
    latest = latest_results(run)
    classified, grounded = (_fields(run, latest.get(name)) for name in ("classification", "grounding"))
    if classified is None and grounded is None:
        return None
    scores = classified.child("scores") if classified else None
    details = classified.child("details") if classified else None
    domains = details.child_or_none("map_per_domain") if details else None
    localisation = grounded.child("details") if grounded else None
    teacher = localisation.child_or_none("teacher") if localisation else None
    return Scores(
        map_seen=scores.share_or_none("map_seen") if scores else None,
        map_heldout=scores.share_or_none("map_heldout") if scores else None,
        map_per_domain={name: domains.share_or_none(name) for name in domains.values} if domains else {},
        taps=tuple(_tap(tap) for tap in localisation.children("taps")) if localisation else (),
        teacher_pointing=teacher.share("pointing") if teacher else None,
        teacher_mass=teacher.share("mass_in_mask") if teacher else None,
        area=localisation.share_or_none("area") if localisation else None,
    )


def _fields(run: Path, result: ProtocolResult | None) -> Fields | None:
    return Fields(str(run / EVALUATION / result.file_name), asdict(result)) if result is not None else None


def _tap(fields: Fields) -> Tap:
    return Tap(
        index=fields.integer("index"),
        depth=fields.share("depth"),
        pointing=fields.share("pointing"),
        mass_in_mask=fields.share("mass_in_mask"),
    )


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

    samples = []
    for i, fields in enumerate(Fields.read(path / "gallery.json").children("samples")):
        words = fields.texts("words")
        if not words:
            raise fields.wrong("words", "a list of at least one word")
        student_correct = fields.verdict_rows("student_correct", len(words))
        student = None
        if f"student_{i}" in tensors:
            shape = (len(student_correct) or None, len(words), None, None)
            student = take(f"student_{i}", np.floating, shape).astype(np.float32)
        cam, cam_correct = None, fields.verdicts("cam_correct", len(words)) if f"cam_{i}" in tensors else ()
        if f"cam_{i}" in tensors:
            cam = take(f"cam_{i}", np.floating, (len(words), None, None)).astype(np.float32)
        samples.append(
            GallerySample(
                key=fields.text("key"),
                caption=fields.text("caption"),
                domain=fields.text_or("domain", ""),
                words=words,
                image=take(f"image_{i}", np.uint8, (None, None, 3)),
                teacher=take(f"teacher_{i}", np.floating, (len(words), None, None)).astype(np.float32),
                student=student,
                teacher_correct=fields.verdicts("teacher_correct", len(words)),
                student_correct=student_correct if student is not None else (),
                cam=cam,
                # A class map of nothing points nowhere.
                cam_correct=tuple(
                    mark if cam is not None and cam[word].any() else None for word, mark in enumerate(cam_correct)
                ),
            )
        )
    return tuple(samples)
