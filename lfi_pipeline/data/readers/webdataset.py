"""Read any folder of tars with images beside captions and labels; the images stay where they are, inside the tars.

Members of one sample stand next to each other and share their name up to the first dot of its last part, as webdataset
and img2dataset write them, or without its last suffix where the first dot would put several images together.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lfi_pipeline.core.errors import DatasetError, OutputWriteError
from lfi_pipeline.core.io import tar_path, write_atomic
from lfi_pipeline.core.parse import parse_json
from lfi_pipeline.data.dataset import Dataset, Sample, SampleTable, named_in_order, renumbered
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.readers.sniff import IMAGE_SUFFIXES, is_hidden
from lfi_pipeline.data.readers.tar_members import Member, list_members
from lfi_pipeline.data.readers.walk import (
    MOST_CLASSES,
    begins_with,
    file_paths,
    layout_error,
    prefix_of,
    read_lines,
    require_directory,
)

PER_TAR = 256
"""Pairs in one tar."""
SPLIT = "train"


class Pairs(Protocol):
    """A data set in torch's sense: a length, and items (image, caption)."""

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, index: int, /) -> Any:
        """Return (image, caption)."""


def write_pairs(pairs: Pairs, folder: Path) -> None:
    """Write every pair below `folder`, as the data set `webdataset` reads it, split `train`.

    Images are kept without loss (PNG). The same pairs give the same bytes, so a run that was stopped may write them
    again.

    Args:
        pairs: items (image, caption). An image is a PIL image, uint8 [H, W, 3] or [H, W] of numpy, or a tensor
            [3, H, W] or [1, H, W], uint8 or float in [0, 1]; a caption is a text or a list of texts.
        folder: gets `train-000000.tar`, ...; tars that are there already are replaced.

    Raises:
        DatasetError: no pairs, or an item that is no such pair; names it.
        OutputWriteError: `folder` cannot be written.
    """
    if not len(pairs):
        raise DatasetError("The data set must hold (image, caption) pairs, got none.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(pairs), PER_TAR):
            numbers = range(first, min(first + PER_TAR, len(pairs)))
            write_atomic(folder / f"{SPLIT}-{first // PER_TAR:06d}.tar", _tar(pairs, numbers))
    except OSError as error:
        raise OutputWriteError(f"Cannot write images to {folder}: {error.strerror or error}.") from error


def _tar(pairs: Pairs, numbers: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            for suffix, content in _members(pairs[number], number):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _members(item: Any, number: int) -> Iterator[tuple[str, bytes]]:
    where = f"Item {number} of the data set"
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        raise DatasetError(f"{where} must be a pair (image, caption), got {_described(item)}.")
    image, caption = item
    encoded = io.BytesIO()
    _as_image(image, where).save(encoded, format="PNG", compress_level=1)
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(captions, Sequence) or not all(isinstance(each, str) for each in captions):
        raise DatasetError(f"{where}: a caption must be text or a list of texts, got {_described(caption)}.")
    yield "png", encoded.getvalue()
    yield "json", json.dumps({"captions": list(captions)}).encode()


def _as_image(image: Any, where: str) -> Image.Image:
    from torch import Tensor  # a second, and 400 MB that listing a data set has no use for

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels: Any = image
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        if array.is_floating_point():
            array = (array.clamp(0, 1) * 255).round()
        pixels = array.to(dtype=array.dtype).numpy().astype(np.uint8)
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else None
        pixels = pixels.repeat(3, axis=2) if pixels is not None and pixels.shape[2] == 1 else pixels
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DatasetError(
            f"{where}: an image must be a PIL image, uint8 [H, W, 3] of numpy or a tensor [3, H, W], got {_described(image)}."
        )
    return Image.fromarray(pixels).convert("RGB")


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return (
        type(value).__name__ if shape is None else f"{type(value).__name__} {list(shape)} {getattr(value, 'dtype', '')}"
    )


CLASS_FILES = ("classes.txt", "classnames.txt")
_PICKLES = frozenset({"pkl", "pickle", "pyd"})
_TEXTS = ("txt", "caption")
_CAPTION_FIELDS = ("caption", "captions", "text")
_LABEL_FIELDS = ("label", "labels", "cls", "class", "classes", "class_name")
_LARGEST_TEXT = 1 << 20  # bytes of a caption or a record
_PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def read_webdataset(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split: every tar below folder `tars`, or else every tar of the root whose name begins with `tars`.

    A sample is an image with, optionally, `.txt` (a caption a line), `.cls` (a number) and `.json` (caption, label or
    class names, domain). Its key is the tar's path without `.tar`, then the member's key. Tars and members come in
    order of their names and places. Classes are named by `classes.txt` beside the tars or in the root, a line each;
    without it by the names in the records, sorted, or by the labels' numbers.

    Raises:
        DatasetError: no tars, a tar that `list_members` refuses, a pickle, or members that do not fit together.
    """
    require_directory(manifest, root)
    role = manifest.files(split)["tars"]
    folder, tars = _tars(manifest, root, role)
    named = _class_names(folder, root)
    labels = _Labels(named)
    samples = SampleTable(sample for tar in tars for sample in _Tar(root, tar, tar.removeprefix(f"{role}/"), labels))
    if not samples:
        raise DatasetError(f"{folder}: its {len(tars)} tars must hold images; found none. See lfi datasets webdataset.")
    classes, order = labels.settled()
    if order is not None:
        samples = renumbered(samples, order)
    return Dataset(
        name=manifest.name, root=root, split=split, classes=classes, samples=samples, prompts=manifest.prompts
    )


def _tars(manifest: Manifest, root: Path, role: str) -> tuple[Path, list[str]]:
    """Return the folder of the split and its tars' paths below the root, sorted by their bytes."""
    folder = root / role
    if folder.is_dir():
        prefix = prefix_of(role)
        paths = [prefix + path for path in file_paths(folder, lambda name: name.endswith((".tar", *_PACKED_SUFFIXES)))]
    else:
        folder = root
        names = [entry.name for entry in root.iterdir() if not is_hidden(entry.name)]
        paths = [name for name in names if begins_with(name, role)]
    packed = sorted(name for name in paths if name.endswith(_PACKED_SUFFIXES))
    if packed:
        raise DatasetError(
            f"{root / packed[0]} is compressed; images are read from inside the tar by their place, so unpack it to a "
            "plain .tar first (gunzip, or the like)."
        )
    tars = sorted((name for name in paths if name.endswith(".tar")), key=os.fsencode)
    if not tars:
        raise layout_error(manifest, root, f"tars in {role}/ or named {role}*.tar" if role != "." else "tars")
    return folder, tars


def _class_names(*folders: Path) -> tuple[str, ...] | None:
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if path.is_file():
            return tuple(line.strip() for _, line in read_lines(path))
    return None


@dataclass(slots=True)
class _Labels:
    """Collects what the samples' labels say: numbers, or names that are numbered as they come."""

    named: tuple[str, ...] | None
    by_name: dict[str, int] = field(default_factory=dict)
    largest: int = -1

    def number(self, label: object, where: str) -> int:
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DatasetError(f"{where}: a label must be a number or a class name, got {label!r}.")
        if isinstance(label, str):
            if not self.by_name and self.named:
                self.by_name = {name: number for number, name in enumerate(self.named)}
            if self.named is not None and label not in self.by_name:
                raise DatasetError(f"{where}: class {label!r} is not one of the {len(self.named)} classes listed.")
            index = self.by_name.setdefault(label, len(self.by_name))
        else:
            index, self.largest = label, max(self.largest, label)
        if not 0 <= index < (len(self.named) if self.named is not None else MOST_CLASSES):
            most = len(self.named) if self.named is not None else MOST_CLASSES
            raise DatasetError(f"{where}: a label must be from 0 to {most - 1}, got {label!r}.")
        if self.named is None and self.by_name and self.largest >= 0:
            raise DatasetError(f"{where}: labels must all be numbers or all be names; list names in {CLASS_FILES[0]}.")
        return index

    def settled(self) -> tuple[tuple[str, ...], dict[int, int] | None]:
        """Return the class names, and where names were numbered as they came, old number -> new."""
        if self.named is not None:
            return self.named, None
        if not self.by_name:
            return tuple(str(number) for number in range(self.largest + 1)), None
        return named_in_order(self.by_name)


class _Tar:
    """The samples of one tar, in order."""

    def __init__(self, root: Path, path: str, shown: str, labels: _Labels) -> None:
        self.path, self.file, self.labels = path, root / path, labels
        self.key_prefix = shown.removesuffix(".tar")

    def __iter__(self) -> Iterator[Sample]:
        members = (member for member in list_members(self.file) if not _is_hidden(member.name))
        with self.file.open("rb") as file:
            for key, group in groupby(members, key=lambda member: _split(member.name)[0]):
                for name, parts in self._samples(key, list(group)):
                    sample = self._sample(name, parts, file.fileno())
                    if sample is not None:
                        yield sample

    def _samples(self, key: str, members: Sequence[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
        """Yield key and parts of what one name up to the first dot stands for.

        That is one sample, or, where it would have several images (`0001.left.jpg`, `0001.right.jpg`), one for each
        name without its last suffix.
        """
        parts = self._parts(members, key)
        if len(_images(parts)) < 2:
            yield key, parts
            return
        for stem, group in groupby(members, key=lambda member: member.name.rpartition(".")[0]):
            yield stem, self._parts(list(group), stem)

    def _parts(self, members: Sequence[Member], key: str) -> dict[str, Member]:
        parts: dict[str, Member] = {}
        for member in members:
            kind = member.name[len(key) + 1 :].lower()
            if kind.rpartition(".")[2] in _PICKLES:
                raise DatasetError(f"{self.file}: member {member.name!r} is a pickle, which runs code; remove it.")
            if kind in parts:
                raise DatasetError(f"{self.file}: member {member.name!r} is there twice.")
            parts[kind] = member
        return parts

    def _sample(self, key: str, parts: dict[str, Member], descriptor: int) -> Sample | None:
        image = self._image(key, parts)
        read = _readable(parts, image)
        if image is None:
            if read:
                raise DatasetError(
                    f"{self.file}: member {next(iter(read.values())).name!r} has no image next to it. The members of a "
                    "sample must share their name up to the first dot, and follow each other (tar --sort=name)."
                )
            return None
        texts = {kind: self._text(member, descriptor) for kind, member in read.items()}
        record = self._record(read["json"], texts["json"]) if "json" in texts else {}
        plain = next((texts[kind] for kind in _TEXTS if kind in texts), None)
        where = f"{self.file}: member {(read.get('json') or image).name!r}"
        captions = plain.splitlines() if plain is not None else _captions(record, where)
        labels = self._cls(read["cls"], texts["cls"]) if "cls" in texts else _labels(record)
        domain = record.get("domain") or ""
        if not isinstance(domain, str):
            raise DatasetError(f"{where}: domain must be text, got {domain!r}.")
        return Sample(
            key=f"{self.key_prefix}/{key}",
            path=tar_path(self.path, image.offset, image.size),
            captions=tuple(caption.strip() for caption in captions if caption.strip()),
            labels=tuple(sorted({self.labels.number(label, where) for label in labels})),
            domain=domain,
            height=0,
            width=0,
        )

    def _image(self, key: str, parts: Mapping[str, Member]) -> Member | None:
        """The image of a sample: the one whose extension is that of an image alone, as jpg before seg.png."""
        kinds = _images(parts)
        if len(kinds) > 1:
            raise DatasetError(
                f"{self.file}: sample {key!r} must have one image, got {', '.join(parts[kind].name for kind in kinds)}."
            )
        return parts[kinds[0]] if kinds else None

    def _text(self, member: Member, descriptor: int) -> str:
        if member.size > _LARGEST_TEXT:
            raise DatasetError(
                f"{self.file}: member {member.name!r} has {member.size} bytes; a text may have {_LARGEST_TEXT}."
            )
        try:
            return os.pread(descriptor, member.size, member.offset).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.file}: member {member.name!r} must be text in UTF-8: {error}.") from error

    def _record(self, member: Member, text: str) -> dict[str, Any]:
        record = parse_json(text, f"{self.file}: member {member.name!r}", error=DatasetError)
        if not isinstance(record, dict):
            raise DatasetError(f"{self.file}: member {member.name!r} must be a JSON object, got {text[:40]!r}.")
        return record

    def _cls(self, member: Member, text: str) -> list[int]:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            raise DatasetError(f"{self.file}: member {member.name!r} must be the number of a class, got {text[:40]!r}.")
        return [int(digits)]


def _images(parts: Mapping[str, Member]) -> list[str]:
    """Return the kinds that are images: those that are an image's suffix alone, as jpg before seg.png, or else all."""
    kinds = [kind for kind in parts if f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    return [kind for kind in kinds if "." not in kind] or kinds


def _readable(parts: Mapping[str, Member], image: Member | None) -> dict[str, Member]:
    """Return the text, class and record of a sample by their suffix.

    A suffix alone comes first (`txt`), then one with the words of the image's own (`final.jpg` with `final.txt`), then,
    for a caption, one that says so (`caption.txt`) or that is the only one.
    """
    by_suffix = {kind: parts[kind] for kind in (*_TEXTS, "cls", "json") if kind in parts}
    own = next((kind.rpartition(".")[0] for kind, member in parts.items() if member is image), "")
    for suffix in ("txt", "cls", "json"):
        if suffix not in by_suffix and own and f"{own}.{suffix}" in parts:
            by_suffix[suffix] = parts[f"{own}.{suffix}"]
    if image is not None and not by_suffix.keys() & set(_TEXTS):
        texts = [kind for kind in parts if kind.endswith(".txt")]
        named = [kind for kind in texts if "caption" in kind] or texts
        if len(named) == 1:
            by_suffix["txt"] = parts[named[0]]
    return by_suffix


def _captions(record: Mapping[str, Any], where: str) -> list[str]:
    value: Any = next((record[name] for name in _CAPTION_FIELDS if record.get(name) is not None), [])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DatasetError(f"{where}: a caption must be text or a list of texts, got {value!r}.")
    return captions


def _labels(record: Mapping[str, Any]) -> list[Any]:
    value: Any = next((record[name] for name in _LABEL_FIELDS if record.get(name) is not None), [])
    return value if isinstance(value, list) else [value]


def _is_hidden(name: str) -> bool:
    return is_hidden(name) or ("/" in name and any(map(is_hidden, name.split("/"))))


def _split(name: str) -> tuple[str, str]:
    """Return key and lower-case extension: `a/0001.seg.png` -> `a/0001`, `seg.png`."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()
