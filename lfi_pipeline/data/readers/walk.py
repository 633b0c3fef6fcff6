"""Walk image trees below a data root: which files are images, their keys, and the text files that list them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.sniff import is_hidden, is_image

WHOLE_ROOT = "."
MOST_CLASSES = 1 << 17
"""Most classes of labels that are numbers without names."""


def layout_error(manifest: Manifest, folder: Path, required: str, *, remedy: str = "") -> DatasetError:
    """Return the error that shows both sides; `required` ends the sentence «Data root R must hold ...»."""
    return DatasetError(
        f"Data root {folder} must hold {required} (layout {manifest.layout} of {manifest.name}); "
        f"found there: {found_in(folder)}. {f'{remedy}.' if remedy else manifest.how_to_obtain}".rstrip()
    )


def require_directory(manifest: Manifest, root: Path) -> None:
    """Raise a `DatasetError` unless `root` is a directory."""
    if not root.is_dir():
        raise DatasetError(f"Data root {root} must be a directory. {manifest.how_to_obtain}".rstrip())


def prefix_of(folder: str) -> str:
    """Return what the path of a file in `folder` begins with; `.` is the data root."""
    return "" if folder == WHOLE_ROOT else f"{folder}/"


def begins_with(name: str, start: str) -> bool:
    """Whether a file is of a split: train-000.tar and train_000.tar are of train, training-000.tar is not."""
    return name.startswith(start) and not name[len(start) : len(start) + 1].isalpha()


def image_paths(folder: Path) -> list[str]:
    """Return `file_paths` of all images below `folder`."""
    return file_paths(folder, is_image)


def file_paths(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Return the POSIX paths of all files below `folder` with a wanted name, relative to it, sorted by their bytes.

    Links are followed; hidden files and folders are passed over. Files are not opened or stat'ed.

    Raises:
        DatasetError: a folder cannot be listed, links go round in a circle, or a name is not UTF-8.
    """
    paths: list[str] = []
    _walk(folder, "", wanted, paths, [])
    try:
        return sorted(paths, key=str.encode)
    except UnicodeEncodeError as error:
        raise DatasetError(f"{folder}: file names must be UTF-8, got {error.object!r}. Rename the file.") from error


def _walk(
    folder: Path, prefix: str, wanted: Callable[[str], bool], paths: list[str], above: Sequence[tuple[int, int]]
) -> None:
    try:
        state = folder.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:
            raise DatasetError(f"{folder} is a link to a folder above it; remove the link.")
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    _walk(folder / entry.name, f"{prefix}{entry.name}/", wanted, paths, [*above, here])
                elif wanted(entry.name):
                    paths.append(prefix + entry.name)
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror or error}.") from error


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, in the order in which their contents sort by bytes.

    Raises:
        DatasetError: it cannot be listed, or a name is not UTF-8.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir()]
        return sorted(names, key=lambda name: f"{name}/".encode())
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror or error}.") from error
    except UnicodeEncodeError as error:
        raise DatasetError(f"{folder}: folder names must be UTF-8, got {error.object!r}. Rename it.") from error


def keys_of(paths: Sequence[str]) -> Iterator[str]:
    """Yield a key for each of `paths`: without its extension where that is unique, and otherwise with it."""
    stems = Counter(os.path.splitext(path)[0] for path in paths)  # noqa: PTH122
    taken = stems.keys() & set(paths)  # a.jpg.jpg would become a.jpg, which may be a file of its own
    for path in paths:
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        yield path if stems[stem] > 1 or stem in taken else stem


def found_in(folder: Path) -> str:
    """Say for a message what lies in `folder`: at most twelve names."""
    if not folder.is_dir():
        return f"no such directory as {folder}"
    try:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    except OSError as error:
        return error.strerror or str(error)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(repr(name) if not name.isprintable() else name for name in names[:12]) + more or "nothing"


_LONGEST_LINE = 1 << 16  # characters


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of every line that is not blank.

    Raises:
        DatasetError: the file cannot be read, is not UTF-8, or has a line of more than 65536 characters.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if number == 1:  # not by Python's utf-8-sig, which takes half a BOM for an empty file
                    line = line.removeprefix("\ufeff")
                if len(line) == _LONGEST_LINE:
                    raise DatasetError(f"{path}, line {number}: a line must have less than {_LONGEST_LINE} characters.")
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} must be a text file in UTF-8: {error}.") from error
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}.") from error


def read_labelled_paths(path: Path, classes: int) -> Iterator[tuple[int, str, int]]:
    """Yield (line number, path, label from 0) of a file with lines `art_painting/dog/pic_001.jpg 1`, labels from 1.

    Raises:
        DatasetError: as `read_lines`, or a line of another form; names file and line.
    """
    for number, line in read_lines(path):
        name, _, digits = line.strip().rpartition(" ")
        label = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
        if not name.strip() or not 1 <= label <= classes:
            raise DatasetError(f"{path}, line {number}: must be a path and a label from 1 to {classes}, got {line!r}.")
        yield number, name.strip(), label - 1
