"""Make the whole model of a trained run, write it, and compare what is loaded with the student."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.core.runtime import OperationCounter
from lfi_pipeline.data.augment import whole_images
from lfi_pipeline.exporting.check import (
    CHECKED,
    OF_TIMM,
    TRACED,
    checked_onnx,
    difference,
    noise_images,
    require_onnx,
)
from lfi_pipeline.exporting.model import Model, load, save_model
from lfi_pipeline.exporting.model_config import ARGUMENTS, ModelConfig
from lfi_pipeline.students import Student
from lfi_pipeline.students.backbone import TapBackbone
from lfi_pipeline.students.query_head import QueryHead
from lfi_pipeline.students.student import merged_maps
from lfi_pipeline.training.learner import LoadedRun

_TOLERANCE = 1e-5
_ASKED = 8  # words that a model without classes is compared on


@dataclass(frozen=True, slots=True)
class WholeCheck:
    """How far the loaded model is from the student, in units of the larger of 1 and the largest magnitude.

    Attributes:
        images: how many images were compared.
        logits, maps: largest differences; None where there are none.
        peaks: share of maps whose peak is in the same cell; None where there are no maps.
    """

    images: int
    logits: float | None
    maps: float | None
    peaks: float | None


def whole_model(loaded: LoadedRun) -> Model:
    """Return the student of a run as a `Model` on the CPU.

    Raises:
        ConfigError: the student has arguments that no exported model may have.
    """
    config, store, student = loaded.config, loaded.store, loaded.student
    arguments = {name: value for name, value in config.student.kwargs.items() if name not in OF_TIMM}
    if config.student.patch_size is not None:
        arguments["patch_size"] = config.student.patch_size
    own = isinstance(student.backbone, TapBackbone)
    unknown = [] if own else sorted(set(arguments) - ARGUMENTS)
    if unknown:
        raise ConfigError(
            f"The whole model cannot be exported: {', '.join(unknown)} is no argument that an exported model may name."
        )
    vocabulary = store.vocabulary if student.word_head is not None else None
    is_head = isinstance(student.queries, QueryHead)
    queries = config.resolved_queries
    described = ModelConfig(
        name=str(loaded.record.get("name") or loaded.path.resolve().name),
        architecture="" if own else config.student.name,
        arguments={} if own else {name: value for name, value in arguments.items() if name != "img_size"},
        image_size=student.size,
        taps=tuple(tap.index for tap in student.taps),
        mean=_three(student.mean),
        std=_three(student.std),
        classes=tuple(store.spec.dataset.classes) if student.classifies else (),
        task=loaded.task,
        head="queries" if is_head else "linear",
        readout="text" if student.word_head is not None else "class" if is_head else "auto",
        query_width=queries.width,
        query_heads=queries.heads,
        query_scale=queries.scale,
        state=queries.state,
        embedding_dim=store.spec.embedding_dim,
        words=vocabulary.words if vocabulary is not None else (),
        teacher=(store.spec.teacher.name, store.spec.teacher.tag),
    )
    words = torch.from_numpy(vocabulary.embeddings).float() if vocabulary is not None else None
    return Model(_without_scaffold(student), described, words).cpu().eval()


def write_whole(folder: Path, model: Model, images: Sequence[Image.Image]) -> WholeCheck:
    """Write `model` into `folder`, load it from there, and compare the two on `images` and on noise.

    Raises:
        ExportError: what is loaded is not the model; names what differs.
    """
    save_model(folder, model)
    backbone = model.student.backbone
    again = load(folder, backbone=backbone.model if isinstance(backbone, TapBackbone) else None)
    shown = [*images, *noise_images(model.config.image_size)]
    pixels = whole_images(shown, model.config.image_size)
    with torch.no_grad():
        embeddings = model.words[:_ASKED] if model.words is not None and not model.config.classes else None
        logits, maps = _answers_of(model.student, pixels) if embeddings is None else model.answer(pixels, embeddings)
        reloaded = again.answer(pixels, embeddings) if logits is not None else None
    if reloaded is None or logits is None:
        return WholeCheck(len(shown), None, None, None)
    check = WholeCheck(
        images=len(shown),
        logits=difference(reloaded.logits, logits),
        maps=None if maps is None or reloaded.maps is None else difference(reloaded.maps, maps),
        peaks=None
        if maps is None or reloaded.maps is None
        else float((reloaded.maps.flatten(2).argmax(-1) == maps.flatten(2).argmax(-1)).float().mean()),
    )
    for name, value in (("logits", check.logits or 0.0), ("maps", check.maps or 0.0)):
        if not value <= _TOLERANCE:
            raise ExportError(
                f"The {name} of the whole model must equal the trained student's within {_TOLERANCE:g}, and differ by "
                f"{value:g} on {len(shown)} images."
            )
    return check


@dataclass(frozen=True, slots=True)
class HeadCost:
    """What a query head adds to its backbone, for one image on a CPU.

    Attributes:
        parameters, operations: of the head; a multiplication and an addition are two.
        backbone_parameters, backbone_operations: of the backbone alone.
        time: seconds of the whole model over the backbone's, the median of rounds that take turns; 1 is no cost.
    """

    parameters: int
    operations: int
    backbone_parameters: int
    backbone_operations: int
    time: float

    @property
    def text(self) -> str:
        """The costs as shares of the backbone's, in words."""
        parameters = self.parameters / self.backbone_parameters
        operations = self.operations / max(1, self.backbone_operations)
        return f"{parameters:.1%} of the backbone's parameters, {operations:.1%} of its operations"


