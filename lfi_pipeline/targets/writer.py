"""Write a cache shard by shard: killed at any moment, the same command finishes it to the same bytes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lfi_pipeline.errors import (
    ConfigError,
    CorruptTargetsError,
    OutputExistsError,
    TargetsError,
    UnknownNameError,
)
from lfi_pipeline.targets.claims import STAGING, claimed, clear_staging, staging_file
from lfi_pipeline.targets.commits import CommitRecord, Summary, committed_shards, summarise
from lfi_pipeline.targets.encode import StoredShard, encode_stored, store_payload
from lfi_pipeline.targets.files import (
    FileRecord,
    output_errors,
    read_whole,
    seal,
    sync_directory,
    temporary,
    write_atomic,
)
from lfi_pipeline.targets.layout import LAYOUTS, MANIFEST, SOURCE, VOCABULARY, commit_file, zarr_metadata
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.payload import ShardPayload, check_payload
from lfi_pipeline.targets.plan import PlannedSample, Vocabulary, plan_digests
from lfi_pipeline.targets.spec import TargetSpec


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
        self._root, self._spec, self._plan = root, manifest.spec, plan
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
            layout: how shards are stored, one of `LAYOUTS`; "webdataset" needs `ShardPayload.images`.

        Raises:
            UnknownNameError: no such layout.
            OutputExistsError: `path` holds something else; nothing is touched.
            SpecMismatchError: `path` holds a cache of another spec, layout, plan or vocabulary; names the fields.
            CorruptTargetsError: the cache's own fixed files are damaged.
            ConfigError: plan or vocabulary do not fit the spec.
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
            with _locked(root):
                _require_ours(root)
                vocabulary = _vocabulary(root, spec, layout, digests, vocabulary)
                manifest = _prepare(root, spec, layout, digests, vocabulary)
                source = seal({"data_root": str(Path(data_root).expanduser().absolute())})
                if not (root / SOURCE).is_file() or (root / SOURCE).read_bytes() != source:
                    write_atomic(root / SOURCE, source)
                for name in (MANIFEST, SOURCE, *manifest.files):
                    temporary(root / name).unlink(missing_ok=True)
        return cls(root, manifest, plan, Vocabulary.load(root, spec.embedding_dim))

    @property
    def spec(self) -> TargetSpec:
        """The cache's spec."""
        return self._spec

    @property
    def vocabulary(self) -> Vocabulary:
        """The cache's words, with their embeddings as stored."""
        return self._vocabulary

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

    def finish(self) -> None:
        """Remove the working files of killed processes, once every shard is committed."""
        if not self.pending_shards():
            clear_staging(self._root)

    def summary(self) -> Summary:
        """Add up what is committed so far, by all processes.

        Raises:
            CorruptTargetsError: a commit record is damaged.
        """
        shards = committed_shards(self._root, self._spec)
        return summarise(
            self._spec, (CommitRecord.load(self._root, self._spec, self._layout, shard) for shard in shards)
        )


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
        except TargetsError as error:
            if "is not a targets cache" not in str(error):
                raise
            raise OutputExistsError(f"{error} Choose another output directory.") from error
    else:
        others = sorted(entry.name for entry in root.iterdir() if entry != temporary(root / MANIFEST))
        if others:
            raise OutputExistsError(
                f"{root} already holds something that is not a targets cache ({', '.join(others[:5])}); "
                "choose another output directory."
            )


def _vocabulary(
    root: Path,
    spec: TargetSpec,
    layout: str,
    digests: dict[str, str],
    vocabulary: Vocabulary | Callable[[], Vocabulary],
) -> Vocabulary:
    """The vocabulary of this run: the stored one, where it must be the same, rather than computing it again."""
    if callable(vocabulary):
        stored = Manifest.load(root) if (root / MANIFEST).exists() else None
        if stored is not None:
            stored.require_same(spec, layout, digests, [], root)
            if all(_intact(root / name, stored.files[name]) for name in ("vocabulary.json", "vocabulary.npy")):
                return Vocabulary.load(root, spec.embedding_dim)
        vocabulary = vocabulary()
    if vocabulary.embeddings.shape[1] != spec.embedding_dim:
        raise ConfigError(
            f"vocabulary.embeddings must be [V, {spec.embedding_dim}] as embedding_dim says, "
            f"got {vocabulary.embeddings.shape}."
        )
    return vocabulary


def _prepare(root: Path, spec: TargetSpec, layout: str, digests: dict[str, str], vocabulary: Vocabulary) -> Manifest:
    """Write the manifest and the fixed files, or check those that are there."""
    content = {**vocabulary.to_files(), **(zarr_metadata(spec) if layout == "zarr" else {})}
    records = {name: FileRecord.of(data) for name, data in content.items()}
    manifest = Manifest(spec=spec, layout=layout, plan=digests, files=records)
    stored = Manifest.load(root) if (root / MANIFEST).exists() else None
    if stored is not None:
        intact = {name for name, record in stored.files.items() if _intact(root / name, record)}
        known = set(VOCABULARY) <= intact
        lines = Vocabulary.load(root, stored.spec.embedding_dim).differences(vocabulary) if known else []
        stored.require_same(spec, layout, digests, lines, root)
        if intact == stored.files.keys():
            return stored
        restorable = all(manifest.files.get(name) == stored.files[name] for name in stored.files.keys() - intact)
        if not restorable and committed_shards(root, stored.spec):
            damaged = ", ".join(sorted(stored.files.keys() - intact))
            raise CorruptTargetsError(
                f"The cache at {root} has damaged files ({damaged}) that this run cannot restore; restore "
                "them from a copy, or extract into another directory."
            )
        if restorable:
            manifest = stored
            content = {name: data for name, data in content.items() if name not in intact}
    if manifest is not stored:
        write_atomic(root / MANIFEST, manifest.to_bytes())
    for folder in ("index", "commits", *(["shards"] if layout == "webdataset" else [])):
        (root / folder).mkdir(exist_ok=True)
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(root / name, data)
    sync_directory(root)
    return manifest


def _intact(path: Path, record: FileRecord) -> bool:
    return path.is_file() and record.complaint(path.read_bytes()) is None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Let one process at a time prepare the directory, where the file system can lock; kills free it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
