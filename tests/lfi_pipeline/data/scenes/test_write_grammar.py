from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.data.scenes import NAMES
from lfi_pipeline.data.scenes.write import Placed, caption, relation

RELATION = re.compile(r"\b(\w+) (left of|right of|above|below) (?:a|an) (\w+)\b")


@st.composite
def scenes(draw: st.DrawFn) -> list[Placed]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    return [Placed(name, draw(st.floats(0, 1)), draw(st.floats(0, 1))) for name in names]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0.9, 0.5, "left of"), (0.1, 0.5, "right of"), (0.5, 0.9, "above"), (0.5, 0.1, "below"), (0.9, 0.8, "left of")],
)
def test_relation_of_the_centre_to_another(x: float, y: float, expected: str) -> None:
    assert relation(Placed("dog", 0.5, 0.5), Placed("cat", x, y)) == expected


@settings(max_examples=200, deadline=None)
@given(objects=scenes(), seed=st.integers(0, 10_000))
def test_a_caption_names_every_object_once_and_says_only_what_is_true(objects: list[Placed], seed: int) -> None:
    text = caption(objects, np.random.default_rng(seed))
    words = Counter(text.split())
    assert {name: words[name] for name in NAMES if words[name]} == {each.name: 1 for each in objects}
    assert words["a"] + words["an"] == len(objects)
    at = {each.name: each for each in objects}
    for first, said, second in RELATION.findall(text):
        dx, dy = at[second].x - at[first].x, at[second].y - at[first].y
        along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[said]
        assert along == max(abs(dx), abs(dy)), text


def test_same_generator_state_same_caption_and_all_forms_occur() -> None:
    objects = [Placed("dog", 0.2, 0.2), Placed("cat", 0.8, 0.3), Placed("owl", 0.5, 0.9)]
    texts = [caption(objects, np.random.default_rng(seed)) for seed in range(100)]
    assert texts == [caption(objects, np.random.default_rng(seed)) for seed in range(100)]
    everything = " | ".join(texts)
    for form in ("there is a", "we see a", "left of", "right of", "above", "below", " and ", " with ", "next to"):
        assert form in everything
    assert "an owl" in everything
    assert "a owl" not in everything
