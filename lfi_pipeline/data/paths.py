"""Paths below a data root, as samples and manifests write them."""

from __future__ import annotations

import re

_IN_TAR = re.compile(r"^(.+\.tar)#([0-9]{1,18})\+([0-9]{1,18})$", re.DOTALL)


def why_unsafe(path: str) -> str | None:
    """Say why `path` is not a POSIX path that stays below the directory it is relative to; None where it is."""
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    if path.startswith("/"):
        return "is absolute"
    if ".." in path.split("/"):
        return "has '..' in it"
    return None


def split_tar_path(path: str) -> tuple[str, int, int] | None:
    """Split `shards/a.tar#1536+33122` into tar, offset and size in bytes; None for the path of a plain file."""
    found = _IN_TAR.match(path)
    return (found[1], int(found[2]), int(found[3])) if found else None


def tar_path(tar: str, offset: int, size: int) -> str:
    """Return the path of `size` bytes at `offset` inside `tar`."""
    return f"{tar}#{offset}+{size}"
