"""Pairs of a torch data set as tars: every form of an image comes back as its pixels, and equal pairs as equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfi_pipeline.core.errors import DatasetError, OutputWriteError
from lfi_pipeline.data.images import read_image
from lfi_pipeline.data.readers import webdataset as module
from lfi_pipeline.data.readers.registry import read_dataset
from lfi_pipeline.data.readers.webdataset import write_pairs

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
FORMS: dict[str, Any] = {
    "pil": Image.fromarray(PIXELS),
    "numpy": PIXELS,
    "uint8": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "float": torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
}


@pytest.mark.parametrize("form", FORMS)
def test_pixels_and_captions_come_back(form: str, tmp_path: Path) -> None:
    write_pairs([(FORMS[form], "a cat"), (FORMS[form], ["a dog", "two dogs"])], tmp_path)
    dataset = read_dataset("webdataset", tmp_path, "train")
    assert [sample.captions for sample in dataset.samples] == [("a cat",), ("a dog", "two dogs")]
    for sample in dataset.samples:
        image, _, _ = read_image(dataset.root, sample.path)
        assert np.array_equal(np.asarray(image), PIXELS)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    write_pairs([(torch.full((1, 4, 4), 0.2), "a"), (np.full((4, 4), 51, np.uint8), "b")], tmp_path)
    dataset = read_dataset("webdataset", tmp_path, "train")
    for sample in dataset.samples:
        assert (np.asarray(read_image(dataset.root, sample.path)[0]) == 51).all()


def test_the_same_pairs_are_the_same_bytes_in_tars_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_TAR", 2)
    pairs = [(PIXELS, f"caption {i}") for i in range(5)]
    for name in ("a", "b"):
        write_pairs(pairs, tmp_path / name)
    a, b = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in a] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]
    assert len(read_dataset("webdataset", tmp_path / "a", "train").samples) == 5


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a caption alone", r"Item 0 .* pair \(image, caption\), got str"),
        ((PIXELS,), r"pair \(image, caption\), got tuple"),
        ((PIXELS, 3), r"caption must be text or a list of texts, got int"),
        ((PIXELS.astype(np.float64), "a"), r"an image must be .* got ndarray \[6, 9, 3\] float64"),
        ((torch.zeros(2, 4, 4), "a"), r"an image must be .* got Tensor \[2, 4, 4\]"),
        (("cat.jpg", "a"), r"an image must be .* got str"),
    ],
)
def test_what_is_no_pair_is_named(item: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        write_pairs([item], tmp_path)


def test_no_pairs_and_no_place(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="got none"):
        write_pairs([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError, match="Cannot write images"):
        write_pairs([(PIXELS, "a")], tmp_path / "file")
