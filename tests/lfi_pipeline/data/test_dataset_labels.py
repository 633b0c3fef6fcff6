"""Labels mapped by the names of their classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import Dataset, Instance, Sample, SampleTable
from lfi_pipeline.data.dataset import relabelled, require_labels


def make(classes: tuple[str, ...], *labels: tuple[int, ...]) -> Dataset:
    """A split with one image for each of `labels`, and an object for each label."""
    samples = SampleTable(
        Sample(key=f"{i}", path=f"{i}.jpg", captions=(), labels=each, domain="", height=0, width=0)
        for i, each in enumerate(labels)
    )
    instances = {
        f"{i}": tuple(Instance(label=label, bbox_xywh=(0, 0, 1, 1), segmentation=None) for label in each)
        for i, each in enumerate(labels)
    }
    return Dataset(name="own", root=Path("root"), split="val", classes=classes, samples=samples, instances=instances)


def test_labels_follow_the_names() -> None:
    found = relabelled(make(("cat", "dog", "owl"), (0,), (1, 2), ()), ("owl", "eel", "dog", "cat"), "the cache")
    assert found.classes == ("owl", "eel", "dog", "cat")
    assert [sample.labels for sample in found.samples] == [(3,), (0, 2), ()]
    assert [each.label for each in found.instances["1"]] == [2, 0]
    assert len(found.instances) == 3


def test_equal_lists_change_nothing() -> None:
    dataset = make(("cat", "dog"), (0,))
    assert relabelled(dataset, ["cat", "dog"], "the cache") is dataset


def test_other_names_are_refused_and_both_lists_named() -> None:
    with pytest.raises(DatasetError, match=r"'x' and 'y'|'x', 'y' are not among them.*'x', 'y'.*'cat', 'dog'"):
        relabelled(make(("x", "y"), (0,), (1,)), ("cat", "dog"), "the cache")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bare_numbers_may_be_fewer(count: int) -> None:
    numbers = tuple(map(str, range(count)))
    found = relabelled(make(numbers, *((i,) for i in range(count))), ("0", "1", "2"), "the cache")
    assert [sample.labels for sample in found.samples] == [(i,) for i in range(count)]
    assert found.classes == ("0", "1", "2")


def test_bare_numbers_may_not_be_more_nor_stand_for_names() -> None:
    numbers = make(("0", "1", "2", "3"), (0,), (3,))
    with pytest.raises(DatasetError, match="'3' is not among them"):
        relabelled(numbers, ("0", "1", "2"), "the cache")
    with pytest.raises(DatasetError, match="'0', '3' are not among them"):
        relabelled(numbers, ("cat", "dog", "eel", "owl"), "the cache")


def test_a_class_without_images_is_passed_over() -> None:
    found = relabelled(make(("cat", "unused", "dog"), (2,)), ("dog", "cat"), "the cache")
    assert found.samples[0].labels == (0,)


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="'cat' is there twice"):
        relabelled(make(("cat", "cat"), (1,)), ("cat", "dog"), "the cache")


@pytest.mark.parametrize(("labels", "words"), [((), "got none"), (((), ()), "none of its 2 images")])
def test_nothing_to_score_is_told(labels: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(DatasetError, match=f"{words}.*Score another"):
        require_labels(make(("cat",), *labels), "Score another.")
    require_labels(make(("cat",), (), (0,)), "")
