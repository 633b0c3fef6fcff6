"""Build a timm backbone and choose the taps, by relative depth, at which it meets the queries."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.hub import untouched_network
from lfi_pipeline.students.config import StudentConfig
from lfi_pipeline.students.pretrained import bounded_build, check_arguments, check_tag, check_weights, complete_weights


@contextmanager
def layers_passed(model: Any) -> Iterator[dict[str, int]]:
    """Note, for each module that timm records as the source of a feature, how many layers ran before it was done.

    A layer is a module without children that has a matrix (a convolution, a linear map). The forward pass inside the
    context fills the dictionary.
    """
    done: dict[str, int] = {}
    ran = 0

    def count(*_: object) -> None:
        nonlocal ran
        ran += 1

    def note(name: str) -> Any:
        return lambda *_: done.__setitem__(name, ran)

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for module in modules.values():
            if not any(module.children()) and any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_hook(count).remove)
        for record in _records(model):  # after the counters: a feature may be a layer itself
            source = modules.get(record["module"])
            if isinstance(source, nn.Module):
                hooks.callback(source.register_forward_hook(note(record["module"])).remove)
        yield done


def relative_depths(model: Any, features: Sequence[Tensor], done: dict[str, int]) -> list[float]:
    """Return the relative depth in (0, 1] of each feature map [1, D, rows, columns]; the last is 1.

    The blocks of a plain transformer are alike: the share of blocks. Stages of a pyramid are not (Swin-T has 2, 2, 6
    and 2 blocks): the share of layers, where timm's record of the model's features fits its features; else the share
    of stages.
    """
    by_index = [(index + 1) / len(features) for index in range(len(features))]
    if len({feature.shape[1:] for feature in features}) == 1:
        return by_index
    records = _records(model)
    if [record["num_chs"] for record in records] != [feature.shape[1] for feature in features]:
        return by_index
    passed = [done.get(record["module"], 0) for record in records]
    if passed[0] < 1 or passed != sorted(set(passed)):
        return by_index
    return [layers / passed[-1] for layers in passed]


def reductions(model: Any, features: Sequence[Tensor]) -> list[int | None]:
    """Return timm's record of the stride of each feature map; None where it has none that fits."""
    records = _records(model)
    if [record["num_chs"] for record in records] != [feature.shape[1] for feature in features]:
        return [None] * len(features)
    return [int(record["reduction"]) for record in records]


def _records(model: Any) -> list[dict[str, Any]]:
    """Return timm's records of a model's features, in a list or in an object with such a list, or nothing."""
    info = getattr(model, "feature_info", None)
    records = getattr(info, "info", info)
    whole = isinstance(records, list) and all({"module", "num_chs", "reduction"} <= set(each) for each in records)
    return records if whole and isinstance(records, list) else []


DEFAULT_TAPS = 3
_FINEST_STRIDE = 8  # of automatic taps: queries over a 56x56 stem map cost too much


@dataclass(frozen=True, slots=True)
class Tap:
    """A student stage whose features meet the queries.

    Attributes:
        index: into the model's feature list.
        depth: relative depth in (0, 1].
        width: channels D.
        stride: input pixels per cell of the grid, along the longer side of a cell where it is not square.
        grid: (rows, columns) at the student's input size.
    """

    index: int
    depth: float
    width: int
    stride: int
    grid: tuple[int, int]


def build_backbone(config: StudentConfig) -> Any:
    """Return the timm model (an `nn.Module` with timm's methods) without a head.

    Raises:
        UnknownNameError: timm has no such model or tag; lists near ones.
        ConfigError: an argument is of no architecture or out of bounds, the model is too large or does not accept an
            override, it cannot give intermediate features, or its weights cannot be had.
    """
    if not timm.is_model(config.name):
        raise UnknownNameError("student", config.name, timm.list_models())
    check_tag(config.name)
    check_arguments(config.name, config.kwargs, image_size=config.image_size, patch_size=config.patch_size)
    overrides = dict(config.kwargs)
    if config.patch_size is not None:
        overrides["patch_size"] = config.patch_size
    sized = overrides if config.image_size is None else overrides | {"img_size": config.image_size}
    remote = check_weights(config.name, overrides) if config.pretrained else None
    with untouched_network([remote]) if remote else nullcontext():
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
        with complete_weights(config.name) if config.pretrained else nullcontext(), bounded_build(config.name):
            return timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, **overrides)
    except ConfigError:
        raise
    except TypeError as error:
        if not last_try and "img_size" in str(error):
            return None
        raise ConfigError(
            f"{config.name} does not accept these overrides: {dict(overrides)} ({error}). Leave `patch_size` and "
            "`student_arg` out, or choose a student that takes them, such as a plain vision transformer."
        ) from error
    except (AssertionError, LookupError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"{config.name} cannot be built with {dict(overrides)}: {_reason(error)}.") from error
    except (OSError, SafetensorError) as error:
        if not config.pretrained:
            raise
        raise ConfigError(
            f"The weights of {config.name} could not be fetched or read ({type(error).__name__}: {_reason(error)}). "
            "Try again, or leave `pretrained` out."
        ) from error


