"""A network of one's own as the backbone of a student: what it must offer, and how timm's methods are made of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError

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
