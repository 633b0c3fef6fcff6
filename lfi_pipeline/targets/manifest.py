"""The manifest: written first, never changed; it says what the cache is and what its fixed files must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.errors import CorruptTargetsError, SpecMismatchError, TargetsError
from lfi_pipeline.targets.files import FileRecord, read_whole, seal, unseal
from lfi_pipeline.targets.layout import MANIFEST
from lfi_pipeline.targets.record import plain_differences
from lfi_pipeline.targets.spec import TargetSpec

FORMAT = "lfi-targets"
LAYOUT = "zarr"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a cache is.

    Attributes:
        spec: the frozen description of the targets.
        plan: sha256 of each column of the plan.
        files: the fixed files (vocabulary, Zarr metadata), by path relative to the cache.
    """

    spec: TargetSpec
    plan: Mapping[str, str]
    files: Mapping[str, FileRecord]

    def to_bytes(self) -> bytes:
        """Content of `manifest.json`."""
        return seal(
            {
                "format": FORMAT,
                "layout": LAYOUT,
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
        if loose.get("layout") != LAYOUT:
            raise TargetsError(f"{root} has layout {loose.get('layout')!r}; this reader knows {LAYOUT!r}.")
        spec = TargetSpec.from_plain(loose.get("spec"))
        body = unseal(data, root / MANIFEST)
        if body.get("fingerprint") != spec.fingerprint:
            raise CorruptTargetsError(f"{root / MANIFEST} has a spec that does not match its fingerprint.")
        files = {name: FileRecord(**record) for name, record in body["files"].items()}
        return cls(spec=spec, plan=body["plan"], files=files)

    def require_same(self, spec: TargetSpec, plan: Mapping[str, str], vocabulary: list[str], root: Path) -> None:
        """Refuse to go on with another spec, plan or vocabulary than the cache was begun with.

        Args:
            spec: of this run.
            plan: digests of this run's plan.
            vocabulary: lines that name how this run's vocabulary differs.
            root: the cache, for the message.

        Raises:
            SpecMismatchError: names every differing field (the cache's value first).
        """
        lines = self.spec.differences(spec)
        lines += plain_differences({"plan": dict(self.plan)}, {"plan": dict(plan)})
        lines += vocabulary
        if lines:
            raise SpecMismatchError(
                f"The cache at {root} was begun with other settings (cache != this run):\n  "
                + "\n  ".join(lines)
                + "\nRun with the cache's settings, or choose another output directory."
            )


_EXPECTED = f"A cache holds {MANIFEST}, vocabulary.json, views/, index/ and commits/, as the extract command writes."


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