def _reason(error: Exception) -> str:
    """Return the head of an error's text, or the line that raised an error without text, as bare assertions are."""
    lines = str(error).strip().splitlines()
    if not lines:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename.replace("\\", "/")
        ]
        lines = [frames[-1].line or "unknown"]
    return " ".join(line.strip() for line in lines[:2])[:300].rstrip(".")


def input_size(model: Any, config: StudentConfig) -> tuple[int, int]:
    """Return the (height, width) in pixels that the student is trained at."""
    size = config.image_size if config.image_size is not None else config.kwargs.get("img_size")
    if size is not None:
        height, width = size if isinstance(size, Sequence) else (size, size)
    else:
        _, height, width = model.pretrained_cfg["input_size"]
    return int(height), int(width)


def choose_taps(model: Any, config: StudentConfig) -> tuple[Tap, ...]:
    """Return the taps of `config`, shallow to deep.

    Automatic taps are as evenly spaced in depth as the features allow, up to the last one, over features whose grid is
    no finer than stride 8 (the coarsest there are, where all are finer). So a four-stage pyramid is tapped at strides
    8, 16 and 32: its last stage is a mere 7x7 grid at 224 pixels, but the deepest, and finer ones go with it.

    Raises:
        ConfigError: an index that the model does not have, or an image size that it cannot take.
    """
    every = _every_tap(model, config)
    if config.taps:
        wrong = [index for index in config.taps if not 0 <= index < len(every)]
        if wrong or list(config.taps) != sorted(set(config.taps)):
            raise ConfigError(
                f"taps must be ascending indices from 0 to {len(every) - 1} for {config.name}, got {list(config.taps)}."
            )
        return tuple(every[index] for index in config.taps)
    limit = min(_FINEST_STRIDE, max(tap.stride for tap in every))
    coarse = [tap for tap in every if tap.stride >= limit]
    wanted = min(DEFAULT_TAPS, len(coarse))
    even = [(i + 1) / wanted for i in range(wanted)]
    before = min(
        itertools.combinations(coarse[:-1], wanted - 1),
        key=lambda choice: sum(abs(tap.depth - depth) for tap, depth in zip(choice, even[:-1], strict=True)),
    )
    return (*before, coarse[-1])


def _every_tap(model: Any, config: StudentConfig) -> list[Tap]:
    size = input_size(model, config)
    with layers_passed(model) as done:
        features = _features(model, config, size)
    depths = relative_depths(model, features, done)
    taps = []
    for index, (feature, depth, stride) in enumerate(zip(features, depths, reductions(model, features), strict=True)):
        grid = int(feature.shape[2]), int(feature.shape[3])
        sides = [pixels / cells for pixels, cells in zip(size, grid, strict=True)]
        taps.append(Tap(index, depth, int(feature.shape[1]), _stride(sides, stride, grid, size), grid))
    return taps


