"""Result-oriented terms: the teacher's image embedding, its zero-shot class logits, and which words an image holds."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.objectives.term import StepContext, Term, mean_over_images
from lfi_pipeline.students import Features, Student, TextQueries
from lfi_pipeline.targets import TargetStore, ZeroShot
from lfi_pipeline.targets.zero_shot import class_weights, image_logits
from lfi_pipeline.training.data import IMAGE_EMBEDDING, MAPS


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
    found = store.zero_shot
    if found is None:
        raise ConfigError(
            f"The objective logits needs the teacher's class embeddings, which {store.path} was written without, by an "
            "earlier release. Extract it again into another directory, or choose another objective."
        )
    return found


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
    wanted = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    found = F.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


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
        found = features.logits

        def divergence(wanted: Tensor) -> Tensor:
            return logit_distillation(found, wanted, temperature=_TEMPERATURE)

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
