"""The term `logits`: the student's class logits follow the teacher's zero-shot ones (DESIGN section 5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import TargetStore, ZeroShot


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
