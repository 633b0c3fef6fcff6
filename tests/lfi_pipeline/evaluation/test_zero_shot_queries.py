"""Which embedding seeds a class: its name's as a word, else its prompts'."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.evaluation.zero_shot import class_queries

TEACHER = SimpleNamespace(name="t", tag="a", weights_sha256="0" * 64)
AXES = np.eye(6, dtype=np.float32)


def cache(words: dict[str, int], classes: tuple[str, ...] = (), prompts: bool = True, teacher: Any = TEACHER) -> Any:
    """As much of a store as is read: each word has the axis of its number, each class the negative axis of its own."""
    return SimpleNamespace(
        path="shards",
        spec=SimpleNamespace(teacher=teacher, dataset=SimpleNamespace(name="d", classes=classes)),
        vocabulary=SimpleNamespace(words=tuple(words), embeddings=AXES[list(words.values())]),
        zero_shot=SimpleNamespace(embeddings=-AXES[: len(classes)].astype(np.float16)) if prompts else None,
    )


def test_words_of_either_vocabulary_then_prompts() -> None:
    scored = cache({"cat": 3, "fire engine": 4}, ("cat", "Fire_Engine", "Dog", "cow"))
    found = class_queries(scored, cache({"dog": 5, "cat": 0}))
    assert np.array_equal(found.embeddings.numpy(), np.stack([AXES[3], AXES[4], AXES[5], -AXES[3]]))
    assert found.as_words == ("cat", "Fire_Engine", "Dog")
    assert found.as_prompts == ("cow",)


@pytest.mark.parametrize("name", ["Fire_Engine", "fire  engine", "fire_engine "])
def test_names_are_compared_as_in_training(name: str) -> None:
    assert class_queries(cache({"fire_engine": 4}, (name,)), cache({})).as_words == (name,)


def test_part_of_a_name_is_not_the_name() -> None:
    found = class_queries(cache({"fire": 1, "engine": 2}, ("fire_engine",)), cache({}))
    assert found.as_prompts == ("fire_engine",)


def test_a_class_without_any_embedding_is_told() -> None:
    scored = cache({"cat": 3}, ("cat", "cow", "dog"), prompts=False)
    with pytest.raises(ConfigError, match=r"2 of 3 classes, 'cow' the first.*`text='prompts'`"):
        class_queries(scored, cache({}))
    assert class_queries(cache({"cat": 3}, ("cat",), prompts=False), cache({})).as_prompts == ()


def test_another_teacher_is_refused() -> None:
    other = SimpleNamespace(name="t", tag="b", weights_sha256="1" * 64)
    with pytest.raises(ConfigError, match=r"t:a \(weights 00000000\).*t:b \(weights 11111111\)"):
        class_queries(cache({"cat": 3}, ("cat",), teacher=other), cache({}))


def test_a_data_set_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="classes"):
        class_queries(cache({"cat": 3}), cache({}))
