"""Which models can be teachers, by their configs alone; a folder's config is checked before anything is built."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from lfi_pipeline.core.errors import TeacherError, UnknownNameError
from lfi_pipeline.core.hub import Remote, untouched_network, why_missing
from lfi_pipeline.students.pretrained import bounded_build
from lfi_pipeline.teachers.dual import dual_kinds
from lfi_pipeline.teachers.kinds import coca_kinds

__all__ = ["CONFIG", "SAFE_WEIGHTS", "WEIGHTS", "Remote", "require", "untouched_network", "weights_of"]

_TOP = {"embed_dim", "custom_text", "quick_gelu", "init_logit_scale", "init_logit_bias"}
_PARTS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
_TABLES = {"act_kwargs": {"eps", "inplace", "approximate"}, "norm_kwargs": {"eps"}}
_TOKENIZER = {"clean", "strip_sep_token"}
_MOST = 1 << 20  # of any number: the largest vocabulary has 256,000 words
_NAME = re.compile(r"[\w.-]{0,128}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_config(config: Any, teacher: str) -> None:
    """Check a model's config, field by field, before open_clip builds anything of it.

    Args:
        config: as open_clip returns it for a folder or a repository.
        teacher: for messages.

    Raises:
        TeacherError: a field that is not open_clip's, or a value that is not a plain one in bounds; names it.
    """
    if not isinstance(config, Mapping):
        raise TeacherError(f"{teacher}: open_clip_config.json must hold the config of a model, got {_short(config)}.")
    for name, value in config.items():
        if name in _PARTS:
            _check_part(name, value, teacher)
        elif name in _TOP:
            _check_value(name, value, teacher)
        else:
            raise TeacherError(f"{teacher}: open_clip_config.json has a field that no model takes: {name}.")
    for name in ("embed_dim", "vision_cfg", "text_cfg"):
        if name not in config:
            raise TeacherError(f"{teacher}: open_clip_config.json must have the field {name}, found none.")


def _check_part(part: str, values: Any, teacher: str) -> None:
    if not isinstance(values, Mapping):
        raise TeacherError(f"{teacher}: {part} of open_clip_config.json must be an object, got {_short(values)}.")
    known = {field.name for field in fields(_PARTS[part])}
    for name, value in values.items():
        where = f"{part}.{name}"
        if name not in known:
            raise TeacherError(f"{teacher}: open_clip_config.json has a field that no model takes: {where}.")
        if name == "tokenizer_kwargs" or name in _TABLES:
            allowed = _TABLES.get(name, _TOKENIZER)
            if value is not None and not (isinstance(value, Mapping) and set(value) <= allowed):
                raise TeacherError(
                    f"{teacher}: {where} of open_clip_config.json may set {', '.join(sorted(allowed))} only, got "
                    f"{_short(value)}. What else it may hold could run code of the folder."
                )
            for key, inner in (value or {}).items():
                _check_value(f"{where}.{key}", inner, teacher)
        elif name == "timm_model_name":
            if value is not None and not (isinstance(value, str) and timm.is_model(value)):
                raise TeacherError(f"{teacher}: {where} must be a model of timm, got {_short(value)}.")
        elif name in ("hf_model_name", "hf_tokenizer_name"):
            if value and not (isinstance(value, str) and _REPOSITORY.fullmatch(value)):
                raise TeacherError(f"{teacher}: {where} must be a repository of the hub, got {_short(value)}.")
        else:
            _check_value(where, value, teacher)


def _check_value(where: str, value: Any, teacher: str) -> None:
    match value:
        case None | bool():
            return
        case int() if -_MOST <= value <= _MOST:
            return
        case float() if math.isfinite(value) and abs(value) <= _MOST:
            return
        case str() if _NAME.fullmatch(value):
            return
        case list() if len(value) <= 8 and not any(isinstance(each, list) for each in value):
            for each in value:
                _check_value(where, each, teacher)
            return
    raise TeacherError(
        f"{teacher}: {where} of open_clip_config.json must be a number within {_MOST:,}, true, false, a short name or "
        f"a short list, got {_short(value)}."
    )


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**20:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def nothing_executed(teacher: str) -> Iterator[None]:
    """While it is entered, transformers neither runs a repository's own code nor asks whether it may.

    What is built is bounded as well.
    """
    try:
        from transformers import dynamic_module_utils
    except ImportError:
        with bounded_build(teacher):
            yield
        return
    with mock.patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0), bounded_build(teacher):
        yield


CONFIG, SAFE_WEIGHTS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


def weights_of(source: dict[str, Any]) -> Remote:
    """Return where open_clip takes weights from, from its own record of a tag."""
    hub, url = source.get("hf_hub", ""), source.get("url", "")
    if not hub:
        return Remote("", (url.rpartition("/")[2],), url)
    repo, _, file = hub.rpartition("/")
    if not file:
        return Remote(repo, (SAFE_WEIGHTS, WEIGHTS))
    return Remote(repo, (str(Path(file).with_suffix(".safetensors")), file))


def require(needed: Sequence[Remote], instead: str) -> None:
    """Make sure that what is needed is in the cache or can be fetched.

    Args:
        needed: what will be loaded.
        instead: what else the user can do, after "fetch FILE from ADDRESS".

    Raises:
        TeacherError: something is not in the cache, and the hub does not answer or is not to be asked.
    """
    for remote in needed:
        if why := why_missing(remote):
            raise TeacherError(
                f"{' or '.join(remote.files)} of {remote.address} must be in the local cache or fetched, "
                f"but it is not there and {why}. On a machine with a network fetch {remote.files[0]} from "
                f"{remote.repo or remote.url}, {instead}"
            )


EMBEDDED = "scenes-coca"
EMBEDDED_TAGS = ("v2",)
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
    """Return the names `load_teacher` knows, the embedded teacher first, then CoCas, then dual encoders.

    Raises:
        UnknownNameError: `family` is neither empty nor one of `FAMILIES`.
    """
    named = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    usable = [name for name, config in named.items() if not why_not(config)]
    cocas = (EMBEDDED, *(name for name in usable if family_of(named[name]) == "coca"))
    duals = tuple(name for name in usable if family_of(named[name]) == "dual")
    if family not in ("", *FAMILIES):
        raise UnknownNameError("family", family, FAMILIES)
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


def describe(name: str) -> TeacherFacts:
    """Return what the config of a teacher tells.

    Raises:
        UnknownNameError: not one of `teacher_names`; lists them.
    """
    if name not in teacher_names():
        raise UnknownNameError("teacher", name, teacher_names())
    config = _config(name)
    vision, family = config["vision_cfg"], family_of(config)
    height, width = _pair(vision.get("image_size", 224))
    patch = re.search(r"patch(\d+)", vision.get("timm_model_name", ""))
    rows, columns = (int(patch[1]),) * 2 if patch else _pair(vision.get("patch_size", 16))
    if family == "coca":
        kinds = coca_kinds(pooler=vision.get("attentional_pool", False))
    else:
        kinds = dual_kinds(own_blocks="timm_model_name" not in vision and vision.get("pool_type", "tok") == "tok")
    tags = EMBEDDED_TAGS if name == EMBEDDED else tuple(map(str, open_clip.list_pretrained_tags_by_model(name)))
    return TeacherFacts(
        name=name,
        family=family,
        image_size=(height, width),
        grid=(height // rows, width // columns),
        kinds=kinds,
        tags=tags,
        generates=family == "coca",
        repositories=repositories(config),
    )


def weak_contrast(name: str, tag: str) -> str:
    """Return why a checkpoint is a weak teacher for all that compares an image with a text; empty where it is not.

    open_clip's fine-tuned CoCas were tuned on captions alone, with a contrastive weight of 0. Its own results have
    zero-shot ImageNet at 72.0 against 75.6 for L/14, and at 0.8 for B/32 (docs/openclip_results.csv).
    """
    if not (name.startswith("coca_") and tag.startswith("mscoco_finetuned")):
        return ""
    instead = tag.removeprefix("mscoco_finetuned_")
    return (
        f"{name}:{tag} was tuned on captions with a contrastive weight of 0. Contrastive maps, image embeddings and "
        f"zero-shot logits need the contrastive head: take {name}:{instead} for them, and this one to write captions."
    )


def parameters(name: str) -> int | None:
    """Count the parameters of a teacher without building it; None where its text tower is on the hub."""
    config = _config(name)
    if config["text_cfg"].get("hf_model_name"):
        return None
    custom = config.pop("custom_text", False)
    if family_of(config) == "coca":
        make: Any = open_clip.CoCa
    else:
        make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.device("meta"):
        return sum(int(parameter.numel()) for parameter in make(**config).parameters())


def _config(name: str) -> dict[str, Any]:
    if name != EMBEDDED:
        config: dict[str, Any] = open_clip.get_model_config(name)
        return config
    stored = resources.files("lfi_pipeline.teachers.scenes_coca") / "config.json"
    config = json.loads(stored.read_text(encoding="utf-8"))
    return config


def repositories(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the repositories of the hub whose tokenizer or text config a config needs."""
    text = config["text_cfg"]
    return tuple(sorted({text[key] for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)}))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (int(value), int(value))
