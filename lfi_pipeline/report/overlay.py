"""Maps over an image as one picture: a row a word, a column a layer and view, the image itself first.

Pillow only. The colours are the gallery's: brightness rises evenly with the map, and what the map leaves out stays a
dimmed photograph, so no colour bar is needed. A ring marks the peak.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.report.gallery import peak, quantise, ramp
from lfi_pipeline.targets import SampleTargets, TargetStore, decode_maps
from lfi_pipeline.targets.store import sample_image

CELL = 208
"""Pixels of a cell's longer side."""
PHOTO = 288
"""Pixels of the image's longer side at the top."""
LEAST_ROW = 28
GAP, MARGIN, LABEL = 8, 24, 150
TEXT, SMALL = 17, 13
INK, FAINT, PAPER, EMPTY = (28, 28, 34), (118, 118, 128), (255, 255, 255), (238, 238, 241)
PUNCTUATION = str.maketrans("", "", "“”…")
WIDER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapColumn:
    """One column of the sheet.

    Attributes:
        title: its head, a line a part.
        image: what the maps lie over (mirrored for a mirrored view).
        maps: fp32 [M, gh, gw]; rows sum to 1, or are zero where there is no map.
    """

    title: tuple[str, ...]
    image: Image.Image
    maps: npt.NDArray[np.float32]


