"""Who works on what: one lock a shard, held while the shard is made and freed by the system if its holder dies.

A claim is advisory. Where the file system cannot lock, several processes may make the same shard: work is doubled then,
and nothing else, since each writes temporary files of its own and renames the same bytes into place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING = "staging"
"""Folder of locks and half-written files below an output; gone once everything is committed."""


@contextmanager
def claimed(root: Path, name: str) -> Iterator[bool]:
    """Try to claim `name` below `root`; gives False, at once, where a living process holds it.

    Raises:
        OSError: the lock file cannot be made (a read-only or full disk).
    """
    folder = root / STAGING
    descriptor = _acquire(folder, name)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            _lock_file(folder, name).unlink(missing_ok=True)  # while it is held, so that no other holder loses its file
        os.close(descriptor)


def staging_file(root: Path, name: str, target: str) -> Path:
    """A temporary file of this process for `target`, of the work called `name`."""
    return root / STAGING / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.{Path(target).name}"


def clear_staging(root: Path) -> None:
    """Remove what killed processes left behind; call it when everything is committed, so that nobody needs it."""
    folder = root / STAGING
    with suppress(OSError):
        for entry in folder.iterdir():
            entry.unlink(missing_ok=True)
        folder.rmdir()


def _acquire(folder: Path, name: str) -> int | None:
    path = _lock_file(folder, name)
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process finished everything and removed the folder
            continue
        try:
            locked = _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # the holder before us removed this file; lock the one that stands there now
    if locked:  # so whoever wrote these is dead
        for leftover in folder.glob(f"{name}.*-*"):
            leftover.unlink(missing_ok=True)
    return descriptor


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.lock"


def _lock(descriptor: int) -> bool:
    """Lock at once or raise BlockingIOError; False where the file system has no locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
