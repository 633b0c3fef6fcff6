"""torchvision's Mask R-CNN on a student's backbone (He, Gkioxari, Dollár, Girshick, "Mask R-CNN", ICCV 2017).

Anchors and heads are the paper's, with settings that follow from the strides and the size of the images, so that small
images get small anchors and fewer regions. At 512 pixels and more, and width 256, they are those of the paper.
"""

from __future__ import annotations

import math
from typing import Any

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from lfi_pipeline.evaluation.detection.pyramid import ANCHOR_STRIDES, Pyramid, build_pyramid

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
    regions = min(512, max(32, size))
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


def anchor_sides(strides: tuple[int, ...], size: int) -> list[int]:
    """Return the side of each level's anchors in pixels: as many strides on each level, at most `ANCHOR_STRIDES`.

    On small images so many strides of the coarsest level would reach over the edge: there its anchors are as large as
    the image, and those of the other levels smaller in proportion, but never less than two strides.
    """
    factor = min(ANCHOR_STRIDES, max(2.0, size / strides[-1]))
    return [round(factor * stride) for stride in strides]


def _pool(pyramid: Pyramid, cells: int) -> Any:
    """Return the pooling of regions, told the strides; torchvision would guess powers of two from the images."""
    pool = MultiScaleRoIAlign(list(pyramid.levels), output_size=cells, sampling_ratio=2)
    pool.scales = [1 / stride for stride in pyramid.strides]
    octaves = [round(math.log2(stride)) for stride in pyramid.strides]
    pool.map_levels = initLevelMapper(octaves[0], octaves[-1])
    return pool
