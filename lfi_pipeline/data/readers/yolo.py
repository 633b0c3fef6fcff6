"""Read YOLO's layout: a text file for each image, a line for each object that begins with the number of its class."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.parse import MAX_TOML_BYTES, read_limited
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.coco_records import Faults
from lfi_pipeline.data.readers.walk import image_paths, keys_of, misfit, read_lines, require_directory

_NUMBER = re.compile(r"\d{1,6}")
_MOST_CLASSES = 1 << 17


def read_yolo(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: images below `images`, and for each a file of the same name and `.txt` below `labels`.

    A line is the number of a class and four numbers of a box, or the corners of an outline; the class is read and the
    rest left alone. An image without a file, or with an empty one, has no objects. Names of classes are those of
    `classes_file` (`names` of a YAML file, or a line each), or else the numbers.

    Raises:
        DatasetError: no images, or a class list that is none.
    """
    require_directory(manifest, root)
    roles = manifest.files(split)
    folder, labels = root / roles["images"], root / roles["labels"]
    if not folder.is_dir() or not labels.is_dir():
        raise misfit(manifest, root, f"{roles['images']}/ and {roles['labels']}/")
    file = manifest.options.get("classes_file")
    names = _class_names(root / file) if file else None
    faults = Faults(labels)
    paths = image_paths(folder)
    if not paths:
        raise misfit(manifest, folder, "images")
    found = [_classes_of(labels / Path(path).with_suffix(".txt"), names, faults) for path in paths]
    largest = max((label for each in found for label in each), default=-1)
    classes = names if names is not None else tuple(map(str, range(largest + 1)))
    prefix = "" if roles["images"] == "." else f"{roles['images']}/"
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=classes,
        samples=SampleTable(_samples(paths, prefix, found)),
        prompts=manifest.prompts,
        notes=faults.lines(),
    )


def _samples(paths: Sequence[str], prefix: str, labels: Sequence[tuple[int, ...]]) -> Iterator[Sample]:
    for path, key, found in zip(paths, keys_of(paths), labels, strict=True):
        yield Sample(key=key, path=prefix + path, captions=(), labels=found, domain="", height=0, width=0)


def _classes_of(path: Path, names: Sequence[str] | None, faults: Faults) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    found = set()
    for number, line in read_lines(path):
        first = line.split(maxsplit=1)[0]
        label = int(first) if _NUMBER.fullmatch(first) else -1
        if not 0 <= label < (len(names) if names is not None else _MOST_CLASSES):
            faults.add(
                "lines left out, that begin with no class of the list", f"{path.name}, line {number}: {line[:40]!r}"
            )
            continue
        found.add(label)
    return tuple(sorted(found))


def _class_names(path: Path) -> tuple[str, ...]:
    if path.suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for _, line in read_lines(path))
    yaml: Any = importlib.import_module("yaml")  # it has no types
    content: Any = None
    text = read_limited(path, error=DatasetError, max_bytes=MAX_TOML_BYTES)
    try:
        content = yaml.safe_load(text.decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0]
        raise DatasetError(f"{path} must be YAML in UTF-8: {why}.") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        try:
            names = [names[number] for number in range(len(names))]
        except KeyError as error:
            raise DatasetError(f"{path} must number its names from 0 without a gap; {error} is missing.") from error
    if not isinstance(names, list) or not names or not all(isinstance(each, str | int) for each in names):
        raise DatasetError(f"{path} must list the classes as 'names', got {str(names)[:60]}.")
    return tuple(map(str, names))
