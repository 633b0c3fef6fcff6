"""torchvision's Mask R-CNN on a student's backbone (He, Gkioxari, Dollár, Girshick, "Mask R-CNN", ICCV 2017).

Anchors and heads are the paper's, with settings that follow from the strides and the size of the images, so that small
images get small anchors and fewer regions. At 512 pixels and more, and width 256, they are those of the paper.

Backbones with maps of several strides get a feature pyramid network (Lin et al., "Feature Pyramid Networks for Object
Detection", CVPR 2017). Backbones with maps of one stride, such as plain vision transformers, get the simple feature
pyramid of Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022,
section 3: every level is made of the last map alone. Both norm each convolution over its channels, as the latter does.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.misc import Conv2dNormActivation
from torchvision.ops.poolers import initLevelMapper

from lfi_pipeline.core.errors import ConfigError

ANCHOR_STRIDES = 8
"""Side of an anchor in strides of its level, as in the feature pyramid networks' paper."""
_FINEST_STRIDE = 4  # of a hierarchical backbone: stems at stride 2 hold no more than edges
_SCALES = (0.25, 0.5, 1.0, 2.0)  # of the simple feature pyramid, in patches


class Pyramid(nn.Module):
    """Backbone and neck.

    Attributes:
        strides: pixels per cell of each level, ascending.
        out_channels: width of every level.
        levels: names of the levels, as `forward` gives them.
    """

    def __init__(self, backbone: Any, indices: Sequence[int], neck: nn.Module, strides: Sequence[int], width: int):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.indices, self.strides, self.out_channels = list(indices), tuple(strides), width
        self.levels = tuple(map(str, range(len(self.strides))))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return level -> features [B, `out_channels`, H / stride, W / stride] of normalised images [B, 3, H, W]."""
        maps = self.backbone.forward_intermediates(
            images, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return OrderedDict(zip(self.levels, self.neck(maps), strict=True))


class SimpleFeaturePyramid(nn.Module):
    """Levels of several strides from one map.

    Args:
        channels: of the map.
        width: of every level.
        scales: strides of the levels in cells of the map, among 1/4, 1/2, 1 and 2.
    """

    def __init__(self, channels: int, width: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(channels, width, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of the last of `maps`."""
        return [stage(maps[-1]) for stage in self.stages]


