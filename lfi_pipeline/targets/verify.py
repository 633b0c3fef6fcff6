"""Statistics of a cache, and a check of all its bytes, and of the images it refers to, against their checksums."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError
from lfi_pipeline.core.io import read_whole
from lfi_pipeline.core.parse import Fault
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.targets.commits import (
    MANIFEST,
    SOURCE,
    CommitRecord,
    commit_file,
    committed_shards,
    index_file,
    remedy,
    shard_files,
    tar_file,
    zarr_files,
)
from lfi_pipeline.targets.index import TargetIndex, index_schema, parse_part
from lfi_pipeline.targets.manifest import Manifest, read_source
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.store import TargetStore, checked_image
from lfi_pipeline.targets.stream import DamagedSampleError, SampleParser, shard_members
from lfi_pipeline.targets.writer import STAGING
from lfi_pipeline.targets.zarr import ShardFiles

LOOKED_AT = 4096
"""Samples that `word_facts` reads at most, evenly spaced; a whole large cache would take minutes."""
CHUNK = 256
FIRST_KEYS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class WordFacts:
    """Words and rows of samples that are not quarantined, in the view `full` or the first one.

    Attributes:
        looked_at: samples that the figures are of.
        without_words: share of them that have no word.
        words: mean number of words.
        kept: mean share of a present row's attention mass that was kept; NaN without rows.
    """

    looked_at: int
    without_words: float
    words: float
    kept: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineGroup:
    """Samples that were quarantined for like reasons.

    Attributes:
        reason: without the path, numbers blotted out.
        count: samples.
        keys: the first few.
    """

    reason: str
    count: int
    keys: tuple[str, ...]


def bytes_by_part(store: TargetStore) -> dict[str, int]:
    """Committed bytes of each array (`full/maps`) and of each other part (`index`), from the commit records."""
    total: Counter[str] = Counter()
    for commit in store.records.values():
        for name, record in commit.files.items():
            folders = PurePosixPath(name).parts[:-1]
            total["/".join(folders[1:] if folders[:1] == ("views",) else folders) or name] += record.size
    return dict(total)


def evenly_spaced(positions: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """All positions, or `most` of them spread over the whole."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def word_facts(store: TargetStore, most: int = LOOKED_AT) -> WordFacts:
    """Count words and kept mass over at most `most` samples."""
    usable = evenly_spaced(store.usable, most)
    view = "full" if "full" in store.spec.views else store.spec.views[0]
    counts, kept_sum, rows = [], 0.0, 0
    for first in range(0, len(usable), CHUNK):
        targets = store.read_many(usable[first : first + CHUNK], view)
        counts.append((targets.words >= 0).sum(1))
        present = targets.scale > 0
        kept_sum += float(targets.kept[present].astype(np.float64).sum())
        rows += int(present.sum())
    words = np.concatenate(counts) if counts else np.zeros(0)
    return WordFacts(
        looked_at=len(words),
        without_words=float((words == 0).mean()) if len(words) else 0.0,
        words=float(words.mean()) if len(words) else 0.0,
        kept=kept_sum / rows if rows else float("nan"),
    )


def quarantine_groups(store: TargetStore) -> list[QuarantineGroup]:
    """Group quarantined samples by reason, largest group first."""
    index, groups = store.index, defaultdict[str, list[str]](list)
    reasons = index.reasons
    for position in np.flatnonzero(index.quarantined).tolist():
        groups[_general(reasons[position] or "", index.paths[position])].append(index.keys[position])
    grouped = [
        QuarantineGroup(reason=reason, count=len(keys), keys=tuple(keys[:FIRST_KEYS]))
        for reason, keys in groups.items()
    ]
    return sorted(grouped, key=lambda group: (-group.count, group.reason))


def _general(reason: str, path: str) -> str:
    """A reason without what is special to one image: `.../a.jpg: truncated (4 bytes)` -> `truncated (# bytes)`."""
    start, separator, rest = reason.partition(f"{path}: ")
    return re.sub(r"\d+", "#", rest if separator and "\n" not in start else reason)


