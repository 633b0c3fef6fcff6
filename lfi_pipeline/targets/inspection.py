"""What a look at a cache tells: where its bytes are, how many words its samples have, why images are missing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lfi_pipeline.targets.store import TargetStore

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
    found = [
        QuarantineGroup(reason=reason, count=len(keys), keys=tuple(keys[:FIRST_KEYS]))
        for reason, keys in groups.items()
    ]
    return sorted(found, key=lambda group: (-group.count, group.reason))


def _general(reason: str, path: str) -> str:
    """A reason without what is special to one image: `.../a.jpg: truncated (4 bytes)` -> `truncated (# bytes)`."""
    start, found, rest = reason.partition(f"{path}: ")
    return re.sub(r"\d+", "#", rest if found and "\n" not in start else reason)
