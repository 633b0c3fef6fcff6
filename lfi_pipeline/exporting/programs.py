"""An exported model as a program: `torch.export`, and ONNX compared with PyTorch by onnxruntime."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.exporting.check import difference, require_onnx
from lfi_pipeline.exporting.model import Model

ONNX = "lfi.onnx"
_TOLERANCE = 1e-4
_TRACED = 2
_CHECKED = 3  # another number than was traced shows that the batch is free


class _Tensors(nn.Module):
    """A model whose outputs are a plain tuple of those that there are."""

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
    names = ["logits"] if model(images).maps is None else ["logits", "maps"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (images,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=shapes,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"PyTorch cannot write this model as ONNX: {reason}") from error
    return _compared(module, path, model.config.image_size, batch or _CHECKED)


def _traced(model: Model, batch: int | None) -> tuple[nn.Module, Tensor, tuple[dict[int, Dim] | None]]:
    """Return what is traced, images to trace it with, and which of their dimensions are free."""
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}.")
    device = next(model.parameters()).device
    images = _noise(batch or _TRACED, model.config.image_size, seed=0).to(device)
    return _Tensors(model).eval(), images, ({0: Dim("batch")} if batch is None else None,)


def _noise(batch: int, size: tuple[int, int], *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def _compared(module: nn.Module, path: Path, size: tuple[int, int], batch: int) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    images = _noise(batch, size, seed=1)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    differs = max(difference(torch.from_numpy(a), b) for a, b in zip(found, module(images), strict=True))
    if not differs <= _TOLERANCE:
        raise ExportError(
            f"The ONNX model must equal the exported one within {_TOLERANCE:g}, and differs by {differs:g}."
        )
    return differs
