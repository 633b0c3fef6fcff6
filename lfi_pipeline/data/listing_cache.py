"""Parsed listings of large annotation files, kept in the user's cache folder; deleting it costs nothing but time."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from lfi_pipeline.core.errors import LFIError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.parse import read_json

FOLDER_VARIABLE = "LFI_CACHE_DIR"
SMALLEST = 1 << 23
"""Bytes of annotations from which on a listing is kept; smaller ones are parsed in a second."""
_RACE_NS = 2_000_000_000  # a file that was changed less before it was looked at may change again within its time stamp
_UNUSED_SECONDS = 60 * 86400


class Parts(Protocol):
    """Named streams of Arrow record batches."""

    def writer(self, name: str, schema: Any) -> Any:
        """Return a writer of record batches, to be closed."""

    def batches(self, name: str) -> list[Any]:
        """Return what was written, mapped where it is a file."""


class PartsInMemory:
    """Parts in memory, of listings too small to keep."""

    def __init__(self) -> None:
        self._sinks: dict[str, Any] = {}

    def writer(self, name: str, schema: Any) -> Any:
        self._sinks[name] = pa.BufferOutputStream()
        return pa.ipc.new_file(self._sinks[name], schema)

    def batches(self, name: str) -> list[Any]:
        reader = pa.ipc.open_file(self._sinks[name].getvalue())
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


class PartsInFolder:
    """Parts as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, name: str, schema: Any) -> Any:
        return pa.ipc.new_file(str(self.folder / f"{name}.arrow"), schema)

    def batches(self, name: str) -> list[Any]:
        reader = pa.ipc.open_file(pa.memory_map(str(self.folder / f"{name}.arrow")))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def cache_folder() -> Path:
    """Return `$LFI_CACHE_DIR`, or else folder `lfi` where the system keeps caches (`$XDG_CACHE_HOME`, `~/.cache`)."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own)
    system = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(system) if Path(system).is_absolute() else Path.home() / ".cache") / "lfi"


def kept_listing(
    files: Sequence[Path], settings: Mapping[str, Any], parse: Callable[[Parts], Mapping[str, Any]]
) -> tuple[Parts, dict[str, Any]]:
    """Return the parts and the description that `parse` makes of `files`, from the cache where it has them.

    A listing is looked up by a hash of the files' content and of `settings`. Hashes are remembered by size and time of
    change; a file that was copied or touched is hashed again. Where the cache cannot be written, a temporary folder
    takes its place.

    Args:
        files: what `parse` reads; of less than `SMALLEST` bytes together, nothing is kept.
        settings: JSON values that change what it makes, and its version.
        parse: writes parts and returns JSON values.

    Raises:
        LFIError: as `parse`.
    """
    if sum(path.stat().st_size for path in files) < SMALLEST:
        parts = PartsInMemory()
        return parts, dict(parse(parts))
    folder = cache_folder() / "listings"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = [_digest(folder, path) for path in files]
        key = hashlib.sha256(json.dumps([settings, digests], sort_keys=True).encode()).hexdigest()[:32]
        if (listing := _kept(folder / key)) is not None:
            return listing
        with _scratch(folder) as scratch:
            _write(scratch, parse)
            _put(scratch, folder / key)
        _forget_unused(folder)
        if (listing := _kept(folder / key)) is not None:
            return listing
    except OSError as error:
        if isinstance(error, LFIError):
            raise
    with _scratch(None) as scratch:  # its files are mapped, so they are there until nobody uses them
        _write(scratch, parse)
        own = PartsInFolder(scratch)
        description = read_json(scratch / "listing.json", error=LFIError)
        return _Held({name: own.batches(name) for name in description["parts"]}), description["values"]


class _Held:
    """Parts whose files were deleted while they stay mapped."""

    def __init__(self, batches: Mapping[str, list[Any]]) -> None:
        self._batches = batches

    def writer(self, name: str, schema: Any) -> Any:
        raise NotImplementedError

    def batches(self, name: str) -> list[Any]:
        return self._batches[name]


def _write(folder: Path, parse: Callable[[Parts], Mapping[str, Any]]) -> None:
    values = dict(parse(PartsInFolder(folder)))
    names = sorted(path.stem for path in folder.glob("*.arrow"))
    sizes = {name: (folder / f"{name}.arrow").stat().st_size for name in names}
    write_atomic(folder / "listing.json", json.dumps({"parts": sizes, "values": values}).encode())


def _kept(folder: Path) -> tuple[Parts, dict[str, Any]] | None:
    """Return a listing of the cache; None where there is none that is whole."""
    try:
        description = read_json(folder / "listing.json", error=LFIError)
        parts = PartsInFolder(folder)
        for name, size in description["parts"].items():
            if (folder / f"{name}.arrow").stat().st_size != size:
                return None
            parts.batches(name)
        os.utime(folder)
        return parts, description["values"]
    except (LFIError, OSError, pa.ArrowException, KeyError, TypeError, AttributeError):
        return None


def _put(scratch: Path, place: Path) -> None:
    for _ in range(2):
        try:
            scratch.rename(place)
            return
        except OSError:  # there is one already, of another process or damaged
            if _kept(place) is not None:
                return
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        path = Path(tempfile.mkdtemp(prefix="lfi-listing-"))
    else:
        path = folder / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
        path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _digest(folder: Path, path: Path) -> str:
    """Return the hash of a file's content, remembered by its size and time of change."""
    state = path.stat()
    stamp = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "inode": state.st_ino}
    note = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    try:
        known = read_json(note, error=LFIError)
        if known["stamp"] == stamp and isinstance(known["sha256"], str):
            return str(known["sha256"])
    except (LFIError, KeyError, TypeError):
        pass
    with path.open("rb") as file:
        digest = _hash(file)
    if time.time_ns() - state.st_mtime_ns > _RACE_NS:
        write_atomic(note, json.dumps({"stamp": stamp, "sha256": digest}).encode())
    return digest


def _hash(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _forget_unused(folder: Path) -> None:
    oldest = time.time() - _UNUSED_SECONDS
    for entry in folder.iterdir():
        if entry.stat().st_mtime < oldest:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
