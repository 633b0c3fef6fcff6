"""Protocol `zero-shot`: class names as queries of the student, beside the teacher's own zero-shot scores.

Open-vocabulary classification as CLIP does it (Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", ICML 2021, section 3.1): no image of the data set is learned from, a class is known by its name
alone. What scores a class here is this project's own: the presence readout of a query seeded by the teacher's embedding
of the name. The teacher's zero-shot classifier on the same images is the ceiling.

The student needs the readout `text` or the presence term; the scored data set needs a cache by the same teacher,
for the embeddings of its classes and of its images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lfi_pipeline.core.errors import ConfigError, LFIError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.evaluation.config import EvaluationConfig, ZeroShotConfig
from lfi_pipeline.evaluation.protocols import ProtocolResult, load, settings_of
from lfi_pipeline.students.query_head import TextQueries
from lfi_pipeline.targets import TargetStore, ZeroShot, teacher_logits
from lfi_pipeline.targets.verify import CHUNK, evenly_spaced
from lfi_pipeline.targets.vocabulary import canonical
from lfi_pipeline.training.data import Size, unchanged_image
from lfi_pipeline.training.sampler import training_positions
from lfi_pipeline.training.validate import mean_average_precision, ranks, top_k_accuracy

if TYPE_CHECKING:
    from lfi_pipeline.students import Student
    from lfi_pipeline.training.learner import LoadedRun


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
    """Return the text embeddings that seed the queries of the classes of `scored`, by the teacher of `trained`.

    In training a query is seeded by the embedding of a word on its own. So a class takes that of its name where either
    vocabulary holds it (`canonical` compares them). Another class takes the embedding that makes it a class of the
    teacher's zero-shot classifier: unit vectors of the same text tower and space, but of whole prompts.

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
        first_of_name = reversed(list(enumerate(store.vocabulary.words)))  # the first has the last say, as in training
        words |= {canonical(word): embeddings[i] for i, word in first_of_name}
    class_embeddings = [words.get(canonical(name)) for name in classes]
    without = [i for i, embedding in enumerate(class_embeddings) if embedding is None]
    if without:
        if scored.zero_shot is None:
            raise ConfigError(
                f"{len(without)} of {len(classes)} classes, {classes[without[0]]!r} the first, are no words of "
                f"{scored.path}, and it holds no embeddings of classes. Extract it again, with `text='prompts'`."
            )
        prompts = torch.from_numpy(scored.zero_shot.embeddings).float()
        for i in without:
            class_embeddings[i] = prompts[i]
    return ClassQueries(
        torch.stack([embedding for embedding in class_embeddings if embedding is not None]),
        tuple(name for i, name in enumerate(classes) if i not in set(without)),
        tuple(classes[i] for i in without),
    )


_BATCH = 64
_AT_ONCE = 2**25
"""Numbers in the largest tensor of a tap: 128 MiB. More classes at once are cut into chunks."""


class CachedImages(TorchDataset[Tensor | LFIError]):
    """Whole images of a cache, uint8 [3, H, W]; for one that cannot be read or has changed, the error is returned."""

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
        at_once: queries at a time; None: as many as fit the memory bound `_AT_ONCE`.

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


