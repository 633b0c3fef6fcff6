"""Words of direction: true of an image, false of its mirror image."""

from __future__ import annotations

import re

_MIRROR = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
_PATTERN = re.compile(rf"\b({'|'.join(_MIRROR)})\b", re.IGNORECASE)
DIRECTION_WORDS = frozenset(_MIRROR)


def mirrored_caption(caption: str) -> str:
    """Swap words of direction, so that the caption stays true of the mirrored image."""

    def swap(match: re.Match[str]) -> str:
        other = _MIRROR[match.group().lower()]
        return other.capitalize() if match.group()[0].isupper() else other

    return _PATTERN.sub(swap, caption)
