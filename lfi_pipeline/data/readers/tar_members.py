"""List the members of a tar by its headers alone, and trust none of them.

Written out because `tarfile` stops without a word at the first damaged header, and reads extended headers of any length
into memory. The fields are those of POSIX.1-1988 (ustar), with GNU tar's long names and sizes and POSIX.1-2001's (pax).
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.core.io import why_unsafe

BLOCK = 512
_LARGEST_HEADER = 1 << 16  # bytes of an extended header: names and times, never more
_LARGEST_PADDING = 1 << 20  # bytes of zeros behind the end mark; tar pads to 10 kB
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"(\xb5/\xfd": ("zstd", "unzstd"),
}
_REFUSED = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file inside a tar: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


def list_members(path: Path) -> Iterator[Member]:
    """Yield the plain files of the tar at `path` in the order in which they lie there; contents are not read.

    Raises:
        DatasetError: compressed, cut off, a damaged header, or a member that is hostile or that cannot be addressed by
            its place: a name that is absolute or has `..`, a link, a device, a sparse file, an extended header of more
            than 65536 bytes, a size beyond the end of the file. Names tar and member.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise DatasetError(f"{path} must be a tar file, and is a directory or a device.")
            yield from _Walk(path, descriptor, state.st_size).members()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}.") from error


@dataclass(slots=True)
class _Header:
    """Fields of one header block of 512 bytes."""

    name: str
    size: int
    type: bytes


