"""From a folder of images to a trained, exported student that shows where it looks: the commands, in order.

What a folder holds decides what is scored: labels give classification, masks grounding, and photographs alone are
distilled without a task, their captions written by the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_pipeline.core import extras
from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.options import DEVICE, THREADS, Option, build, check, command_words
from lfi_pipeline.training.config import NO_SPLIT

if TYPE_CHECKING:
    from lfi_pipeline.data import Sample
    from lfi_pipeline.targets import TargetStore

LEAST_EPOCHS, MOST_EPOCHS, LEAST_STEPS = 15, 100, 500
"""Epochs where nobody says: enough for so many steps, between these bounds."""
PICTURES, WORDS = 12, 6  # images whose answers are drawn, and of images without classes the words that are asked for
FILES = {
    "report.html": "scores, curves and maps: open it in a browser",
    "answers/index.html": "what the student says of some images, and where it looked",
    "pictures": "those images, where they lie in tars or tables",
    "exported": "the student: a plain timm backbone, and the whole model for lfi predict and lfi_pipeline.load",
    "run": "the training: settings, curves, checkpoints, scores",
    "shards": "the teacher's maps, for as many students as you like",
    "shards-val": "the teacher's maps of the images that are scored",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilConfig:
    """Options of `lfi distil`: the folder, the teacher, the student and how it is trained."""

    folder: Annotated[Path, Option("Your images, in any layout that lfi datasets knows.", positional=True)]
    student: Annotated[str, Option("Any timm model that gives intermediate features.")] = "resnet18"
    out: Annotated[Path, Option("Where everything goes; a rerun goes on where it stopped.")] = Path("distilled")
    teacher: Annotated[str, Option("NAME[:TAG] of lfi teachers. Left out: a large CoCa, downloaded once.")] = ""
    vocabulary: Annotated[
        tuple[str, ...],
        Option(
            "Words to look for in images without captions and labels; left out: the teacher writes captions.",
            separator=",",
            metavar="WORD,...",
        ),
    ] = ()
    pretrained: Annotated[
        bool, Option("Start from timm's weights of the student, downloaded once: better on few images.")
    ] = False
    image_size: Annotated[int | None, Option("Pixels a side; left out: the student's own.", ge=1)] = None
    epochs: Annotated[
        int | None,
        Option(f"Passes over the images; left out: for {LEAST_STEPS} steps, {LEAST_EPOCHS} to {MOST_EPOCHS}.", ge=1),
    ] = None
    batch_size: Annotated[int, Option("Images a step; all there are, where that is fewer.", ge=1)] = 64
    lr: Annotated[float | None, Option("Peak of the schedule; left out: as lfi train.", gt=0)] = None
    val_share: Annotated[
        float, Option("Share of the images to score on, where there is no validation split; 0: none.", ge=0, lt=1)
    ] = 0.1
    seed: Annotated[int, Option("Of initialisation, order and augmentation.", ge=0)] = 0
    device: Annotated[str, Option(DEVICE)] = "auto"
    threads: Annotated[int, Option(THREADS, ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One public command.

    Attributes:
        name: of the command.
        paths: what is positional.
        options: by name.
    """

    name: str
    paths: tuple[Path, ...] = ()
    options: Mapping[str, Any]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command as they are typed after `lfi`."""
        return command_words(self.name, *self.paths, **self.options)


def steps(config: DistilConfig, tell: Callable[[str], None]) -> Iterator[Step]:
    """Inspect the folder, then yield the commands one by one; each may depend on what the one before it wrote.

    Args:
        config: what to distil.
        tell: called with a description of the folder.

    Raises:
        DatasetError: the folder is nothing that is known, or has no images to train or to validate on.
    """
    from lfi_pipeline.data import describe, read_dataset
    from lfi_pipeline.data.dataset import TRAIN, VAL, WHOLE, split_name
    from lfi_pipeline.targets import TargetStore

    text, layout = describe(config.folder)
    tell(text)
    parted = layout["val_share"] is not None
    train = split_name(TRAIN, config.val_share) if parted else TRAIN
    val = None if train == WHOLE else split_name(VAL, config.val_share) if parted else VAL
    dataset = read_dataset(config.folder, split=train)
    images, labelled = len(dataset), any(sample.labels for sample in dataset.samples)
    if not images:
        raise DatasetError(f"{config.folder} must hold images to train on, found none in split {train}.")
    shards, shards_val, run = config.out / "shards", config.out / "shards-val", config.out / "run"
    device = None if config.device == "auto" else config.device
    machine = {"device": device, "threads": config.threads or None}
    vocabulary = list(config.vocabulary) or None
    extract = {"dataset": str(config.folder), "teacher": config.teacher or None, "vocabulary": vocabulary, **machine}
    yield Step(name="extract-teacher", options={**extract, "split": train, "out": shards})
    if val is not None:
        yield Step(name="extract-teacher", options={**extract, "split": val, "views": ["full"], "out": shards_val})
    batch_size = min(config.batch_size, images)
    settings = {
        "targets": shards,
        "student": config.student,
        "pretrained": True if config.pretrained else None,
        "image_size": config.image_size,
        "epochs": config.epochs or _epochs(images, batch_size),
        "batch_size": batch_size,
        "lr": config.lr,
        "task": None if labelled else "none",
        "objective": None if labelled else "lfi+presence",  # the words of captions are then what it can be asked for
        "val_split": None if val is not None and labelled else NO_SPLIT,
        "seed": config.seed or None,
    }
    yield Step(name="train", options={**settings, **machine, "out": run})
    if val is not None and labelled:
        scored = {"targets": shards_val, "probes": False, "device": device}
        yield Step(name="evaluate", paths=(run,), options=scored)
    yield Step(name="report", paths=(run,), options={"out": config.out / "report.html"})
    exported = config.out / "exported"
    if not exported.exists():
        yield Step(name="export", paths=(run,), options={"out": exported})
    words = None if labelled else vocabulary or frequent_words(TargetStore.open(shards), WORDS)
    if labelled or words:
        shown = read_dataset(config.folder, split=val or train)
        paths = [
            _picture(shown.root, shown.samples[i], config.out / "pictures") for i in range(min(PICTURES, len(shown)))
        ]
        saved = {"model": exported, "words": words, "save": config.out / "answers", "device": device}
        if any(paths):
            yield Step(name="predict", paths=tuple(filter(None, paths)), options=saved)


def _picture(root: Path, sample: Sample, folder: Path) -> Path | None:
    """Return the file of an image; of one that lies in a tar or a table, a copy in `folder`, or None if it is broken."""
    from lfi_pipeline.core.errors import ImageReadError
    from lfi_pipeline.core.io import output_errors
    from lfi_pipeline.data.images import read_image

    own = root / sample.path
    if own.is_file():
        return own
    try:
        image = read_image(root, sample.path)[0]
    except ImageReadError:
        return None
    copy = folder / f"{sample.key.replace('/', '-')}.png"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        image.save(copy)
    return copy


def _epochs(images: int, batch_size: int) -> int:
    from lfi_pipeline.training.sampler import epochs_for  # needs torch

    return min(MOST_EPOCHS, max(LEAST_EPOCHS, epochs_for(LEAST_STEPS, images, batch_size)))


def frequent_words(store: TargetStore, count: int) -> list[str]:
    """Return the words that most images of a cache have, the most frequent first."""
    import numpy as np

    words = store.read_words(store.usable)
    ids, images = np.unique(words[words >= 0], return_counts=True)
    return [store.vocabulary.words[i] for i in ids[np.argsort(-images, kind="stable")][:count].tolist()]


@extras()
def distil(
    folder: str | Path, *, student: str = "resnet18", out: str | Path = "distilled", **settings: Any
) -> dict[str, Any]:
    """Teach a student how a large teacher looks at the images of a folder, score it, export it and draw its answers.

    It calls `extract`, `train`, `evaluate` and `export`, and prints each as the command that does the same.

    Example:
        >>> import lfi_pipeline as lfi
        >>> result = lfi.distil("photos", student="resnet18", out="distilled")     # doctest: +SKIP
        >>> lfi.load(result["exported"]).predict("photo.jpg").answers[0]           # doctest: +SKIP

    Args:
        folder: images in any layout that `lfi datasets` knows: COCO and its exports, YOLO, folders of classes,
            webdataset, Parquet, or images alone.
        student: a timm model.
        out: directory of everything that is made; a rerun goes on where it stopped.
        settings: others, by the names of the options of `lfi distil`, such as `teacher="coca_ViT-B-32"`, `epochs=30`
            or `pretrained=True`.

    Returns:
        What was made: `out`, `run`, `exported`, `report`, `answers` (None where no picture was drawn), and the `scores`
        of each protocol.

    Raises:
        DatasetError: the folder is nothing that is known, or has no images.
        LFIError: as the functions that it calls; what was finished is kept.
    """
    from lfi_pipeline.core.runtime import tell

    config = build(DistilConfig, {"folder": str(folder), "student": student, "out": str(out), **settings})
    results: dict[str, Any] = {}
    for step in steps(config, tell):
        tell("", "$ " + " ".join(["lfi", *step.words]))
        results[step.name] = _RUNNERS[step.name](step)
    scores: dict[str, Any] = {}
    for of_run in results.get("evaluate", {}).values():
        scores = {protocol: dict(result.scores) for protocol, result in of_run.items()}
    return summary(config, scores)


def summary(config: DistilConfig, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths of what was made and the scores, as `distil` returns them."""
    answers = config.out / "answers" / "index.html"
    return {
        **{name: str(config.out / name) for name in ("run", "exported")},
        "out": str(config.out),
        "report": str(config.out / "report.html"),
        "answers": str(answers) if answers.is_file() else None,
        "scores": dict(scores),
    }


