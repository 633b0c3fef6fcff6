"""Write a cache shard by shard: killed at any moment, the same command finishes it to the same bytes.

A claim is advisory. Where the file system cannot lock, several processes may make the same shard: work is doubled then,
and nothing else, since each writes temporary files of its own and renames the same bytes into place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from lfi_pipeline.core.errors import (
    ConfigError,
    CorruptTargetsError,
    NotTargetsError,
    OutputExistsError,
    UnknownNameError,
)
from lfi_pipeline.core.io import (
    clear_leftovers,
    is_leftover,
    one_at_a_time,
    output_errors,
    read_whole,
    write_atomic,
)
from lfi_pipeline.targets.commits import (
    LAYOUTS,
    MANIFEST,
    SOURCE,
    CommitRecord,
    Summary,
    commit_file,
    committed_shards,
    summarise,
)
from lfi_pipeline.targets.encode import ShardPayload, StoredShard, check_payload, encode_stored, store_payload
from lfi_pipeline.targets.manifest import KindChoice, Manifest, Source, prepare
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.vocabulary import PlannedSample, Vocabulary, ZeroShot, plan_digests

STAGING = "staging"
"""Folder of locks and half-written files below an output; gone once everything is committed."""


@contextmanager
def claimed(root: Path, name: str) -> Iterator[bool]:
    """Try to claim `name` below `root`; gives False, at once, where a living process holds it.

    Raises:
        OSError: the lock file cannot be made (a read-only or full disk).
    """
    folder = root / STAGING
    descriptor = _acquire(folder, name)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            _lock_file(folder, name).unlink(missing_ok=True)  # while it is held, so that no other holder loses its file
        os.close(descriptor)


def staging_file(root: Path, name: str, target: str) -> Path:
    """A temporary file of this process for `target`, of the work called `name`."""
    return root / STAGING / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.{Path(target).name}"


def clear_staging(root: Path) -> None:
    """Remove what killed processes left behind; call it when everything is committed, so that nobody needs it."""
    folder = root / STAGING
    with suppress(OSError):
        for entry in folder.iterdir():
            entry.unlink(missing_ok=True)
        folder.rmdir()


def _acquire(folder: Path, name: str) -> int | None:
    path = _lock_file(folder, name)
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process finished everything and removed the folder
            continue
        try:
            locked = _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # the holder before us removed this file; lock the one that stands there now
    if locked:  # so whoever wrote these is dead
        for leftover in folder.glob(f"{name}.*-*"):
            leftover.unlink(missing_ok=True)
    return descriptor


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.lock"


def _lock(descriptor: int) -> bool:
    """Lock at once or raise BlockingIOError; False where the file system has no locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


