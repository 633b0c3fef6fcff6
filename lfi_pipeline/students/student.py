"""A student: timm backbone, task head, and the interaction queries at its taps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.runtime import require_compiler
from lfi_pipeline.students.backbone import Tap, TapBackbone, as_backbone, build_backbone, choose_taps, input_size
from lfi_pipeline.students.config import HEADS, QueryConfig, StudentConfig
from lfi_pipeline.students.query_head import QueryHead, QueryOutput, Supervision, TextQueries


@dataclass(frozen=True, slots=True)
class Features:
    """Output of one forward pass.

    Attributes:
        pooled: [B, D].
        logits: [B, classes]; None for a student without a head.
        taps: per tap, patch tokens [B, N_t, D_t] in raster order; empty unless asked for.
        grids: per tap, (rows, columns) with rows * columns = N_t; empty as `taps` is.
        interaction: output of the queries; None where none ran.
    """

    pooled: Tensor
    logits: Tensor | None
    taps: list[Tensor]
    grids: list[tuple[int, int]]
    interaction: QueryOutput | None


class Student(nn.Module):
    """Backbone, interaction queries at its taps, and a head.

    With the head `queries` the queries of the classes give the logits, in every forward pass. Beside a linear head,
    queries are a scaffold of training alone.

    Args:
        config: which backbone, and its taps.
        classes: number of outputs; 0 builds no head.
        embedding_dim: E, of the teacher's text embeddings.
        queries: shape of the interaction queries; None builds none (objectives without maps).
        presence: give the queries the readout that scores whether a word is in the image.
        head: one of `HEADS`; `queries` needs `queries`.
        class_embeddings: text embeddings [classes, E] of the class names, for the head `queries`; None: zeros, until
            weights are loaded.
        backbone: a module of one's own instead of timm's of `config.name`: a timm model, or a `TapModel`.

    Raises:
        UnknownNameError, ConfigError: as `build_backbone` and `choose_taps`; presence or the head `queries` without
            queries.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        classes: int,
        embedding_dim: int,
        queries: QueryConfig | None = None,
        presence: bool = False,
        head: str = "linear",
        class_embeddings: Tensor | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UnknownNameError("head", head, HEADS)
        if presence and queries is None:
            raise ConfigError("The presence term scores words: it needs queries, got none.")
        self.backbone = build_backbone(config) if backbone is None else as_backbone(backbone)
        if isinstance(self.backbone, TapBackbone) and not config.taps:  # what it offers is what it wants tapped
            config = replace(config, taps=tuple(range(len(self.backbone.feature_info))))
        self.size = input_size(self.backbone, config)
        self.taps: tuple[Tap, ...] = choose_taps(self.backbone, config)
        with torch.no_grad():  # some families widen between features and pooled output (`head_hidden_size`)
            blank = self.backbone.eval().forward_features(torch.zeros(1, 3, *self.size))
            self.pooled_width = int(self._pool(blank).shape[1])
        self.backbone.train()
        self.head = nn.Linear(self.pooled_width, classes) if classes and head == "linear" else None
        self.queries: TextQueries | None = None
        tap_widths = [tap.width for tap in self.taps]
        if head == "queries":
            if queries is None:
                raise ConfigError("The head 'queries' needs queries, got none.")
            seeds = torch.zeros(classes, embedding_dim) if class_embeddings is None else class_embeddings
            self.queries = QueryHead(seeds, tap_widths, queries, presence=presence)
        elif queries is not None:
            self.queries = TextQueries(embedding_dim, tap_widths, queries, presence=presence)
        mean, std = self.backbone.pretrained_cfg["mean"], self.backbone.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor, supervision: Supervision | None = None, *, with_taps: bool = False) -> Features:
        """Run the student on uint8 images [B, 3, H, W] of `size`.

        Args:
            images: as above.
            supervision: words and their maps, or rows that teach the classes; without it, only queries of classes run.
            with_taps: return the patch tokens of the taps, whether queries run or not.
        """
        x = self.normalised(images)
        maps: list[Tensor] = []
        runs_queries = self.queries is not None and supervision is not None
        if with_taps or runs_queries or self.query_head is not None:
            final, maps = self._tapped(x)
        else:
            final = self._untapped(x)
        features = self.answer(final, maps, supervision)
        return features if with_taps else replace(features, taps=[], grids=[])

    def _tapped(self, x: Tensor) -> tuple[Any, list[Tensor]]:
        indices = [tap.index for tap in self.taps]
        final, maps = self.backbone.forward_intermediates(x, indices=indices, output_fmt="NCHW")
        return final, maps

    def _untapped(self, x: Tensor) -> Any:
        return self.backbone.forward_features(x)

    def compile_parts(self, **options: Any) -> None:
        """Let torch compile the backbone and each block of queries, in place; weights keep their names.

        A copy of the student that is made afterwards would still run this one's backbone: copy first.

        Args:
            options: of `torch.compile`.

        Raises:
            ConfigError: the machine has no C++ compiler, which torch and Triton build with.
        """
        require_compiler()
        for name in ("_tapped", "_untapped"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False, **options))
        for block in self.queries.blocks if self.queries is not None else ():
            block.compile(dynamic=False, **options)

    def tapped(self, images: Tensor) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Return per tap the patch tokens [B, N_t, D_t] and their grid, of images as `forward` takes them."""
        x = self.normalised(images)
        maps = self.backbone.forward_intermediates(
            x, indices=[tap.index for tap in self.taps], output_fmt="NCHW", intermediates_only=True
        )
        return _tokens_and_grids(maps)

    def answer(self, final: Any, maps: Sequence[Tensor], supervision: Supervision | None = None) -> Features:
        """Return the student's output, computed from its backbone's features.

        Args:
            final: the backbone's `forward_features`.
            maps: per tap, its features [B, D_t, rows, columns]; empty where no queries run.
            supervision: as `forward`.
        """
        tokens, grids = _tokens_and_grids(maps)
        pooled = self._pool(final)
        interaction: QueryOutput | None = None
        logits: Tensor | None = self.head(pooled) if self.head is not None else None
        if self.query_head is not None and supervision is not None and supervision.words is None:
            logits, interaction = self.query_head.taught_logits(tokens, supervision)
            return Features(pooled, logits, tokens, grids, interaction)
        if self.queries is not None and supervision is not None:
            taught = supervision.targets, supervision.weights, supervision.scales, supervision.companding
            interaction = self.queries(supervision.words, tokens, *taught)
        if self.query_head is not None:
            logits = self.query_head.logits(tokens)
        return Features(pooled, logits, tokens, grids, interaction)

    @property
    def query_head(self) -> QueryHead | None:
        """The queries if they give the logits, else None."""
        return self.queries if isinstance(self.queries, QueryHead) and len(self.queries.classes) else None

    @property
    def word_head(self) -> QueryHead | None:
        """The queries if they can score any name, not only the classes, else None."""
        return self.queries if isinstance(self.queries, QueryHead) and self.queries.readout is None else None

    @property
    def classifies(self) -> bool:
        """Whether there are logits."""
        return self.head is not None or self.query_head is not None

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, 3, H, W] as the backbone takes them, fp32."""
        x = (images.float() - self.mean) / self.std
        # timm's CNNs are faster so, and their taps are tokens without a copy; a user's own module may not expect it
        return x if isinstance(self.backbone, TapBackbone) else x.contiguous(memory_format=torch.channels_last)

    def _pool(self, final: Any) -> Tensor:
        pooled: Tensor = self.backbone.forward_head(final, pre_logits=True)
        return pooled

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the backbone, of the linear head and of the queries.

        `kept_queries` says how many of the queries' stay with the student: all of the head `queries`, none of a
        scaffold.
        """

        def count(*modules: nn.Module | None) -> int:
            return sum(p.numel() for module in modules if module is not None for p in module.parameters())

        return {
            "backbone": count(self.backbone),
            "head": count(self.head),
            "queries": count(self.queries),
            "kept_queries": count(self.queries) if isinstance(self.queries, QueryHead) else 0,
        }


def _tokens_and_grids(maps: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """[B, D, rows, columns] of each tap -> its patch tokens [B, N, D] and (rows, columns)."""
    return [f.flatten(2).transpose(1, 2) for f in maps], [(int(f.shape[2]), int(f.shape[3])) for f in maps]


def merged_maps(maps: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> Tensor:
    """Return one map of each query from those of its taps, on the finest grid: fp32 [B, R, rows, columns], sums 1.

    The geometric mean over the taps: a place counts where every depth looked. The form is this project's choice.

    Args:
        maps: per tap, [B, R, N_t]; rows sum to 1.
        grids: per tap, (rows, columns).
    """
    finest = max(grids, key=math.prod)
    total: Tensor | None = None
    for each, grid in zip(maps, grids, strict=True):
        laid = each.float().view(*each.shape[:2], *grid)
        laid = laid if grid == finest else F.interpolate(laid, size=finest, mode="bilinear", align_corners=False)
        log = laid.clamp_min(1e-12).log() / len(maps)
        total = log if total is None else total + log
    assert total is not None
    return total.flatten(-2).softmax(-1).view(total.shape)
