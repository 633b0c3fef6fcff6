from __future__ import annotations

import pytest

from lfi_pipeline.data.augment import DIRECTION_WORDS, mirrored_caption


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a dog left of a cat", "a dog right of a cat"),
        ("a dog right of a cat, and left of a cow", "a dog left of a cat, and right of a cow"),
        ("Left-hand drive", "Right-hand drive"),
        ("the leftmost of three", "the rightmost of three"),
        ("an upright copyright, brightly leftover", "an upright copyright, brightly leftover"),
        ("a dog above a cat", "a dog above a cat"),
        ("", ""),
    ],
)
def test_words_of_direction_are_swapped_and_nothing_else(caption: str, mirrored: str) -> None:
    assert mirrored_caption(caption) == mirrored
    assert mirrored_caption(mirrored) == caption


def test_direction_words_are_those_that_change() -> None:
    assert {"left", "right"} <= DIRECTION_WORDS
    assert all(mirrored_caption(word) in DIRECTION_WORDS - {word} for word in DIRECTION_WORDS)
