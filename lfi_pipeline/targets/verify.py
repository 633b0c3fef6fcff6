"""Check every byte of a cache against what was recorded when it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.errors import CorruptTargetsError, LFIError
from lfi_pipeline.targets.commits import CommitRecord, committed_shards, remedy
from lfi_pipeline.targets.files import read_whole, unseal
from lfi_pipeline.targets.index import read_part
from lfi_pipeline.targets.layout import (
    MANIFEST,
    SOURCE,
    array_folder,
    array_layouts,
    commit_file,
    index_file,
    shard_key,
)
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.shardfile import ShardFiles
from lfi_pipeline.targets.spec import TargetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong with a cache.

    Attributes:
        shard: number of the shard, or None for a file of the whole cache.
        file: path relative to the cache.
        sample: position of the damaged sample, where the damage can be pinned to one.
        message: what is wrong, and the remedy.
    """

    shard: int | None
    file: str
    sample: int | None
    message: str


def verify(path: str | Path) -> list[Fault]:
    """Check manifest, vocabulary, metadata and every committed file; name missing shards.

    Args:
        path: the cache's directory.

    Returns:
        Faults in the order of the files; empty for a complete, undamaged cache.

    Raises:
        TargetsError: `path` holds no manifest at all.
    """
    root = Path(path).expanduser().absolute()
    try:
        manifest = Manifest.load(root)
    except LFIError as error:
        if not (root / MANIFEST).is_file():
            raise
        return [Fault(shard=None, file=MANIFEST, sample=None, message=f"{error} Extract the targets again.")]
    faults = list(_fixed_faults(root, manifest))
    committed = set(committed_shards(root, manifest.spec))
    for shard in range(manifest.spec.shards):
        if shard in committed:
            faults += _shard_faults(root, manifest.spec, shard)
        else:
            message = "The shard is not committed. Run the same extract command again to finish the cache."
            faults.append(Fault(shard=shard, file=commit_file(shard), sample=None, message=message))
    return faults


def _fixed_faults(root: Path, manifest: Manifest) -> Iterator[Fault]:
    restore = "Run the same extract command again to restore it."
    try:
        unseal(read_whole(root / SOURCE), root / SOURCE)
    except CorruptTargetsError as error:
        yield Fault(shard=None, file=SOURCE, sample=None, message=f"{error} {restore}")
    for name, record in manifest.files.items():
        try:
            complaint = record.complaint(read_whole(root / name))
        except CorruptTargetsError as error:
            complaint = str(error)
        if complaint:
            yield Fault(shard=None, file=name, sample=None, message=f"The file {complaint}. {restore}")


def _shard_faults(root: Path, spec: TargetSpec, shard: int) -> Iterator[Fault]:
    try:
        commit = CommitRecord.load(root, shard)
    except CorruptTargetsError as error:
        yield Fault(shard=shard, file=commit_file(shard), sample=None, message=str(error))
        return
    arrays = {
        f"{array_folder(view, layout.name)}/{shard_key(layout, shard)}": layout
        for view in spec.views
        for layout in array_layouts(spec).values()
    }
    for name in sorted({*arrays, index_file(shard)} - commit.files.keys()):
        yield Fault(shard=shard, file=name, sample=None, message="The commit record does not list this file.")
    for name, record in commit.files.items():
        try:
            complaint = record.complaint(read_whole(root / name))
            if complaint is None and name == index_file(shard):
                read_part(root, shard)
        except CorruptTargetsError as error:
            complaint = str(error)
        if not complaint:
            continue
        samples: list[int | None] = [None]
        if name in arrays:
            reader = ShardFiles((root / name).parent, arrays[name])
            samples = _damaged(reader, spec.shard_range(shard)) or samples
        message = f"The file {complaint}. {remedy(root, shard)}"
        yield from (Fault(shard=shard, file=name, sample=sample, message=message) for sample in samples)


def _damaged(reader: ShardFiles, positions: range) -> list[int | None]:
    """Positions that cannot be read; none where the whole shard cannot, which is not a sample's fault."""
    bad: list[int | None] = []
    for position in positions:
        try:
            reader.read(position)
        except (ValueError, OSError):
            bad.append(position)
    return bad if len(bad) < len(positions) else []
