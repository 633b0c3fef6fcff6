"""Synthetic caches and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from lfi_pipeline.benchmarks.inputs import (
    CAPTIONS,
    SIZE,
    drawn_maps,
    labels_of,
    maps_spec,
    payload_of,
    write_coco,
    write_photos,
    write_targets,
)
from lfi_pipeline.data import read_dataset
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers.text import encode_text


def test_a_synthetic_cache_is_a_whole_cache_and_the_same_every_time(tmp_path: Path) -> None:
    spec = maps_spec(samples=10, maps_shape=(2, 3, 4, 5), samples_per_shard=4, views=("full", "hflip"))
    for name in ("a", "b"):
        write_targets(tmp_path / name, spec, lambda positions: payload_of(spec, drawn_maps(spec, positions)))
        assert verify(tmp_path / name, images=False) == []
    first, second = (TargetStore.open(tmp_path / name).read_many(range(10)) for name in ("a", "b"))
    np.testing.assert_array_equal(first.maps, second.maps)
    maps = decode_maps(first.maps, first.scale)
    np.testing.assert_allclose(maps.sum((-1, -2)), 1, atol=1e-3)
    assert TargetStore.open(tmp_path / "a").index.labels == [labels_of(i) for i in range(10)]


def test_labels_are_distinct_classes() -> None:
    assert all(1 <= len(set(labels_of(i))) == len(labels_of(i)) and max(labels_of(i)) < 80 for i in range(500))


def test_photos_cost_what_photos_cost(tmp_path: Path) -> None:
    paths = write_photos(tmp_path, 2)
    for path in paths:
        with Image.open(tmp_path / path) as image:
            assert (image.height, image.width) == SIZE
    size = (tmp_path / paths[0]).stat().st_size
    assert 60_000 < size < 260_000  # COCO's have about 160 kB; plain noise would have several times that
    assert (tmp_path / paths[0]).read_bytes() != (tmp_path / paths[1]).read_bytes()


def test_photos_are_a_data_set(tmp_path: Path) -> None:
    write_coco(tmp_path, write_photos(tmp_path, 2))
    dataset = read_dataset("coco", tmp_path, "train")
    assert [sample.captions for sample in dataset.samples] == [(CAPTIONS[0],), (CAPTIONS[1],)]
    assert [sample.key for sample in dataset.samples] == [f"{i:012d}" for i in range(2)]
    with pytest.raises(ValueError, match="must hold"):
        read_dataset("coco", tmp_path, "val")


def test_captions_cost_the_same() -> None:
    tokenizer = open_clip.get_tokenizer("coca_ViT-B-32")
    texts = [encode_text(tokenizer, caption) for caption in CAPTIONS]
    assert [len(text.words) for text in texts] == [6] * len(CAPTIONS)
    assert len({len(text.ids) for text in texts}) == 1
