from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data import dataset as table
from lfi_pipeline.data.dataset import Instance, Sample, SampleTable, class_mask

BYTES_A_SAMPLE = 300  # with a caption of 60 letters and a path of 40


def _sample(number: int) -> Sample:
    return Sample(
        key=f"train/class_{number % 100}/{number:012d}",
        path=f"train/class_{number % 100}/{number:012d}.jpg",
        captions=(f"A photograph, number {number:012d}, of something in a place.",),
        labels=(number % 100,),
        domain="photo",
        height=0,
        width=0,
    )


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
SAMPLES = st.builds(
    Sample,
    key=TEXT,
    path=TEXT.filter(lambda text: text and not text.startswith("/") and ".." not in text.split("/")),
    captions=st.lists(TEXT, max_size=3).map(tuple),
    labels=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    domain=TEXT,
    height=st.integers(0, 2**31 - 1),
    width=st.integers(0, 2**31 - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SAMPLES, max_size=12))
def test_what_goes_in_comes_out(samples: list[Sample]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_CHUNK", 5)
        found = SampleTable(iter(samples))
        assert list(found) == samples
        assert [found[i] for i in range(len(samples))] == samples
        assert [found[-i - 1] for i in range(len(samples))] == samples[::-1]
        assert list(found[2:9:2]) == samples[2:9:2]
        assert found == SampleTable(samples)


def test_tables_that_differ_are_not_equal() -> None:
    samples = [_sample(i) for i in range(3)]
    assert SampleTable(samples) != SampleTable(samples[:2])
    assert SampleTable(samples) != SampleTable([*samples[:2], replace(samples[2], domain="art")])


def test_out_of_range() -> None:
    found = SampleTable([_sample(0)])
    for index in (1, -2):
        with pytest.raises(IndexError):
            found[index]
    assert len(SampleTable()) == 0
    assert list(SampleTable()) == []


def test_a_sample_costs_a_few_hundred_bytes_and_building_holds_no_list() -> None:
    count, before = 200_000, pa.total_allocated_bytes()
    alive = 0

    def samples() -> Iterator[Sample]:
        nonlocal alive
        for number in range(count):
            alive = number
            yield _sample(number)

    found = SampleTable(samples())
    assert len(found) == count == alive + 1
    assert found.nbytes / count < BYTES_A_SAMPLE
    assert (pa.total_allocated_bytes() - before) / count < 1.5 * BYTES_A_SAMPLE
    assert found[count // 2] == _sample(count // 2)
    assert sum(sample.labels[0] for sample in found) == sum(i % 100 for i in range(count))


def test_samples_are_taken_as_they_come() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Sample]:
        for number in range(3 * table._CHUNK):
            taken.append(number)
            if number == 2 * table._CHUNK:
                raise DatasetError("a broken line")
            yield _sample(number)

    with pytest.raises(DatasetError, match="a broken line"):
        SampleTable(endless())
    assert len(taken) == 2 * table._CHUNK + 1


def test_repeated_keys_are_found() -> None:
    samples = [_sample(i) for i in range(5)]
    assert SampleTable(samples).repeated_keys() == []
    assert SampleTable([*samples, samples[3]]).repeated_keys() == [samples[3].key]


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../b.jpg", "", "a\0.jpg"])
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(DatasetError, match=r"Sample 'train/.*must stay below the data root"):
        SampleTable([replace(_sample(1), path=path)])


def test_names_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(DatasetError, match="must be UTF-8"):
        SampleTable([_sample(0), replace(_sample(1), path="Gr\udcfc\udcdfe.jpg")])


def test_a_table_travels_to_worker_processes() -> None:
    found = SampleTable(_sample(i) for i in range(10))
    assert copy.deepcopy(found) == found
    assert len(ForkingPickler.dumps(found)) > 0


def test_a_classs_mask_is_the_union_of_those_of_its_objects_that_have_one() -> None:
    def square(label: int, left: int, masked: bool = True) -> Instance:
        corners = [left, 0, left + 2, 0, left + 2, 2, left, 2]
        return Instance(label=label, bbox_xywh=(left, 0, 2, 2), segmentation=[corners] if masked else None)

    objects = [square(0, 0), square(0, 4), square(1, 2), square(0, 6, masked=False), square(2, 6, masked=False)]
    mask = class_mask(objects, 0, 3, 8)
    assert mask is not None
    assert np.array_equal(mask, objects[0].mask(3, 8) | objects[1].mask(3, 8))
    assert [class_mask(objects, label, 3, 8) for label in (2, 3, None)] == [None] * 3
