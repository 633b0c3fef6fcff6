"""Find a teacher's files before open_clip does, or say what to fetch and where from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfi_pipeline.errors import TeacherError
from lfi_pipeline.hub import Remote, untouched_network, why_missing

CONFIG, SAFE_WEIGHTS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"

__all__ = ["CONFIG", "SAFE_WEIGHTS", "WEIGHTS", "Remote", "require", "untouched_network", "weights_of"]


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
