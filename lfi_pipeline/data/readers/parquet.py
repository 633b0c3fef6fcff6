"""Read Parquet files as Hugging Face datasets writes them: a column of images, and captions or labels beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.parquet_images import parquet_path
from lfi_pipeline.data.readers.names import is_hidden
from lfi_pipeline.data.readers.walk import misfit, require_directory

_IMAGES = ("image", "img", "jpg", "png", "picture", "photo")
_CAPTIONS = ("caption", "captions", "text", "sentences", "txt", "description")
_LABELS = ("label", "labels", "fine_label", "class", "cls")
_MOST_CLASSES = 1 << 17
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
        if path.name.endswith(".parquet") and not is_hidden(path.name) and path.name.startswith(name)
        and not path.name[len(name) : len(name) + 1].isalpha()
    )  # fmt: skip
    if not files:
        raise misfit(manifest, root, f"{start}*.parquet")
    try:
        table = _Table(root, files)
        samples = SampleTable(table.samples())
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, DatasetError):
            raise
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
        if not isinstance(label, int) or not -1 <= label < (len(self.names) if self.names else _MOST_CLASSES):
            raise DatasetError(f"{where}: a label must be a name or the number of a class, got {label!r}.")
        self.largest = max(self.largest, label)
        return label  # -1 is Hugging Face's for none

    def settled(self, samples: SampleTable) -> tuple[tuple[str, ...], SampleTable]:
        """Return the class names, and samples whose labels index them."""
        if not self.by_name:
            return self.names or tuple(map(str, range(self.largest + 1))), samples
        from dataclasses import replace

        names = sorted(self.by_name)
        order = {self.by_name[name]: number for number, name in enumerate(names)}
        return tuple(names), SampleTable(
            replace(each, labels=tuple(sorted(order[label] for label in each.labels))) for each in samples
        )


def _first(schema: Any, names: tuple[str, ...], fits: Any, *, named: bool = False) -> str | None:
    found = [name for name in names if name in schema.names and fits(schema.field(name).type)]
    others = [] if named else [each.name for each in schema if fits(each.type)]
    return next(iter([*found, *others]), None)


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
