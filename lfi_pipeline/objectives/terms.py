"""Base class and inputs of loss terms, and the terms embedding, logits, presence and attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.mixing import mixed_loss
from lfi_pipeline.students import Features, Student, TextQueries
from lfi_pipeline.targets import TargetStore, ZeroShot
from lfi_pipeline.targets.vocabulary import class_weights, image_logits
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