def _given(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.options.items() if value is not None}


def _extract(step: Step) -> Any:
    from lfi_pipeline.api import extract

    options = _given(step)
    return extract(options.pop("dataset"), out=options.pop("out"), **options)


def _train(step: Step) -> Any:
    from lfi_pipeline.api import train

    return train(**_given(step))


def _evaluate(step: Step) -> Any:
    from lfi_pipeline.api import evaluate

    return evaluate(step.paths, **_given(step))


def _report(step: Step) -> Any:
    from lfi_pipeline.report import write_report

    return write_report(step.paths, step.options["out"])


def _export(step: Step) -> Any:
    from lfi_pipeline.api import export

    (run,) = step.paths
    return export(run, step.options["out"])


def _predict(step: Step) -> Any:
    from lfi_pipeline.core.runtime import resolve_device
    from lfi_pipeline.exporting import load
    from lfi_pipeline.exporting.predict import predict_images, save_predictions

    model = load(step.options["model"], device=resolve_device(step.options["device"] or "auto"))
    predictions = predict_images(model, step.paths, step.options["words"], skip_unreadable=True)
    return list(save_predictions(predictions, step.options["save"]))


_RUNNERS: Mapping[str, Callable[[Step], Any]] = {
    "extract-teacher": _extract,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
    "predict": _predict,
}
