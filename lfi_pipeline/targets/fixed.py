"""The files of a cache that no shard owns: written once, before any shard, and the same on every rerun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lfi_pipeline.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.targets.commits import committed_shards
from lfi_pipeline.targets.files import FileRecord, sync_directory, write_atomic
from lfi_pipeline.targets.layout import CLASSES, MANIFEST, VOCABULARY, zarr_metadata
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.plan import Vocabulary
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.zero_shot import ZeroShot


def prepare(
    root: Path,
    spec: TargetSpec,
    layout: str,
    digests: Mapping[str, str],
    vocabulary: Vocabulary | Callable[[], Vocabulary],
    zero_shot: ZeroShot | Callable[[], ZeroShot] | None,
) -> Manifest:
    """Write the manifest and the fixed files, or check those that are there; arguments as `TargetWriter.open`.

    Raises:
        SpecMismatchError: the cache was begun with other settings; names them.
        CorruptTargetsError: fixed files are damaged, and this run cannot restore them.
        ConfigError: vocabulary or classes do not fit the spec.
    """
    stored = Manifest.load(root) if (root / MANIFEST).exists() else None
    intact = {name for name, record in stored.files.items() if _intact(root / name, record)} if stored else set()
    if stored is not None and not stored.has_classes:
        zero_shot = None  # a cache that was begun without stays without
    if stored is not None and (callable(vocabulary) or callable(zero_shot)):
        stored.require_same(spec, layout, digests, [], root)  # before anything is computed
    if callable(vocabulary):
        vocabulary = Vocabulary.load(root, spec.embedding_dim) if intact.issuperset(VOCABULARY) else vocabulary()
    if callable(zero_shot):
        zero_shot = _load_zero_shot(root, spec) if intact.issuperset(CLASSES) else zero_shot()
    _require_fit(spec, vocabulary, zero_shot)
    content = {**vocabulary.to_files(), **(zero_shot.to_files() if zero_shot is not None else {})}
    content |= zarr_metadata(spec) if layout == "zarr" else {}
    records = {name: FileRecord.of(data) for name, data in content.items()}
    manifest = Manifest(spec=spec, layout=layout, plan=digests, files=records)
    if stored is not None:
        stored.require_same(spec, layout, digests, _differences(root, stored, intact, vocabulary, zero_shot), root)
        damaged = sorted(stored.files.keys() - intact)
        if not damaged:
            return stored
        restorable = all(records.get(name) == stored.files[name] for name in damaged)
        if not restorable and committed_shards(root, stored.spec):
            raise CorruptTargetsError(
                f"The cache at {root} has damaged files ({', '.join(damaged)}) that this run cannot restore; restore "
                "them from a copy, or extract into another directory."
            )
        if restorable:
            manifest = stored
            content = {name: content[name] for name in damaged}
    if manifest is not stored:
        write_atomic(root / MANIFEST, manifest.to_bytes())
    for folder in ("index", "commits", *(["shards"] if layout == "webdataset" else [])):
        (root / folder).mkdir(exist_ok=True)
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(root / name, data)
    sync_directory(root)
    return manifest


def _differences(
    root: Path, stored: Manifest, intact: set[str], vocabulary: Vocabulary, zero_shot: ZeroShot | None
) -> list[str]:
    """How the stored vocabulary and classes, where they can be read, differ from those of this run."""
    lines = []
    if intact.issuperset(VOCABULARY):
        lines += Vocabulary.load(root, stored.spec.embedding_dim).differences(vocabulary)
    if zero_shot is not None and intact.issuperset(CLASSES):
        lines += _load_zero_shot(root, stored.spec).differences(zero_shot)
    return lines


def _load_zero_shot(root: Path, spec: TargetSpec) -> ZeroShot:
    return ZeroShot.load(root, spec.dataset.classes, spec.embedding_dim)


def _require_fit(spec: TargetSpec, vocabulary: Vocabulary, zero_shot: ZeroShot | None) -> None:
    if vocabulary.embeddings.shape[1] != spec.embedding_dim:
        raise ConfigError(
            f"vocabulary.embeddings must be [V, {spec.embedding_dim}] as embedding_dim says, "
            f"got {vocabulary.embeddings.shape}."
        )
    if zero_shot is None:
        return
    if zero_shot.names != spec.dataset.classes:
        raise ConfigError("zero_shot.names must be the classes of the spec, in their order.")
    if zero_shot.embeddings.shape[1] != spec.embedding_dim:
        raise ConfigError(
            f"zero_shot.embeddings must be [C, {spec.embedding_dim}] as embedding_dim says, "
            f"got {zero_shot.embeddings.shape}."
        )


def _intact(path: Path, record: FileRecord) -> bool:
    return path.is_file() and record.complaint(path.read_bytes()) is None
