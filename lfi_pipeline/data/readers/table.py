"""Read images that a table lists: path, class, group field and split in the columns of a delimited text file.

So come Waterbirds and other data sets of groups (Sagawa et al., ICLR 2020), CelebA, and most lists that people keep
themselves. A file is read by Arrow, which takes a second for CelebA's 200,000 rows of 41 columns; all cells are text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe
from lfi_pipeline.core.parse import read_limited
from lfi_pipeline.data.dataset import Dataset, SampleTable
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.class_folders import image_sample
from lfi_pipeline.data.readers.walk import (
    MOST_CLASSES,
    WHOLE_ROOT,
    found_in,
    image_paths,
    keys_of,
    layout_error,
    prefix_of,
    require_directory,
)

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": " "}
_LARGEST = 1 << 28  # bytes of a table; CelebA's largest has 26 million
_LONGEST = 4096  # characters of a cell that is read
_MOST_NAMED = 3
_MOST_COLUMNS = 50
_SHORT = 200


def read_table(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: the rows of its `table`, those with `value` in the column of splits where it says one.

    Classes are those of the option `classes`, in its order, or else all values of the column of labels, sorted. A name
    of a file without an ending stands for the first of `.csv`, `.tsv` and `.txt` that there is.

    Raises:
        DatasetError: a file, folder or column is absent; a file is not UTF-8, not a table, or has a cell of more than
            4096 characters; an image is listed twice, is not there or lies elsewhere; a label or a value of the group
            field has no name; no row is of the split.
    """
    require_directory(manifest, root)
    files, options = manifest.files(split), manifest.options
    folders = options.get("folders", [WHOLE_ROOT])
    file, place = _located(manifest, root, files["table"], folders)
    column_of = {role: options[role] for role in ("path", "label", "domain", "split") if role in options}
    value, partition = files.get("value"), options.get("partition")
    if "split" not in column_of and (value is not None or partition is not None):
        raise DatasetError(f"Manifest {manifest.name}: a value or a partition needs the option split, a column's name.")
    own = {role: name for role, name in column_of.items() if role != "split" or (value and not partition)}
    rows = _read(file, own, options.get("separator"))
    _require_distinct(file, rows["path"])
    classes, name_of = _classes(file, column_of["label"], rows["label"], options.get("classes"))
    if value is not None:
        if partition is not None:
            other, _ = _located(manifest, root, partition, [place, *folders])
            rows["split"] = _joined(other, column_of, options.get("separator"), file, rows["path"])
        of_split = pc.equal(rows["split"], value)
        if not pc.any(of_split).as_py():
            raise DatasetError(
                f"{file}: column {column_of['split']!r} must hold {value!r}, the value of split {split!r}, in some row; "
                f"its values: {_some(pc.unique(rows['split']).to_pylist())}."
            )
        rows = {role: cells.filter(of_split) for role, cells in rows.items()}
    base, paths = _images(manifest, root, [place, *folders]), rows["path"].to_pylist()
    _require_images(file, root / base, paths)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name_of[cell]] for cell in rows["label"].to_pylist()]
    domains = [""] * len(paths)
    if "domain" in rows:
        field_of = _names(file, column_of["domain"], rows["domain"], options.get("domains"))
        domains = [field_of[cell] for cell in rows["domain"].to_pylist()]
    prefix = prefix_of(base)
    samples = SampleTable(
        image_sample(prefix + path, key, label, domain)
        for path, key, label, domain in zip(paths, keys_of(paths), labels, domains, strict=True)
    )
    return Dataset(
        name=manifest.name, root=root, split=split, classes=classes, samples=samples, prompts=manifest.prompts
    )


def table_names(name: str) -> tuple[str, ...]:
    """Return what a file may be called that a manifest calls `name`."""
    return (name,) if Path(name).suffix else tuple(f"{name}{ending}" for ending in _SEPARATORS)


def _located(manifest: Manifest, root: Path, name: str, folders: Sequence[str]) -> tuple[Path, str]:
    """Return the path of a file, and the folder below `root` in which it was found."""
    for folder in folders:
        for each in table_names(name):
            if (root / folder / each).is_file():
                return root / folder / each, folder
    places = f" (in one of {', '.join(dict.fromkeys(folders))})" if len(folders) > 1 else ""
    raise layout_error(manifest, root, f"{' or '.join(table_names(name))}{places}")


def _images(manifest: Manifest, root: Path, folders: Sequence[str]) -> str:
    """Return the path of the folder of images below `root`."""
    choices = manifest.options.get("images", [WHOLE_ROOT])
    for folder in folders:
        for images in choices:
            if (root / folder / images).is_dir():
                return "/".join(part for part in (folder, images) if part != WHOLE_ROOT) or WHOLE_ROOT
    raise layout_error(manifest, root, f"the folder of images {' or '.join(choices)}")


