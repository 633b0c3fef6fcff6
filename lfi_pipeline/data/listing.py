"""Text files that list things, a line each, as they come from any system: BOM, Windows line ends, blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lfi_pipeline.errors import DatasetError

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
