"""Classes as text queries, and the presence scores of classes that a student with text queries gives without a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import ConfigError, LFIError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.students import Student, TextQueries
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.zero_shot import readable_names
from lfi_pipeline.training.data import Size, unchanged_image


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
                f"{scored.path}, and it holds no embeddings of classes. Extract it again, with `text='prompts'`."
            )
        prompts = torch.from_numpy(scored.zero_shot.embeddings).float()
        for i in without:
            found[i] = prompts[i]
    return ClassQueries(
        torch.stack([embedding for embedding in found if embedding is not None]),
        tuple(name for i, name in enumerate(classes) if i not in set(without)),
        tuple(classes[i] for i in without),
    )


_BATCH = 64
_AT_ONCE = 2**25
"""Numbers in the largest tensor of a tap: 128 MiB. More classes at once are cut into chunks."""


class CachedImages(TorchDataset[Tensor | LFIError]):
    """Whole images of a cache, uint8 [3, H, W]; one that cannot be read, or has changed, is its error."""

    def __init__(self, store: TargetStore, positions: npt.NDArray[np.int64], size: Size) -> None:
        self.store, self.positions, self.size = store, positions, size
        # Columns are read once here, before workers are forked.
        self.paths, self.checksums = store.index.paths, store.index.image_crc32c

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Tensor | LFIError:
        position = int(self.positions[number])
        try:
            image = unchanged_image(self.store, position, self.paths[position], int(self.checksums[position]))
        except LFIError as error:
            return error
        return torch.from_numpy(view_image(image, WHOLE, self.size))


@torch.no_grad()
def presence_logits(
    student: Student,
    queries: Tensor,
    store: TargetStore,
    positions: npt.NDArray[np.int64],
    *,
    workers: int = 0,
    at_once: int | None = None,
) -> Tensor:
    """Return for every image and query the logit of being in the image, fp32 [S, C] on the CPU.

    Queries do not see one another, so it makes no difference how many are put at once.

    Args:
        student: in mode `eval`, with text queries and their presence readout.
        queries: text embeddings [C, E].
        store: cache whose images are scored.
        positions: of the S images in it.
        workers: loader processes.
        at_once: queries at a time; None: as many as memory is meant for.

    Raises:
        ImageReadError, CorruptTargetsError: an image cannot be read, or is not the one that the teacher saw.
    """
    assert isinstance(student.queries, TextQueries)
    device = next(student.parameters()).device
    queries = queries.to(device)
    images = CachedImages(store, positions, student.size)
    loader = DataLoader(images, batch_size=_BATCH, num_workers=workers, collate_fn=_stacked)
    parts = []
    for batch in progress_bar(loader, desc="zero-shot", unit="batch", delay=2):
        if isinstance(batch, LFIError):
            raise batch
        features = student(batch.to(device), with_taps=True).taps
        step = at_once or _queries_at_once(student, features)
        words = (queries[i : i + step].expand(len(batch), -1, -1) for i in range(0, len(queries), step))
        logits = [student.queries.presence_scores(student.queries(chunk, features)) for chunk in words]
        parts.append(torch.cat(logits, 1).cpu())
    return torch.cat(parts)


def _stacked(images: Sequence[Tensor | LFIError]) -> Tensor | LFIError:
    errors = [image for image in images if isinstance(image, LFIError)]
    return errors[0] if errors else torch.stack([image for image in images if isinstance(image, Tensor)])


def _queries_at_once(student: Student, features: Sequence[Tensor]) -> int:
    """As many as keep a tap's folded queries [B, heads, M, D] and scores [B, heads, M, N] within `_AT_ONCE`."""
    assert isinstance(student.queries, TextQueries)
    blocks = zip(features, student.queries.blocks, strict=True)
    of_one = max(len(x) * int(block.heads) * max(x.shape[1:]) for x, block in blocks)
    return max(1, _AT_ONCE // of_one)
