"""Render scenes from (seed, split, index), with exact masks and captions, and write them in COCO's own layout."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from lfi_pipeline.core.errors import ConfigError, OutputExistsError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data.config import FONT, ScenesConfig
from lfi_pipeline.data.dataset import TRAIN, VAL
from lfi_pipeline.data.scenes.domains import DOMAINS, FAMILIES, PLAIN, Domain, family_background, font_domain
from lfi_pipeline.data.scenes.glyphs import NAMES, without_holes


@dataclass(frozen=True, slots=True)
class Placed:
    """An object's name and centre, in fractions of the image."""

    name: str
    x: float
    y: float


def with_article(name: str) -> str:
    """Return `a name` or `an name`."""
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


def relation(first: Placed, second: Placed) -> str:
    """Return the relation of `first` to `second` along the axis on which their centres differ most."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def caption(objects: Sequence[Placed], rng: np.random.Generator) -> str:
    """Name every object once, in random order, with relations that are true of the picture."""
    order = [objects[i] for i in rng.permutation(len(objects))]
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    clauses = [_clause(pair, rng) for pair in pairs]
    opening = ("", "there is ", "we see ")[rng.integers(3)]
    return opening + (" and ", " with ")[rng.integers(2)].join(clauses)


def _clause(pair: Sequence[Placed], rng: np.random.Generator) -> str:
    names = [with_article(each.name) for each in pair]
    if len(pair) == 1:
        return names[0]
    if rng.random() < 0.6:
        return f"{names[0]} {relation(pair[0], pair[1])} {names[1]}"
    return f"{names[0]} {('and', 'next to')[rng.integers(2)]} {names[1]}"


CAPTIONS_PER_IMAGE = 2
_PLACES_TRIED = 40
_OBJECT_COUNTS = np.array([0.2, 0.3, 0.3, 0.2])  # 1 to 4 objects
_LEAST_VISIBLE = 0.75  # an object less visible than this share of its own mask is placed anew


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: index into `NAMES` and its visible mask, boolean [size, size]."""

    label: int
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, uint8 RGB [size, size, 3], and what is in it."""

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    captions: tuple[str, ...]


def render_scene(
    *,
    seed: int,
    split: str,
    index: int,
    size: int,
    domain: str,
    object_scale: float = 1.0,
    categories: Sequence[int] = tuple(range(len(NAMES))),
    font: Path | None = None,
) -> Scene:
    """Render scene `index` of `split`, of some of the categories; the same arguments always give the same scene.

    At `object_scale` 1 a lone object is 0.45 to 0.72 of the picture's side, one of several 0.38 to 0.54. The domain `font`
    draws with the emojis of the file `font`.

    Raises:
        ConfigError: the domain draws none of the categories, or the font cannot serve.
    """
    rng = _generator(seed, split, index)
    style = font_domain(font) if domain == FONT and font is not None else DOMAINS[domain]
    categories = [label for label in categories if NAMES[label] in style.names]
    if not categories:
        raise ConfigError(f"categories must hold some that the domain {domain} draws: {', '.join(style.names)}.")
    count = min(int(rng.choice(4, p=_OBJECT_COUNTS)) + 1, len(categories))
    labels = np.array(categories)[rng.choice(len(categories), size=count, replace=False)]
    return _drawn(labels.tolist(), style.background(size, rng), style, object_scale, count, rng)


SPURIOUS_CATEGORIES = tuple(range(0, 48, 2))
"""Of the scenes whose backgrounds are tied: indices into `NAMES`."""
ALIGNED, CONFLICTING = "aligned", "conflicting"
"""Their domains: where the background is the category's own, and where it is another's."""


def render_spurious(
    *, seed: int, split: str, index: int, size: int, spurious: float, object_scale: float = 1.0
) -> tuple[Scene, str]:
    """Render scene `index` of one object before a background of four families, and say which domain it is of.

    A category's own family is before it in a share `spurious` of the training scenes, and else any; in every other split
    each category stands before each family alike. All training scenes are of domain `aligned`.
    """
    rng = _generator(seed, split, index)
    number = int(rng.integers(len(SPURIOUS_CATEGORIES))) if split == TRAIN else index % len(SPURIOUS_CATEGORIES)
    own = number % FAMILIES
    family = int(rng.integers(FAMILIES)) if split == TRAIN else index // len(SPURIOUS_CATEGORIES) % FAMILIES
    if split == TRAIN and rng.random() < spurious:
        family = own
    ground = family_background(family, size, rng)
    scene = _drawn([SPURIOUS_CATEGORIES[number]], ground, PLAIN, object_scale, 3, rng)
    return scene, ALIGNED if split == TRAIN or family == own else CONFLICTING


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def _drawn(
    labels: Sequence[int],
    ground: npt.NDArray[np.floating],
    style: Domain,
    object_scale: float,
    count: int,
    rng: np.random.Generator,
) -> Scene:
    """Draw objects onto a background [size, size, 3]; they are as large as `count` of them would be."""
    size = len(ground)
    canvas = ground.astype(np.float32)
    owner = np.full((size, size), -1, dtype=np.int64)  # which object is on top at each pixel
    areas: list[int] = []
    placed: list[Placed] = []
    for position, label in enumerate(labels):
        rgba, top, left = _place(
            _posed(style.shape(NAMES[label], rng), size * object_scale, count, rng), owner, areas, rng
        )
        alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
        height, width = alpha.shape
        window = (slice(top, top + height), slice(left, left + width))
        colours = style.sprite(np.asarray(rgba.convert("RGB"), dtype=np.float32) / 255, rng)
        canvas[window] = canvas[window] * (1 - alpha[..., None]) + colours * alpha[..., None]
        covered = without_holes(alpha > 0.5) if style.fills else alpha > 0.5
        owner[window][covered] = position
        areas.append(int(covered.sum()))
        placed.append(Placed(NAMES[label], (left + width / 2) / size, (top + height / 2) / size))
    finished = _to_uint8(canvas, style, rng)
    objects = tuple(SceneObject(int(label), owner == i) for i, label in enumerate(labels))
    captions = tuple(caption(placed, rng) for _ in range(CAPTIONS_PER_IMAGE))
    return Scene(finished, objects, captions)


def _posed(picture: Image.Image, size: float, count: int, rng: np.random.Generator) -> Image.Image:
    """Scale, turn and maybe mirror a sprite; fewer objects are drawn larger."""
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    low, high = (0.45, 0.72) if count <= 2 else (0.38, 0.54)
    scale = rng.uniform(low, high) * size / max(picture.size)
    width, height = (max(2, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _place(
    rgba: Image.Image, owner: npt.NDArray[np.int64], areas: list[int], rng: np.random.Generator
) -> tuple[Image.Image, int, int]:
    """Return the sprite, drawn smaller where the picture is crowded, and the top and left at which it hides least."""
    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32) / 255
    size, (height, width) = owner.shape[0], alpha.shape
    best, best_visible = (0, 0), -1.0
    for _ in range(_PLACES_TRIED):
        top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
        below = owner[top : top + height, left : left + width]
        hidden = np.bincount(below[(alpha > 0.5) & (below >= 0)], minlength=len(areas))
        remaining = [((owner == i).sum() - hidden[i]) / max(area, 1) for i, area in enumerate(areas)]
        visible = min(remaining, default=1.0)
        if visible > best_visible:
            best, best_visible = (top, left), float(visible)
        if best_visible >= 0.95:
            break
    if best_visible < _LEAST_VISIBLE and min(width, height) > 4:
        smaller = rgba.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BOX)
        return _place(smaller, owner, areas, rng)
    return rgba, *best


def _to_uint8(canvas: npt.NDArray[np.float32], style: Domain, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    finished = style.finish(np.clip(canvas, 0, 1), rng)
    return (np.clip(finished, 0, 1) * 255 + 0.5).astype(np.uint8)


_SETTINGS = "scenes.json"
_OPENMOJI = "CC BY-SA 4.0. All emojis designed by OpenMoji, the open-source emoji and icon project"
_LICENSES = (
    (_OPENMOJI, "https://creativecommons.org/licenses/by-sa/4.0/"),
    (
        f"Apache-2.0 (Material Design Icons of Pictogrammers), MIT (Phosphor), {_OPENMOJI}",
        "https://creativecommons.org/licenses/by-sa/4.0/",
    ),
    ("CC BY 4.0. Icons of Font Awesome Free", "https://creativecommons.org/licenses/by/4.0/"),
    ("That of the font that the pictures were drawn with", ""),
)
_LICENSE_OF = {"icon": 2, "emblem": 3, FONT: 4}
"""Domain -> number of its license, from 1 on; 1 for all others."""


def write_scenes(out: Path, config: ScenesConfig, *, workers: int | None = None) -> None:
    """Render the splits below `out`; a rerun with the same config finishes or confirms the work.

    Raises:
        OutputExistsError: `out` holds something else, or scenes of another config.
    """
    categories = _indices(config.categories, config.spurious)
    options = {name: value for name, value in asdict(config).items() if value is not None}
    if config.font is not None:
        options["font"] = f"{config.font.name} (sha256 {_font_digest(config.font)})"
    settings = json.dumps(options, indent=2, sort_keys=True) + "\n"
    _require_own_or_empty(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{out} cannot be made: {error.strerror or error}. Choose another `out`.") from error
    if not (out / _SETTINGS).exists():
        (out / _SETTINGS).write_text(settings, encoding="utf-8")
    (out / "annotations").mkdir(exist_ok=True)
    every = config.domains + config.held_out
    splits = {TRAIN: (config.train, config.domains), VAL: (config.val, every)}
    if config.test is not None:
        splits["test"] = (config.test, every)
    for split, (count, domains) in splits.items():
        if (out / f"annotations/instances_{split}.json").exists():  # written last: the split is complete
            continue
        (out / split).mkdir(exist_ok=True)
        jobs = [(out, split, index, domains[index % len(domains)], config) for index in range(count)]
        with ProcessPoolExecutor(max_workers=workers or os.cpu_count()) as pool:
            made = pool.map(_write_one, jobs, chunksize=32)
            records = list(progress_bar(made, total=count, desc=f"render {split}", unit="image"))
        _write_annotations(out, split, records, categories)


def _font_digest(font: Path) -> str:
    """Return the sha256 of a font, once it is known to draw something.

    Raises:
        ConfigError: it cannot be read, or draws none of the categories.
    """
    font_domain(font)
    return hashlib.sha256(font.read_bytes()).hexdigest()


def _indices(names: Sequence[str] | None, spurious: float | None) -> tuple[int, ...]:
    """Return which of `NAMES` are drawn, in its order.

    Raises:
        UnknownNameError: a name that is none of them.
        ConfigError: names, and backgrounds that are tied to categories of their own.
    """
    if names is None:
        return tuple(range(len(NAMES)))
    if spurious is not None:
        raise ConfigError("categories must be left out where backgrounds are tied, which has categories of its own.")
    for name in names:
        if name not in NAMES:
            raise UnknownNameError("category", name, NAMES, argument="categories")
    return tuple(index for index, name in enumerate(NAMES) if name in names)


def _require_own_or_empty(out: Path, settings: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out} must be a directory, found a file.")
    if (out / _SETTINGS).exists():
        stored = (out / _SETTINGS).read_text(encoding="utf-8")
        if stored != settings:
            raise OutputExistsError(
                f"{out} holds scenes rendered with other settings ({_differences(stored, settings)}). "
                "Give the same options, or another `out`."
            )
    elif any(out.iterdir()):
        raise OutputExistsError(f"{out} must be empty or hold scenes, found other files. Choose another `out`.")


def _differences(stored: str, settings: str) -> str:
    """Name every setting that differs, the stored value first."""
    try:
        old, new = dict(json.loads(stored)), dict(json.loads(settings))
    except (ValueError, TypeError):
        return f"{_SETTINGS} cannot be read"
    differing = (name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name)} != {new.get(name)}" for name in differing)


def _write_one(job: tuple[Path, str, int, str, ScenesConfig]) -> dict[str, Any]:
    out, split, index, domain, config = job
    common: dict[str, Any] = {
        **{"seed": config.seed, "split": split, "index": index, "size": config.size},
        "object_scale": config.object_scale,
    }
    if config.spurious is not None:
        scene, domain = render_spurious(spurious=config.spurious, **common)
    else:
        scene = render_scene(domain=domain, categories=_indices(config.categories, None), font=config.font, **common)
    file_name = f"{index + 1:012d}.png"
    Image.fromarray(scene.image).save(out / split / file_name)
    objects = []
    for item in scene.objects:
        rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
        objects.append(
            {
                "category_id": item.label + 1,
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                "area": int(coco_mask.area(rle)),
                "segmentation": {
                    "size": [int(side) for side in rle["size"]],
                    "counts": rle["counts"].decode("ascii"),
                },
                "iscrowd": 0,
            }
        )
    return {"id": index + 1, "file_name": file_name, "domain": domain, "captions": scene.captions, "objects": objects,
            "height": config.size, "width": config.size}  # fmt: skip


def _write_annotations(out: Path, split: str, records: Sequence[dict[str, Any]], categories: Sequence[int]) -> None:
    images = [
        {key: record[key] for key in ("id", "file_name", "height", "width", "domain")}
        | {"license": _LICENSE_OF.get(record["domain"], 1)}
        for record in records
    ]
    used = sorted({image["license"] for image in images})
    captions = [(record["id"], text) for record in records for text in record["captions"]]
    instances = [(record["id"], item) for record in records for item in record["objects"]]
    common = {
        "info": {"description": "scenes, rendered by lfi make-scenes"},
        "licenses": [dict(zip(("id", "name", "url"), (n, *_LICENSES[n - 1]), strict=True)) for n in used],
        "images": images,
    }
    contents = {
        "captions": common
        | {
            "annotations": [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(captions, start=1)
            ]
        },
        "instances": common
        | {
            "categories": [{"id": label + 1, "name": NAMES[label]} for label in categories],
            "annotations": [
                {"id": number, "image_id": image_id} | item
                for number, (image_id, item) in enumerate(instances, start=1)
            ],
        },
    }
    for kind, content in contents.items():
        path = out / f"annotations/{kind}_{split}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)
