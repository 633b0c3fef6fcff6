"""Which file timm's weights of a model are, and whether they can be had, before timm retries for minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag
from torch import nn

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.hub import Remote, why_missing
from lfi_pipeline.students.arguments import OVERLAY

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
