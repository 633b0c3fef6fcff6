"""Which file timm's weights of a model are, and whether they can be had, before timm retries for minutes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.hub import Remote, why_missing

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
        overrides: arguments of `timm.create_model`; `pretrained_cfg` and `pretrained_cfg_overlay` are the ways to name
            other weights than timm's own, and win over them here as they do there.

    Raises:
        ConfigError: there are no weights, or they are neither on this machine nor to be fetched.
    """
    overlay = overrides.get("pretrained_cfg_overlay") or {}
    if "pretrained_cfg" in overrides or not isinstance(overlay, Mapping):
        return None  # timm's to judge
    file = overlay.get("file")
    if file:
        if not Path(file).is_file():
            raise ConfigError(f"The weights given for {name} must be a file, but there is no {file}.")
        return None
    if overlay:
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

    timm is strict about them until the head is left out, as it is here; then it only logs what a file lacks, and a file
    of quite another model would pass for one of this.

    Raises:
        ConfigError: timm logged that keys were missing.
    """
    logger = logging.getLogger("timm.models._builder")
    found = _Missing()
    level = logger.level
    logger.addHandler(found)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(found)
    if found.keys:
        keys = found.keys.split(", ")
        raise ConfigError(
            f"The weights do not fit {name}: they lack {len(keys)} of its tensors, such as {keys[0]}. Name the model "
            "they were made for, and leave out each `student_arg` that changes its parts, such as depth."
        )


class _Missing(logging.Handler):
    """Keeps the keys of timm's line "Missing keys (a, b) discovered"."""

    keys = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Missing keys ("):
            self.keys = text.partition("(")[2].partition(")")[0]


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
