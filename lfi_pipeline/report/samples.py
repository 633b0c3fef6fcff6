"""Load the gallery of a run: validation images with the teacher's and the student's maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from lfi_pipeline.core.checksums import read_checked
from lfi_pipeline.core.errors import RunError
from lfi_pipeline.core.schema import Fields

_MOST_BYTES = 1 << 30  # of a gallery's tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class GallerySample:
    """One validation image with its maps.

    Attributes:
        words: the M words that have a map.
        image: uint8 [H, W, 3].
        teacher: float32 [M, gh, gw], each map sums to 1.
        student: float32 [T, M, gh', gw'], None for a run without queries.
        teacher_correct: per word, whether the teacher's peak lies in the object's mask; None without a mask.
        student_correct: the same per tap and word; empty for a run without queries.
        cam: float32 [M, gh'', gw''], class maps (Grad-CAM) of the words that name a class, zeros for others; None for a
            student without class scores.
        cam_correct: as `teacher_correct`, None for a word that names no class; empty where there is no `cam`.
    """

    key: str
    caption: str
    domain: str
    words: tuple[str, ...]
    image: npt.NDArray[np.uint8]
    teacher: npt.NDArray[np.float32]
    student: npt.NDArray[np.float32] | None
    teacher_correct: tuple[bool | None, ...]
    student_correct: tuple[tuple[bool | None, ...], ...]
    cam: npt.NDArray[np.float32] | None = None
    cam_correct: tuple[bool | None, ...] = ()


def load_samples(path: Path) -> tuple[GallerySample, ...]:
    """Load `gallery.json` and `gallery.safetensors` of the run directory `path`.

    Raises:
        RunError: one of them is unreadable, or a field or tensor is not what it should be.
    """
    source = path / "gallery.safetensors"
    try:
        tensors = load(read_checked(source, max_bytes=_MOST_BYTES))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{source} must be a readable safetensors file, got: {error}.") from error

    def take(name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
        array = tensors.get(name)
        found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        fits = array is not None and np.issubdtype(array.dtype, dtype) and len(array.shape) == len(shape)
        if array is None or not fits or not array.size:
            raise RunError(f"{source}: tensor {name!r} must be {dtype.__name__} {list(shape)}, got {found}.")
        if any(want is not None and want != have for want, have in zip(shape, array.shape, strict=True)):
            raise RunError(f"{source}: tensor {name!r} must have shape {list(shape)}, got {found}.")
        return array

    samples = []
    for i, fields in enumerate(Fields.read(path / "gallery.json").children("samples")):
        words = fields.texts("words")
        if not words:
            raise fields.wrong("words", "a list of at least one word")
        student_correct = fields.verdict_rows("student_correct", len(words))
        student = None
        if f"student_{i}" in tensors:
            shape = (len(student_correct) or None, len(words), None, None)
            student = take(f"student_{i}", np.floating, shape).astype(np.float32)
        cam, cam_correct = None, fields.verdicts("cam_correct", len(words)) if f"cam_{i}" in tensors else ()
        if f"cam_{i}" in tensors:
            cam = take(f"cam_{i}", np.floating, (len(words), None, None)).astype(np.float32)
        samples.append(
            GallerySample(
                key=fields.text("key"),
                caption=fields.text("caption"),
                domain=fields.text_or("domain", ""),
                words=words,
                image=take(f"image_{i}", np.uint8, (None, None, 3)),
                teacher=take(f"teacher_{i}", np.floating, (len(words), None, None)).astype(np.float32),
                student=student,
                teacher_correct=fields.verdicts("teacher_correct", len(words)),
                student_correct=student_correct if student is not None else (),
                cam=cam,
                # A class map of nothing points nowhere.
                cam_correct=tuple(
                    mark if cam is not None and cam[word].any() else None for word, mark in enumerate(cam_correct)
                ),
            )
        )
    return tuple(samples)
