"""A student as a plain timm model, written as a checkpoint or ONNX, loaded as its users will load it, and compared."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.data.augment import whole_images
from lfi_pipeline.students import Student, StudentConfig

HEAD = "head.safetensors"
OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of a student that say where its first weights came from. An export leaves them out: it holds its own."""
_KEPT = ("architecture", "mean", "std", "fixed_input_size", "first_conv", "classifier")


def write_checkpoint(
    folder: Path, plain: PlainModel, config: StudentConfig, size: tuple[int, int], classes: Sequence[str]
) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, and `head.safetensors` where the head is apart.

    Args:
        folder: an empty directory.
        plain: the model.
        config: how its backbone was built.
        size: (height, width) in pixels that it was trained at.
        classes: names of the outputs.
    """
    model = copy.copy(plain.model)
    # what timm says of its own weights (where they came from, how they were tested) is not true of these
    model.pretrained_cfg = {name: model.pretrained_cfg[name] for name in _KEPT if name in model.pretrained_cfg} | {
        "input_size": (3, *size),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # students see the whole image, aspect ratio ignored
        "pool_size": None,
        "num_classes": model.num_classes,
    }
    labels = {"label_names": list(classes)} if plain.head == INSIDE else {}
    save_for_hf(model, str(folder), model_config=labels, model_args=_arguments(config), safe_serialization=True)
    if plain.head == APART and plain.linear is not None:
        save_file(plain.linear.state_dict(), folder / HEAD)


def _arguments(config: StudentConfig) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that make this architecture again."""
    arguments = {name: value for name, value in config.kwargs.items() if name not in OF_TIMM}
    if config.patch_size is not None:
        arguments["patch_size"] = config.patch_size
    if config.image_size is None:
        return arguments
    sized = arguments | {"img_size": config.image_size}
    try:
        timm.create_model(config.name, num_classes=0, **sized)
    except TypeError:  # convolutional models take any size and refuse to be told one
        return arguments
    return sized


TOLERANCE = 1e-6
"""Largest difference of two outputs that count as equal, in units of the larger of 1 and their largest magnitude."""

INSIDE, APART, QUERIES, NONE = "inside", "apart", "queries", "none"


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A student without anything of this project.

    Attributes:
        model: timm model in evaluation mode, on the CPU.
        head: where the trained head is: `inside` as timm's classifier; `apart`, since timm's classifier of this family
            is more than one linear layer; `queries`: left out, since the classes' queries are it; `none`: the student
            was trained without one.
        linear: the head that is `apart`.
    """

    model: Any
    head: str
    linear: nn.Linear | None = None


@torch.no_grad()
def plain_model(student: Student) -> PlainModel:
    """Return a copy of `student` as a timm model; the student stays as it is."""
    backbone = copy.deepcopy(student.backbone).cpu().eval()
    head = student.head
    if head is None:
        return PlainModel(backbone, NONE if student.query_head is None else QUERIES)
    linear = copy.deepcopy(head).cpu()
    model = copy.deepcopy(backbone)
    images = torch.randn(2, 3, *student.size, generator=torch.Generator().manual_seed(0))
    expected = linear(pooled(backbone, images))
    if _take_in(model, linear) and difference(model.eval()(images), expected) <= TOLERANCE:
        return PlainModel(model, INSIDE)
    return PlainModel(backbone, APART, linear)


def _take_in(model: Any, linear: nn.Linear) -> bool:
    """Make `linear` the classifier of `model`, which has none yet; False where that is not one linear layer."""
    before = model.state_dict().keys()
    model.reset_classifier(linear.out_features)
    classifier = model.get_classifier()
    added = model.state_dict().keys() - before
    fits = (  # some families put a batch norm before the layer, or average two heads
        isinstance(classifier, nn.Linear | nn.Conv2d)
        and classifier.bias is not None
        and classifier.weight.numel() == linear.weight.numel()
        and len(added) == len(classifier.state_dict())
    )
    if fits:
        classifier.weight.copy_(linear.weight.view_as(classifier.weight))
        classifier.bias.copy_(linear.bias)
    return fits


def pooled(model: Any, x: Tensor) -> Tensor:
    """Pooled features [B, D] of normalised images [B, 3, H, W], by timm's own pooling."""
    features: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)
    return features


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the larger of 1 and the largest magnitude; infinite where shapes differ."""
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1.0))


_LOGIT_TOLERANCE = 1e-5  # a head that is a convolution in timm adds up in another order
_INPUT_TOLERANCE = 1e-5  # the same pixels, normalised in another order of operations
_NOISE = 4


@dataclass(frozen=True, slots=True)
class Check:
    """How far the export is from the student, in units of the larger of 1 and the largest magnitude.

    Attributes:
        images: how many images of the data set were compared.
        noise: how many images of noise.
        features: largest difference of pooled features.
        logits: largest difference of logits; None where the head is not in the timm model.
        inputs: largest difference between timm's transform of an image and what the student sees.
    """

    images: int
    noise: int
    features: float
    logits: float | None
    inputs: float


def noise_images(size: tuple[int, int]) -> list[Image.Image]:
    """Return images of random pixels, a little larger than `size` and not square, always the same ones."""
    generator = np.random.default_rng(0)
    shape = (size[0] + 19, size[1] + 7, 3)
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(_NOISE)]


@torch.no_grad()
def check_export(folder: Path, student: Student, plain: PlainModel, images: Sequence[Image.Image]) -> Check:
    """Compare the export in `folder` with `student` (on the CPU), on `images` and on noise.

    Raises:
        ExportError: timm cannot load it, or something differs by more than rounding.
    """
    student = student.eval()
    noise = noise_images(student.size)  # not square, so that a wrong way of cropping shows
    shown = [*images, *noise]
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError) as error:
        raise ExportError(f"timm cannot load what was exported: {type(error).__name__}: {error}") from error
    pixels = whole_images(shown, student.size)
    x = student.normalised(pixels)
    expected = student(pixels, with_taps=False)
    logits = expected.logits
    check = Check(
        images=len(images),
        noise=len(noise),
        features=difference(pooled(model, x), expected.pooled),
        logits=difference(model(x), logits) if plain.head == INSIDE and logits is not None else None,
        inputs=difference(_transformed(model, shown), x),
    )
    for name, value, most in (
        ("features", check.features, TOLERANCE),
        ("logits", check.logits or 0.0, _LOGIT_TOLERANCE),
        ("inputs", check.inputs, _INPUT_TOLERANCE),
    ):
        if not value <= most:
            raise ExportError(
                f"The {name} of the exported model must equal the trained student's within {most:g}, and differ by "
                f"{value:g} on {len(shown)} images. Nothing was written; this architecture cannot be exported with "
                f"timm {timm.__version__}."
            )
    return check


def _transformed(model: Any, images: Sequence[Image.Image]) -> Tensor:
    transform = create_transform(**resolve_data_config(model=model))
    return torch.stack([transform(image) for image in images])


ONNX = "model.onnx"
_NEEDED = ("onnx", "onnxscript")
_TOLERANCE = 1e-4
TRACED, CHECKED = 2, 3  # batch sizes; another one than was traced shows that the batch is free


def require_onnx() -> None:
    """Raise ConfigError unless the packages that writing ONNX needs are installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`onnx=True` needs the packages {' and '.join(_NEEDED)}, not installed: {', '.join(missing)}. "
            "Install them with: pip install 'lfi-pipeline[onnx]'"
        )