class TargetWriter:
    """Writes one cache. Any number of processes may open the same directory; claims share the shards out among them.

    Example:
        writer = TargetWriter.open(path, spec, plan, vocabulary, data_root)
        for shard in writer.pending_shards():
            with writer.claim(shard) as ours:
                if ours:
                    writer.commit(shard, make_payload(writer.shard_range(shard)))
        writer.finish()
    """

    def __init__(self, root: Path, manifest: Manifest, plan: Sequence[PlannedSample], vocabulary: Vocabulary) -> None:
        """Use `open`, which also prepares the directory."""
        self._root, self._manifest, self._spec, self._plan = root, manifest, manifest.spec, plan
        self._layout, self._vocabulary = manifest.layout, vocabulary
        self._metadata = {name: read_whole(root / name) for name in manifest.files if name.endswith("zarr.json")}

    @classmethod
    def open(
        cls,
        path: str | Path,
        spec: TargetSpec,
        plan: Sequence[PlannedSample],
        vocabulary: Vocabulary | Callable[[], Vocabulary],
        data_root: str | Path,
        *,
        layout: str = "zarr",
        source_manifest: str = "",
        zero_shot: ZeroShot | Callable[[], ZeroShot] | None = None,
        choice: KindChoice | None = None,
    ) -> TargetWriter:
        """Create a cache, or go on with the one that is there.

        Args:
            path: the cache's directory; created where absent.
            spec: the frozen description.
            plan: every sample, in order.
            vocabulary: the words of all captions, with the teacher's text embeddings. On a rerun embeddings
                may differ by rounding; the stored ones stand. A function is called only where no cache of
                this spec and plan is there, and by one process at a time.
            data_root: where the images lie now; not part of what must stay the same.
            source_manifest: text of a manifest of the user's own that the data set was read by; not part of it either.
            layout: how shards are stored, one of `LAYOUTS`; "webdataset" needs `ShardPayload.images`.
            zero_shot: the teacher's zero-shot classifier of the spec's classes, treated as the vocabulary is; None
                stores none. A cache that was begun without one stays without.
            choice: how the kind of map was chosen, kept with a cache that is begun.

        Raises:
            UnknownNameError: no such layout.
            OutputExistsError: `path` holds something else; nothing is touched.
            SpecMismatchError: `path` holds a cache of another spec, layout, plan, vocabulary or classes; names the
                fields.
            CorruptTargetsError: the cache's own fixed files are damaged.
            ConfigError: plan, vocabulary or classes do not fit the spec.
            OutputWriteError: the directory cannot be written.
        """
        root = Path(path).expanduser().absolute()
        if layout not in LAYOUTS:
            raise UnknownNameError("layout", layout, LAYOUTS)
        if len(plan) != spec.dataset.samples:
            raise ConfigError(f"plan must have dataset.samples = {spec.dataset.samples} rows, got {len(plan)}.")
        digests = plan_digests(plan)
        with output_errors(root):
            _require_ours(root)
            root.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(root):
                _require_ours(root)
                manifest = prepare(root, spec, layout, digests, vocabulary, zero_shot, choice)
                source = Source(Path(data_root).expanduser().absolute(), source_manifest).to_bytes()
                if not (root / SOURCE).is_file() or (root / SOURCE).read_bytes() != source:
                    write_atomic(root / SOURCE, source)
                for folder in {(root / name).parent for name in (MANIFEST, SOURCE, *manifest.files)}:
                    clear_leftovers(folder, every=True)
        return cls(root, manifest, plan, Vocabulary.load(root, spec.embedding_dim))

    @property
    def spec(self) -> TargetSpec:
        """The cache's spec."""
        return self._spec

    @property
    def vocabulary(self) -> Vocabulary:
        """The cache's words, with their embeddings as stored."""
        return self._vocabulary

    @cached_property
    def zero_shot(self) -> ZeroShot | None:
        """The cache's zero-shot classifier as stored, or None where it has none."""
        if not self._manifest.has_classes:
            return None
        return ZeroShot.load(self._root, self._spec.dataset.classes, self._spec.embedding_dim)

    def pending_shards(self) -> list[int]:
        """Numbers of the shards that are not committed, ascending; looks at the disk on every call."""
        done = set(committed_shards(self._root, self._spec))
        return [shard for shard in range(self._spec.shards) if shard not in done]

    def shard_range(self, shard: int) -> range:
        """Positions of the samples of one shard; raises ConfigError for a shard that does not exist."""
        return self._spec.shard_range(shard)

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while it is made; gives False where it is committed, or held by another living process.

        Raises:
            OutputWriteError: the directory cannot be written.
        """
        with ExitStack() as stack:
            with output_errors(self._root):
                held = stack.enter_context(claimed(self._root, f"{shard:06d}"))
            yield held and not (self._root / commit_file(shard)).exists()

    def commit(self, shard: int, payload: ShardPayload | StoredShard) -> None:
        """Encode a shard and write its files, the commit record last; one that is committed already stays as it is.

        Raises:
            ConfigError: no such shard, or a payload that does not fit the spec or the layout.
            OutputWriteError: the disk is full, or not writable; nothing of this shard counts then, all others stay.
        """
        positions = self.shard_range(shard)
        if isinstance(payload, ShardPayload):
            check_payload(self._spec, len(self._vocabulary.words), len(positions), payload)
            payload = store_payload(self._spec, payload)
        plan = self._plan[positions.start : positions.stop]
        files, record = encode_stored(
            self._spec, self._layout, shard, plan, payload, self._metadata, self._vocabulary.words
        )
        with output_errors(self._root):
            (self._root / STAGING).mkdir(exist_ok=True)
            for name, data in {**files, commit_file(shard): record.to_bytes()}.items():
                if (self._root / commit_file(shard)).exists():
                    return  # by another process, where the file system has no locks
                write_atomic(self._root / name, data, staging_file(self._root, f"{shard:06d}", name))

    def quarantined(self) -> dict[int, str]:
        """Why samples of the committed shards have no targets, by position.

        Raises:
            CorruptTargetsError: a commit record is damaged.
        """
        return {position: reason for record in self._records() for position, reason in record.quarantined.items()}

    def take_back(self, shard: int) -> None:
        """Make a committed shard pending again; nothing happens where another process holds it.

        Its files stay until they are replaced, so that a cache that is open goes on to be read.

        Raises:
            OutputWriteError: the directory cannot be written.
        """
        with output_errors(self._root), claimed(self._root, f"{shard:06d}") as held:
            if held:
                (self._root / commit_file(shard)).unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove the working files of killed processes, once every shard is committed."""
        if not self.pending_shards():
            clear_staging(self._root)

    def summary(self) -> Summary:
        """Add up what is committed so far, by all processes.

        Raises:
            CorruptTargetsError: a commit record is damaged.
        """
        return summarise(self._spec, self._records())

    def _records(self) -> Iterator[CommitRecord]:
        for shard in committed_shards(self._root, self._spec):
            yield CommitRecord.load(self._root, self._spec, self._layout, shard)


class Committer:
    """Commits shards in a thread, one at a time, so that memory holds the one being written and the one being made."""

    def __init__(self, writer: TargetWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()

    def commit(self, shard: int, payload: ShardPayload, claim: ExitStack) -> None:
        """Hand over a shard; `claim` is given up once it is committed.

        Raises:
            LFIError: the shard before could not be written.
        """
        try:
            self._wait()
        except BaseException:
            claim.close()
            raise
        self._last = self._pool.submit(self._commit, shard, payload, claim)

    def _commit(self, shard: int, payload: ShardPayload, claim: ExitStack) -> None:
        with claim:
            self._writer.commit(shard, payload)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


def _require_ours(root: Path) -> None:
    """Raise OutputExistsError unless `root` is absent, empty (a killed first write aside), or a cache."""
    if not root.exists():
        return
    if not root.is_dir():
        raise OutputExistsError(f"{root} is a file; choose another output directory.")
    if (root / MANIFEST).exists():
        try:
            Manifest.load(root)
        except CorruptTargetsError:
            raise
        except NotTargetsError as error:
            raise OutputExistsError(f"{error} Choose another output directory.") from error
    else:
        others = sorted(entry.name for entry in root.iterdir() if not is_leftover(entry.name))
        if others:
            raise OutputExistsError(
                f"{root} already holds something that is not a targets cache ({', '.join(others[:5])}); "
                "choose another output directory."
            )
