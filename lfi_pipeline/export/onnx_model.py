"""Write a timm model as ONNX, and compare it with PyTorch."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from lfi_pipeline.errors import ConfigError, ExportError
from lfi_pipeline.export.plain import difference

ONNX = "model.onnx"
_NEEDED = ("onnx", "onnxscript")
_TOLERANCE = 1e-4
_TRACED, _CHECKED = 2, 3  # batch sizes; another one than was traced shows that the batch is free


def require_onnx() -> None:
    """Raise ConfigError unless the packages that writing ONNX needs are installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs the packages {' and '.join(_NEEDED)}, not installed: {', '.join(missing)}. "
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
    images = torch.randn(_TRACED, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own workings
            torch.onnx.export(
                model,
                (images,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=["images"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"PyTorch cannot write this model as ONNX: {reason} Export without --onnx.") from error
    return _compared(model, path, size)


def _compared(model: Any, path: Path, size: tuple[int, int]) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    images = torch.randn(_CHECKED, 3, *size, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        differs = difference(torch.from_numpy(found), model(images))
    if not differs <= _TOLERANCE:
        raise ExportError(
            f"The ONNX model must equal the timm model within {_TOLERANCE:g}, and differs by {differs:g}. "
            "Export without --onnx."
        )
    return differs