class HierarchicalPyramid(nn.Module):
    """torchvision's feature pyramid network over a list of maps, and coarser levels by skipping cells."""

    def __init__(self, channels: Sequence[int], width: int, coarser: int) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(list(channels), width, norm_layer=LayerNorm2d)
        self.coarser = coarser

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one level for each of `maps`, fine to coarse, then the coarser ones."""
        levels = list(self.network(OrderedDict(zip(map(str, range(len(maps))), maps, strict=True))).values())
        for _ in range(self.coarser):
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels


def build_pyramid(backbone: Any, size: int, width: int) -> Pyramid:
    """Return `backbone` with a neck for square images.

    Args:
        backbone: a timm model with `forward_intermediates`; its position embeddings are resampled where `size` is new
            to it.
        size: pixels a side, a multiple of the strides of all maps.
        width: channels of every level.

    Raises:
        ConfigError: the backbone cannot take this size.
    """
    patch = _patch(backbone)
    if size % patch:
        raise ConfigError(
            f"The side of images for detection must be a multiple of the backbone's patch size, {patch}, got {size}: "
            f"the rest would not be seen. Choose another size, such as {max(size // patch, 1) * patch}."
        )
    grids, channels = _maps(backbone, size)
    strides = [size // grid for grid in grids]
    if any(grid * stride != size for grid, stride in zip(grids, strides, strict=True)):
        raise ConfigError(
            f"The side of images for detection must be a multiple of all strides of the backbone, got {size}: its maps "
            f"have {', '.join(map(str, grids))} cells a side. Choose another size, such as {_near(size)}."
        )
    last = {stride: index for index, stride in enumerate(strides)}  # the deepest map of each stride
    if len(last) == 1:
        own = strides[-1]
        scales = [s for s in _SCALES if own * s >= 1 and (own * s).is_integer() and size % (own * s) == 0]
        neck: nn.Module = SimpleFeaturePyramid(channels[-1], width, scales)
        return Pyramid(backbone, [len(strides) - 1], neck, [int(own * scale) for scale in scales], width)
    finest = min(_FINEST_STRIDE, sorted(last)[-2])
    chosen = sorted(stride for stride in last if stride >= finest)
    indices = [last[stride] for stride in chosen]
    if indices != sorted(indices) or any(2 * fine != coarse for fine, coarse in itertools.pairwise(chosen)):
        raise ConfigError(
            f"The strides of the backbone's maps must double with depth to feed a feature pyramid, got {strides} at "
            f"{size} pixels. Choose another size, such as {_near(size)}, or another backbone."
        )
    coarser = int(chosen[-1] * ANCHOR_STRIDES < size and size % (2 * chosen[-1]) == 0)
    neck = HierarchicalPyramid([channels[index] for index in indices], width, coarser)
    return Pyramid(backbone, indices, neck, [*chosen, *(2 * chosen[-1],) * coarser], width)


def _stage(channels: int, width: int, scale: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    if scale == 2:
        layers = [nn.MaxPool2d(2)]
    elif scale < 1:
        half = max(channels // 2, 1)
        layers = [nn.ConvTranspose2d(channels, half, 2, stride=2)]
        channels = half
        if scale == 0.25:
            quarter = max(half // 2, 1)
            layers += [LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, stride=2)]
            channels = quarter
    for kernel, inputs in ((1, channels), (3, width)):
        layers.append(Conv2dNormActivation(inputs, width, kernel, norm_layer=LayerNorm2d, activation_layer=None))
    return nn.Sequential(*layers)


def _maps(backbone: Any, size: int) -> tuple[list[int], list[int]]:
    """Return cells a side and channels of every map that the backbone gives for square images of `size`."""
    device = next(backbone.parameters()).device
    mode = backbone.training
    try:
        if _native_size(backbone) not in (None, (size, size)) and hasattr(backbone, "set_input_size"):
            backbone.set_input_size(img_size=(size, size))
        with torch.no_grad():
            maps = backbone.eval().forward_intermediates(
                torch.zeros(1, 3, size, size, device=device), norm=True, output_fmt="NCHW", intermediates_only=True
            )
    except (AssertionError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"This backbone cannot take images of {size} by {size} pixels for detection ({reason}). Choose a multiple "
            "of its patch size, or the size that it was trained at."
        ) from error
    finally:
        backbone.train(mode)
    return [int(each.shape[-1]) for each in maps], [int(each.shape[1]) for each in maps]


def _patch(backbone: Any) -> int:
    return int(getattr(getattr(getattr(backbone, "patch_embed", None), "proj", None), "stride", (1,))[0])


def _native_size(backbone: Any) -> tuple[int, int] | None:
    """Return the size that the patch embedding is fixed to; None where there is none."""
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return tuple(size) if size is not None else None


def _near(size: int) -> str:
    return f"{max(size // 32, 1) * 32} or {(size // 32 + 1) * 32}"


DETECTIONS = 100
"""A picture, at most: what COCO scores."""
_RATIOS = (0.5, 1.0, 2.0)
_LEAST_SCORE = 0.01  # below torchvision's 0.05: a short fine-tuning over many classes gives low scores, and AP ranks
_BOX_CELLS = 7
_MASK_CELLS = (7, 14)  # fewest, most: a mask is twice as fine, and finer than the image's pixels is of no use
_MASK_LAYERS = 4


def build_detector(backbone: Any, *, classes: int, size: int, width: int) -> Any:
    """Return a Mask R-CNN, a module as torchvision documents it.

    Images of any size are scaled to `size` along their longer side, normalised as the backbone was trained, and filled
    up to a square; boxes and masks come back in pixels of the original.

    Args:
        backbone: a timm model; becomes part of the detector.
        classes: of objects; label 0 is added for the background.
        size: pixels a side, a multiple of the backbone's strides.
        width: channels of the pyramid and of the mask head; the box head has four times as many.

    Raises:
        ConfigError: as `build_pyramid`.
    """
    pyramid = build_pyramid(backbone, size, width)
    regions = regions_of(size)
    proposals = {"train": 4 * regions, "test": 2 * regions}
    mask_cells = min(_MASK_CELLS[1], max(_MASK_CELLS[0], size // 16))
    hidden = 4 * width
    return MaskRCNN(
        pyramid,
        min_size=size,
        max_size=size,
        size_divisible=size,
        image_mean=list(backbone.pretrained_cfg["mean"]),
        image_std=list(backbone.pretrained_cfg["std"]),
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in anchor_sides(pyramid.strides, size)), (_RATIOS,) * len(pyramid.strides)
        ),
        **{f"rpn_pre_nms_top_n_{phase}": count for phase, count in proposals.items()},
        **{f"rpn_post_nms_top_n_{phase}": count for phase, count in proposals.items()},
        rpn_batch_size_per_image=min(256, 2 * regions),
        box_roi_pool=_pool(pyramid, _BOX_CELLS),
        box_head=TwoMLPHead(width * _BOX_CELLS**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        box_score_thresh=_LEAST_SCORE,
        box_detections_per_img=DETECTIONS,
        box_batch_size_per_image=regions,
        mask_roi_pool=_pool(pyramid, mask_cells),
        mask_head=MaskRCNNHeads(width, (width,) * _MASK_LAYERS, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
    )


def regions_of(size: int) -> int:
    """Return how many regions of an image of `size` pixels a side the heads are trained on; a quarter may be objects."""
    return min(512, max(32, size))


def anchor_sides(strides: tuple[int, ...], size: int) -> list[int]:
    """Return the side of each level's anchors in pixels: as many strides on each level, at most `ANCHOR_STRIDES`.

    On small images so many strides of the coarsest level would reach over the edge: there its anchors are as large as
    the image, and those of the other levels smaller in proportion, but never less than two strides.
    """
    factor = min(ANCHOR_STRIDES, max(2.0, size / strides[-1]))
    return [round(factor * stride) for stride in strides]


def _pool(pyramid: Pyramid, cells: int) -> Any:
    """Return the RoI pooling with the pyramid's strides; torchvision would guess powers of two from the images."""
    pool = MultiScaleRoIAlign(list(pyramid.levels), output_size=cells, sampling_ratio=2)
    pool.scales = [1 / stride for stride in pyramid.strides]
    octaves = [round(math.log2(stride)) for stride in pyramid.strides]
    pool.map_levels = initLevelMapper(octaves[0], octaves[-1])
    return pool
