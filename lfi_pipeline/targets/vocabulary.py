"""The words of a cache with their embeddings, the samples it is planned for, and the teacher's zero-shot classifier."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.core.io import read_whole
from lfi_pipeline.targets.codec import npy_bytes, parse_npy

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_TOLERANCE = 1e-2
"""Relative L2 distance below which two text embeddings of a word count as the same (devices round)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSample:
    """One row of the index, known before the teacher runs.

    Attributes:
        key: unique and stable within the split.
        path: POSIX path of the image below the data root.
        labels: indices into the spec's classes.
        domain: visual domain, "" where there is none.
        caption: the text that the words come from.
    """

    key: str
    path: str
    labels: tuple[int, ...]
    domain: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """Each word once, with the teacher's text embedding of it.

    Attributes:
        words: sorted and unique; word ids index into it.
        embeddings: float16 [V, E] (the reader hands them out as float32).
    """

    words: tuple[str, ...]
    embeddings: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        if list(self.words) != sorted(set(self.words)):
            raise ConfigError("vocabulary.words must be sorted and unique.")
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.words):
            raise ConfigError(
                f"vocabulary.embeddings must be [{len(self.words)}, E] for its {len(self.words)} words, "
                f"got {self.embeddings.shape}."
            )
        if not np.isfinite(self.embeddings).all():
            raise ConfigError("vocabulary.embeddings must be finite, got NaN or infinity.")

    def differences(self, other: Vocabulary) -> list[str]:
        """Name what differs, one line each; embeddings within `EMBEDDING_TOLERANCE` count as the same."""
        if self.words != other.words:
            lost = sorted(set(self.words) ^ set(other.words))
            counts = f"{len(self.words)} words != {len(other.words)} words"
            return [f"vocabulary.words: {counts}; in one only: {', '.join(lost[:5])}"]
        ours, theirs = self.embeddings.astype(np.float32), other.embeddings.astype(np.float32)
        if ours.shape != theirs.shape:
            return [f"vocabulary.embeddings: shape {ours.shape} != {theirs.shape}"]
        distance = np.linalg.norm(ours - theirs, axis=1) > EMBEDDING_TOLERANCE * np.linalg.norm(theirs, axis=1)
        if distance.any():
            return [f"vocabulary.embeddings: {int(distance.sum())} of {len(ours)} words differ"]
        return []

    def to_files(self) -> dict[str, bytes]:
        """Content of `vocabulary.json` and `vocabulary.npy` (float16)."""
        words = json.dumps(self.words, ensure_ascii=False, indent=0) + "\n"
        return {"vocabulary.json": words.encode(), "vocabulary.npy": npy_bytes(self.embeddings)}

    @classmethod
    def load(cls, root: Path, embedding_dim: int) -> Vocabulary:
        """Read the vocabulary of a cache, embeddings [V, embedding_dim] as float32.

        Raises:
            CorruptTargetsError: a file is missing or cannot be read.
        """
        try:
            words = json.loads(read_whole(root / "vocabulary.json"))
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError("vocabulary.json must be a list of words.")
            "".join(words).encode()  # JSON can hold halves of characters, which no file of ours does
            array = parse_npy(read_whole(root / "vocabulary.npy"), (len(words), embedding_dim), "vocabulary.npy")
            return cls(words=tuple(words), embeddings=array.astype(np.float32))
        except (ValueError, RecursionError) as error:
            raise CorruptTargetsError(f"The vocabulary of {root} cannot be read: {error}") from error


def plan_digests(plan: Iterable[PlannedSample]) -> dict[str, str]:
    """sha256 of each column of the plan, so that a differing plan can be told by column; 8 bytes a row are kept.

    Args:
        plan: may be iterated more than once.

    Raises:
        ConfigError: two samples share a key.
    """
    columns = {name: hashlib.sha256() for name in ("keys", "paths", "labels", "domains", "captions")}
    short = array("Q")
    for sample in plan:
        short.append(_short(sample.key))
        values = (sample.key, sample.path, sample.labels, sample.domain, sample.caption)
        for digest, value in zip(columns.values(), values, strict=True):
            digest.update(json.dumps(value).encode() + b"\n")
    _require_unique_keys(plan, np.frombuffer(short, dtype=np.uint64))
    return {name: digest.hexdigest() for name, digest in columns.items()}


def _short(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), sys.byteorder)


def _require_unique_keys(plan: Iterable[PlannedSample], short: npt.NDArray[np.uint64]) -> None:
    ordered = np.sort(short)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    seen: set[str] = set()
    for sample in plan:  # equal short hashes need not be equal keys
        if _short(sample.key) in repeated:
            if sample.key in seen:
                raise ConfigError(f"plan must have unique keys; {sample.key!r} stands in it twice.")
            seen.add(sample.key)


