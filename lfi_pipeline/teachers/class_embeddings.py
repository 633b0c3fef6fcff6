"""The teacher as a zero-shot classifier of a data set's classes (see `lfi_pipeline.targets.zero_shot`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from lfi_pipeline.errors import TeacherError
from lfi_pipeline.targets import Fault, TargetStore, ZeroShot
from lfi_pipeline.targets.zero_shot import SCALE_TOLERANCE, readable_names
from lfi_pipeline.teachers.teacher import Teacher

TEXTS_AT_ONCE = 4096
"""Texts whose embeddings are in memory at a time: ImageNet with CLIP's 80 templates has 80,000."""
COSINE = 0.999
"""Least cosine of a recomputed and a stored class embedding: the text tower's precision rounds."""


def class_embeddings(teacher: Teacher, classes: Sequence[str], templates: Sequence[str]) -> ZeroShot:
    """Embed every class: the mean over the templates of the unit text embeddings, made unit again.

    Args:
        teacher: that reads the texts.
        classes: one or more names; "_" is read as a space.
        templates: one or more, each with one `{}`.

    Raises:
        TeacherError: an embedding is not finite, or those of a class cancel out.
    """
    names, parts = readable_names(classes), []
    step = max(1, TEXTS_AT_ONCE // len(templates))
    for first in tqdm(range(0, len(names), step), desc="classes", unit="batch", delay=2):
        chosen = names[first : first + step]
        texts = [template.format(name) for name in chosen for template in templates]
        each = F.normalize(teacher.embed_texts(texts).float(), dim=-1).view(len(chosen), len(templates), -1)
        parts.append(F.normalize(each.mean(1), dim=-1))
    found = torch.cat(parts)
    if not torch.allclose(found.norm(dim=-1), torch.ones(len(found)), atol=1e-3):
        bad = names[int((found.norm(dim=-1) - 1).abs().nan_to_num(nan=2.0).argmax())]
        raise TeacherError(
            f"Text embeddings of a class must be finite and not cancel out; those of {bad!r} in {len(templates)} "
            "template(s) do not give a direction. Check the teacher's weights, or give other prompts."
        )
    return ZeroShot(
        names=tuple(classes),
        templates=tuple(templates),
        logit_scale=teacher.logit_scale,
        embeddings=found.numpy().astype(np.float16),
    )


def class_faults(store: TargetStore, teacher: Teacher, *, share: float, seed: int | None) -> Iterator[Fault]:
    """Yield a fault for each class, of a random share of them, whose stored embedding is not the teacher's.

    Args:
        store: a cache whose files are intact; one without class embeddings has none of these faults.
        teacher: that the spec names.
        share: of the classes, in (0, 1]; at least one is embedded again.
        seed: of the choice; None chooses others each time.
    """
    stored = store.zero_shot
    if stored is None:
        return
    count = max(1, round(share * len(stored.names)))
    chosen = np.sort(np.random.default_rng(seed).choice(len(stored.names), count, replace=False))
    made = class_embeddings(teacher, [stored.names[i] for i in chosen.tolist()], stored.templates)
    remedy = "Extract into another directory."
    if not math.isclose(made.logit_scale, stored.logit_scale, rel_tol=SCALE_TOLERANCE):
        message = f"The logit scale is {stored.logit_scale:.6g}, the teacher's is {made.logit_scale:.6g}. {remedy}"
        yield Fault(shard=None, file="classes.json", sample=None, message=message)
    ours = F.normalize(torch.from_numpy(stored.embeddings[chosen]).float(), dim=-1)
    cosines = (ours * torch.from_numpy(made.embeddings).float()).sum(-1)
    for name, cosine in zip(made.names, cosines.tolist(), strict=True):
        if not cosine > COSINE:
            message = f"The cosine of class {name} and the teacher's is {cosine:.4f}, below {COSINE}. {remedy}"
            yield Fault(shard=None, file="classes.npy", sample=None, message=message)