_ROUNDS = 7


def head_cost(model: Model) -> HeadCost | None:
    """Measure what the query head of `model` costs; None where no queries answer."""
    student = model.student
    if student.query_head is None:
        return None
    pixels = whole_images(noise_images(model.config.image_size)[:1], model.config.image_size)
    works: list[Callable[[], object]] = [
        lambda: student.backbone.forward_features(student.normalised(pixels)),
        lambda: student(pixels),
    ]
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        totals = []
        for work in works:
            with OperationCounter() as counter:
                work()
            totals.append(counter.total)
        for _ in range(_ROUNDS):
            for spent, work in zip(seconds, works, strict=True):
                began = time.perf_counter()
                work()
                spent.append(time.perf_counter() - began)
    counts = student.parameter_counts()
    return HeadCost(
        parameters=counts["queries"],
        operations=totals[1] - totals[0],
        backbone_parameters=counts["backbone"],
        backbone_operations=totals[0],
        time=statistics.median(whole / bare for bare, whole in zip(*seconds, strict=True)),
    )


def _answers_of(student: Student, pixels: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return logits [B, K] and merged maps [B, K, rows, columns] of the student in memory, computed as in training."""
    features = student(pixels, with_taps=True)
    head = student.query_head
    if head is None:
        return features.logits, None
    words = head.classes.expand(len(pixels), -1, -1)
    return features.logits, merged_maps(head.maps(words, features.taps), features.grids)


def _without_scaffold(student: Student) -> Student:
    """Return a copy of the student without the parts that only training needs."""
    copied = copy.deepcopy(student)
    if not isinstance(copied.queries, QueryHead):
        copied.queries = None
    elif copied.queries.readout is not None:
        copied.queries.presence = None  # of words, beside the readout of the classes
    return copied


def _three(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.flatten().tolist()
    return first, second, third


ONNX = "lfi.onnx"


class _Tensors(nn.Module):
    """A model that returns a plain tuple: logits, and maps where there are any."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, maps = self.model(images)
        return (logits,) if maps is None else (logits, maps)


def exported_program(model: Model, *, batch: int | None = None) -> ExportedProgram:
    """Return `model` as a program of `torch.export`, from uint8 images to logits, and maps where there are any.

    Args:
        model: in evaluation mode.
        batch: number of images; None: any number.

    Raises:
        ConfigError: a batch below 1.
        ExportError: PyTorch cannot trace this architecture.
    """
    module, images, shapes = _traced(model, batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own workings
            return torch.export.export(module, (images,), dynamic_shapes=shapes)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"PyTorch cannot trace this model: {reason}") from error


def write_onnx(model: Model, path: Path, *, batch: int | None = None) -> float | None:
    """Write `model` as ONNX: input `images`, uint8 [batch, 3, H, W]; outputs `logits`, and `maps` where there are any.

    Args:
        model: in evaluation mode, on the CPU.
        path: the file.
        batch: number of images; None: any number.

    Returns:
        Largest difference of onnxruntime's outputs from PyTorch's, in units of the larger of 1 and the largest
        magnitude; None where onnxruntime is not installed.

    Raises:
        ConfigError: as `exported_program`, and as `require_onnx`.
        ExportError: PyTorch cannot write this model as ONNX, or the outputs differ.
    """
    require_onnx()
    module, images, shapes = _traced(model, batch)
    return checked_onnx(
        *(module, path, images, _noise(batch or CHECKED, model.config.image_size, seed=1)),
        outputs=["logits"] if model(images).maps is None else ["logits", "maps"],
        shapes=shapes,
        of="exported one",
    )


def _traced(model: Model, batch: int | None) -> tuple[nn.Module, Tensor, tuple[dict[int, Dim] | None]]:
    """Return what is traced, images to trace it with, and which of their dimensions are free."""
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}.")
    device = next(model.parameters()).device
    images = _noise(batch or TRACED, model.config.image_size, seed=0).to(device)
    return _Tensors(model).eval(), images, ({0: Dim("batch")} if batch is None else None,)


def _noise(batch: int, size: tuple[int, int], *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)
