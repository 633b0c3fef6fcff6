"""One cached sample as a picture: its maps over its image."""

from __future__ import annotations

import bisect
import difflib
import re

import numpy as np
from PIL import Image, ImageOps

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.report.overlay import MapColumn, contact_sheet
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.images import sample_image

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
    columns, rows = [], []
    names: dict[int, str] = {}
    for view in spec.views:
        targets = store.read(position, view)
        maps = decode_maps(targets.maps, targets.scale, spec.codec.name)  # [L, M, gh, gw]
        names |= {row: store.vocabulary.words[word] for row, word in enumerate(targets.words.tolist()) if word >= 0}
        seen = ImageOps.mirror(image) if view == "hflip" else image
        for layer, values in zip(spec.layers, maps, strict=True):
            rows.append(values)
            columns.append((view, layer.name, layer.depth, seen))
    if not names:
        raise ConfigError(f"Sample {key} has no maps: its caption has no content words. Name another sample.")
    shown = sorted(names)
    kept = _mean_kept(store, position)
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
            f"share of mass kept: {kept:.2f} on average",
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
    for position, found in enumerate(keys):
        if found == key:
            return position
    ordered = sorted(keys)
    place = bisect.bisect_left(ordered, key)
    around = ordered[max(0, place - NEIGHBOURS // 2) : place + NEIGHBOURS // 2]
    near = difflib.get_close_matches(key, around, n=NEAR, cutoff=0.5) or ordered[max(0, place - 2) : place + 3]
    raise ConfigError(f"{store.path} holds no sample {key!r} among its {len(keys):,}. Nearest keys: {', '.join(near)}.")


def _mean_kept(store: TargetStore, position: int) -> float:
    """Mean share of mass kept over the present rows of a sample's first view."""
    targets = store.read(position, store.spec.views[0])
    present = targets.scale > 0
    return float(np.mean(targets.kept[present], dtype=np.float64)) if present.any() else 0.0


def safe_file_name(key: str) -> str:
    """A file name of one part, whatever is in the key: `a/../b c` -> `a_.._b_c`."""
    return re.sub(r"[^\w.-]+", "_", key).lstrip(".-")[:120] or "sample"
