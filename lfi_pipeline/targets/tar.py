"""The tar of one shard in the webdataset layout: its bytes, and a reader that takes nothing else.

A plain ustar archive (owner 0, time 0, mode 0644), the same bytes for the same shard. Samples lie in the order of
their positions; `<p>` is the position in the data set, 9 digits or more. Per sample, in this order:

<p>.<ext>       the image file, untouched. `ext` is its extension in lower case if that is one of `IMAGE_EXTENSIONS`,
                else what its first bytes say, else `img` (so that an image file brings no name along that makes a
                decoder chosen by name do something else)
<p>.json        one JSON object (see `sample_json`)
<p>.<view>.zst  for each view of the spec, its arrays (see below, and `ViewCodec`)

A quarantined sample has its `.json` alone.

`<p>.<view>.zst` is one Zstandard frame followed by the crc32c of that frame (4 bytes, little-endian). The frame
decompresses to the arrays of the view, C order, little-endian, one after another without gaps:

    maps             uint8    [L, M, gh, gw]   codes; the JSON's `codec` says how they become maps
    scale            float16  [L, M]
    words            int32    [M]              ids into vocabulary.json, -1 pads
    kept             float16  [L, M]
    image_embedding  float16  [E]

with L layers, M words_per_sample, (gh, gw) grid and E embedding_dim of the spec in manifest.json, and of the JSON's
`arrays`: plain `webdataset`, numcodecs and numpy read it, as `tests/lfi_pipeline/targets/test_tar.py` shows.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.io import crc32c_hex
from lfi_pipeline.targets.codec import compress, decompress
from lfi_pipeline.targets.commits import array_layouts
from lfi_pipeline.targets.spec import TargetSpec

BLOCK = 512
"""Bytes of a tar header, and what a member is padded to."""
END = bytes(2 * BLOCK)
"""What ends an archive."""
IMAGE_EXTENSIONS = frozenset(
    {"avif", "bmp", "gif", "heic", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"}
)
_SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"II*\0": "tif", b"MM\0*": "tif"}
_SEAL = b',"sealed":"'
_BLANK = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)[:124] + bytes(11) + tarfile.TarInfo("").tobuf()[135:148]
_BLANK += b" " * 8 + tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)[156:]
_BLANK_SUM = sum(_BLANK)


def member_names(spec: TargetSpec, position: int, extension: str | None) -> list[str]:
    """Names of a sample's members, in order; `extension` of its image, None for a quarantined sample."""
    stem = f"{position:09d}"
    if extension is None:
        return [f"{stem}.json"]
    return [f"{stem}.{extension}", f"{stem}.json", *(f"{stem}.{view}.zst" for view in spec.views)]


def view_kind(view: str) -> str:
    """The name that the index knows the members of a view by; no view can be mistaken for the image."""
    return f"view.{view}"


def member_kinds(spec: TargetSpec) -> list[str]:
    """Kinds of members whose place the index holds."""
    return ["image", *map(view_kind, spec.views)]


def image_extension(path: str, content: bytes) -> str:
    """The extension that an image is stored under."""
    extension = PurePosixPath(path).suffix[1:].lower()
    if extension in IMAGE_EXTENSIONS:
        return extension
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _SIGNATURES.items() if content.startswith(start)), "img")


