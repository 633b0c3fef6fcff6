"""The gallery's data: maps survive quantisation, words are found in their captions, images appear once."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.report.gallery import (
    STILL,
    build_gallery,
    caption_parts,
    encode_image,
    map_gallery,
    peak,
    quantise,
    ramp,
    still,
)
from lfi_pipeline.report.groups import gather
from lfi_pipeline.report.runs import load_run


def opened(uri: str) -> Image.Image:
    head, body = uri.split(",", 1)
    assert head.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_uniform_map_stays_dark_and_a_peak_is_full() -> None:
    uniform = np.full((1, 4, 4), 1 / 16, np.float32)
    assert quantise(uniform).max() == 64
    point = np.zeros((1, 4, 4), np.float32)
    point[0, 1, 2] = 1
    assert quantise(point)[0, 1, 2] == 255
    assert quantise(np.full((1, 2, 2), np.nan, np.float32)).max() == 0
    assert peak(point[0]) == (62.5, 37.5)


def test_a_still_has_the_ramp_as_its_palette() -> None:
    grid = np.zeros((4, 4), np.uint8)
    grid[0, 0] = 255
    image = opened(still(grid)).convert("RGBA")
    assert image.size == (STILL, STILL)
    colours = ramp()
    assert image.getpixel((STILL - 1, STILL - 1)) == tuple(int(c) for c in colours[0])
    assert image.getpixel((0, 0)) == tuple(int(c) for c in colours[255])


def test_images_are_shrunk_and_flat_ones_stay_exact() -> None:
    assert max(opened(encode_image(np.zeros((500, 900, 3), np.uint8))).size) == 384
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[:8] = (200, 30, 40)
    np.testing.assert_array_equal(np.asarray(opened(encode_image(flat)).convert("RGB")), flat)


@pytest.mark.parametrize(
    ("caption", "words", "parts", "others"),
    [
        ("A dog.", ["dog"], [("A ", None), ("dog", 0), (".", None)], []),
        ("Dog, dog", ["dog", "dog"], [("Dog", 0), (", ", None), ("dog", 1)], []),
        ("two dogs", ["dog"], [("two dogs", None)], [("dog", 0)]),
        ("a c++ (x", ["(x", "c++"], [("a ", None), ("c++", 1), (" ", None), ("(x", 0)], []),
        ("", ["", "cat"], [], [("", 0), ("cat", 1)]),
    ],
)
def test_words_are_found_in_their_caption(caption: str, words: list[str], parts: list[Any], others: list[Any]) -> None:
    assert caption_parts(caption, words) == (parts, others)


@given(st.text(max_size=40), st.lists(st.text(max_size=6), max_size=5))
def test_a_caption_keeps_its_text_and_every_word_its_chip(caption: str, words: list[str]) -> None:
    parts, others = caption_parts(caption, words)
    assert "".join(text for text, _ in parts) == caption
    found = [word for _, word in parts if word is not None] + [word for _, word in others]
    assert sorted(found) == list(range(len(words)))


def test_runs_share_images_and_keep_their_own_maps(make_run: Any) -> None:
    runs = [make_run("none", "none", gallery=3), make_run("shuffled", maps="shuffled", gallery=3)]
    runs += [make_run("lfi", gallery=3)]
    gallery = build_gallery(gather([load_run(run) for run in runs])[0])
    assert gallery is not None
    assert gallery.runs == ("lfi, seed 0", "lfi · shuffled maps, seed 0")
    assert len(gallery.cards) == 3
    assert gallery.taps == 3
    assert gallery.depths == ("33 %", "67 %", "100 %")
    sample = gallery.data["samples"][0]
    assert [student["run"] for student in sample["students"]] == [0, 1]
    grids = np.frombuffer(base64.b64decode(sample["students"][0]["grids"]), np.uint8)
    assert grids.size == np.prod(sample["students"][0]["shape"])
    assert len(sample["students"][0]["peaks"]) == 3 * 3


def test_no_gallery(make_run: Any) -> None:
    assert build_gallery(gather([load_run(make_run("a"))])[0]) is None


def test_class_maps_show_runs_without_queries_after_lfi(make_run: Any) -> None:
    runs = [make_run(f"none-{seed}", "none", seed=seed, gallery=2, classes=True) for seed in range(2)]
    runs += [make_run("embedding", "embedding", gallery=2), make_run("lfi", gallery=2, classes=True)]
    gallery = build_gallery(gather([load_run(run) for run in runs])[0])
    assert gallery is not None
    assert gallery.runs == ("lfi, seed 0", "none, seed 0")  # one seed of a control; embedding has nothing to show
    assert len(gallery.cards) == 2
    card, sample = gallery.cards[0], gallery.data["samples"][0]
    assert card.cam is not None
    assert card.student is not None
    assert [cam["run"] for cam in sample["cams"]] == [0, 1]
    assert [student["run"] for student in sample["students"]] == [0]
    assert sample["cams"][1]["named"] == [True, True, False]  # "beside" is no class
    assert sample["cams"][1]["correct"][2] is None


def test_maps_of_ones_own_images_need_no_masks_and_no_teacher() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (20, 30, 3)).astype(np.uint8), Image.new("L", (16, 16))]
    dog = np.zeros((2, 4, 4), np.float32)
    dog[0, 0, 0], dog[1, 3, 2] = 5.0, 7.0  # of any scale
    gallery = map_gallery(images, [{"dog": dog, "sky": np.ones((2, 4, 4))}, {"cat": dog}], depths=(0.5, 1.0))
    assert (gallery.taps, gallery.depths, gallery.masked) == (2, ("50 %", "100 %"), False)
    first, second = gallery.cards
    assert (first.words, first.teacher, first.cam, first.marks) == (("dog", "sky"), None, None, (None, None))
    assert first.caption == [("dog", 0), (", ", None), ("sky", 1)]
    assert first.student is not None
    assert (first.student.peak, first.student.correct) == ((62.5, 87.5), None)
    assert second.aspect == "16 / 16"
    student = gallery.data["samples"][0]["students"][0]
    grids = np.frombuffer(base64.b64decode(student["grids"]), np.uint8).reshape(student["shape"])
    assert grids[0, 0, 0, 0] == grids[1, 0, 3, 2] == 255
    assert (grids[:, 1] == 64).all()  # a map that looks everywhere stays dark


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "one entry an image"),
        ([{}], {}, "image 0 must be .* got none"),
        ([{"a": np.ones((4, 4)), "b": np.ones((2, 4))}], {}, r"one shape for all words, got \[2, 4\], \[4, 4\]"),
        ([{"a": np.ones(4)}], {}, r"got \[4\]"),
        ([{"a": np.ones((4, 4))}], {"captions": []}, "0 captions"),
        ([{"a": np.ones((3, 4, 4))}], {"depths": (0.5, 1.0)}, "as many taps for the 2 depths, got 3"),
    ],
)
def test_maps_that_do_not_fit_their_images_are_refused(
    maps: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        map_gallery([np.zeros((8, 8, 3), np.uint8)], maps, **options)