class _Walk:
    """One pass over the headers of one tar."""

    def __init__(self, path: Path, descriptor: int, length: int) -> None:
        self.path, self.descriptor, self.length = path, descriptor, length

    def members(self) -> Iterator[Member]:
        self._require_plain()
        position, last = 0, ""
        long_name: str | None = None
        extended: dict[str, str] = {}
        while True:
            block = self._read(position, BLOCK, f"the header behind member {last!r}" if last else "its first header")
            if not any(block):
                self._require_end(position)
                return
            header = self._header(block, position, last)
            if header.type == tarfile.DIRTYPE:
                header.size = 0  # some writers give a directory a size, and none gives it contents
            data, last = position + BLOCK, header.name
            self._require_inside(data, header.size, header.name)
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended |= self._extended(data, header)
            elif header.type == tarfile.XGLTYPE:
                if self._extended(data, header).keys() & {"path", "size"}:
                    raise self._bad(header.name, "is a global header that renames or resizes all members")
            elif header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                content = self._small(data, header)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = self._text(content.split(b"\0", 1)[0], header.name)
            else:
                name = extended.get("path", long_name if long_name is not None else header.name)
                last, size = name, self._size(extended, header, name)
                self._require_inside(data, size, name)
                member = self._member(header, name, data, size)
                if member is not None:
                    yield member
                header.size = size
                long_name, extended = None, {}
            position = data + -(-header.size // BLOCK) * BLOCK

    def _member(self, header: _Header, name: str, data: int, size: int) -> Member | None:
        """Check one member; None for a directory."""
        if header.type in _REFUSED:
            raise self._bad(name, f"is {_REFUSED[header.type]}; only plain files can be read in place")
        if header.type not in (*_PLAIN, tarfile.DIRTYPE):
            raise self._bad(name, f"is of unknown type {header.type!r}")
        reason = why_unsafe(name)
        if reason is not None:
            raise self._bad(name, f"has a name that {reason}")
        if not name.isascii():
            self._text(name.encode("utf-8", "surrogateescape"), name)
        if header.type == tarfile.DIRTYPE or name.endswith("/"):
            return None
        return Member(name.removeprefix("./"), data, size)

    def _require_plain(self) -> None:
        start = os.pread(self.descriptor, 8, 0)
        for magic, (what, unpack) in _PACKED.items():
            if start.startswith(magic):
                raise DatasetError(
                    f"{self.path} is compressed with {what}; images are read from inside the tar by their place, so "
                    f"unpack it first: {unpack} < {self.path.name} > {self.path.stem.removesuffix('.tar')}.tar"
                )
        if not start:
            raise DatasetError(f"{self.path} is empty; it must be a tar file.")

    def _header(self, block: bytes, position: int, last: str) -> _Header:
        size, checksum = _number(block[124:136]), _number(block[148:156])
        if size is None or checksum != sum(block) - sum(block[148:156]) + 8 * 32:  # its own field counts as spaces
            behind = f" behind member {last!r}" if last else ""
            raise DatasetError(f"{self.path}: no valid tar header at byte {position}{behind}. Fetch or write it again.")
        name, kind = block[:100].split(b"\0", 1)[0], block[156:157]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        if kind == tarfile.AREGTYPE and name.endswith(b"/"):
            kind = tarfile.DIRTYPE  # as tars of before 1988 have it
        return _Header(name.decode("utf-8", "surrogateescape"), size, kind)

    def _extended(self, data: int, header: _Header) -> dict[str, str]:
        """Parse a pax header: records `LENGTH KEY=VALUE\\n`."""
        content, records = self._small(data, header), {}
        while content.strip(b"\0"):
            digits, _, _ = content.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            record = content[len(digits) + 1 : length]
            key, equals, value = record.partition(b"=")
            if length > len(content) or not equals or not value.endswith(b"\n"):
                raise self._bad(header.name, "is an extended header that cannot be parsed")
            if key.startswith(b"GNU.sparse."):
                raise self._bad(header.name, "announces a sparse file; only plain files can be read in place")
            if key in (b"path", b"size"):
                records[key.decode()] = self._text(value[:-1], header.name)
            content = content[length:]
        return records

    def _size(self, extended: dict[str, str], header: _Header, name: str) -> int:
        if "size" not in extended:
            return header.size
        digits = extended["size"]
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise self._bad(name, f"has size {digits!r}")
        return int(digits)

    def _small(self, data: int, header: _Header) -> bytes:
        if header.size > _LARGEST_HEADER:
            raise self._bad(
                header.name, f"is an extended header of {header.size} bytes; at most {_LARGEST_HEADER} are read"
            )
        return self._read(data, header.size, f"extended header {header.name!r}")

    def _text(self, content: bytes, name: str) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._bad(name, f"has a name that is not UTF-8: {content!r}") from error

    def _read(self, position: int, size: int, what: str) -> bytes:
        content = os.pread(self.descriptor, size, position)
        if len(content) < size:
            raise DatasetError(
                f"{self.path} is cut off: it ends at byte {self.length}, within {what}. Fetch or write the tar again."
            )
        return content

    def _require_inside(self, data: int, size: int, name: str) -> None:
        if size < 0:
            raise self._bad(name, f"has size {size}")
        if data + size > self.length:
            raise DatasetError(
                f"{self.path} is cut off, or member {name!r} lies about its size: its {size} bytes begin at {data}, "
                f"and the file ends at {self.length}. Fetch or write the tar again."
            )

    def _require_end(self, position: int) -> None:
        rest = os.pread(self.descriptor, _LARGEST_PADDING, position)
        if any(rest) or position + len(rest) < self.length:
            raise DatasetError(
                f"{self.path} goes on behind its end mark at byte {position}, as tars do that were joined with cat. "
                "Unpack it with tar --ignore-zeros and write one tar."
            )

    def _bad(self, name: str, what: str) -> DatasetError:
        return DatasetError(f"{self.path}: member {name!r} {what}. Remove it from the tar.")


def _number(content: bytes) -> int | None:
    """Parse a number field: octal digits, or GNU tar's big-endian bytes behind 0x80; None for anything else."""
    if content[0] == 0x80:
        return int.from_bytes(content[1:], "big")
    digits = content.rstrip(b" \0").lstrip(b" ")
    try:
        return int(digits or b"0", 8) if digits.isdigit() or not digits else None
    except ValueError:  # an 8 or a 9
        return None