LOOKED_AT = 16384
"""Samples that are scored at most, evenly spaced: seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotScore:
    """Zero-shot score of the teacher on images of the cache.

    Attributes:
        metric: `accuracy` (top 1) where every image has one label, else `mAP` over the classes that occur, of the
            softmax over classes: logits of different images cannot be compared (see `logit_distillation`).
        value: in [0, 1].
        chance: what a guess would have.
        images: that it is of.
    """

    metric: Literal["accuracy", "mAP"]
    value: float
    chance: float
    images: int

    @property
    def near_chance(self) -> bool:
        """Whether the score is below twice chance, or below halfway from chance to 1 where that is less."""
        return self.value < min(2 * self.chance, 0.5 + self.chance / 2)


def teacher_zero_shot(store: TargetStore, most: int = LOOKED_AT) -> ZeroShotScore | None:
    """Score the teacher's zero-shot logits against the labels, on at most `most` samples that are not quarantined.

    Returns:
        None where the cache holds no class embeddings, or the samples have no labels.
    """
    positions = evenly_spaced(store.usable, most)
    labels = [store.index.labels[position] for position in positions.tolist()]
    zero_shot = store.zero_shot
    if zero_shot is None or not any(labels):
        return None
    shares = teacher_shares(store, zero_shot, positions)
    truth = label_matrix(labels, shares.shape[1])
    if all(len(each) == 1 for each in labels):
        hits = shares.argmax(1) == truth.argmax(1)
        chance = _chance(truth, one_label=True)["top1"]
        return ZeroShotScore(metric="accuracy", value=float(hits.float().mean()), chance=chance, images=len(labels))
    value = mean_average_precision(shares, truth)
    if value is None:
        return None
    return ZeroShotScore(metric="mAP", value=value, chance=_chance(truth, one_label=False)["map"], images=len(labels))


def teacher_shares(store: TargetStore, zero_shot: ZeroShot, positions: npt.NDArray[np.int64]) -> Tensor:
    """Return the softmax over classes of the teacher's zero-shot logits, fp32 [S, C], from stored embeddings."""
    parts = []
    for first in range(0, len(positions), CHUNK):
        embedding = store.read_many(positions[first : first + CHUNK]).image_embedding
        parts.append(teacher_logits(torch.from_numpy(embedding), zero_shot))
    return torch.cat(parts).softmax(1)


def label_matrix(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Return fp32 [S, classes], 1 where an image has the label."""
    truth = torch.zeros(len(labels), classes)
    for row, each in enumerate(labels):
        truth[row, list(each)] = 1
    return truth


def zero_shot(run: Path, common: EvaluationConfig, config: ZeroShotConfig) -> ProtocolResult:
    """Score `run` on every image of `config.targets` that is not quarantined.

    Top-1 and top-5 accuracy where every image has one label, else mAP over the classes that occur. Accuracy compares
    the classes of an image, mAP the images for a class, so for mAP the scores of different images must be comparable.
    The presence term trains each logit against one threshold for all images, so its sigmoid is; the teacher's cosines
    are not (see `objectives.terms.logit_distillation`), and take the softmax over classes. Details have the
    student's mAP by the softmax as well.

    Details also say what the classes' queries were made of, chance (a uniform guess; for mAP the mean share of images
    that hold a class), scores by domain, and how much of the data set the run was trained on.

    Raises:
        ConfigError: the run cannot score words, `targets` is of another teacher, or has no labels.
        TargetsError: `targets` is no complete cache.
        ImageReadError, CorruptTargetsError: an image is missing, or is not the one that the teacher saw.
    """
    began = time.monotonic()
    loaded = load(run, common)
    _require_presence(loaded)
    store = _open_scored(loaded, common, config)
    queries = class_queries(store, loaded.store)
    positions = store.usable
    labels = [store.index.labels[position] for position in positions.tolist()]
    if not any(labels):
        raise ConfigError(f"Zero-shot scores need labels, and the images of {store.path} have none.")
    truth = label_matrix(labels, len(store.spec.dataset.classes))
    logits = presence_logits(loaded.student, queries.embeddings, store, positions, workers=common.workers)
    teacher = teacher_shares(store, store.zero_shot, positions) if store.zero_shot is not None else None
    one_label = all(len(each) == 1 for each in labels)
    everything = torch.ones(len(truth), dtype=torch.bool)
    shares, domains = logits.sigmoid(), _rows_of_domains(store, positions)
    scores = _student_and_teacher(shares, teacher, truth, everything, one_label)
    details: dict[str, Any] = {
        "images": len(truth),
        "classes": truth.shape[1],
        "class_queries": {"words": len(queries.as_words), "prompts": len(queries.as_prompts)},
        "chance": _chance(truth, one_label),
        "domains": {
            domain: _student_and_teacher(shares, teacher, truth, rows, one_label) | {"images": int(rows.sum())}
            for domain, rows in domains.items()
        },
        "trained_on": _trained_on(loaded, store, positions),
    }
    if not one_label:
        details["map_by_softmax"] = mean_average_precision(logits.softmax(1), truth)
    return ProtocolResult(
        protocol="zero-shot",
        settings=settings_of(store.spec.dataset, common, targets=store.spec.fingerprint),
        scores=scores,
        details=details,
        seconds=time.monotonic() - began,
    )


def _require_presence(loaded: LoadedRun) -> None:
    queries = loaded.student.queries
    if not isinstance(queries, TextQueries) or queries.presence is None:
        raise ConfigError(
            "Zero-shot scores need a student that scores words: head 'queries' with the readout 'text', or the "
            f"presence term. {loaded.path} has head {loaded.config.head!r} and objective {loaded.config.objective!r}."
        )


def _open_scored(loaded: LoadedRun, common: EvaluationConfig, config: ZeroShotConfig) -> TargetStore:
    store = TargetStore.open(config.targets, data_root=config.scored_root)
    same = store.spec.dataset.name == loaded.store.spec.dataset.name
    if config.scored_root is None and common.data_root is not None and same:
        store = TargetStore.open(config.targets, data_root=common.data_root)
    return store


def _student_and_teacher(
    student: Tensor, teacher: Tensor | None, truth: Tensor, rows: Tensor, one_label: bool
) -> dict[str, float | None]:
    """Scores of the images `rows`, of both; the teacher's are None where the cache holds no classifier."""
    return _scores(student, truth, rows, one_label, "") | _scores(teacher, truth, rows, one_label, "teacher_")


