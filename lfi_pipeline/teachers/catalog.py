"""Which of open_clip's configs can be teachers, told from the configs alone: no model is built."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import open_clip
import timm

from lfi_pipeline.teachers.dual_kinds import DUAL_KINDS
from lfi_pipeline.teachers.map_kinds import KINDS

EMBEDDED = "scenes-coca"
EMBEDDED_TAGS = ("v1",)
# Written as a tag it builds the real architecture with seeded random weights: for timing and tests, never for targets
# that a student should learn from.
RANDOM = "random"
FAMILIES = ("coca", "dual")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFacts:
    """What is known of a teacher before it is built.

    Attributes:
        name: as `load_teacher` takes it.
        family: `coca` or `dual`.
        image_size: (height, width) in pixels.
        grid: (gh, gw), cells of a map.
        kinds: kinds of map, the default first.
        tags: names of weights that open_clip knows.
        generates: it can write captions of images.
        repositories: of the hub, whose tokenizer or text config it needs; transformers reads them.
    """

    name: str
    family: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    kinds: tuple[str, ...]
    tags: tuple[str, ...]
    generates: bool
    repositories: tuple[str, ...]


def teacher_names(family: str = "") -> tuple[str, ...]:
    """Return the names `load_teacher` knows, the embedded teacher first, then CoCas, then dual encoders."""
    named = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    usable = [name for name, config in named.items() if not why_not(config)]
    cocas = (EMBEDDED, *(name for name in usable if family_of(named[name]) == "coca"))
    duals = tuple(name for name in usable if family_of(named[name]) == "dual")
    return {"": cocas + duals, "coca": cocas, "dual": duals}[family]


def family_of(config: dict[str, Any]) -> str:
    """Return `coca` or `dual`."""
    return "coca" if "multimodal_cfg" in config else "dual"


def why_not(config: dict[str, Any]) -> str:
    """Return why a config cannot give maps; empty where it can."""
    vision = config["vision_cfg"]
    trunk = vision.get("timm_model_name")
    if trunk is None:
        return "its vision tower is a ResNet, which has no patch tokens" if isinstance(vision["layers"], list) else ""
    plain = trunk.startswith(("vit_", "eva")) and not re.search("relpos|_mci_|_gap_|naflex", trunk)
    pooled = vision.get("timm_pool") in ("map", "token", "avg", "")
    return "" if plain and pooled else f"its vision tower {trunk} is not a plain vision transformer over patches"


def facts(name: str, config: dict[str, Any]) -> TeacherFacts:
    """Return what a config tells."""
    vision = config["vision_cfg"]
    height, width = _pair(vision.get("image_size", 224))
    trunk = vision.get("timm_model_name", "")
    found = re.search(r"patch(\d+)", trunk)
    rows, columns = (int(found[1]),) * 2 if found else _pair(vision.get("patch_size", 16))
    family = family_of(config)
    if family == "coca":
        pooler = bool(vision.get("attentional_pool"))
        kinds = tuple(kind for kind, made in KINDS.items() if pooler or not made.pooler)
        default = "agreement" if pooler else "relevance"
    else:
        kinds, default = tuple(DUAL_KINDS), "similarity"
    return TeacherFacts(
        name=name,
        family=family,
        image_size=(height, width),
        grid=(height // rows, width // columns),
        kinds=(default, *(kind for kind in kinds if kind != default)),
        tags=tuple(map(str, open_clip.list_pretrained_tags_by_model(name))),
        generates=family == "coca",
        repositories=repositories(config),
    )


def parameters(config: dict[str, Any]) -> int:
    """Count the parameters of a config's vision tower and, where open_clip writes them, its text towers."""
    import torch

    with torch.device("meta"):
        vision = config["vision_cfg"]
        if "timm_model_name" in vision:
            model: Any = timm.create_model(vision["timm_model_name"], num_classes=0)
        else:
            model = open_clip.model._build_vision_tower(config["embed_dim"], vision)
    return sum(math.prod(p.shape) for p in model.parameters())


def repositories(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the repositories of the hub whose tokenizer or text config a config needs."""
    text = config["text_cfg"]
    return tuple(sorted({text[key] for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)}))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (int(value), int(value))
