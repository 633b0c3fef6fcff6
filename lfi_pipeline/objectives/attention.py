"""Let a linear head look where the teacher looks: nothing is added to the student, in training or after it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.objectives.term import StepContext, Term
from lfi_pipeline.students import Features, Student, pair_layers
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.zero_shot import classes_of_words
from lfi_pipeline.training.data import MAPS

_TOLERANCE = 1e-3  # of a pooling that is the mean over cells


class AttentionTerm(Term):
    """KL from the teacher's maps to where a linear head takes its answer from, in nats, mean over images.

    Of a vision transformer with a class token, what is compared is the last block's attention from that token to the
    patches, each head's, with the mean of the maps of the image's class words:

        mean_h KL(T || softmax(q_cls k^T / sqrt(d))_h),   T = sum_m w_m T_m / sum_m w_m

    Of a network that pools by the mean over cells, it is what each cell adds to the logit of the word's class k (the
    class activation map of Zhou et al., CVPR 2016):

        sum_m w_m KL(T_m || softmax over cells(w_k . x)) / sum_m w_m

    Both forms are this project's choice.

    Args:
        tokens: which of the two.
        layer: teacher layer of the maps.
        classes: int64 [V], the class that each word of the vocabulary names; -1 for none.
    """

    reads = frozenset({MAPS})
    reads_taps: ClassVar[bool] = True

    def __init__(self, student: Student, *, tokens: bool, layer: int, classes: Tensor) -> None:
        super().__init__()
        self.tokens, self.layer = tokens, layer
        self.register_buffer("classes", classes, persistent=False)
        self._entered: Tensor | None = None
        if tokens:
            block = student.backbone.blocks[-1].attn
            # of this very module: a copy that averages the weights has the hook too
            block.register_forward_pre_hook(lambda module, args: self._keep(args[0]) if module is block else None)

    classes: Tensor

    def _keep(self, x: Tensor) -> None:
        self._entered = x

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        classes = classes_of_words(store.vocabulary.words, store.spec.dataset.classes)
        layer = pair_layers(student.taps[-1:], [each.depth for each in store.spec.layers])[0]
        if student.head is None:
            raise ConfigError("The objective attention teaches a linear head, and this student has none.")
        attention: Any = getattr(next(iter(reversed(getattr(student.backbone, "blocks", []))), None), "attn", None)
        prefix = int(getattr(student.backbone, "num_prefix_tokens", 0))
        if getattr(student.backbone, "global_pool", None) == "token" and prefix and hasattr(attention, "qkv"):
            return cls(student, tokens=True, layer=layer, classes=classes)
        if not _pools_by_mean(student):
            raise ConfigError(
                "The objective attention needs a vision transformer with a class token, or a network whose pooled "
                "features are the mean of its last feature map. Choose another student, or head 'queries'."
            )
        return cls(student, tokens=False, layer=layer, classes=classes)

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        assert context.cut is not None
        cut = context.cut.on(features.grids[-1])
        maps, weights, words = cut.maps[:, self.layer], cut.kept[:, self.layer], cut.words
        named = torch.where(words >= 0, self.classes[words.clamp_min(0)], -1)
        if (self.classes >= 0).any():
            weights = weights * (named >= 0)
        total = weights.sum(1)
        shares = weights / total.clamp_min(1e-6)[:, None]
        if self.tokens:
            target = (shares[..., None] * maps).sum(1)
            divergence = _kl(target[:, None], self._attention(student, maps.shape[-1])).mean(1)
        else:
            assert student.head is not None
            per_class = student.head.weight[named.clamp_min(0)].to(features.taps[-1].dtype)  # [B, M, D]
            scores = (per_class @ features.taps[-1].transpose(1, 2)).float()  # [B, M, N]
            divergence = (shares * _kl(maps, scores.log_softmax(-1))).sum(1)
        return torch.where(total > 0, divergence, 0).mean() * context.share

    def _attention(self, student: Student, patches: int) -> Tensor:
        """Log of the last block's attention from the class token to the patches, renormalised: [B, H, N]."""
        assert self._entered is not None
        x, attention = self._entered, student.backbone.blocks[-1].attn
        self._entered = None
        width, heads = x.shape[-1], attention.num_heads
        weight, bias = attention.qkv.weight, attention.qkv.bias
        rows = weight.shape[0] // 3

        def projected(tokens: Tensor, part: int) -> Tensor:
            own = slice(part * rows, (part + 1) * rows)
            found = F.linear(tokens, weight[own], None if bias is None else bias[own])
            return found.view(*found.shape[:2], heads, rows // heads).transpose(1, 2)

        assert weight.shape[1] == width
        query = attention.q_norm(projected(x[:, :1], 0))
        keys = attention.k_norm(projected(x[:, -patches:], 1))
        scores: Tensor = (query @ keys.mT * attention.scale)[:, :, 0]
        return scores.float().log_softmax(-1)


def _kl(target: Tensor, log_found: Tensor) -> Tensor:
    """KL over the last axis; 0 for a target that is all zero."""
    return torch.xlogy(target, target).sum(-1) - (target * log_found).sum(-1)


@torch.no_grad()
def _pools_by_mean(student: Student) -> bool:
    was_training = student.training
    images = torch.randint(0, 256, (1, 3, *student.size), generator=torch.Generator().manual_seed(0)).to(student.mean)
    features = student.eval()(images, with_taps=True)
    student.train(was_training)
    mean = features.taps[-1].mean(1)
    if mean.shape != features.pooled.shape:
        return False
    return bool((mean - features.pooled).abs().max() <= _TOLERANCE * features.pooled.abs().max())
