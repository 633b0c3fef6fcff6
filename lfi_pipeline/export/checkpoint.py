"""Write a timm model as `timm.create_model("local-dir:...")` and the Hugging Face hub expect it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from timm.models import save_for_hf

from lfi_pipeline.export.plain import APART, INSIDE, PlainModel
from lfi_pipeline.students import StudentConfig

HEAD = "head.safetensors"
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
    arguments = dict(config.kwargs)
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
