"""The manifest: written first, never changed; it says what the cache is and what its fixed files must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.errors import CorruptTargetsError, SpecMismatchError, TargetsError
from lfi_pipeline.targets.checked import parse_records
from lfi_pipeline.targets.files import FileRecord, read_whole, seal, unseal
from lfi_pipeline.targets.layout import CLASSES, LAYOUTS, MANIFEST, SOURCE, fixed_files
from lfi_pipeline.targets.record import plain_differences, plain_short
from lfi_pipeline.targets.spec import TargetSpec

FORMAT = "lfi-targets"
MAX_SAMPLES = 2**30
"""More than any data set has; a manifest that says so is not one of ours."""
MAX_SAMPLE_BYTES = 2**28
"""The same for the bytes of one view of one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a cache is.

    Attributes:
        spec: the frozen description of the targets.
        layout: how shards are stored, one of `LAYOUTS`; not part of the spec: the targets are the same.
        plan: sha256 of each column of the plan.
        files: the fixed files (vocabulary, classes, Zarr metadata), by path relative to the cache.
    """

    spec: TargetSpec
    layout: str = "zarr"
    plan: Mapping[str, str]
    files: Mapping[str, FileRecord]

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
        )

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Read the manifest of a cache.

        Raises:
            TargetsError: `root` is not a cache, or one of an unknown version or layout.
            CorruptTargetsError: the manifest does not match its checksum.
        """
        if not (root / MANIFEST).is_file():
            raise TargetsError(f"{root} is not a targets cache: {_describe(root)}. {_EXPECTED}")
        data = read_whole(root / MANIFEST)
        loose = _parse(data)
        if loose.get("format") != FORMAT:
            if FORMAT.encode() in data:
                raise CorruptTargetsError(f"{root / MANIFEST} does not match its checksum.")
            raise TargetsError(f"{root} is not a targets cache: its {MANIFEST} has another format. {_EXPECTED}")
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
        return cls(spec=spec, layout=body["layout"], plan=plan, files=files)

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


_EXPECTED = (
    f"A cache holds {MANIFEST}, vocabulary.json, views/ or shards/, index/ and commits/, as the extract command writes."
)


def read_source(root: Path) -> Path:
    """Where the data set of a cache lay when it was last written.

    Raises:
        CorruptTargetsError: `source.json` is missing or damaged.
    """
    path = root / SOURCE
    place = unseal(read_whole(path), path).get("data_root")
    if not isinstance(place, str) or "\0" in place:
        raise CorruptTargetsError(f"{path} does not say where the data set lies.")
    return Path(place)


def _check_size(spec: TargetSpec, root: Path) -> None:
    """Refuse counts that only a forged manifest has, before anything is sized by them."""
    cells = len(spec.layers) * spec.words_per_sample * spec.grid[0] * spec.grid[1]
    if max(spec.dataset.samples, spec.samples_per_shard) > MAX_SAMPLES or cells + spec.embedding_dim > MAX_SAMPLE_BYTES:
        raise TargetsError(
            f"{root / MANIFEST} describes targets larger than any: at most {MAX_SAMPLES} samples, each of at most "
            f"{MAX_SAMPLE_BYTES} cells and embedding dimensions, can be read."
        )


def _are_fixed_files(files: Mapping[str, FileRecord], spec: TargetSpec, layout: str) -> bool:
    """Whether a cache of the spec may have these: caches of an earlier release have no `CLASSES`."""
    expected = fixed_files(spec, layout)
    return files.keys() == expected or (bool(spec.dataset.classes) and files.keys() == {*expected, *CLASSES})


def _describe(root: Path) -> str:
    if not root.exists():
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
