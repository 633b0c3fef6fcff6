"""What stage one is about to store: the samples in order, and the words with their embeddings."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.core.io import read_whole
from lfi_pipeline.targets.codec import npy_bytes, parse_npy

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