def _read(file: Path, columns: Mapping[str, str], separator: str | None) -> dict[str, Any]:
    """Return the cells of the columns of a table, `columns` being role -> name, as text without blanks around it."""
    separator = separator or _SEPARATORS.get(file.suffix.lower(), ",")
    content = read_limited(file, error=DatasetError, max_bytes=_LARGEST)
    if separator == " ":
        content = _single_blanks(content.removeprefix(b"\xef\xbb\xbf"), list(columns.values()))
    parse = pa_csv.ParseOptions(delimiter=separator, quote_char=False if separator == " " else '"')
    wanted = list(dict.fromkeys(columns.values()))
    try:
        head = content[: content.find(b"\n") + 1] or content + b"\n"
        names = pa_csv.read_csv(pa.BufferReader(head), parse_options=parse).column_names
        header = [name.strip() for name in names]
        for name in wanted:
            if header.count(name) != 1:
                raise DatasetError(
                    f"{file} must have one column {name!r}, got {header.count(name)}; its columns: {_some(header)}."
                )
        if not content[len(head) :].strip():
            raise DatasetError(f"{file} must list an image, got names of columns alone.")
        table = pa_csv.read_csv(
            pa.BufferReader(content),
            read_options=pa_csv.ReadOptions(column_names=header, skip_rows=1),
            parse_options=parse,
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file} must be a table in UTF-8, cells apart by {separator!r}: {_brief(error)}."
        ) from error
    for name in wanted:
        longest = pc.max(pc.utf8_length(table.column(name))).as_py() or 0
        if longest > _LONGEST:
            raise DatasetError(
                f"{file}, column {name!r}: a cell must have at most {_LONGEST} characters, got {longest}."
            )
    return {role: pc.utf8_trim_whitespace(table.column(name)) for role, name in columns.items()}


def _single_blanks(content: bytes, columns: Sequence[str]) -> bytes:
    """Return a list whose cells are apart by runs of blanks as one with single blanks and a line of names.

    The lists of CelebA begin with a line that counts the others, name all columns but that of the path, or none.
    """
    content = content.replace(b"\r\n", b"\n").replace(b"\t", b" ")
    while b"  " in content:
        content = content.replace(b"  ", b" ")
    content = content.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip()
    first, _, rest = content.partition(b"\n")
    if first.isdigit():
        content = rest
        first, _, rest = content.partition(b"\n")
    cells = first.split(b" ")
    if rest.partition(b"\n")[0].count(b" ") == len(cells):
        return columns[0].encode() + b" " + content
    names = [name.encode() for name in columns]
    return content if set(names) & set(cells) or len(names) != len(cells) else b" ".join(names) + b"\n" + content


def _require_distinct(file: Path, paths: Any) -> None:
    if pc.count_distinct(paths).as_py() == len(paths):
        return
    counts = paths.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    raise DatasetError(f"{file} must list each image once; more than once: {_some(repeated, _MOST_NAMED)}.")


def _joined(file: Path, column_of: Mapping[str, str], separator: str | None, table: Path, paths: Any) -> Any:
    """Return the split of each of `paths`, which `table` lists, out of another file."""
    rows = _read(file, {role: column_of[role] for role in ("path", "split")}, separator)
    _require_distinct(file, rows["path"])
    places = pc.index_in(paths, value_set=rows["path"].combine_chunks())
    if places.null_count:
        lacking = paths.filter(pc.is_null(places)).slice(0, _MOST_NAMED).to_pylist()
        raise DatasetError(
            f"{file} must tell the split of each image of {table}; it lacks {places.null_count}: {_some(lacking)}."
        )
    return rows["split"].take(places)


def _classes(
    file: Path, column: str, labels: Any, names: Mapping[str, str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the classes in order, and cell -> class, of all cells of the column, those of other splits as well."""
    name_of = _names(file, column, labels, names)
    if "" in name_of.values():
        raise DatasetError(f"{file}, column {column!r}: each image must have a label, got an empty cell.")
    classes = tuple(dict.fromkeys(names.values() if names is not None else sorted(name_of)))
    if len(classes) > MOST_CLASSES:
        raise DatasetError(f"{file}, column {column!r} must hold at most {MOST_CLASSES} classes, got {len(classes)}.")
    return classes, name_of


def _names(file: Path, column: str, cells: Any, names: Mapping[str, str] | None) -> dict[str, str]:
    """Return cell -> its name, which is the cell itself where there are no `names`."""
    values = pc.unique(cells).to_pylist()
    unknown = [value for value in values if value not in names] if names is not None else []
    if names is not None and unknown:
        raise DatasetError(
            f"{file}, column {column!r} must hold values that the manifest names ({_some(list(names))}), got "
            f"{_some(unknown, _MOST_NAMED)}."
        )
    if odd := [value for value in values if not value.isprintable()]:  # names are shown in terminals
        raise DatasetError(f"{file}, column {column!r} must hold printable text, got {_some(odd, _MOST_NAMED)}.")
    return {value: names[value] if names is not None else value for value in values}


def _require_images(file: Path, folder: Path, paths: Sequence[str]) -> None:
    for path in paths:
        if reason := why_unsafe(path):
            raise DatasetError(f"{file}: the path of an image must stay below {folder}, and {path!r} {reason}.")
    there = frozenset(image_paths(folder))
    absent = [path for path in paths if path not in there]
    if absent:
        raise DatasetError(
            f"{file} must list images that are there; of {len(paths)}, {len(absent)} are not in {folder}: "
            f"{_some(absent, _MOST_NAMED)}. There is: {found_in(folder)}."
        )


def _some(values: Sequence[str], most: int = _MOST_COLUMNS) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(repr(value[:_SHORT]) for value in values[:most]) + more or "none"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return repr(text[:_SHORT] + "...") if len(text) > _SHORT else text.rstrip(".")
