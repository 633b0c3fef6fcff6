"""The manifest of a cache, written first and never changed, and the files that belong to no shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, NotTargetsError, SpecMismatchError, TargetsError
from lfi_pipeline.core.io import FileRecord, read_whole, seal, sync_directory, unseal, write_atomic
from lfi_pipeline.core.schema import plain_differences, plain_short
from lfi_pipeline.targets.commits import (
    CLASSES,
    LAYOUTS,
    MANIFEST,
    SOURCE,
    VOCABULARY,
    committed_shards,
    fixed_files,
    parse_records,
    zarr_metadata,
)
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.targets.vocabulary import Vocabulary, ZeroShot

FORMAT = "lfi-targets"
MAX_SAMPLES = 2**30
"""More than any data set has; a manifest that says so is not one of ours."""
MAX_SAMPLE_BYTES = 2**28
"""The same for the bytes of one view of one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindScore:
    """How one kind of map did, where kinds were compared before the extraction (`teachers.choice`).

    Attributes:
        kind: of map, at its last layer.
        cost: floating-point operations over those of the vision forward alone, which is part of it.
        score: what kinds are compared by; a mean over words.
        behind: how far the score is behind the best kind's.
        error: standard error of `behind`.
        pointing: share of peaks in the object's mask; None without masks.
        mass_in_mask: share of mass there; None without masks.
        same_peak: share of pairs of words of one image whose maps peak in one patch; None without such pairs.
    """

    kind: str
    cost: float
    score: float
    behind: float
    error: float
    pointing: float | None
    mass_in_mask: float | None
    same_peak: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class KindChoice:
    """The kind of map that was taken of several, and why.

    Attributes:
        kind: the cheapest within one standard error of the best.
        by: `masks` or `deletion`.
        images: looked at.
        words: whose maps were compared.
        scores: a line for each kind, the cheapest first.
    """

    kind: str
    by: str
    images: int
    words: int
    scores: tuple[KindScore, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        spec: the frozen description of the targets.
        layout: how shards are stored, one of `LAYOUTS`; not part of the spec: the targets are the same.
        plan: sha256 of each column of the plan.
        files: the fixed files (vocabulary, classes, Zarr metadata), by path relative to the cache.
        choice: by which the kind of map was chosen; None where it was named.
    """

    spec: TargetSpec
    layout: str = "zarr"
    plan: Mapping[str, str]
    files: Mapping[str, FileRecord]
    choice: KindChoice | None = None

    def to_bytes(self) -> bytes:
        """Content of `manifest.json`."""
        return seal(
            {
                "format": FORMAT,
                "layout": self.layout,
                "fingerprint": self.spec.fingerprint,
                "spec": self.spec.to_plain(),
                "plan": dict(self.plan),
                "files": {name: asdict(record) for name, record in self.files.items()},
            }
            | ({"choice": asdict(self.choice)} if self.choice is not None else {})
        )

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Read the manifest of a cache.

        Raises:
            TargetsError: `root` is not a cache, or one of an unknown version or layout.
            CorruptTargetsError: the manifest does not match its checksum.
        """
        if not (root / MANIFEST).is_file():
            raise NotTargetsError(f"{root} is not a targets cache: {_describe(root)}. {_EXPECTED}")
        data = read_whole(root / MANIFEST)
        loose = _parse(data)
        if loose.get("format") != FORMAT:
            if FORMAT.encode() in data:
                raise CorruptTargetsError(f"{root / MANIFEST} does not match its checksum.")
            raise NotTargetsError(f"{root} is not a targets cache: its {MANIFEST} has another format. {_EXPECTED}")
        if loose.get("layout") not in LAYOUTS:
            known = ", ".join(LAYOUTS)
            raise TargetsError(f"{root} has layout {plain_short(loose.get('layout'))}; this release knows {known}.")
        try:
            spec = TargetSpec.from_plain(loose.get("spec"))
            fingerprint = spec.fingerprint
        except (OverflowError, UnicodeEncodeError) as error:  # JSON can hold numbers and text that nothing else can
            raise TargetsError(f"The spec of {root} cannot be read: {error}") from error
        body = unseal(data, root / MANIFEST)
        if body.get("fingerprint") != fingerprint:
            raise CorruptTargetsError(f"{root / MANIFEST} has a spec that does not match its fingerprint.")
        _check_size(spec, root)
        plan, files = body.get("plan"), parse_records(body.get("files"))
        if not isinstance(plan, dict) or files is None or not _are_fixed_files(files, spec, body["layout"]):
            raise CorruptTargetsError(f"{root / MANIFEST} does not list the files of a cache of its spec and layout.")
        return cls(spec=spec, layout=body["layout"], plan=plan, files=files, choice=_read_choice(body, root))

    @property
    def has_classes(self) -> bool:
        """Whether the cache holds a zero-shot classifier."""
        return CLASSES[0] in self.files

    def require_same(
        self, spec: TargetSpec, layout: str, plan: Mapping[str, str], texts: list[str], root: Path
    ) -> None:
        """Refuse to go on with another spec, layout, plan, vocabulary or classes than the cache was begun with.

        Args:
            spec: of this run.
            layout: of this run.
            plan: digests of this run's plan.
            texts: lines that name how this run's vocabulary and classes differ.
            root: the cache, for the message.

        Raises:
            SpecMismatchError: names every differing field (the cache's value first).
        """
        lines = self.spec.differences(spec)
        lines += plain_differences({"layout": self.layout}, {"layout": layout})
        lines += plain_differences({"plan": dict(self.plan)}, {"plan": dict(plan)})
        lines += texts
        if lines:
            raise SpecMismatchError(
                f"The cache at {root} was begun with other settings (cache != this run):\n  "
                + "\n  ".join(lines)
                + "\nRun with the cache's settings, or choose another output directory."
            )


def _read_choice(body: Mapping[str, Any], root: Path) -> KindChoice | None:
    if "choice" not in body:
        return None
    try:
        return msgspec.convert(body["choice"], KindChoice, strict=True)
    except msgspec.ValidationError as error:
        raise CorruptTargetsError(
            f"{root / MANIFEST} does not tell how its kind of map was chosen: {error}."
        ) from error


_EXPECTED = (
    f"A cache holds {MANIFEST}, vocabulary.json, views/ or shards/, index/ and commits/, as the extract command writes."
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a cache's data set came from; may change while the cache stays the same.

    Attributes:
        data_root: where it lay when the cache was last written.
        manifest: the text of a manifest of the user's own; empty for a shipped one, or none.
    """

    data_root: Path
    manifest: str = ""

    def to_bytes(self) -> bytes:
        """Content of `source.json`."""
        own = {"manifest": self.manifest} if self.manifest else {}
        return seal({"data_root": str(self.data_root), **own})


def read_source(root: Path) -> Source:
    """Read `source.json` of a cache.

    Raises:
        CorruptTargetsError: it is missing or damaged.
    """
    path = root / SOURCE
    body = unseal(read_whole(path), path)
    place, manifest = body.get("data_root"), body.get("manifest", "")
    if not isinstance(place, str) or "\0" in place or not isinstance(manifest, str):
        raise CorruptTargetsError(f"{path} does not say where the data set lies.")
    return Source(Path(place), manifest)


def _check_size(spec: TargetSpec, root: Path) -> None:
    """Refuse counts that only a forged manifest has, before anything is sized by them."""
    cells = len(spec.layers) * spec.words_per_sample * spec.grid[0] * spec.grid[1]
    if max(spec.dataset.samples, spec.samples_per_shard) > MAX_SAMPLES or cells + spec.embedding_dim > MAX_SAMPLE_BYTES:
        raise TargetsError(
            f"{root / MANIFEST} describes targets larger than any: at most {MAX_SAMPLES} samples, each of at most "
            f"{MAX_SAMPLE_BYTES} cells and embedding dimensions, can be read."
        )


def _are_fixed_files(files: Mapping[str, FileRecord], spec: TargetSpec, layout: str) -> bool:
    """Whether `files` are the fixed files of such a cache; those of an earlier release have no `CLASSES`."""
    expected = fixed_files(spec, layout)
    return files.keys() == expected or (bool(spec.dataset.classes) and files.keys() == {*expected, *CLASSES})


def _describe(root: Path) -> str:
    if not root.exists():
        beside = [root.with_name(f".{root.name}.lfi-{what}") for what in ("before", "extending")]
        leftovers = [str(path) for path in beside if path.exists()]
        if leftovers:  # an extension was killed where directories cannot be exchanged
            return f"it does not exist, but {' and '.join(leftovers)} does: run the same extraction again to restore it"
        return "it does not exist"
    if not root.is_dir():
        return "it is a file"
    names = sorted(entry.name for entry in root.iterdir())
    return f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"


def _parse(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def prepare(
    root: Path,
    spec: TargetSpec,
    layout: str,
    digests: Mapping[str, str],
    vocabulary: Vocabulary | Callable[[], Vocabulary],
    zero_shot: ZeroShot | Callable[[], ZeroShot] | None,
    choice: KindChoice | None = None,
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
    manifest = Manifest(spec=spec, layout=layout, plan=digests, files=records, choice=choice)
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
