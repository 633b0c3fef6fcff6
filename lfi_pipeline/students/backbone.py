"""Build a timm backbone and choose the taps at which it meets the queries."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from lfi_pipeline.errors import ConfigError, UnknownNameError

DEFAULT_TAPS = 3
_FINEST_STRIDE = 8  # a coarser grid than this is asked of automatic taps: queries over a 56x56 stem map cost too much
_NEAR_NAMES = 20  # of timm's 1,300 models, listed where a name is unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Which backbone to train.

    Attributes:
        name: any timm model that answers `forward_intermediates`.
        image_size: pixels a side; None takes the model's own.
        patch_size: for plain vision transformers; None takes the model's own.
        kwargs: further arguments of `timm.create_model`, such as depth or embed_dim.
        pretrained: start from timm's weights.
        taps: indices into the model's feature list; empty chooses `DEFAULT_TAPS` evenly spaced ones.
    """

    name: str = "vit_tiny_patch16_224"
    image_size: int | None = None
    patch_size: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    taps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tap:
    """A student stage whose features meet the queries.

    Attributes:
        index: into the model's feature list.
        depth: relative depth in (0, 1].
        width: channels D.
        stride: input pixels per cell of the feature grid.
        grid: (rows, columns) of the feature grid at the student's input size.
    """

    index: int
    depth: float
    width: int
    stride: int
    grid: tuple[int, int]


def build_backbone(config: StudentConfig) -> Any:
    """Return the timm model (an `nn.Module` with timm's methods) without a head.

    Raises:
        UnknownNameError: timm has no such model; lists near ones.
        ConfigError: the model does not accept an override, or cannot give intermediate features.
    """
    if not timm.is_model(config.name):
        near = difflib.get_close_matches(config.name, timm.list_models(), n=_NEAR_NAMES, cutoff=0.0)
        raise UnknownNameError("student", config.name, near)
    overrides = dict(config.kwargs)
    if config.patch_size is not None:
        overrides["patch_size"] = config.patch_size
    sized = overrides if config.image_size is None else overrides | {"img_size": config.image_size}
    model = _create(config, sized, last_try=sized == overrides)
    if model is None:  # convolutional models take any size and refuse to be told one
        model = _create(config, overrides, last_try=True)
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(
            f"{config.name} cannot serve as a student: it has no forward_intermediates, so queries cannot meet its "
            "layers. Most vit, swin, convnext, resnet and mobilenetv4 models of timm have it."
        )
    return model


def _create(config: StudentConfig, overrides: Mapping[str, Any], *, last_try: bool) -> Any:
    try:
        return timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, **overrides)
    except TypeError as error:
        if not last_try and "img_size" in str(error):
            return None
        raise ConfigError(
            f"{config.name} does not accept these overrides: {dict(overrides)} ({error}). Leave --patch-size and "
            "--student-arg out, or choose a student that takes them, such as a plain vision transformer."
        ) from error
    except (AssertionError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"{config.name} cannot be built with {dict(overrides)}: {error}.") from error
    except OSError as error:
        if not config.pretrained:
            raise
        raise ConfigError(
            f"timm's weights of {config.name} are not in the local cache and could not be fetched "
            f"({type(error).__name__}). Run once on a machine with a network, or leave --pretrained out."
        ) from error


def input_size(model: Any, config: StudentConfig) -> tuple[int, int]:
    """Return the (height, width) in pixels that the student is trained at."""
    if config.image_size is not None:
        return config.image_size, config.image_size
    _, height, width = model.pretrained_cfg["input_size"]
    return int(height), int(width)


def choose_taps(model: Any, config: StudentConfig) -> tuple[Tap, ...]:
    """Return the taps of `config`, shallow to deep; automatic ones are evenly spaced in depth.

    Raises:
        ConfigError: an index that the model does not have, or an image size that it cannot take.
    """
    size = input_size(model, config)
    features = _features(model, config, size)
    total = len(features)
    every = [
        Tap(
            index,
            depth=(index + 1) / total,
            width=int(f.shape[1]),
            stride=size[0] // int(f.shape[2]),
            grid=(int(f.shape[2]), int(f.shape[3])),
        )
        for index, f in enumerate(features)
    ]
    if config.taps:
        wrong = [index for index in config.taps if not 0 <= index < total]
        if wrong or list(config.taps) != sorted(set(config.taps)):
            raise ConfigError(
                f"taps must be ascending indices from 0 to {total - 1} for {config.name}, got {list(config.taps)}."
            )
        return tuple(every[index] for index in config.taps)
    coarse = [tap for tap in every if tap.stride >= _FINEST_STRIDE] or every[-1:]
    wanted = min(DEFAULT_TAPS, len(coarse))
    return tuple(coarse[round(len(coarse) * (i + 1) / wanted) - 1] for i in range(wanted))


def _features(model: Any, config: StudentConfig, size: tuple[int, int]) -> list[torch.Tensor]:
    """Return every feature map [1, D, rows, columns] that the model gives for one blank image of `size`."""
    embedding = getattr(getattr(model, "patch_embed", None), "proj", None)
    patch = getattr(embedding, "stride", (1, 1))
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ConfigError(
            f"The image size must be a multiple of the patch size {patch[0]} of {config.name}, got {size[0]}: the "
            "rest of the image would not be seen, and maps would not lie where their words are."
        )
    was_training = model.training
    try:
        with torch.no_grad():
            features: list[torch.Tensor] = model.eval().forward_intermediates(
                torch.zeros(1, 3, *size), output_fmt="NCHW", intermediates_only=True
            )
    except (AssertionError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(
            f"{config.name} cannot give features of {size[0]} by {size[1]} pixels with {dict(config.kwargs)}: {error}."
        ) from error
    finally:
        model.train(was_training)
    return features


def pair_layers(taps: Sequence[Tap], layer_depths: Sequence[float]) -> tuple[int, ...]:
    """Return for each tap the teacher layer of nearest relative depth (the deeper of two equally near)."""
    return tuple(
        min(range(len(layer_depths)), key=lambda layer: (abs(layer_depths[layer] - tap.depth), -layer)) for tap in taps
    )
