"""Samples of a tar shard front to back, every byte checked: what streaming and verification share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.errors import CorruptTargetsError
from lfi_pipeline.targets.checked import CheckedStream
from lfi_pipeline.targets.commits import CommitRecord, remedy
from lfi_pipeline.targets.files import crc32c_hex
from lfi_pipeline.targets.layout import tar_file
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.tarshard import image_extension, member_names, parse_json, read_members


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TarSample:
    """One sample of a tar, its members checked and its arrays still compressed.

    Attributes:
        position: in the data set.
        key, labels: as of `PlannedSample`.
        quarantine: why it has no targets; None where it has.
        image: the image file's bytes, b"" where quarantined.
        views: content of the `.zst` member by view, empty where quarantined.
    """

    position: int
    key: str
    labels: tuple[int, ...]
    quarantine: str | None
    image: bytes
    views: Mapping[str, bytes]


class DamagedSampleError(CorruptTargetsError):
    """A shard whose damage was found at one sample, of position `sample`."""

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


def shard_members(root: Path, spec: TargetSpec, record: CommitRecord) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member of a shard's tar; the whole file is compared with the record at its end.

    Raises:
        DamagedSampleError: the file is missing or damaged, or holds a member that does not belong there (a link, a
            device, a path with folders, a sample of another shard).
    """
    positions, place = spec.shard_range(record.shard), tar_file(record.shard)
    due = positions.start
    try:
        with CheckedStream(root / place, record.files[place]) as stream:
            for name, _, content in read_members(stream, record.files[place].size):
                position = _position(name)
                if position not in (due, due - 1) or position not in positions:
                    raise ValueError(f"member {name} stands where one of sample {due} must")
                due = position + 1
                yield name, content
            if due != positions.stop:
                raise ValueError(f"it ends before sample {due}")
            stream.finish()
    except (ValueError, CorruptTargetsError) as error:
        text = str(error).removesuffix(".")
        message = f"Cannot read shard {record.shard}, {root / place}: {text}. {remedy(root, record.shard)}"
        sample = due if isinstance(error, ValueError) and due in positions else None
        raise DamagedSampleError(message, sample) from error


class SampleParser:
    """Checks the members of one sample after another."""

    def __init__(self, root: Path, spec: TargetSpec) -> None:
        """
        Args:
            root: the cache.
            spec: of the cache.
        """
        self._root, self._spec = root, spec
        self._fingerprint, self._classes = spec.fingerprint, len(spec.dataset.classes)

    def parse(self, shard: int, stem: str, members: Mapping[str, bytes]) -> TarSample:
        """Check the members of one sample.

        Args:
            shard: number of its shard.
            stem: the common part of the members' names.
            members: their contents, by what follows the stem and a dot, in order.

        Raises:
            DamagedSampleError: a member is damaged, missing, or does not belong there.
        """
        position = _position(f"{stem}.")
        try:
            return self._parse(position, members)
        except ValueError as error:
            raise DamagedSampleError(
                f"Cannot read shard {shard}, sample {position} of {self._root}: {error}. {remedy(self._root, shard)}",
                position,
            ) from error

    def _parse(self, position: int, members: Mapping[str, bytes]) -> TarSample:
        body = parse_json(members.get("json", b""))
        key, path, labels, reason = (body.get(name) for name in ("key", "path", "labels", "quarantine"))
        if not isinstance(key, str) or not isinstance(path, str) or not isinstance(labels, list):
            raise ValueError("the JSON lacks a field, or has one of another type")
        if not (reason is None or isinstance(reason, str)):
            raise ValueError("the JSON lacks a field, or has one of another type")
        if not all(type(label) is int and 0 <= label < self._classes for label in labels):
            raise ValueError("the JSON has labels that no class has")
        if body.get("fingerprint") != self._fingerprint:
            raise ValueError("the JSON belongs to other targets")
        extension = None if reason is not None else image_extension(path, next(iter(members.values())))
        names = [name.partition(".")[2] for name in member_names(self._spec, position, extension)]
        if list(members) != names:
            raise ValueError(f"its members are {', '.join(members)}, not {', '.join(names)}")
        checksums = {name: crc32c_hex(content) for name, content in members.items() if name != "json"}
        if body.get("crc32c") != checksums:
            raise ValueError("a member does not match its crc32c")
        return TarSample(
            position=position,
            key=key,
            labels=tuple(labels),
            quarantine=reason,
            image=b"" if reason is not None else members[names[0]],
            views={view: members[f"{view}.zst"] for view in self._spec.views} if reason is None else {},
        )


def _position(name: str) -> int:
    """The position that a member's name begins with, -1 where it does not begin with one as we write it."""
    found = re.match(r"(\d{9,18})\.", name)
    return int(found[1]) if found and found[1] == f"{int(found[1]):09d}" else -1