def _scores(
    scores: Tensor | None, truth: Tensor, rows: Tensor, one_label: bool, prefix: str
) -> dict[str, float | None]:
    counted = ranks(truth.shape[1])
    names = tuple(f"top{k}" for k in counted) if one_label else ("map",)
    if scores is None or not truth[rows].any():
        return {prefix + name: None for name in names}
    scores, truth = scores[rows], truth[rows]
    if one_label:
        return {f"{prefix}top{k}": top_k_accuracy(scores, truth, k) for k in counted}
    return {f"{prefix}map": mean_average_precision(scores, truth)}


def _chance(truth: Tensor, one_label: bool) -> dict[str, float]:
    images, classes = truth.shape
    if one_label:
        return {f"top{k}": k / classes for k in ranks(classes)}
    positives = truth.sum(0)
    return {"map": float((positives[positives > 0] / images).mean())}


def _rows_of_domains(store: TargetStore, positions: npt.NDArray[np.int64]) -> dict[str, Tensor]:
    """Which images are of each domain, bool [S]; empty for a data set without domains."""
    domains = [store.index.domains[position] for position in positions.tolist()]
    return {name: torch.tensor([domain == name for domain in domains]) for name in sorted(set(domains)) if name}


def _trained_on(loaded: LoadedRun, store: TargetStore, positions: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return how much of the scored data the run was trained on. It is zero-shot with no image, of another data set.

    Images are compared by the crc32c of their bytes. A class counts as labelled where the run's task has it, as a word
    where the vocabulary of its cache has it.
    """
    ours, theirs = loaded.store.spec.dataset, store.spec.dataset
    learned = training_positions(loaded.store, loaded.config.data.hold_out)
    seen = np.isin(store.index.image_crc32c[positions], loaded.store.index.image_crc32c[learned])
    names, labelled, words = (
        [canonical(name) for name in name_list]
        for name_list in (theirs.classes, ours.classes, loaded.store.vocabulary.words)
    )
    domains = {store.index.domains[position] for position in positions.tolist()}
    same = ours.name == theirs.name
    return {
        "images": int(seen.sum()),
        "same_data_set": same,
        "same_split": same and ours.split == theirs.split,
        "labelled_classes": len(set(names) & set(labelled)),
        "classes_as_words": len(set(names) & set(words)),
        "domains": sorted(domains & set(loaded.record["seen_domains"])) if same else [],
    }
