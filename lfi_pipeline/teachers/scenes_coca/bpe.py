"""Learn a small byte-pair vocabulary in the file format that open_clip's `SimpleTokenizer` reads.

The tiny teacher uses the tokenizer class of the large ones, so that word merging runs the same code for both.
Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, algorithm 1.
"""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def learn_merges(texts: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` merges, most frequent pair first; ties go to the lexically smaller pair."""
    counts = Counter(word for text in texts for word in text.lower().replace(",", " ").split())
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in counts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merge(symbols, best): count for symbols, count in words.items()}
    return merges


def write_merges(merges: Iterable[tuple[str, str]], path: Path) -> None:
    """Write merges as CLIP does: gzip, a header line, one pair a line (same bytes for the same merges)."""
    text = "\n".join(["#version: lfi", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)
