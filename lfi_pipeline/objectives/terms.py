"""Base class and inputs of loss terms, and the terms embedding, logits, presence and attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.mixing import mixed_loss
from lfi_pipeline.students import Features, Student, TextQueries, pair_layers
from lfi_pipeline.targets import TargetStore, ZeroShot
from lfi_pipeline.targets.vocabulary import class_weights, classes_of_words, image_logits
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS, Batch
from lfi_pipeline.training.maps import MapResampler


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """One piece of a step's batch, as a term sees it.

    Attributes:
        batch: B examples.
        share: weight that a mean over this piece has in the step: B over the images of the whole batch, times the
            number of processes (whose gradients are averaged). 1 where the piece is the whole.
        mass: [taps], total weight of the words at each tap over the whole batch, divided by the number of processes.
        cut: the target maps of these examples; None where no term reads maps.
        present: [B, M'], 1 for a word of the image, 0 for one that was drawn from the vocabulary; NaN for neither.
    """

    batch: Batch
    share: float
    mass: Tensor | None = None
    present: Tensor | None = None
    cut: MapResampler | None = None


class Term(nn.Module, ABC):
    """One term: a scalar for each piece of a batch. Pieces add up to the value of the whole batch."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Targets it needs, of `data.MAPS` and `data.IMAGE_EMBEDDING`."""

    reads_taps: ClassVar[bool] = False
    """Whether it needs `Features.taps` where no queries do."""

    @classmethod
    @abstractmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        """Make the term for a student. Raises ConfigError where the cache does not hold what it needs."""

    @abstractmethod
    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        """Return the loss of a piece, scalar, already weighted by its share of the batch."""


def mean_over_images(loss_of: Callable[[Tensor], Tensor], target: Tensor, batch: Batch) -> Tensor:
    """Mean of `loss_of(target)` [B] over images; of mixed ones it counts against both targets, by their shares.

    Args:
        loss_of: from targets [B, ...] to the loss of each image.
        target: what the teacher said of the unmixed images; it never saw the mixtures.
        batch: the examples.
    """
    return (loss_of(target) if batch.mix is None else mixed_loss(loss_of, target, batch.mix)).mean()


class EmbeddingTerm(Term):
    """1 - cosine between the projected pooled features and the teacher's image embedding, mean; in [0, 2].

    Args:
        width: D of the pooled features.
        embedding_dim: E of the teacher.
    """

    reads = frozenset({IMAGE_EMBEDDING})

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, embedding_dim)

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls(student.pooled_width, store.spec.embedding_dim)

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        batch = context.batch
        assert batch.image_embedding is not None
        projected = self.projection(features.pooled).float()

        def distance(target: Tensor) -> Tensor:
            return 1 - F.cosine_similarity(projected, target, dim=-1)

        return mean_over_images(distance, batch.image_embedding, batch) * context.share


def require_zero_shot(store: TargetStore) -> ZeroShot:
    """Return the teacher's zero-shot classifier that a cache holds.

    Raises:
        ConfigError: the data set has no classes, or the cache was written without class embeddings.
        CorruptTargetsError: the stored classifier is damaged.
    """
    dataset = store.spec.dataset
    if not dataset.classes:
        raise ConfigError(
            f"The objective logits needs a data set with classes; {store.path} is of {dataset.name}, which has none. "
            "Choose another objective, such as lfi or embedding."
        )
    classifier = store.zero_shot
    if classifier is None:
        raise ConfigError(
            f"The objective logits needs the teacher's class embeddings, which {store.path} was written without, by an "
            "earlier release. Extract it again into another directory, or choose another objective."
        )
    return classifier


def logit_distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of each image, nats, fp32 [B].

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: T^2 keeps the gradient's
    size the same for all T.

    Multi-label data take the same form, although their task is scored by a sigmoid per class. A zero-shot logit says
    how much better a class fits the image than the others do: its level differs from image to image and has no zero,
    so that no sigmoid of it is a probability. Softmax over the classes on both sides compares what is known, the
    differences between classes; a constant added to an image's logits changes nothing, and the task's own loss is
    left to set their level. This project's choice. Measured with the embedded teacher on 200 scenes: the level of an
    image's logits varies by 10, logits of one image by 5; mAP of the logits themselves 6 %, which is chance, of their
    softmax 47 %. That softmax is hot on one class (0.7 nats, where 2.6 classes are there), so T well above 1 suits
    several labels.

    Args:
        student: logits [B, C].
        teacher: logits [B, C], as `lfi_pipeline.targets.teacher_logits` gives them; no gradient reaches them.
        temperature: T, positive; larger makes both sides softer.

    Raises:
        ConfigError: T is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}.")
    teacher_log_probs = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    student_log_probs = F.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(-1)


_TEMPERATURE = 4.0  # the zero-shot probabilities are nearly one-hot at 1; not tuned


class LogitsTerm(Term):
    """KL from the teacher's zero-shot class probabilities to the student's, mean, in nats (see `logit_distillation`).

    The teacher's logits are made of the cached image embedding and the cached text embeddings of the classes.
    """

    reads = frozenset({IMAGE_EMBEDDING})

    def __init__(self, zero_shot: ZeroShot) -> None:
        super().__init__()
        self.register_buffer("weights", class_weights(zero_shot), persistent=False)

    weights: Tensor

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls(require_zero_shot(store))

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        batch = context.batch
        assert batch.image_embedding is not None
        assert features.logits is not None
        logits = features.logits

        def divergence(wanted: Tensor) -> Tensor:
            return logit_distillation(logits, wanted, temperature=_TEMPERATURE)

        return mean_over_images(divergence, image_logits(batch.image_embedding, self.weights), batch) * context.share


class PresenceTerm(Term):
    """Binary cross-entropy of the presence score, mean over the words of an image, then over images.

    Words of the image whose mass lies outside the crop count as neither. Words drawn have no map, and do not enter the
    interaction term. This term and its form are this project's choice.
    """

    reads = frozenset({MAPS})

    @classmethod
    def build(cls, student: Student, store: TargetStore, task: str) -> Self:
        return cls()

    def forward(self, student: Student, features: Features, context: StepContext) -> Tensor:
        assert isinstance(student.queries, TextQueries)
        assert features.interaction is not None
        assert context.present is not None
        scores = student.queries.presence_scores(features.interaction)
        known = ~context.present.isnan()
        losses = F.binary_cross_entropy_with_logits(scores, context.present.nan_to_num(), reduction="none")
        per_image = (losses * known).sum(1) / known.sum(1).clamp_min(1)
        return per_image.mean() * context.share


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
        named = torch.where(words >= 0, self.classes[words.clamp_min(0)], -1)
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