class ViewCodec:
    """The arrays of one view of a sample to the content of its member, and back.

    Attributes:
        fields: name, little-endian type and shape of each array, in the order stored.
    """

    def __init__(self, spec: TargetSpec) -> None:
        """`spec`: of the cache."""
        self.fields = [
            (array.name, np.dtype(array.dtype).newbyteorder("<"), array.tail) for array in array_layouts(spec).values()
        ]
        self._size = sum(kind.itemsize * math.prod(shape) for _, kind, shape in self.fields)
        self._level = spec.codec.level

    def encode(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
        """The content of a view's member, from the sample's arrays by name."""
        raw = b"".join(np.ascontiguousarray(arrays[name], kind).tobytes() for name, kind, _ in self.fields)
        frame = compress(raw, self._level)
        return frame + int(google_crc32c.value(frame)).to_bytes(4, "little")

    def decode(self, data: bytes) -> dict[str, npt.NDArray[np.generic]]:
        """Undo `encode`; the arrays are read-only.

        Raises:
            ValueError: the content does not match its checksum, or holds something else.
        """
        frame = data[:-4]
        if len(data) < 4 or google_crc32c.value(frame) != int.from_bytes(data[-4:], "little"):
            raise ValueError("the arrays do not match their crc32c")
        raw, arrays, first = decompress(frame, self._size), {}, 0
        for name, kind, shape in self.fields:
            count = math.prod(shape)
            arrays[name] = np.frombuffer(raw, kind, count, first).reshape(shape)
            first += kind.itemsize * count
        return arrays


def sample_json(body: Mapping[str, Any]) -> bytes:
    """A sample's JSON: one object on one line, whose last field seals the rest.

    Fields: `key`, `labels` and `classes` (their names), `domain`, `caption`, `path` (of the image below the data root
    it came from), `words` (per view: `ids`, `text`), `codec`, `arrays` (name, type and shape of each, in order),
    `crc32c` (8 hex digits per member, by extension), `fingerprint` (of the spec), `quarantine` (the reason, or null),
    and `sealed`: the crc32c of all bytes before `,"sealed"`.
    """
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    start = text.encode()[:-1]
    return start + _SEAL + crc32c_hex(start).encode() + b'"}'


def parse_json(data: bytes) -> dict[str, Any]:
    """Check and parse what `sample_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    tail = len(_SEAL) + 10
    if data[-tail:] != _SEAL + crc32c_hex(data[:-tail]).encode() + b'"}':
        raise ValueError("the JSON does not match its seal")
    try:
        body = json.loads(data)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError("the JSON is not an object")
    return body


def header(name: str, size: int) -> bytes:
    """The tar header of a member.

    Raises:
        ValueError: the name or the size does not fit a ustar header.
    """
    raw, digits = name.encode("ascii"), b"%011o" % size
    if not 0 < len(raw) <= 100 or len(digits) > 11 or size < 0:
        raise ValueError(f"a ustar header cannot hold {name!r} of {size} bytes")
    total = b"%06o\0 " % (_BLANK_SUM + sum(raw) + sum(digits))
    return raw + _BLANK[len(raw) : 124] + digits + _BLANK[135:148] + total + _BLANK[156:]


def padding(size: int) -> int:
    """Zero bytes that follow a member of `size` bytes."""
    return -size % BLOCK


class Readable(Protocol):
    """What `read_members` reads from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        ...


def read_members(stream: Readable, limit: int) -> Iterator[tuple[str, int, bytes]]:
    """Read an archive that this module's writer could have written, member by member.

    Args:
        stream: at the start of the archive.
        limit: bytes of the archive; no member is larger.

    Yields:
        name, offset of the content, content.

    Raises:
        ValueError: a header is not exactly the one that its name and size give (so links, devices, directories,
            extended headers, paths with folders and any changed bit are refused), padding is not zero, or the
            archive does not end as it must.
    """
    offset = 0
    while True:
        head = stream.read(BLOCK)
        if head == END[:BLOCK]:
            if stream.read(len(END)) != END[BLOCK:]:
                raise ValueError(f"the archive does not end at byte {offset} as it must")
            return
        name, size = _parse_header(head, offset)
        offset += BLOCK
        if size > limit - offset:
            raise ValueError(f"member {name} says that it has {size} bytes, more than the archive holds")
        content = stream.read(size)
        gap = stream.read(padding(size))
        if len(content) != size or gap != END[: padding(size)]:
            raise ValueError(f"member {name} is cut short, or not padded with zeros")
        yield name, offset, content
        offset += size + padding(size)


def _parse_header(head: bytes, offset: int) -> tuple[str, int]:
    try:
        name = head[:100].rstrip(b"\0").decode("ascii")
        size = int(head[124:135], 8)
        sound = "/" not in name and name[:1].isdigit() and size >= 0 and head == header(name, size)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"the header at byte {offset} is not one of a member of this layout")
    return name, size