UNIT_TOLERANCE = 1e-2
"""How far the length of a class embedding may be from 1: float16 rounds."""
SCALE_TOLERANCE = 1e-3
"""Relative difference below which two logit scales count as the same."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ZeroShot:
    """The teacher as a classifier.

    Attributes:
        names: of the C classes, as in the spec.
        templates: with one `{}`, that a name was put into.
        logit_scale: what cosines are multiplied by: the teacher's inverse temperature.
        embeddings: float16 [C, E], unit length but for rounding (the reader hands them out as float32).
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    logit_scale: float
    embeddings: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        if not self.names or not self.templates:
            raise ConfigError("A zero-shot classifier must have one or more classes and templates.")
        if not math.isfinite(self.logit_scale) or self.logit_scale <= 0:
            raise ConfigError(f"logit_scale must be positive and finite, got {self.logit_scale}.")
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.names):
            raise ConfigError(
                f"Class embeddings must be [{len(self.names)}, E] for {len(self.names)} classes, "
                f"got {self.embeddings.shape}."
            )
        finite = bool(np.isfinite(self.embeddings).all())
        lengths = np.linalg.norm(self.embeddings.astype(np.float32), axis=1) if finite else np.zeros(1)
        if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
            raise ConfigError("Class embeddings must be unit vectors.")

    def differences(self, other: ZeroShot) -> list[str]:
        """Name what differs, one line each (ours first); what rounding explains counts as the same."""
        lines = [
            f"classes.{field}: {mine!r} != {theirs!r}"
            for field, mine, theirs in (
                ("names", self.names, other.names),
                ("templates", self.templates, other.templates),
            )
            if mine != theirs
        ]
        if not math.isclose(self.logit_scale, other.logit_scale, rel_tol=SCALE_TOLERANCE):
            lines.append(f"classes.logit_scale: {self.logit_scale!r} != {other.logit_scale!r}")
        if lines:
            return lines
        ours, theirs_ = self.embeddings.astype(np.float32), other.embeddings.astype(np.float32)
        if ours.shape != theirs_.shape:
            return [f"classes.embeddings: shape {ours.shape} != {theirs_.shape}"]
        far = np.linalg.norm(ours - theirs_, axis=1) > EMBEDDING_TOLERANCE
        return [f"classes.embeddings: {int(far.sum())} of {len(ours)} classes differ"] if far.any() else []

    def to_files(self) -> dict[str, bytes]:
        """Content of `classes.json` and `classes.npy` (float16)."""
        body = {"names": self.names, "templates": self.templates, "logit_scale": self.logit_scale}
        text = json.dumps(body, ensure_ascii=False, indent=0, allow_nan=False) + "\n"
        return {"classes.json": text.encode(), "classes.npy": npy_bytes(self.embeddings)}

    @classmethod
    def load(cls, root: Path, classes: tuple[str, ...], embedding_dim: int) -> ZeroShot:
        """Read the classifier of a cache of these classes, embeddings [C, embedding_dim] as float32.

        Raises:
            CorruptTargetsError: a file is missing, cannot be read, or is of other classes.
        """
        try:
            names, templates, scale = _parse(json.loads(read_whole(root / "classes.json")))
            if names != classes:
                raise ValueError("classes.json must have the classes of the spec.")
            array = parse_npy(read_whole(root / "classes.npy"), (len(names), embedding_dim), "classes.npy")
            return cls(names=names, templates=templates, logit_scale=scale, embeddings=array.astype(np.float32))
        except (ValueError, OverflowError, RecursionError) as error:
            raise CorruptTargetsError(f"The class embeddings of {root} cannot be read: {error}") from error


def teacher_logits(image_embedding: Tensor, zero_shot: ZeroShot) -> Tensor:
    """Return the teacher's logits of every class for B images, fp32 [B, C].

    Args:
        image_embedding: [B, E] of any floating type, as cached; of any length: cosines are taken.
        zero_shot: of the same cache. Its embeddings are copied to the device at every call; a training step takes
            `class_weights` once, and `image_logits`.
    """
    return image_logits(image_embedding, class_weights(zero_shot).to(image_embedding.device))


def readable_names(classes: Sequence[str]) -> list[str]:
    """Return class names as a text has them: "_" stands for a space."""
    return [name.replace("_", " ") for name in classes]


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


def named_classes(words: Tensor, class_of_word: Tensor) -> Tensor:
    """Return for numbers of words the class that each names, int64 of their shape; -1 for none, and for padding.

    Args:
        words: int64, numbers in a vocabulary of V words; -1 for padding.
        class_of_word: int64 [V], as of `classes_of_words`.
    """
    import torch  # what only reads and writes caches does without

    return torch.where(words >= 0, class_of_word[words.clamp_min(0)], -1)


def class_weights(zero_shot: ZeroShot) -> Tensor:
    """Return logit_scale times the unit embedding of each class, fp32 [C, E] on the CPU."""
    import torch  # what only reads and writes caches does without

    weights = torch.from_numpy(np.asarray(zero_shot.embeddings, dtype=np.float32))
    return zero_shot.logit_scale * torch.nn.functional.normalize(weights, dim=-1)


def image_logits(image_embedding: Tensor, weights: Tensor) -> Tensor:
    """Return logits [B, C] of image embeddings [B, E], with `class_weights` [C, E] on the same device."""
    from torch.nn import functional

    return functional.normalize(image_embedding.float(), dim=-1) @ weights.T


def _parse(body: Any) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    match body:
        case {"names": list(names), "templates": list(templates), "logit_scale": float(scale)} if len(body) == 3:
            if all(isinstance(text, str) for text in (*names, *templates)):
                "".join([*names, *templates]).encode()  # JSON can hold halves of characters, no file of ours does
                return tuple(names), tuple(templates), scale
    raise ValueError("classes.json must hold names, templates and logit_scale.")
