"""Checks before timm builds a student: its arguments, its size, and the source of its weights."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from lfi_pipeline.core.errors import ConfigError, TooLargeError, UnknownNameError
from lfi_pipeline.core.hub import Remote, why_missing

OVERLAY = "pretrained_cfg_overlay"
SAFE_SUFFIX = ".safetensors"
_NAMES = """
act_layer aa_layer attn_drop_rate attn_mlp_ratio attn_ratio attn_type attn_types avg_down base_dim base_dims
base_width block_reduce_first bn_size bottle_ratio bottleneck_width_ratio cardinality channel_multiplier channels
class_token cls_attn_layers conv_bias conv_mlp conv_ratio crop_scale depth depths dim dims distilled
down_kernel_size downsample downsamples drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size
embed_dim embed_dims embed_norm expand_ratio fc_norm feature_dim ffn_ratio final_chs final_norm focal_levels
focal_windows global_pool growth_rate groups head_bias head_dim head_hidden_size head_init_scale head_norm
head_norm_first head_widths heads hidden_sizes img_size init_values kernel_size kernel_sizes key_dim layer_scale
layer_scale_init_value layers ls_init_value mlp_bias mlp_ratio mlp_ratios neck_chans no_embed_class norm_eps
norm_layer num_blocks num_features num_heads num_kv_heads num_reg_tokens output_stride pad_type patch_drop_rate
patch_norm patch_size pool_size pos_drop_rate pos_embed pre_norm proj_bias proj_drop_rate qk_norm qkv_bias qkv_fused
reg_tokens rel_pos_type replace_stem_pool rope_temperature scale_attn_norm scale_mlp scale_mlp_norm se_ratio
sr_ratios stem_bias stem_chs stem_norm stem_size stem_stride stages stem_type stem_width strict_img_size strides
swiglu_mlp use_abs_pos use_fc_norm use_grn use_layer_scale use_pos_embed use_post_norm use_rel_pos use_rel_pos_bias
use_rope use_rot_pos_emb weight_init width width_factor widths window_size window_sizes zero_init_last
"""
ARGUMENTS = frozenset(_NAMES.split())
"""Arguments of timm's architectures that settings may give; none of them names a file, an address or code."""

MOST_PIXELS = 4096
"""Longest side of an image in pixels."""
MOST_CELLS = 128
"""Patches along a side of an image: attention takes the fourth power of it in memory."""
MOST_MODULES = 20_000
MOST_NUMBERS = 10_000_000_000
"""Numbers in buffers, and parameters where memory holds them; timm's largest model has 6.7 billion."""
_MOST_COUNT = 16_384
_MOST_DEPTH = 1_000
_MOST_RATIO = 10_000.0
_MOST_ITEMS = 64
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_NAME = re.compile(r"[A-Za-z0-9_]{0,64}")


def check_arguments(
    name: str, arguments: Mapping[str, Any], *, image_size: int | None = None, patch_size: int | None = None
) -> None:
    """Check the settings of an architecture before anything is built of them.

    Args:
        name: of the student, for messages.
        arguments: further arguments of `timm.create_model`.
        image_size: pixels a side; None takes the model's own.
        patch_size: pixels a side; None takes the model's own.

    Raises:
        ConfigError: an argument that is not of an architecture (names near ones), or a value that is neither number,
            truth value, short name nor list of such, or is out of bounds.
    """
    for key, value in arguments.items():
        if key == OVERLAY:
            _check_overlay(value)
        elif key not in ARGUMENTS:
            near = difflib.get_close_matches(str(key), ARGUMENTS, n=3, cutoff=0.0)
            raise ConfigError(
                f"{name} must be given arguments of an architecture, such as {', '.join(near)}, got {str(key)[:80]!r}: "
                "what else timm takes may read files or run code."
            )
        else:
            _check_value(f"{name}: {key}", value, _MOST_DEPTH if key.startswith(("depth", "layers")) else _MOST_COUNT)
    pixels = _sides("image size", image_size if image_size is not None else arguments.get("img_size"), MOST_PIXELS)
    patches = _sides("patch size", patch_size if patch_size is not None else arguments.get("patch_size"), MOST_PIXELS)
    if pixels and patches and max(pixels) > MOST_CELLS * min(patches):
        raise ConfigError(
            f"{name}: an image must be at most {MOST_CELLS} patches wide and high, got {max(pixels)} pixels in patches "
            f"of {min(patches)}."
        )


def _check_overlay(value: Any) -> None:
    """Raise ConfigError unless the overlay is one safetensors file: reading other formats may run code."""
    file = value.get("file") if isinstance(value, Mapping) else None
    if not isinstance(file, str) or set(value) != {"file"} or Path(file).suffix != SAFE_SUFFIX:
        raise ConfigError(
            f"{OVERLAY} must be one file of weights, {{'file': 'PATH{SAFE_SUFFIX}'}}, got {value!r}. Other files may "
            "run code when they are read: convert them with safetensors first."
        )


def _check_value(where: str, value: Any, most: int) -> None:
    match value:
        case bool():
            return
        case int() if 0 <= value <= most:
            return
        case float() if math.isfinite(value) and abs(value) <= _MOST_RATIO:
            return
        case str() if _NAME.fullmatch(value):
            return
        case list() | tuple() if len(value) <= _MOST_ITEMS and not any(isinstance(v, list | tuple) for v in value):
            for each in value:
                _check_value(where, each, most)
            return
    raise ConfigError(
        f"{where} must be a whole number from 0 to {most}, a number within {_MOST_RATIO:g}, true or false, a short "
        f"name, or a list of up to {_MOST_ITEMS} of them, got {_short(value)}."
    )