NAMED_SHARDS = 100
"""Missing shards that get a fault of their own; the others share one."""
THREADS = 8
"""Threads that read images."""


Check = Callable[[TargetStore], Iterable[Fault]]


def verify(
    path: str | Path,
    *,
    images: bool = True,
    data_root: str | Path | None = None,
    progress: bool = False,
    further: Sequence[Check] = (),
) -> list[Fault]:
    """Check manifest, vocabulary, metadata and every committed file; name missing shards and files of no use.

    Args:
        path: the cache's directory.
        images: read the images too, where they do not lie in the cache, and compare them with the index.
        data_root: where they lie, if not where the writer recorded.
        progress: show a bar on stderr.
        further: checks of what the targets say (say, against the teacher), run on a cache that is otherwise sound.

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
    committed = committed_shards(root, manifest.spec)
    faults = [*_fixed_faults(root, manifest), *_missing_shards(manifest, committed)]
    faults += _extra_files(root, manifest, committed)
    samples = sum(len(manifest.spec.shard_range(shard)) for shard in committed)
    place: Path | None = None
    if images and manifest.layout == "zarr":
        place, missing = _image_root(root, data_root)
        faults += missing
    with progress_bar(total=samples, desc="verify", unit="sample", disable=not progress) as bar:
        for shard in committed:
            record, shard_faults = _shard_faults(root, manifest, shard)
            faults += shard_faults
            if place is not None and record is not None:
                faults += _image_faults(root, manifest, record, place)
            bar.update(len(manifest.spec.shard_range(shard)))
    if not faults and further:
        store = TargetStore.open(root, data_root=data_root)
        faults += [fault for check in further for fault in check(store)]
    return faults


def _fixed_faults(root: Path, manifest: Manifest) -> Iterator[Fault]:
    restore = "Run the same extract command again to restore it."
    try:
        read_source(root)
    except CorruptTargetsError as error:
        yield Fault(shard=None, file=SOURCE, sample=None, message=f"{error} {restore}")
    for name, record in manifest.files.items():
        try:
            complaint = record.complaint(read_whole(root / name))
        except CorruptTargetsError as error:
            complaint = str(error)
        if complaint:
            yield Fault(shard=None, file=name, sample=None, message=f"The file {complaint}. {restore}")


def _missing_shards(manifest: Manifest, committed: Sequence[int]) -> Iterator[Fault]:
    remaining = manifest.spec.shards - len(committed)
    done, shard = set(committed), 0
    finish = "Run the same extract command again to finish the cache."
    for _ in range(min(remaining, NAMED_SHARDS)):
        while shard in done:
            shard += 1
        yield Fault(shard=shard, file=commit_file(shard), sample=None, message=f"The shard is not committed. {finish}")
        shard += 1
    if remaining > NAMED_SHARDS:
        message = f"{remaining - NAMED_SHARDS} more shards are not committed. {finish}"
        yield Fault(shard=None, file="commits/", sample=None, message=message)


def _extra_files(root: Path, manifest: Manifest, committed: Sequence[int]) -> Iterator[Fault]:
    """Files that nothing records. What a killed run left of a shard that is not committed is not among them."""
    spec, layout = manifest.spec, manifest.layout
    known = {MANIFEST, SOURCE, *manifest.files, *map(commit_file, committed)}
    done = set(committed)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if (path.is_dir() and not path.is_symlink()) or name.startswith(f"{STAGING}/") or name in known:
            continue
        shard = _shard_of(name)
        ours = shard is not None and shard < spec.shards and name in shard_files(spec, layout, shard)
        if not ours:
            message = "The file is not part of this cache. Move it elsewhere."
            yield Fault(shard=shard if shard in done else None, file=name, sample=None, message=message)


def _shard_of(name: str) -> int | None:
    """The number of the shard that a file of a cache belongs to."""
    match = re.fullmatch(r"(?:index|shards)/(\d{6,12})\.\w+|views/\w+/\w+/c\.(\d{1,12})[.\d]*", name)
    return int(match[1] or match[2]) if match else None


def _shard_faults(root: Path, manifest: Manifest, shard: int) -> tuple[CommitRecord | None, list[Fault]]:
    """What is wrong with a shard's files; its commit record too, where that and the index part are sound."""
    spec = manifest.spec
    try:
        record = CommitRecord.load(root, spec, manifest.layout, shard)
    except CorruptTargetsError as error:
        return None, [Fault(shard=shard, file=commit_file(shard), sample=None, message=str(error))]
    faults: list[Fault] = []
    arrays = zarr_files(spec, shard) if manifest.layout == "zarr" else {}
    for name, recorded in record.files.items():
        if name == tar_file(shard):
            faults += _tar_faults(root, spec, record)
            continue
        complaint: str | None
        try:
            data = read_whole(root / name)
            complaint = recorded.complaint(data)
            if complaint is None and name == index_file(shard):
                parse_part(data, spec, manifest.layout, shard, index_schema(spec, manifest.layout).names)
        except (CorruptTargetsError, ValueError) as error:
            complaint = f"cannot be read: {error}".removesuffix(".")
        if complaint:
            samples: list[int | None] = [None]
            if name in arrays:
                samples = _damaged(ShardFiles((root / name).parent, arrays[name]), spec.shard_range(shard)) or samples
            message = f"The file {complaint}. {remedy(root, shard)}"
            faults += [Fault(shard=shard, file=name, sample=sample, message=message) for sample in samples]
    sound = all(fault.file != index_file(shard) for fault in faults)
    return (record if sound else None), faults