def write_onnx(model: Any, path: Path, size: tuple[int, int]) -> float | None:
    """Write `model` (in evaluation mode, on the CPU) to `path`, for batches of any number of normalised images.

    Args:
        model: timm model.
        path: the file.
        size: (height, width) of its images in pixels.

    Returns:
        Largest difference of onnxruntime's output from PyTorch's, in units of the larger of 1 and the largest
        magnitude; None where onnxruntime is not installed.

    Raises:
        ConfigError: as `require_onnx`.
        ExportError: PyTorch cannot write this model as ONNX, or the outputs differ.
    """
    require_onnx()
    traced, checked = (
        torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
        for seed, count in enumerate((TRACED, CHECKED))
    )
    return checked_onnx(
        *(model, path, traced, checked),
        outputs=["output"],
        shapes=({0: torch.export.Dim("batch")},),
        of="timm model",
        remedy=" Export without `onnx=True`.",
    )


def checked_onnx(
    module: nn.Module,
    path: Path,
    traced: Tensor,
    checked: Tensor,
    *,
    outputs: list[str],
    shapes: tuple[dict[int, Any] | None],
    of: str,
    remedy: str = "",
) -> float | None:
    """Write `module` to `path` as ONNX, and compare it with onnxruntime where that is installed.

    Args:
        module: in evaluation mode; from images to a tensor, or a tuple of tensors.
        path: the file.
        traced: images to trace it with.
        checked: images to compare it on.
        outputs: their names; the input is `images`.
        shapes: which dimensions of the images are free, as of `torch.onnx.export`.
        of, remedy: what the file must equal, and what helps where it does not, for messages.

    Returns:
        Largest difference as `write_onnx` says; None where onnxruntime is not installed.

    Raises:
        ExportError: PyTorch cannot write this model as ONNX, or the outputs differ.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own workings
            torch.onnx.export(
                module,
                (traced,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes=shapes,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"PyTorch cannot write this model as ONNX: {reason}{remedy}") from error
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    onnx_outputs = session.run(None, {"images": checked.numpy()})
    with torch.no_grad():
        expected = module(checked)
    pairs = zip(onnx_outputs, [expected] if isinstance(expected, Tensor) else expected, strict=True)
    differs = max(difference(torch.from_numpy(a), b) for a, b in pairs)
    if not differs <= _TOLERANCE:
        raise ExportError(
            f"The ONNX model must equal the {of} within {_TOLERANCE:g}, and differs by {differs:g}.{remedy}"
        )
    return differs
