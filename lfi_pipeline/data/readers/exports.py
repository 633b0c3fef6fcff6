"""Read what labelling tools and the hub export: YOLO's text files, and Parquet folders of Hugging Face."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.parse import MAX_TOML_BYTES, parse_json, read_limited
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable, named_in_order, renumbered
from lfi_pipeline.data.images import parquet_path
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.coco_json import Faults
from lfi_pipeline.data.readers.sniff import is_hidden
from lfi_pipeline.data.readers.walk import (
    MOST_CLASSES,
    begins_with,
    file_paths,
    image_paths,
    keys_of,
    layout_error,
    prefix_of,
    read_lines,
    require_directory,
)

_NUMBER = re.compile(r"\d{1,6}")


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
        raise layout_error(manifest, root, f"{roles['images']}/ and {roles['labels']}/")
    file = manifest.options.get("classes_file")
    names = _class_names(root / file) if file else None
    faults = Faults(labels)
    paths = image_paths(folder)
    if not paths:
        raise layout_error(manifest, folder, "images")
    image_labels = [_classes_of(labels / Path(path).with_suffix(".txt"), names, faults) for path in paths]
    largest = max((label for each in image_labels for label in each), default=-1)
    classes = names if names is not None else tuple(map(str, range(largest + 1)))
    prefix = prefix_of(roles["images"])
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=classes,
        samples=SampleTable(_samples(paths, prefix, image_labels)),
        prompts=manifest.prompts,
        notes=faults.lines(),
    )


def _samples(paths: Sequence[str], prefix: str, labels: Sequence[tuple[int, ...]]) -> Iterator[Sample]:
    for path, key, image_labels in zip(paths, keys_of(paths), labels, strict=True):
        yield Sample(key=key, path=prefix + path, captions=(), labels=image_labels, domain="", height=0, width=0)


def _classes_of(path: Path, names: Sequence[str] | None, faults: Faults) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    classes = set()
    for number, line in read_lines(path):
        first = line.split(maxsplit=1)[0]
        label = int(first) if _NUMBER.fullmatch(first) else -1
        if not 0 <= label < (len(names) if names is not None else MOST_CLASSES):
            faults.add(
                "lines left out, that begin with no class of the list", f"{path.name}, line {number}: {line[:40]!r}"
            )
            continue
        classes.add(label)
    return tuple(sorted(classes))


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


_IMAGES = ("image", "img", "jpg", "png", "picture", "photo")
_CAPTIONS = ("caption", "captions", "text", "sentences", "txt", "description")
_LABELS = ("label", "labels", "fine_label", "class", "cls")
_ROWS = 4096  # at a time


def read_parquet(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: every Parquet file whose path begins with `files`. Images stay where they are.

    The image is column `image` (a struct with `bytes`, or binary) or the first of that form; captions are text or lists
    of text, labels numbers, lists of numbers or names. Numbers have the names that Hugging Face's description of the
    features in the file tells.

    Raises:
        DatasetError: no such files, no column of images, or columns of another form.
    """
    require_directory(manifest, root)
    start = manifest.files(split)["files"]
    folder, _, name = start.rpartition("/")
    place = root / folder
    files = sorted(
        path
        for path in (place.iterdir() if place.is_dir() else ())
        if path.name.endswith(".parquet") and not is_hidden(path.name) and begins_with(path.name, name)
    )
    if not files:
        raise layout_error(manifest, root, f"{start}*.parquet")
    try:
        table = _Table(root, files)
        samples = SampleTable(table.samples())
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{files[0].parent}: its Parquet files cannot be read: {error}.") from error
    classes, samples = table.settled(samples)
    return Dataset(
        name=manifest.name, root=root, split=split, classes=classes, samples=samples, prompts=manifest.prompts
    )


