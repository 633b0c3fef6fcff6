"""Find a teacher's files before open_clip does: in the caches, or on the hub if it answers; else say what to fetch.

open_clip and the hub's client retry for minutes without a network, and end in an error that names no file.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from lfi_pipeline.errors import TeacherError

CONFIG, SAFE_WEIGHTS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
ANSWERS_WITHIN = 5.0  # seconds
URL_CACHE = Path("~/.cache/clip")  # where open_clip keeps what it has from a plain URL


@dataclass(frozen=True, slots=True)
class Remote:
    """Files, any one of which will do, of a repository of the hub; or one file behind a URL (`repo` is empty)."""

    repo: str
    files: tuple[str, ...]
    url: str = ""

    @property
    def address(self) -> str:
        """Where a person finds it."""
        return self.url or f"{constants.ENDPOINT}/{self.repo}"

    @property
    def cached(self) -> bool:
        """Whether it is on this machine."""
        if self.url:
            return (URL_CACHE.expanduser() / self.files[0]).is_file()
        return any(isinstance(try_to_load_from_cache(self.repo, file), str) for file in self.files)


def weights_of(source: dict[str, Any]) -> Remote:
    """Return where open_clip takes weights from, from its own record of a tag."""
    hub, url = source.get("hf_hub", ""), source.get("url", "")
    if not hub:
        return Remote("", (url.rpartition("/")[2],), url)
    repo, _, file = hub.rpartition("/")
    if not file:
        return Remote(repo, (SAFE_WEIGHTS, WEIGHTS))
    return Remote(repo, (str(Path(file).with_suffix(".safetensors")), file))


def answers(url: str) -> bool:
    """Whether a server answers at all, through whatever proxy the environment names."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWERS_WITHIN):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def require(needed: Sequence[Remote], instead: str) -> None:
    """Make sure that what is needed is in the cache or can be fetched.

    Args:
        needed: what will be loaded.
        instead: what else the user can do, after "fetch FILE from ADDRESS".

    Raises:
        TeacherError: something is not in the cache, and the hub does not answer or is not to be asked.
    """
    for remote in needed:
        if remote.cached:
            continue
        offline = constants.HF_HUB_OFFLINE and not remote.url
        if offline or not answers(remote.url or constants.ENDPOINT):
            why = "HF_HUB_OFFLINE is set" if offline else f"{remote.url or constants.ENDPOINT} does not answer"
            raise TeacherError(
                f"{' or '.join(remote.files)} of {remote.address} must be in the local cache or fetched, "
                f"but it is not there and {why}. On a machine with a network fetch {remote.files[0]} from "
                f"{remote.repo or remote.url}, {instead}"
            )


@contextmanager
def untouched_network(needed: Sequence[Remote]) -> Iterator[None]:
    """Keep the hub's client from asking whether there is anything newer, where all that is needed is in the cache."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or all(remote.cached for remote in needed)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