def _stride(sides: Sequence[float], recorded: int | None, grid: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the recorded stride where padding explains the grid (7 cells of 32 on 200 pixels), else the measured."""
    if recorded and grid == tuple(-(-pixels // recorded) for pixels in size):
        return recorded
    return round(max(sides))


def _features(model: Any, config: StudentConfig, size: tuple[int, int]) -> list[torch.Tensor]:
    """Return every feature map [1, D, rows, columns] that the model gives for one blank image of `size`."""
    embedding = getattr(getattr(model, "patch_embed", None), "proj", None)
    patch = getattr(embedding, "stride", (1, 1))
    if any(pixels < 1 or pixels % side for pixels, side in zip(size, patch, strict=True)):
        raise ConfigError(
            f"The image size must be a multiple of the patch size {patch[0]} of {config.name}, got "
            f"{_by(size)}: the rest of the image would not be seen, and maps would not lie where their words are. "
            f"Near ones are {_near(size[0], patch[0])}."
        )
    was_training = model.training
    try:
        with torch.no_grad():
            features: list[torch.Tensor] = model.eval().forward_intermediates(
                torch.zeros(1, 3, *size), output_fmt="NCHW", intermediates_only=True
            )
    except (AssertionError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        own = tuple(model.pretrained_cfg["input_size"][1:])
        sized = "" if size == own else f"its own size, {_by(own)} pixels (no `image_size`), "
        raise ConfigError(
            f"{config.name} cannot give features of {_by(size)} pixels with {dict(config.kwargs)}: {_reason(error)}. "
            f"Try {sized}{'no `student_arg`, ' if config.kwargs else ''}or another student."
        ) from error
    finally:
        model.train(was_training)
    if not features or any(feature.ndim != 4 for feature in features):
        raise ConfigError(
            f"{config.name} cannot serve as a student: its features are not maps [B, channels, rows, columns], so "
            "the teacher's maps cannot be laid over them. Choose another student."
        )
    return features


def _by(size: Sequence[int]) -> str:
    return " by ".join(map(str, size))


def _near(pixels: int, patch: int) -> str:
    below = max(pixels // patch, 1) * patch
    return f"{below} and {below + patch}"


def pair_layers(taps: Sequence[Tap], layer_depths: Sequence[float]) -> tuple[int, ...]:
    """Return for each tap the teacher layer of nearest relative depth (the deeper of two equally near)."""
    return tuple(
        min(range(len(layer_depths)), key=lambda layer: (abs(layer_depths[layer] - tap.depth), -layer)) for tap in taps
    )


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGE_SIZE = 224


@runtime_checkable
class TapModel(Protocol):
    """A network whose features can be tapped. It must be an `nn.Module` too.

    Optional attributes: `mean` and `std` of each colour, by which images in [0, 1] are normalised (ImageNet's where
    they are absent), and `image_size`, pixels a side (224 where it is absent).

    Attributes:
        tap_channels: channels of each feature map that `forward_taps` gives.
        tap_reductions: input pixels per cell of each.
        num_features: channels of the last one, whose mean over the cells is the pooled feature.
    """

    tap_channels: Sequence[int]
    tap_reductions: Sequence[int]
    num_features: int

    def forward_taps(self, images: Tensor, /) -> Sequence[Tensor]:
        """Return feature maps [B, channels, rows, columns], shallow to deep, of normalised images [B, 3, H, W]."""


class TapBackbone(nn.Module):
    """A `TapModel` with the methods of timm that a student calls.

    Args:
        model: the network.

    Raises:
        ConfigError: it is no `nn.Module`, or its attributes contradict each other.
    """

    def __init__(self, model: TapModel) -> None:
        super().__init__()
        channels, reductions = list(model.tap_channels), list(model.tap_reductions)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"A backbone must be an nn.Module, got {type(model).__name__}.")
        if not channels or len(channels) != len(reductions) or model.num_features != channels[-1]:
            raise ConfigError(
                f"{type(model).__name__} must have as many tap_channels as tap_reductions, and num_features channels "
                f"in the last one, got {channels}, {reductions} and {model.num_features}."
            )
        self.model: Any = model
        self.num_features = model.num_features
        size = int(getattr(model, "image_size", _IMAGE_SIZE))
        self.pretrained_cfg = {
            "mean": tuple(getattr(model, "mean", _IMAGENET_MEAN)),
            "std": tuple(getattr(model, "std", _IMAGENET_STD)),
            "input_size": (3, size, size),
        }
        self.feature_info = [
            {"module": "model", "num_chs": width, "reduction": reduction}
            for width, reduction in zip(channels, reductions, strict=True)
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | None = None,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the last feature map, and the chosen ones; or these alone."""
        features = list(self.model.forward_taps(x))
        chosen = features if indices is None else [features[index] for index in indices]
        return chosen if intermediates_only else (features[-1], chosen)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map."""
        last: Tensor = self.model.forward_taps(x)[-1]
        return last

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Return the pooled features [B, num_features]."""
        return features.mean((2, 3))


def as_backbone(model: nn.Module) -> Any:
    """Return a module of the user's as a student's backbone: a timm model as it is, a `TapModel` with timm's methods.

    Raises:
        ConfigError: it is neither.
    """
    if hasattr(model, "forward_intermediates"):
        return model
    if isinstance(model, TapModel):
        return TapBackbone(model)
    raise ConfigError(
        f"A backbone must be a timm model with forward_intermediates, or have forward_taps, tap_channels, "
        f"tap_reductions and num_features (see TapModel), got {type(model).__name__}."
    )
