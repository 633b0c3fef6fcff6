"""Where the losses are: the task's, and of those that teach where to look, KL from the teacher's maps to the student's."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.objectives.terms import StepContext, Term
from lfi_pipeline.students import Features, Student, pair_layers
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.vocabulary import classes_of_words, named_classes
from lfi_pipeline.training.config import ASL, BCE
from lfi_pipeline.training.data import MAPS
from lfi_pipeline.training.validate import CLASSIFICATION


def task_loss(task: str, logits: Tensor, labels: Tensor, multi_label_loss: str = BCE) -> Tensor:
    """Loss of each image [B]: cross-entropy, the mean binary cross-entropy of its classes, or their asymmetric loss.

    Args:
        task: `classification` or `multi-label`.
        logits: [B, C].
        labels: fp32 [B, C] in [0, 1]; of `classification`, rows sum to 1.
        multi_label_loss: `bce` or `asl`, of multi-label data.
    """
    logits = logits.float()
    if task == CLASSIFICATION:
        return F.cross_entropy(logits, labels, reduction="none")
    if multi_label_loss == ASL:
        return asymmetric_loss(logits, labels).sum(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


_MARGIN, _FOCUS = 0.05, 4  # of negatives; positives have neither, as the paper trains COCO


def asymmetric_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Asymmetric loss of each class, [B, C] (Ridnik et al., ICCV 2021, equations 5 to 7; arXiv 2009.14119).

    An absent class counts by its probability less a margin, to the power of 4: what is surely absent counts nothing. No
    gradient goes through that factor, as in the authors' own training.

    Args:
        logits: fp32 [B, C].
        labels: fp32 [B, C] in [0, 1].
    """
    absent = (1 - logits.sigmoid() + _MARGIN).clamp(max=1)  # 1 - p_m
    with torch.no_grad():
        likely = logits.sigmoid() * labels + absent * (1 - labels)
        factor = (1 - likely) ** (_FOCUS * (1 - labels))
    return -factor * (labels * F.logsigmoid(logits) + (1 - labels) * absent.log())


_LEAST_MASS = 1e-6


class InteractionTerm(Term):
    """Mean over taps of L_t = sum_m w_m mean_h KL(T_t,m || P_t,h,m) / sum_m w_m, in nats (training/README.md).

    Both sums run over the words of the whole batch, however many pieces it is computed in.
    """

    reads = frozenset({MAPS})

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls()

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        assert features.interaction is not None
        assert context.mass is not None
        sums = torch.stack([kl.sum() for kl in features.interaction.kl])
        return (sums / context.mass.clamp_min(_LEAST_MASS)).mean()


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
        self._names_classes = bool((classes >= 0).any())  # looked at here: in a step it would wait for the device
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
        named = named_classes(words, self.classes)
        if self._names_classes:
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
            projection = F.linear(tokens, weight[own], None if bias is None else bias[own])
            return projection.view(*projection.shape[:2], heads, rows // heads).transpose(1, 2)

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