def _sides(what: str, value: Any, most: int) -> tuple[int, ...]:
    sides = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if value is None:
        return ()
    if len(sides) not in (1, 2) or any(type(side) is not int or not 1 <= side <= most for side in sides):
        raise ConfigError(f"The {what} must be 1 to {most} pixels, or two such numbers, got {_short(value)}.")
    return sides


def _short(value: Any) -> str:
    text = (
        repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"a number of {value.bit_length()} bits"
    )
    return text if len(text) <= 100 else text[:97] + "..."


def most_parameters() -> int:
    """Return how many parameters this machine's memory holds, in single precision, `MOST_NUMBERS` at most."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 * MOST_NUMBERS
    with suppress(OSError, ValueError):  # of a container; "max" where it has no limit
        memory = min(memory, int(_CONTAINER_LIMIT.read_text(encoding="ascii")))
    return min(MOST_NUMBERS, memory // 4)


@contextmanager
def bounded_build(name: str, parameters: int | None = None) -> Iterator[None]:
    """While it is entered, count what is built and stop where it becomes too much, before memory is touched.

    Args:
        name: of what is built, for the message.
        parameters: most numbers in parameters, by default `most_parameters`; buffers and parts have their own bounds.

    Raises:
        TooLargeError: from within the construction.
    """
    left = {
        "parameters": most_parameters() if parameters is None else parameters,
        "numbers in buffers": MOST_NUMBERS,
        "parts": MOST_MODULES,
    }
    most = dict(left)

    def count(kind: str, more: int) -> None:
        left[kind] -= more
        if left[kind] < 0:
            raise TooLargeError(f"{name} must have at most {most[kind]:,} {kind} to be built here, and has more.")

    hooks = [
        register_module_parameter_registration_hook(lambda m, n, t: count("parameters", 0 if t is None else t.numel())),
        register_module_buffer_registration_hook(
            lambda m, n, t: count("numbers in buffers", 0 if t is None else t.numel())
        ),
        register_module_module_registration_hook(lambda m, n, part: count("parts", 1)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


SAFE_WEIGHTS, WEIGHTS = "model.safetensors", "pytorch_model.bin"


def check_tag(name: str) -> None:
    """Make sure that `MODEL.TAG` is one of timm's, where `name` has a tag.

    Raises:
        UnknownNameError: lists the model's tags.
    """
    model, tag = split_model_name_tag(name)
    known = [split_model_name_tag(each)[1] for each in get_arch_pretrained_cfgs(model)]
    if tag and tag not in known:
        raise UnknownNameError(f"weights of {model}", tag, [each for each in known if each])


def check_weights(name: str, overrides: Mapping[str, Any]) -> Remote | None:
    """Make sure that timm will find weights of `name`; return what it will load, None for a file of the user's own.

    Args:
        overrides: arguments of `timm.create_model`, checked; `pretrained_cfg_overlay` names other weights than timm's.

    Raises:
        ConfigError: there are no weights, or they are neither on this machine nor to be fetched.
    """
    if OVERLAY in overrides:
        file = overrides[OVERLAY]["file"]
        if not Path(file).is_file():
            raise ConfigError(f"The weights given for {name} must be a file, but there is no {file}.")
        return None
    remote = _remote(name)
    if why := why_missing(remote):
        place = f"{' or '.join(remote.files)} of {remote.address}"
        fetch = f"`hf download {remote.repo} {remote.files[0]}`" if remote.repo else f"a download to {remote.folder}"
        raise ConfigError(
            f"timm's weights of {name} are {place}; they are not in the local cache and {why}. Either fetch them with "
            f"{fetch} on a machine with a network and copy its cache here; or name a file with `student_arg` "
            '\'pretrained_cfg_overlay={"file": "PATH"}\'; or leave `pretrained` out.'
        )
    return remote


@contextmanager
def complete_weights(name: str) -> Iterator[None]:
    """Refuse weights that leave a part of the model untouched.

    timm is strict about them until the head is left out, as it is here; then a file of quite another model would pass
    for one of this. So the answer of `load_state_dict`, which timm only logs, is looked at.

    Raises:
        ConfigError: the file lacks keys of the model.
    """
    load = nn.Module.load_state_dict
    missing: list[str] = []

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(module, *args, **kwargs)
        missing.extend(result.missing_keys)
        return result

    with mock.patch.object(nn.Module, "load_state_dict", watched):
        yield
    if missing:
        raise ConfigError(
            f"The weights do not fit {name}: they lack {len(missing)} of its tensors, such as {missing[0]}. Name the "
            "model they were made for, and leave out each `student_arg` that changes its parts, such as depth."
        )


def _remote(name: str) -> Remote:
    source = get_pretrained_cfg(name)
    repo, _, revision = (getattr(source, "hf_hub_id", None) or "").partition("@")
    url = getattr(source, "url", None) or ""
    if repo:
        named = getattr(source, "hf_hub_filename", None)
        files = (SAFE_WEIGHTS, WEIGHTS) if not named else (str(Path(named).with_suffix(".safetensors")), named)
        return Remote(repo, tuple(dict.fromkeys(files)), revision=revision)
    if url:
        return Remote("", (url.rpartition("/")[2],), url, Path(torch.hub.get_dir()) / "checkpoints")
    model = split_model_name_tag(name)[0]
    having = [each for each, cfg in get_arch_pretrained_cfgs(model).items() if cfg.has_weights]
    instead = f"name one of {', '.join(having)}" if having else "leave `pretrained` out"
    raise ConfigError(f"timm has no weights of {name}: {instead}.")
