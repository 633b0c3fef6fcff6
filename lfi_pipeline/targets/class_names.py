"""Which text embedding seeds the query of a class, and which words of a cache name one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.targets.store import TargetStore
from lfi_pipeline.targets.zero_shot import readable_names

if TYPE_CHECKING:
    from torch import Tensor


def canonical(name: str) -> str:
    """Return a name as it is compared: lower case, "_" and any white space as one space."""
    return " ".join(name.replace("_", " ").lower().split())


def classes_of_words(words: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return for each word the class that it names, int64 [V]; -1 for a word that names none.

    Of several classes of one name the first is meant: they are seeded alike, so their queries are the same.
    """
    import torch  # what only reads and writes caches does without

    places = {canonical(name): place for place, name in reversed(list(enumerate(classes)))}
    return torch.tensor([places.get(canonical(word), -1) for word in words], dtype=torch.long)


def class_embeddings(store: TargetStore) -> Tensor:
    """Return the text embedding that seeds the query of each class of a cache, fp32 [K, E].

    A class whose name is a word of the cache takes the word's embedding, so that its query is the one which the word's
    maps teach. Another takes its embedding in the teacher's zero-shot classifier: of the same text tower and space,
    but of whole prompts.

    Raises:
        ConfigError: no classes, or one with neither embedding.
        CorruptTargetsError: stored embeddings are damaged.
    """
    import torch

    classes = store.spec.dataset.classes
    if not classes:
        raise ConfigError(f"A query head needs classes, and {store.spec.dataset.name} has none. Choose head 'linear'.")
    words = {canonical(word): place for place, word in reversed(list(enumerate(store.vocabulary.words)))}
    own = torch.from_numpy(store.vocabulary.embeddings).float()
    places = [words.get(canonical(name)) for name in readable_names(classes)]
    missing = [k for k, place in enumerate(places) if place is None]
    if not missing:
        return own[torch.tensor(places)]
    if store.zero_shot is None:
        raise ConfigError(
            f"A query head needs the text embedding of every class name; {store.path} holds none of {len(missing)} of "
            f"{len(classes)} classes, {classes[missing[0]]!r} the first. Extract it again with this release, or choose "
            "head 'linear'."
        )
    found = torch.from_numpy(store.zero_shot.embeddings).float().clone()
    for k, place in enumerate(places):
        if place is not None:
            found[k] = own[place]
    return found
