"""Remote files: whether a model hub answers, before its client retries for minutes; copies from object stores."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe, write_atomic
from lfi_pipeline.core.parse import read_json
from lfi_pipeline.data.listing_cache import cache_folder

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
        """URL of the file or repository, for messages."""
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
    """Return why a file cannot be fetched; empty where it is in the cache or its server answers."""
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


_LOGGER = logging.getLogger(__name__)
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_LOST = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)
_OF_A_DATASET = re.compile(r"\.tar$|(^|/)(classes|classnames)\.txt$|\.toml$")
OF_A_CACHE = re.compile(
    r"(manifest|source|zarr|vocabulary|classes)\.json$|(vocabulary|classes)\.npy$|(commits|index|views|shards)/[^.]"
)
_MOST_FILES = 1 << 20
_TOLD = ("size", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
_PART = 1 << 22  # bytes at a time
TRIES = 5
FIRST_WAIT = 1.0  # seconds; each further one is twice as long


def is_url(text: object) -> bool:
    """Whether `text` is a URL such as `s3://bucket/folder`, and not a path."""
    return isinstance(text, str) and _URL.match(text) is not None


def url_of(place: str | Path) -> str | None:
    """Return the URL that `place` is, None where it is a path. A URL that was taken for a path has lost a slash."""
    text = str(place)
    if is_url(text):
        return text
    lost = _LOST.match(text)
    if lost is None or Path(text).exists():
        return None
    return f"{lost[1]}:{'//' if lost[1] != 'file' else '///'}{text[lost.end() :]}"


def in_full(place: str | Path) -> str:
    """Return a place that holds from any working directory: a URL as it is, a path as an absolute one."""
    return url_of(place) or str(Path(place).resolve())


def mirrored(url: str, wanted: re.Pattern[str] = _OF_A_DATASET) -> Path:
    """Return a local folder with the files below `url` that are `wanted`; what is there already is not fetched again.

    Files are fetched one after another, each whole or not at all, and tried again where the network fails. A file is
    fetched anew where its size, time or tag at the source differs. Nothing is written to the source.

    Args:
        url: a folder that fsspec can list (`s3://`, `gs://`, `https://` of a server that lists), or files as
            `https://host/train-{00000..00012}.tar`.
        wanted: matches their names, in the folder that is listed: `OF_A_CACHE`, or tars and class lists.

    Raises:
        DatasetError: the protocol is unknown or its package absent, nothing is there, or a file cannot be fetched.
    """
    folder = cache_folder() / "remote" / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = list(_files(url, wanted))
        if not files:
            raise DatasetError(
                f"{url} must be a folder with tars, name tars, or be a cache of targets; found none there."
            )
        for system, source, name in files:
            _fetch(system, source, folder / name, folder.with_name(f"{folder.name}.notes") / f"{name}.json")
        names = {name for _, _, name in files}
        for path in sorted(folder.rglob("*")):  # what is gone at the source
            if path.is_file() and path.name[0] != "." and path.relative_to(folder).as_posix() not in names:
                path.unlink()
    except OSError as error:
        raise DatasetError(f"{url} cannot be copied to {folder}: {error}.") from error
    return folder


def _files(url: str, wanted: re.Pattern[str]) -> Iterator[tuple[Any, str, str]]:
    """Yield file system, path there and name below the folder."""
    named = list(_expanded(url))
    if len(named) > 1 or url.endswith(".tar"):
        for each in named:
            system, path = _system(each)
            yield system, path, _safe(each.rpartition("/")[2], url)
        return
    system, base = _system(url)
    base = base.rstrip("/")
    paths = _tried(lambda: system.find(base), url)
    for path in sorted(paths)[:_MOST_FILES]:
        name = path.removeprefix(base).lstrip("/")
        if wanted.search(name):
            yield system, path, _safe(name, url)


def _expanded(url: str) -> Iterator[str]:
    ranges = list(_RANGE.finditer(url))
    numbers: list[Sequence[str]] = []
    for each in ranges:
        first, last = int(each[1]), int(each[2])
        if not first <= last < first + _MOST_FILES:
            raise DatasetError(f"{url}: a range must be from a number to a larger one, got {each[0]}.")
        numbers.append([str(number).zfill(len(each[1])) for number in range(first, last + 1)])
    for chosen in itertools.product(*numbers):
        parts = iter(chosen)
        yield _RANGE.sub(lambda _, parts=parts: next(parts), url)  # type: ignore[misc]


def _safe(name: str, url: str) -> str:
    if (reason := why_unsafe(name)) is not None:
        raise DatasetError(f"{url}: a file there has the name {name!r}, which {reason}.")
    return name


def _system(url: str) -> tuple[Any, str]:
    try:
        fsspec: Any = importlib.import_module("fsspec")
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{url} cannot be read: {error}") from error
    return system, str(path)


def _tried(work: Any, what: str) -> Any:
    """Return what `work` returns, after up to `TRIES` tries."""
    for number in range(TRIES):
        try:
            return work()
        except FileNotFoundError as error:
            raise DatasetError(f"{what} is not there.") from error
        except Exception as error:  # each protocol has errors of its own
            if isinstance(error, DatasetError) or number == TRIES - 1:
                raise DatasetError(f"{what} cannot be read: {error or type(error).__name__}.") from error
            wait = FIRST_WAIT * 2**number
            _LOGGER.warning("%s: %s; trying again in %.0f s", what, error, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _fetch(system: Any, source: str, place: Path, note: Path) -> None:
    """Copy a file to `place`, unless `note` says that it has not changed since."""
    info = _tried(lambda: system.info(source), source)
    stamp = {name: str(info[name]) for name in _TOLD if name in info}
    with suppress(DatasetError):
        if place.is_file() and read_json(note, error=DatasetError) == stamp:
            return
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        _tried(lambda: _copy(system, source, scratch, info.get("size")), source)
        scratch.replace(place)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, json.dumps(stamp).encode())
    finally:
        scratch.unlink(missing_ok=True)


def _copy(system: Any, source: str, scratch: Path, size: int | None) -> None:
    with system.open(source, "rb") as remote, scratch.open("wb") as local:
        shutil.copyfileobj(remote, local, _PART)
        local.flush()
        os.fsync(local.fileno())
        if size is not None and local.tell() != size:
            raise OSError(f"{local.tell()} bytes came of {size}")
