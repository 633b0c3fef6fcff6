"""The gallery's data: each image once, maps as uint8 grids, and a first state that shows without JavaScript.

A map is drawn relative to its own peak, or to four times the uniform level where the peak is lower than that:
a map that looks everywhere stays dark instead of being stretched to full colour.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.report.groups import Group, learns_from_teacher
from lfi_pipeline.report.runs import GallerySample

FULL_AT = 4.0
"""Times the uniform level at which a map reaches full colour, where its own peak is lower."""
STILL = 64
"""Pixels across of a map drawn in advance."""
LARGEST = 384
"""Pixels across of an image in the page."""

# magma over a dimmed photograph: (position, red, green, blue, alpha)
_STOPS = (
    (0.0, 16, 16, 24, 0.42),
    (0.18, 28, 18, 54, 0.44),
    (0.36, 108, 29, 128, 0.60),
    (0.55, 183, 55, 121, 0.72),
    (0.75, 241, 96, 93, 0.80),
    (0.9, 254, 176, 120, 0.86),
    (1.0, 252, 253, 191, 0.90),
)


def ramp() -> npt.NDArray[np.uint8]:
    """The heat colours, uint8 [256, 4], red, green, blue, alpha; the page and the stills share them."""
    at = np.linspace(0.0, 1.0, 256)
    stops = np.array(_STOPS)
    channels = [np.interp(at, stops[:, 0], stops[:, c] * (255 if c == 4 else 1)) for c in range(1, 5)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def quantise(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Maps [..., gh, gw], each summing to 1 -> uint8 of the same shape, 255 at full colour."""
    cells = maps.shape[-1] * maps.shape[-2]
    safe = np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    full = np.maximum(safe.max(axis=(-2, -1), keepdims=True), FULL_AT / cells)
    quantised: npt.NDArray[np.uint8] = (safe / full * 255).round().astype(np.uint8)
    return quantised


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def encode_image(pixels: npt.NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] -> data URI: JPEG for photographs, PNG where that is the smaller."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    jpeg = _data_uri(image, "JPEG", quality=86, optimize=True)
    png = _data_uri(image, "PNG", optimize=True)
    return min(jpeg, png, key=len)


def still(grid: npt.NDArray[np.uint8]) -> str:
    """One quantised map uint8 [gh, gw] -> a small palette PNG with alpha, smoothly enlarged."""
    large = Image.fromarray(grid).resize((STILL, STILL), Image.Resampling.BICUBIC)
    colours = ramp()
    indexed = Image.frombytes("P", large.size, large.tobytes())
    indexed.putpalette(colours[:, :3].tobytes())
    return _data_uri(indexed, "PNG", transparency=colours[:, 3].tobytes(), optimize=True)


