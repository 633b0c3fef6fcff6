"""What a folder or repository may say of its teacher: `open_clip_config.json` is a stranger's until it is checked.

open_clip hands its fields on: to timm's factory, to the tokenizers and text towers of transformers (which run a
repository's own code where they are told to trust it), and to constructors that take any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

import timm
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.students.arguments import bounded_build

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
