"""The teacher's zero-shot classifier of the data set's classes: what gives its class logits where it is not in memory.

As CLIP does it (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
section 3.1.4): a class is the mean over the prompt templates of the unit text embeddings of its name, made unit again.
The stored image embedding of a sample is that of the same, contrastive, space, so

    logits = logit_scale * cosine(image_embedding, class embedding)

A bias that some teachers add (SigLIP) is the same for all classes, and is left out: no softmax sees it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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

UNIT_TOLERANCE = 1e-2
"""How far the length of a class embedding may be from 1: float16 rounds."""
EMBEDDING_TOLERANCE = 1e-2
"""L2 distance below which two embeddings of a class count as the same (devices round)."""
SCALE_TOLERANCE = 1e-3
"""The same for two logit scales, relative."""


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