def peak(grid: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Centre of the highest cell of [gh, gw] as (x, y) in per cent of the image."""
    row, column = np.unravel_index(int(np.argmax(grid)), grid.shape)
    return (
        round(100 * (float(column) + 0.5) / grid.shape[1], 2),
        round(100 * (float(row) + 0.5) / grid.shape[0], 2),
    )


def caption_parts(caption: str, words: Sequence[str]) -> tuple[list[tuple[str, int | None]], list[tuple[str, int]]]:
    """Find the words in their caption; a word that is there twice takes the next occurrence.

    Returns:
        The caption in parts, each with the index of its word or None; and the words it does not contain.
    """
    spans: list[tuple[int, int, int]] = []
    missing: list[int] = []
    for index, word in enumerate(words):
        pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
        free = (
            m
            for m in re.finditer(pattern, caption, re.IGNORECASE)
            if all(m.end() <= start or m.start() >= end for start, end, _ in spans)
        )
        match = next(free, None) if word else None
        if match:
            spans.append((match.start(), match.end(), index))
        else:
            missing.append(index)
    parts: list[tuple[str, int | None]] = []
    at = 0
    for start, end, index in sorted(spans):
        parts += [(caption[at:start], None), (caption[start:end], index)]
        at = end
    parts.append((caption[at:], None))
    return [part for part in parts if part[0]], [(words[index], index) for index in missing]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One map over one image: its still, where it peaks, and whether that is inside the mask."""

    heat: str
    peak: tuple[float, float]
    correct: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One sample as the page first shows it; `teacher`, `student` and `cam` are None where it has no such maps."""

    number: int
    key: str
    domain: str
    caption: Sequence[tuple[str, int | None]]
    others: Sequence[tuple[str, int]]
    image: str
    aspect: str
    word: int
    words: tuple[str, ...]
    marks: tuple[bool | None, ...]
    teacher: Panel | None
    student: Panel | None
    cam: Panel | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """What the gallery's template and script need.

    Attributes:
        cards: one a sample.
        runs: names to switch between.
        taps: how many maps of a word, from shallow to deep.
        depths: of the taps, as text; empty where they are not known.
        masked: whether some peak is known to lie in a mask or beside it.
        data: what the script reads.
    """

    cards: tuple[Card, ...]
    runs: tuple[str, ...]
    taps: int
    depths: tuple[str, ...]
    masked: bool
    data: dict[str, Any]


def build_gallery(groups: Sequence[Group]) -> Gallery | None:
    """Merge the galleries of all runs: one card a sample, its image and teacher maps once; None without any.

    The first run shown is lfi's (the teacher's maps) where there is one. Of runs without queries, which have class maps
    alone, the first seed is shown.
    """
    runs = [(group, run) for group in groups for run in group.runs if run.gallery]
    if not runs:
        return None
    own = [(g, r) for g, r in runs if any(s.student is not None for s in r.gallery)]
    own.sort(key=lambda pair: not learns_from_teacher(pair[0].config))
    first_seeds = {group.label: (group, run) for group, run in reversed(runs)}
    drawn = [*own, *(p for p in first_seeds.values() if p not in own and any(s.cam is not None for s in p[1].gallery))]
    merged: dict[tuple[Any, ...], dict[int, GallerySample]] = {}
    for place, (_, run) in enumerate(drawn):
        for sample in run.gallery:
            merged.setdefault(_identity(sample), {})[place] = sample
    for _, run in runs if not drawn else []:
        for sample in run.gallery:
            merged.setdefault(_identity(sample), {}).setdefault(-1, sample)
    cards, data = [], []
    for number, owners in enumerate(merged.values()):
        first = next(iter(owners.values()))
        cards.append(_card(number, first))
        students = [
            _packed(sample.student) | {"run": place, "correct": sample.student_correct}
            for place, sample in owners.items()
            if sample.student is not None
        ]
        cams = [
            _packed(sample.cam) | {"run": place, "correct": sample.cam_correct, "named": _named(sample.cam)}
            for place, sample in owners.items()
            if sample.cam is not None
        ]
        data.append(_sample_data(first, students, cams))
    per_run = [[f"{t.depth * 100:.0f} %" for t in r.scores.taps] if r.scores else [] for _, r in drawn]
    taps = max((s.student.shape[0] for _, r in drawn for s in r.gallery if s.student is not None), default=0)
    depths = next((tuple(each) for each in per_run if len(each) == taps), ())
    return Gallery(
        cards=tuple(cards),
        runs=tuple(f"{group.label}, seed {run.config.seed}" for group, run in drawn),
        taps=taps,
        depths=depths,
        masked=any(mark is not None for card in cards for mark in card.marks),
        data=_gallery_data(data),
    )


def map_gallery(
    images: Sequence[npt.NDArray[np.uint8] | Image.Image],
    maps: Sequence[Mapping[str, npt.ArrayLike]],
    *,
    captions: Sequence[str] | None = None,
    depths: Sequence[float] = (),
) -> Gallery:
    """Return the gallery of a student's maps of images that have neither masks nor a teacher's maps.

    Args:
        images: uint8 [H, W, 3], or images of Pillow.
        maps: for each image, word -> map [gh, gw], or [T, gh, gw] with a map a tap; values of at least 0, of any scale.
        captions: of the images; by default the words, joined.
        depths: of the T taps in the student, in [0, 1].

    Raises:
        ConfigError: not one entry an image, an image without a map, or maps of one image that differ in shape.
    """
    if not images or len(maps) != len(images) or (captions is not None and len(captions) != len(images)):
        counts = f"{len(images)} images, {len(maps)} maps" + ("" if captions is None else f", {len(captions)} captions")
        raise ConfigError(f"images, maps and captions must have one entry an image, and at least one; got {counts}.")
    samples = []
    for number, (image, of_image) in enumerate(zip(images, maps, strict=True)):
        samples.append(
            GallerySample(
                key=f"image {number + 1}",
                caption=", ".join(of_image) if captions is None else captions[number],
                domain="",
                words=tuple(of_image),
                image=np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.uint8),
                teacher=None,
                student=_stacked(of_image, number),
                teacher_correct=(),
                student_correct=(),
            )
        )
    taps = {sample.student.shape[0] for sample in samples if sample.student is not None}
    if len(taps) != 1 or (depths and len(depths) not in taps):
        wanted = f"the {len(depths)} depths" if depths else "all images"
        raise ConfigError(f"maps must have as many taps for {wanted}, got {', '.join(map(str, sorted(taps)))}.")
    data = [
        _sample_data(sample, [_packed(sample.student) | {"run": 0, "correct": ()}], [])
        for sample in samples
        if sample.student is not None
    ]
    return Gallery(
        cards=tuple(_card(number, sample) for number, sample in enumerate(samples)),
        runs=("student",),
        taps=taps.pop(),
        depths=tuple(f"{depth * 100:.0f} %" for depth in depths),
        masked=False,
        data=_gallery_data(data),
    )


def _stacked(maps: Mapping[str, npt.ArrayLike], number: int) -> npt.NDArray[np.float32]:
    """Maps of one image as fp32 [T, M, gh, gw], each summing to 1 (or zero where it is zero)."""
    arrays = [np.asarray(each, dtype=np.float32) for each in maps.values()]
    shapes = {array.shape for array in arrays}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) not in (2, 3) or not all(shape):
        listed = ", ".join(str(list(each)) for each in sorted(shapes)) or "none"
        raise ConfigError(
            f"maps of image {number} must be [gh, gw] or [T, gh, gw], of one shape for all words, got {listed}."
        )
    stacked = np.stack([array.reshape(-1, *shape[-2:]) for array in arrays], axis=1)
    stacked = np.nan_to_num(stacked, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    totals = stacked.sum(axis=(-2, -1), keepdims=True)
    normed: npt.NDArray[np.float32] = (stacked / np.where(totals > 0, totals, 1.0)).astype(np.float32)
    return normed


def _sample_data(sample: GallerySample, students: list[dict[str, Any]], cams: list[dict[str, Any]]) -> dict[str, Any]:
    teacher = None if sample.teacher is None else _packed(sample.teacher) | {"correct": sample.teacher_correct}
    return {"words": sample.words, "teacher": teacher, "students": students, "cams": cams}


def _gallery_data(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"ramp": base64.b64encode(ramp().tobytes()).decode(), "samples": samples}


def _named(cam: npt.NDArray[np.float32]) -> list[bool]:
    """Which words name a class: those whose map is not empty."""
    return [bool(one.any()) for one in cam]


def _identity(sample: GallerySample) -> tuple[Any, ...]:
    teacher = b"" if sample.teacher is None else sample.teacher.tobytes()
    return (sample.key, sample.caption, sample.words, sample.image.tobytes(), teacher)


def _packed(maps: npt.NDArray[np.float32]) -> dict[str, Any]:
    flat = maps.reshape(-1, *maps.shape[-2:])
    return {
        "shape": list(maps.shape),
        "grids": base64.b64encode(quantise(maps).tobytes()).decode(),
        "peaks": [peak(one) for one in flat],
    }


def _panel(grid: npt.NDArray[np.float32], correct: bool | None) -> Panel:
    return Panel(heat=still(quantise(grid)), peak=peak(grid), correct=correct)


def _card(number: int, sample: GallerySample) -> Card:
    marks = sample.student_correct[-1] if sample.student_correct else sample.cam_correct or sample.teacher_correct
    word = next((i for i, mark in enumerate(marks) if mark is not None), 0)
    caption, others = caption_parts(sample.caption, sample.words)
    teacher = student = cam = None
    if sample.teacher is not None:
        teacher = _panel(sample.teacher[word], sample.teacher_correct[word])
    if sample.student is not None:
        correct = sample.student_correct[-1][word] if sample.student_correct else None
        student = _panel(sample.student[-1, word], correct)
    if sample.cam is not None:
        cam = _panel(sample.cam[word], sample.cam_correct[word])
    return Card(
        number=number,
        key=sample.key,
        domain=sample.domain,
        caption=caption,
        others=others,
        image=encode_image(sample.image),
        aspect=f"{sample.image.shape[1]} / {sample.image.shape[0]}",
        word=word,
        words=sample.words,
        marks=marks or (None,) * len(sample.words),
        teacher=teacher,
        student=student,
        cam=cam,
    )