class _Table:
    """The rows of several files of one schema."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.root, self.files = root, files
        schema = pq.read_schema(files[0])
        self.image = _first(schema, _IMAGES, _is_image)
        if self.image is None:
            raise DatasetError(
                f"{files[0]} must have a column of images (binary, or a struct with bytes); its columns: "
                f"{', '.join(schema.names)}."
            )
        self.caption = _first(schema, _CAPTIONS, _is_text, named=True)
        self.label = _first(schema, _LABELS, lambda kind: _is_text(kind) or _is_number(kind), named=True)
        self.names = _named(schema, self.label)
        self.by_name: dict[str, int] = {}
        self.largest = -1

    def samples(self) -> Iterator[Sample]:
        columns = [name for name in (self.caption, self.label) if name is not None]
        for file in self.files:
            path, row = file.relative_to(self.root).as_posix(), 0
            with pq.ParquetFile(file) as source:
                rows = source.metadata.num_rows
                batches = source.iter_batches(_ROWS, columns=columns) if columns else []
                for batch in batches:
                    for record in batch.to_pylist():
                        yield self._sample(path, row, record)
                        row += 1
            while row < rows:
                yield self._sample(path, row, {})
                row += 1

    def _sample(self, path: str, row: int, record: dict[str, Any]) -> Sample:
        assert self.image is not None
        texts = _listed(record.get(self.caption)) if self.caption else []
        labels = _listed(record.get(self.label)) if self.label else []
        where = f"{self.root / path}, row {row}"
        return Sample(
            key=f"{path.removesuffix('.parquet')}/{row:08d}",
            path=parquet_path(path, self.image, row),
            captions=tuple(text.strip() for text in texts if isinstance(text, str) and text.strip()),
            labels=tuple(sorted({self._label(label, where) for label in labels} - {-1})),
            domain="",
            height=0,
            width=0,
        )

    def _label(self, label: object, where: str) -> int:
        if isinstance(label, str):
            return self.by_name.setdefault(label, len(self.by_name))
        if not isinstance(label, int) or not -1 <= label < (len(self.names) if self.names else MOST_CLASSES):
            raise DatasetError(f"{where}: a label must be a name or the number of a class, got {label!r}.")
        self.largest = max(self.largest, label)
        return label  # -1 is Hugging Face's for none

    def settled(self, samples: SampleTable) -> tuple[tuple[str, ...], SampleTable]:
        """Return the class names, and samples whose labels index them."""
        if not self.by_name:
            return self.names or tuple(map(str, range(self.largest + 1))), samples
        names, order = named_in_order(self.by_name)
        return names, renumbered(samples, order)


def _first(schema: Any, names: tuple[str, ...], fits: Any, *, named: bool = False) -> str | None:
    preferred = [name for name in names if name in schema.names and fits(schema.field(name).type)]
    others = [] if named else [each.name for each in schema if fits(each.type)]
    return next(iter([*preferred, *others]), None)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_image(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_number(kind.value_type)
    return bool(pa.types.is_integer(kind))


def _listed(value: object) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _named(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """Return the names of a label's numbers, as Hugging Face's features in the schema's metadata have them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[label]
        names = (feature.get("feature") or feature)["names"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


METADATA = ("metadata.jsonl", "metadata.csv")
"""Files in which Hugging Face's folders of images keep their captions, by `file_name`."""
_TEXTS = (".txt", ".caption")
_LARGEST_CAPTION = 1 << 16  # bytes
_NUMBERS_ALONE = re.compile(r"[\d\s.,eE+-]*")


def folder_captions(folder: Path, paths: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the captions of images in a folder, and notes on what was passed over.

    They are in `metadata.jsonl` or `metadata.csv` (`file_name` beside `text` or `caption`), or else in a text file beside
    each image, `a.txt` beside `a.jpg`, a caption a line. Text files that hold numbers alone are labels of another tool.

    Args:
        folder: of the images.
        paths: of the images, below it.

    Raises:
        DatasetError: a file that cannot be read, or is not of its form; names file and line.
    """
    faults = Faults(folder)
    file = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if file is not None:
        known, captions = frozenset(paths), dict[str, tuple[str, ...]]()
        for name, texts in _metadata(file):
            if name in known:
                captions[name] = texts
            else:
                faults.add(f"captions of {file.name} left out, of an image that is not there", name)
        return captions, faults.lines()
    beside = {path.rpartition(".")[0]: path for path in file_paths(folder, lambda name: name.endswith(_TEXTS))}
    captions = {}
    for path in paths:
        text = beside.get(path.rpartition(".")[0])
        if text is None:
            continue
        content = read_limited(folder / text, error=DatasetError, max_bytes=_LARGEST_CAPTION)
        lines = tuple(filter(None, map(str.strip, content.decode("utf-8-sig", errors="replace").splitlines())))
        if all(map(_NUMBERS_ALONE.fullmatch, lines)):
            faults.add("text files left out, that hold numbers and no caption", text)
        else:
            captions[path] = lines
    return captions, faults.lines()


def _metadata(file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the file name and the captions of each record."""
    content = read_limited(file, error=DatasetError).decode("utf-8-sig", errors="replace")
    if file.suffix == ".csv":
        rows: Any = enumerate(csv.DictReader(io.StringIO(content)), start=2)
    else:
        lines = enumerate(content.splitlines(), start=1)
        rows = ((n, parse_json(line, f"{file}, line {n}", error=DatasetError)) for n, line in lines if line.strip())
    try:
        for number, row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise DatasetError(f"{file}, line {number}: a record must have file_name, got {str(row)[:80]}.")
            text = next((row[name] for name in _CAPTIONS if row.get(name)), ())
            texts = [text] if isinstance(text, str) else text
            if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
                raise DatasetError(f"{file}, line {number}: captions must be text, got {str(text)[:80]}.")
            yield row["file_name"].replace("\\", "/").removeprefix("./"), tuple(filter(None, map(str.strip, texts)))
    except csv.Error as error:
        raise DatasetError(f"{file} must be CSV with a line of names: {error}.") from error