def overlay(image: Image.Image, grid: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """Draw one map [gh, gw] over an image, both enlarged or reduced to `size` (width, height)."""
    photo = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(quantise(grid)).resize(size, Image.Resampling.BICUBIC)
    colours = ramp()[np.asarray(heat)]  # [height, width, 4]
    drawn = Image.composite(
        Image.fromarray(np.ascontiguousarray(colours[..., :3])),
        photo,
        Image.fromarray(np.ascontiguousarray(colours[..., 3])),
    )
    x, y = (share / 100 * side for share, side in zip(peak(grid), size, strict=True))
    radius = min(12.0, max(5.0, 0.6 * size[0] / grid.shape[1]))  # about the cell, so that its colour shows inside
    pen = ImageDraw.Draw(drawn)
    for around, colour in ((radius + 1, INK), (radius, PAPER), (radius - 1, INK)):
        pen.ellipse((x - around, y - around, x + around, y + around), outline=colour, width=1)
    return drawn


def contact_sheet(
    image: Image.Image, title: str, lines: Sequence[str], words: Sequence[str], columns: Sequence[MapColumn]
) -> Image.Image:
    """Draw a sheet of M words and C columns.

    Args:
        image: shown first, as it is.
        title: beside the image.
        lines: below the title; long ones are wrapped.
        words: M labels.
        columns: each with M maps.
    """
    shown = "".join((title, *lines, *words, *(part for column in columns for part in column.title)))
    text, small = _font(TEXT, shown), _font(SMALL, shown)
    cell, photo = (
        _fitted(image, CELL, CELL // 4),
        image.convert("RGB").resize(_fitted(image, PHOTO), Image.Resampling.LANCZOS),
    )
    step = max(cell[0], 150) + GAP  # heads need room above narrow images too
    width = 2 * MARGIN + max(LABEL + GAP + len(columns) * step, photo.width + 420)
    beside = MARGIN + photo.width + 2 * GAP
    wrapped = [part for line in lines for part in _wrapped(line, small, width - beside - MARGIN)]
    line_height = SMALL + 7
    head = max(photo.height, TEXT + 14 + len(wrapped) * line_height)
    heads = max((len(column.title) for column in columns), default=0) * line_height
    row = max(cell[1], LEAST_ROW) + GAP
    top = MARGIN + head + 2 * GAP + heads
    sheet = Image.new("RGB", (width, top + len(words) * row + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(photo, (MARGIN, MARGIN))
    pen.text((beside, MARGIN), _elided(title, text, width - beside - MARGIN), INK, text)
    for number, line in enumerate(wrapped):
        pen.text((beside, MARGIN + TEXT + 14 + number * line_height), line, FAINT, small)
    for number, word in enumerate(words):
        middle = top + number * row + (row - GAP) / 2
        pen.text((MARGIN + LABEL, middle), _elided(word, text, LABEL), INK, text, anchor="rm")
    for place, column in enumerate(columns):
        left = MARGIN + LABEL + GAP + place * step
        for number, line in enumerate(column.title):
            above = top - heads + number * line_height
            pen.text((left, above), _elided(line, small, step - GAP), FAINT if number else INK, small)
        for number, grid in enumerate(column.maps):
            at = (left, top + number * row + (row - GAP - cell[1]) // 2)
            if grid.any():
                sheet.paste(overlay(column.image, grid, cell), at)
            else:
                pen.rectangle((*at, at[0] + cell[0] - 1, at[1] + cell[1] - 1), fill=EMPTY)
                pen.text((at[0] + cell[0] / 2, at[1] + cell[1] / 2), "no map", FAINT, small, anchor="mm")
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Put sheets one below the other."""
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _fitted(image: Image.Image, side: int, least: int = 1) -> tuple[int, int]:
    """Width and height with the image's aspect, the longer one `side`, none below `least`."""
    scale = side / max(image.size)
    return max(least, round(image.width * scale)), max(least, round(image.height * scale))


def _font(size: int, text: str) -> Font:
    """Pillow's own font; one of the system's where `text` has letters that Pillow's lacks."""
    if not text.translate(PUNCTUATION).isascii():
        for name in WIDER_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:  # not on this machine
                continue
    return ImageFont.load_default(size)


def _elided(line: str, font: Font, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def _wrapped(line: str, font: Font, width: float) -> list[str]:
    parts: list[str] = []
    for word in line.split():
        longer = f"{parts[-1]} {word}" if parts else word
        if parts and font.getlength(longer) <= width:
            parts[-1] = longer
        else:
            parts.append(_elided(word, font, width))
    return parts


NEAR = 5
NEIGHBOURS = 2000
"""Keys around an unknown one, in sorted order, that are looked through for the nearest."""


def sample_sheet(store: TargetStore, key: str) -> Image.Image:
    """Draw every stored map of sample `key`: a row a word, a column a layer of a view.

    Raises:
        ConfigError: no such sample (the nearest keys are named), or one that is quarantined or has no words.
        ImageReadError: the image cannot be read.
        CorruptTargetsError: the image is not the one that the teacher saw.
    """
    position = position_of(store, key)
    index, spec = store.index, store.spec
    reason = index.reasons[position]
    if reason is not None:
        raise ConfigError(f"Sample {key} has no maps: it is quarantined ({reason}). Name another sample.")
    image = sample_image(store, position)
    columns, rows, kept = [], [], []
    names: dict[int, str] = {}
    for view in spec.views:
        targets = store.read(position, view)
        maps = decode_maps(targets.maps, targets.scale, spec.codec.name)  # [L, M, gh, gw]
        kept.append(_mean_kept(targets))
        names |= {row: store.vocabulary.words[word] for row, word in enumerate(targets.words.tolist()) if word >= 0}
        seen = ImageOps.mirror(image) if view == "hflip" else image
        for layer, values in zip(spec.layers, maps, strict=True):
            rows.append(values)
            columns.append((view, layer.name, layer.depth, seen))
    if not names:
        raise ConfigError(f"Sample {key} has no maps: its caption has no content words. Name another sample.")
    shown = sorted(names)
    classes = ", ".join(spec.dataset.classes[label] for label in index.labels[position]) or "none"
    return contact_sheet(
        image,
        key,
        [
            f"“{index.captions[position]}”",
            f"{spec.dataset.name}, {spec.dataset.split}{', ' if index.domains[position] else ''}"
            f"{index.domains[position]}; classes: {classes}",
            f"{image.width} x {image.height} pixels, {index.paths[position]}",
            f"{spec.teacher.name}:{spec.teacher.tag}, {spec.kind}, {spec.row} rows, "
            f"{spec.grid[0]} x {spec.grid[1]} cells",
            f"share of mass kept: {kept[0]:.2f} on average",
        ],
        [names[row] for row in shown],
        [
            MapColumn(title=(name, f"{view}, depth {depth:.2f}"), image=seen, maps=values[shown])
            for (view, name, depth, seen), values in zip(columns, rows, strict=True)
        ],
    )


def position_of(store: TargetStore, key: str) -> int:
    """Position of sample `key`.

    Raises:
        ConfigError: no such sample; names the nearest keys.
    """
    keys = store.index.keys
    for position, each in enumerate(keys):
        if each == key:
            return position
    ordered = sorted(keys)
    place = bisect.bisect_left(ordered, key)
    around = ordered[max(0, place - NEIGHBOURS // 2) : place + NEIGHBOURS // 2]
    near = difflib.get_close_matches(key, around, n=NEAR, cutoff=0.5) or ordered[max(0, place - 2) : place + 3]
    raise ConfigError(f"{store.path} holds no sample {key!r} among its {len(keys):,}. Nearest keys: {', '.join(near)}.")


def _mean_kept(targets: SampleTargets) -> float:
    """Mean share of mass kept over the present rows of a view of a sample."""
    present = targets.scale > 0
    return float(np.mean(targets.kept[present], dtype=np.float64)) if present.any() else 0.0


def safe_file_name(key: str) -> str:
    """A file name of one part, whatever is in the key: `a/../b c` -> `a_.._b_c`."""
    return re.sub(r"[^\w.-]+", "_", key).lstrip(".-")[:120] or "sample"
