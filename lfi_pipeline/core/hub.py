"""Find files of a model hub before its client does: in the caches, or on the hub if it answers.

The hub's client retries for minutes without a network, and ends in an error that names no file.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

ANSWERS_WITHIN = 5.0  # seconds
OPEN_CLIP_CACHE = Path("~/.cache/clip")  # where open_clip keeps what it has from a plain URL


@dataclass(frozen=True, slots=True)
class Remote:
    """Files, any one of which will do, of a repository of the hub; or one file behind a URL (`repo` is empty).

    Attributes:
        folder: where the library that loads it keeps what it has from a plain URL.
        revision: of the repository; empty is its main one.
    """

    repo: str
    files: tuple[str, ...]
    url: str = ""
    folder: Path = OPEN_CLIP_CACHE
    revision: str = ""

    @property
    def address(self) -> str:
        """Where a person finds it."""
        return self.url or f"{constants.ENDPOINT}/{self.repo}"

    @property
    def cached(self) -> bool:
        """Whether it is on this machine."""
        if self.url:
            return (self.folder.expanduser() / self.files[0]).is_file()
        named = {"revision": self.revision} if self.revision else {}
        return any(isinstance(try_to_load_from_cache(self.repo, file, **named), str) for file in self.files)


def answers(url: str) -> bool:
    """Whether a server answers at all, through whatever proxy the environment names."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWERS_WITHIN):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def why_missing(remote: Remote) -> str:
    """Return why it cannot be had, or nothing where it is in the cache or its server answers."""
    if remote.cached:
        return ""
    if constants.HF_HUB_OFFLINE and not remote.url:
        return "HF_HUB_OFFLINE is set"
    server = remote.url or constants.ENDPOINT
    return "" if answers(server) else f"{server} does not answer"


@contextmanager
def untouched_network(needed: Sequence[Remote]) -> Iterator[None]:
    """Keep the hub's client from asking whether there is anything newer, where all that is needed is in the cache."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or all(remote.cached for remote in needed)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
