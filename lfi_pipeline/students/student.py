"""A student: timm backbone, task head, and (while it learns from interactions) queries at the taps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lfi_pipeline.students.backbone import StudentConfig, Tap, build_backbone, choose_taps, input_size
from lfi_pipeline.students.queries import InteractionQueries, QueryConfig


@dataclass(frozen=True, slots=True)
class Features:
    """What one forward pass gives.

    Attributes:
        pooled: [B, D].
        logits: [B, classes].
        taps: per tap, patch tokens [B, N_t, D_t] in raster order.
        grids: per tap, (rows, columns) with rows * columns = N_t.
    """

    pooled: Tensor
    logits: Tensor
    taps: list[Tensor]
    grids: list[tuple[int, int]]


class Student(nn.Module):
    """Backbone, linear head and the parts that only training needs.

    Args:
        config: which backbone, and its taps.
        classes: width of the head.
        embedding_dim: E, of the teacher.
        queries: shape of the interaction queries; None builds none (objectives without maps).
        image_embedding: add a projection of the pooled features to the teacher's E (objective `embedding`).

    Raises:
        UnknownNameError, ConfigError: as `build_backbone` and `choose_taps`.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        classes: int,
        embedding_dim: int,
        queries: QueryConfig | None = None,
        image_embedding: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(config)
        self.size = input_size(self.backbone, config)
        self.taps: tuple[Tap, ...] = choose_taps(self.backbone, config)
        with torch.no_grad():  # some families widen between features and pooled output (`head_hidden_size`)
            width = int(self._pool(self.backbone.eval().forward_features(torch.zeros(1, 3, *self.size))).shape[1])
        self.backbone.train()
        self.head = nn.Linear(width, classes)
        self.queries = InteractionQueries(embedding_dim, [tap.width for tap in self.taps], queries) if queries else None
        self.to_embedding = nn.Linear(width, embedding_dim) if image_embedding else None
        mean, std = self.backbone.pretrained_cfg["mean"], self.backbone.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor, *, with_taps: bool = True) -> Features:
        """Run the backbone on uint8 images [B, 3, H, W] of `size`."""
        x = (images.float() - self.mean) / self.std
        if with_taps:
            final, maps = self.backbone.forward_intermediates(
                x, indices=[tap.index for tap in self.taps], output_fmt="NCHW"
            )
        else:
            final, maps = self.backbone.forward_features(x), []
        pooled = self._pool(final)
        return Features(
            pooled=pooled,
            logits=self.head(pooled),
            taps=[f.flatten(2).transpose(1, 2) for f in maps],
            grids=[(int(f.shape[2]), int(f.shape[3])) for f in maps],
        )

    def _pool(self, final: Tensor) -> Tensor:
        pooled: Tensor = self.backbone.forward_head(final, pre_logits=True)
        return pooled

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the backbone and head, which are kept, and of the queries and projection, which are not."""

        def count(module: nn.Module | None) -> int:
            return sum(p.numel() for p in module.parameters()) if module is not None else 0

        return {
            "backbone": count(self.backbone),
            "head": count(self.head),
            "queries": count(self.queries),
            "projection": count(self.to_embedding),
        }