def _tar_faults(root: Path, spec: TargetSpec, record: CommitRecord) -> Iterator[Fault]:
    """Damage of a tar, pinned to samples as far as its headers can be followed."""
    place, pinned, parser = tar_file(record.shard), False, SampleParser(root, spec)
    try:
        for stem, members in groupby(shard_members(root, spec, record), lambda member: member[0].partition(".")[0]):
            contents = {name.partition(".")[2]: content for name, content in members}
            try:
                parser.parse(record.shard, stem, contents)
            except DamagedSampleError as error:
                pinned = True
                yield Fault(shard=record.shard, file=place, sample=error.sample, message=str(error))
    except DamagedSampleError as error:
        if not pinned or error.sample is not None:
            yield Fault(shard=record.shard, file=place, sample=error.sample, message=str(error))


def _damaged(reader: ShardFiles, positions: range) -> list[int | None]:
    """Positions that cannot be read; none where the whole shard cannot, which is not a sample's fault."""
    bad: list[int | None] = []
    for position in positions:
        try:
            reader.read(position)
        except (ValueError, OSError):
            bad.append(position)
    return bad if len(bad) < len(positions) else []


def _image_root(root: Path, data_root: str | Path | None) -> tuple[Path | None, list[Fault]]:
    """Return the folder of the images; None where `source.json` is damaged, None and a fault where there is none."""
    try:
        place = read_source(root).data_root if data_root is None else Path(data_root).expanduser().absolute()
    except CorruptTargetsError:
        return None, []
    if place.is_dir():
        return place, []
    message = f"The images cannot be checked: {place} does not exist. Say where they lie, or check without images."
    return None, [Fault(shard=None, file=SOURCE, sample=None, message=message)]


def _image_faults(root: Path, manifest: Manifest, record: CommitRecord, place: Path) -> list[Fault]:
    """Images of a shard that are not those that the teacher saw."""
    index = TargetIndex(root, manifest.spec, manifest.layout, {record.shard: record})
    table = index.read_part(record.shard, ["key", "path", "crc32c"]).to_pydict()
    first = manifest.spec.shard_range(record.shard).start

    def check(row: int) -> Fault | None:
        try:
            checked_image(place, table["path"][row], table["crc32c"][row], table["key"][row])
        except CorruptTargetsError as error:
            return Fault(shard=record.shard, file=table["path"][row], sample=first + row, message=str(error))
        return None

    rows = [row for row, crc32c in enumerate(table["crc32c"]) if crc32c is not None]
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return [fault for fault in pool.map(check, rows) if fault is not None]
