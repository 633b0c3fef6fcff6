"""Find run directories, and load what training and evaluation left in them, as frozen dataclasses."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.schema import Fields, read_text
from lfi_pipeline.evaluation.results import EVALUATION, latest_result
from lfi_pipeline.report.samples import GallerySample, load_samples


def find_runs(given: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the runs of `given`, each once, and notes on directories that were passed over.

    A directory that is no run stands for the runs directly below it; files beside runs, which `runs/*` also names, are
    passed over.

    Raises:
        RunError: something that is not there, or no run at all.
    """
    found: dict[Path, None] = {}
    notes: list[str] = []
    for path in [match for one in given for match in _expanded(one)]:
        if not path.is_dir():
            continue
        inside = [path] if _is_run(path) else sorted(child for child in path.iterdir() if _is_run(child))
        if not inside:
            notes.append(f"{path} was passed over: neither it nor a directory directly below it is a run.")
        found |= dict.fromkeys(inside)
    if not found:
        raise RunError(
            f"Give directories of training runs, or a directory that holds some: {', '.join(map(str, given))} must "
            f"have {' and '.join(TRAINED)}. `lfi train --out RUN` makes one."
        )
    return list(found), notes


def _expanded(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not matches:
        raise RunError(f"{path} must be a training run, or a directory that holds some, and is not there.")
    return matches


def _is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in TRAINED)


TRAINED = ("config.json", "metrics.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The part of `config.json` that the report reasons about; `raw` is all of it."""

    name: str
    student: str
    objective: str
    maps: str
    mode: str
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

    `area` is the mean share of the image that a mask covers, the chance level.
    """

    map_seen: float | None
    map_heldout: float | None
    map_per_domain: Mapping[str, float]
    taps: tuple[Tap, ...]
    teacher_pointing: float | None
    teacher_mass: float | None
    area: float | None


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
    for name in TRAINED:
        if not (path / name).is_file():
            raise RunError(f"{path} must be a training run, but has no {name}. `lfi train --out {path}` makes one.")
    summary = path / "summary.json"
    train, validation = _metrics(path / "metrics.jsonl")
    return Run(
        path=path,
        config=_config(Fields.read(path / "config.json")),
        train=train,
        validation=validation,
        summary=_summary(Fields.read(summary)) if summary.is_file() else None,
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
        mode=fields.text_or("mode", "text"),
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


def _metrics(path: Path) -> tuple[tuple[TrainPoint, ...], tuple[ValPoint, ...]]:
    """Read the log. A resumed run repeats steps: the later line wins. An unfinished last line is skipped."""
    text = read_text(path)
    lines = text.split("\n")[:-1]
    train: list[TrainPoint] = []
    validation: list[ValPoint] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = Fields.parse(line, f"{path}, line {number}")
        event, step = fields.text("event"), fields.integer("step")
        if event == "train":
            while train and train[-1].step >= step:
                train.pop()
            while validation and validation[-1].step >= step:
                validation.pop()
            train.append(
                TrainPoint(
                    step=step,
                    loss=fields.number("loss"),
                    task_loss=fields.number_or_none("task_loss"),
                    interaction_loss=fields.number_or_none("lfi_loss"),
                    step_ms=fields.number_or_none("step_ms"),
                )
            )
        elif event == "val":
            while validation and validation[-1].step >= step:
                validation.pop()
            point = ValPoint(
                step=step, map_seen=fields.share_or_none("map_seen"), map_heldout=fields.share_or_none("map_heldout")
            )
            validation.append(point)
    return tuple(train), tuple(validation)


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
    classified, grounded = _result(run, "classification"), _result(run, "grounding")
    if classified is None and grounded is None:
        return None
    scores = classified.child("scores") if classified else None
    details = classified.child("details") if classified else None
    domains = details.child_or_none("map_per_domain") if details else None
    looks = grounded.child("details") if grounded else None
    teacher = looks.child_or_none("teacher") if looks else None
    return Scores(
        map_seen=scores.share_or_none("map_seen") if scores else None,
        map_heldout=scores.share_or_none("map_heldout") if scores else None,
        map_per_domain={name: score for name in domains.values if (score := domains.share_or_none(name)) is not None}
        if domains
        else {},
        taps=tuple(_tap(tap) for tap in looks.children("taps")) if looks else (),
        teacher_pointing=teacher.share("pointing") if teacher else None,
        teacher_mass=teacher.share("mass_in_mask") if teacher else None,
        area=looks.share_or_none("area") if looks else None,
    )


def _result(run: Path, protocol: str) -> Fields | None:
    result = latest_result(run, protocol)
    return Fields(str(run / EVALUATION / result.file_name), asdict(result)) if result is not None else None


def _tap(fields: Fields) -> Tap:
    return Tap(
        index=fields.integer("index"),
        depth=fields.share("depth"),
        pointing=fields.share("pointing"),
        mass_in_mask=fields.share("mass_in_mask"),
    )
