"""Find, build and identify teachers: `NAME[:TAG]`, where TAG may be the path of a local checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lfi_pipeline.errors import TeacherError, UnknownNameError
from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers.coca import CocaTeacher

EMBEDDED = "scenes-coca"
# Written as a tag it builds the real architecture with seeded random weights: for timing and tests, never for targets
# that a student should learn from.
RANDOM = "random"


def teacher_names() -> tuple[str, ...]:
    """Return the names `load_teacher` knows: the embedded teacher, and open_clip's CoCas with a CLIP tokenizer."""
    configs = (name for name in open_clip.list_models() if name.startswith("coca_"))
    return (
        EMBEDDED,
        *(name for name in configs if "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]),
    )


def load_teacher(teacher: str, *, device: str | torch.device = "cpu") -> CocaTeacher:
    """Return the teacher called `NAME[:TAG]`.

    Args:
        teacher: `scenes-coca`; or an open_clip CoCa config with one of open_clip's tags for it, the path of a local
            checkpoint, or `random`. Without a tag, open_clip's last listed (the COCO-finetuned one) is taken.
        device: where to put it.

    Raises:
        UnknownNameError: unknown name or tag; lists the choices.
        TeacherError: the weights can neither be found nor fetched, or do not fit the architecture.
    """
    name, _, tag = teacher.partition(":")
    if name not in teacher_names():
        raise UnknownNameError("teacher", name, teacher_names())
    if name == EMBEDDED:
        model, tokenizer, tag = *_embedded(tag), "v1"
    else:
        tag = tag or _default_tag(name)
        model, tokenizer = _from_open_clip(name, tag), open_clip.get_tokenizer(name)
        tag = Path(tag).name if Path(tag).is_file() else tag
    identity = TeacherSpec(name=name, tag=tag, weights_sha256=state_sha256(model.state_dict()), family="coca")
    return CocaTeacher(model.to(device), tokenizer, identity)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of weights that does not depend on the file they came from: name, dtype, shape and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _embedded(tag: str) -> tuple[nn.Module, open_clip.SimpleTokenizer]:
    if tag not in ("", "v1"):
        raise UnknownNameError(f"tag of {EMBEDDED}", tag, ("v1",))
    folder = resources.files("lfi_pipeline.teachers.scenes_coca")
    with resources.as_file(folder) as directory:
        return load_coca_folder(directory)


def load_coca_folder(directory: Path) -> tuple[nn.Module, open_clip.SimpleTokenizer]:
    """Build a CoCa from the recipe's config.json, bpe.txt.gz and model.safetensors (stored fp16, run fp32)."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config.pop("custom_text", None)
    model = open_clip.CoCa(**config)
    weights = {key: value.float() for key, value in load_file(directory / "model.safetensors").items()}
    model.load_state_dict(weights)
    tokenizer = open_clip.SimpleTokenizer(
        str(directory / "bpe.txt.gz"), context_length=config["text_cfg"]["context_length"]
    )
    return model, tokenizer


def _default_tag(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise TeacherError(
            f"open_clip lists no weights for {name}. Give {name}:PATH with a checkpoint, or {name}:{RANDOM} to time it."
        )
    return str(tags[-1])


def _from_open_clip(name: str, tag: str) -> nn.Module:
    if tag == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = open_clip.create_model(name)
            projection = model.text_decoder.text_projection  # open_clip leaves this one uninitialised
            nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
        return cast(nn.Module, model)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and not Path(tag).is_file():
        raise UnknownNameError(f"tag of {name} (nor is it a file)", tag, (*tags, RANDOM))
    try:
        loaded: nn.Module = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # open_clip and the hub raise many kinds; all mean that the weights are not usable
        raise TeacherError(_missing_weights(name, tag, error)) from error
    return loaded


def _missing_weights(name: str, tag: str, error: Exception) -> str:
    if Path(tag).is_file():
        return f"{tag} must be a checkpoint of {name} (safetensors, or what torch loads weights-only): {error}"
    source = open_clip.get_pretrained_cfg(name, tag)
    where = source.get("hf_hub", "").rstrip("/") or source.get("url", "")
    return (
        f"The weights of {name}:{tag} are not in the local cache and could not be fetched ({type(error).__name__}). "
        f"On a machine with a network fetch open_clip_model.safetensors from {where}, copy it here, and give "
        f"--teacher {name}:PATH/open_clip_model.safetensors."
    )
