"""Classes as text queries: which embedding each is seeded with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.zero_shot import readable_names


@dataclass(frozen=True, slots=True)
class ClassQueries:
    """Text embeddings of C classes, as the student's queries take them.

    Attributes:
        embeddings: fp32 [C, E].
        as_words: classes seeded as words were in training, by the embedding of the name alone.
        as_prompts: classes seeded by the mean embedding of the prompts with the name.
    """

    embeddings: Tensor
    as_words: tuple[str, ...]
    as_prompts: tuple[str, ...]


def class_queries(scored: TargetStore, trained: TargetStore) -> ClassQueries:
    """Return the queries of the classes of `scored`, which the teacher of `trained` has read.

    In training a query is seeded by the embedding of a word on its own. So a class takes that of its name where either
    vocabulary holds it (`_` is read as a space, capitals do not count). Another class takes the embedding that makes it
    a class of the teacher's zero-shot classifier: unit vectors of the same text tower and space, but of whole prompts.

    Raises:
        ConfigError: the teachers differ, there are no classes, or a class has neither embedding.
    """
    ours, theirs = trained.spec.teacher, scored.spec.teacher
    if ours != theirs:
        raise ConfigError(
            f"The targets must be of the teacher whose words the student knows, {ours.name}:{ours.tag} "
            f"(weights {ours.weights_sha256[:8]}); {scored.path} is of {theirs.name}:{theirs.tag} (weights "
            f"{theirs.weights_sha256[:8]})."
        )
    classes = scored.spec.dataset.classes
    if not classes:
        raise ConfigError(f"Zero-shot scores need a data set with classes, and {scored.spec.dataset.name} has none.")
    words: dict[str, Tensor] = {}
    for store in (trained, scored):  # the later has the last say
        embeddings = torch.from_numpy(store.vocabulary.embeddings).float()
        words |= {word.lower(): embeddings[i] for i, word in enumerate(store.vocabulary.words)}
    found = [words.get(name.lower()) for name in readable_names(classes)]
    without = [i for i, embedding in enumerate(found) if embedding is None]
    if without:
        if scored.zero_shot is None:
            raise ConfigError(
                f"{len(without)} of {len(classes)} classes, {classes[without[0]]!r} the first, are no words of "
                f"{scored.path}, and it holds no embeddings of classes. Extract it again, with --text prompts."
            )
        prompts = torch.from_numpy(scored.zero_shot.embeddings).float()
        for i in without:
            found[i] = prompts[i]
    return ClassQueries(
        torch.stack([embedding for embedding in found if embedding is not None]),
        tuple(name for i, name in enumerate(classes) if i not in set(without)),
        tuple(classes[i] for i in without),
    )
