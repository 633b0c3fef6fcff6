from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.data.augment import (
    DIRECTION_WORDS,
    WHOLE,
    Geometry,
    draw_geometry,
    mirrored_caption,
    view_image,
    view_maps,
)
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.targets.codec import codec_kl
from lfi_pipeline.teachers import CocaTeacher

SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)
LIGHT = settings(max_examples=40, deadline=None)


@st.composite
def windows(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), at least 0.05 of each side."""
    starts = [draw(st.floats(0, 0.9)) for _ in range(2)]
    stops = [start + 0.05 + draw(st.floats(0, 1)) * (0.95 - start) for start in starts]
    return starts[0], starts[1], min(1.0, stops[0]), min(1.0, stops[1])


def _maps(seed: int, *shape: int) -> torch.Tensor:
    maps = torch.from_numpy(np.random.default_rng(seed).random(shape)) + 1e-3
    return maps / maps.sum((-1, -2), keepdim=True)


def _numeric_mass(density: np.ndarray, window: tuple[float, float, float, float], points: int = 400) -> float:
    """Midpoint rule over the window of a density that is constant on each cell."""
    left, top, right, bottom = window
    rows, columns = density.shape
    x = left + (right - left) * (np.arange(points) + 0.5) / points
    y = top + (bottom - top) * (np.arange(points) + 0.5) / points
    at = density[np.minimum((y * rows).astype(int), rows - 1)][:, np.minimum((x * columns).astype(int), columns - 1)]
    return float(at.mean() * rows * columns * (right - left) * (bottom - top))


@LIGHT
@given(rows=SIDES, columns=SIDES, seed=SEEDS)
def test_the_whole_window_on_the_same_grid_is_the_identity(rows: int, columns: int, seed: int) -> None:
    maps = _maps(seed, 2, 3, 2, rows, columns).float()
    whole = torch.tensor([WHOLE.window] * 2)
    torch.testing.assert_close(view_maps(maps, whole, (rows, columns)), maps, atol=1e-6, rtol=1e-6)


@LIGHT
@given(grid=st.tuples(SIDES, SIDES), source=st.tuples(SIDES, SIDES), window=windows(), seed=SEEDS)
def test_kept_mass_is_the_integral_over_the_window(
    grid: tuple[int, int], source: tuple[int, int], window: tuple[float, float, float, float], seed: int
) -> None:
    maps = _maps(seed, 1, 1, *source)
    seen = view_maps(maps, torch.tensor([window]), grid)
    assert seen.shape == (1, 1, *grid)
    assert float(seen.min()) >= 0
    assert float(seen.sum()) == pytest.approx(_numeric_mass(maps[0, 0].numpy(), window), abs=0.02)


@LIGHT
@given(grid=st.tuples(SIDES, SIDES), window=windows(), seed=SEEDS)
def test_every_cell_is_the_integral_over_that_cell(
    grid: tuple[int, int], window: tuple[float, float, float, float], seed: int
) -> None:
    """Cutting the window in one go, or each of its cells on its own, gives the same."""
    maps = _maps(seed, 1, 1, 5, 7)
    seen = view_maps(maps, torch.tensor([window]), grid)[0, 0]
    left, top, right, bottom = window
    width, height = (right - left) / grid[1], (bottom - top) / grid[0]
    cells = [
        (left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height)
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    one_by_one = view_maps(maps.expand(len(cells), -1, -1, -1), torch.tensor(cells), (1, 1)).view(grid)
    torch.testing.assert_close(seen, one_by_one.to(seen.dtype), atol=1e-6, rtol=1e-5)


@LIGHT
@given(window=windows(), seed=SEEDS)
def test_cutting_a_mirrored_map_is_mirroring_the_cut(window: tuple[float, float, float, float], seed: int) -> None:
    maps = _maps(seed, 1, 2, 6, 5)
    left, top, right, bottom = window
    cut_then_mirrored = view_maps(maps, torch.tensor([window]), (4, 3)).flip(-1)
    mirrored_then_cut = view_maps(maps.flip(-1), torch.tensor([(1 - right, top, 1 - left, bottom)]), (4, 3))
    torch.testing.assert_close(cut_then_mirrored, mirrored_then_cut, atol=1e-6, rtol=1e-5)


@LIGHT
@given(outer=windows(), inner=windows(), seed=SEEDS)
def test_cutting_from_a_cut_is_cutting_the_composed_window(
    outer: tuple[float, float, float, float], inner: tuple[float, float, float, float], seed: int
) -> None:
    """Exact where the first cut's grid resolves every edge of the map: here the map is constant."""
    maps = torch.ones(1, 1, 4, 4, dtype=torch.float64) / 16
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    composed = (left + inner[0] * width, top + inner[1] * height, left + inner[2] * width, top + inner[3] * height)
    twice = view_maps(view_maps(maps, torch.tensor([outer]), (7, 5)), torch.tensor([inner]), (3, 2))
    once = view_maps(maps, torch.tensor([composed]), (3, 2))
    torch.testing.assert_close(twice, once, atol=1e-6, rtol=1e-5)


def test_composition_is_exact_on_aligned_windows() -> None:
    maps = _maps(5, 1, 2, 8, 8)
    outer, inner, composed = (0.25, 0.5, 0.75, 1.0), (0.5, 0.0, 1.0, 0.5), (0.5, 0.5, 0.75, 0.75)
    twice = view_maps(view_maps(maps, torch.tensor([outer]), (4, 4)), torch.tensor([inner]), (2, 2))
    once = view_maps(maps, torch.tensor([composed]), (2, 2))
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(once, maps[..., 4:6, 4:6])


def test_each_sample_of_a_batch_has_its_own_window() -> None:
    maps = _maps(6, 2, 1, 1, 4, 4).float()
    both = torch.tensor([(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)])
    seen = view_maps(maps, both, (2, 2))
    torch.testing.assert_close(seen[0], maps[0, ..., :2, :2])
    torch.testing.assert_close(seen[1], maps[1, ..., 2:, 2:])


@pytest.mark.parametrize("between", [(), (3,), (2, 3), (2, 0)])
def test_any_number_of_axes_between(between: tuple[int, ...]) -> None:
    maps = torch.rand(2, *between, 4, 6)
    seen = view_maps(maps, torch.tensor([WHOLE.window] * 2), (2, 3))
    assert seen.shape == (2, *between, 2, 3)
    coarse = maps.unflatten(-1, (3, 2)).unflatten(-3, (2, 2)).sum((-1, -3))
    torch.testing.assert_close(seen, coarse)


@LIGHT
@given(
    row=st.integers(0, 7),
    column=st.integers(0, 7),
    flip=st.booleans(),
    offset=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    extent=st.floats(0.3, 1),
)
def test_image_and_map_stay_aligned(
    row: int, column: int, flip: bool, offset: tuple[float, float], extent: float
) -> None:
    """A bright square and the same map cell, through the same geometry, peak in the same place."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
    cell = torch.zeros(1, 1, 8, 8)
    cell[0, 0, row, column] = 1
    # a window around the square, in the coordinates of the (mirrored) image
    shown = 7 - column if flip else column
    left = min(max(0.0, (shown + 0.5) / 8 - extent * offset[0]), 1 - extent)
    top = min(max(0.0, (row + 0.5) / 8 - extent * offset[1]), 1 - extent)
    geometry = Geometry(flip, (left, top, left + extent, top + extent))
    image = view_image(Image.fromarray(pixels), geometry, (64, 64))
    stored = cell.flip(-1) if flip else cell  # the stored view of the mirrored image
    seen = view_maps(stored, torch.tensor([geometry.window]), (64, 64))[0, 0].numpy()
    bright = image.mean(0).astype(np.float64)
    centres = [
        np.array([(weight * axis).sum() / weight.sum() for axis in np.mgrid[0:64, 0:64]]) for weight in (bright, seen)
    ]
    np.testing.assert_allclose(centres[0], centres[1], atol=1.0)
    assert seen[np.unravel_index(bright.argmax(), bright.shape)] > 0.5 * seen.max()


def test_view_image_cuts_mirrors_and_resizes() -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, 15:] = (10, 200, 30)
    right_half = view_image(Image.fromarray(pixels), Geometry(False, (0.75, 0.0, 1.0, 1.0)), (6, 4))
    assert right_half.shape == (3, 6, 4)
    assert right_half.dtype == np.uint8
    np.testing.assert_array_equal(right_half[:, 2, 2], (10, 200, 30))
    mirrored = view_image(Image.fromarray(pixels), Geometry(True, (0.0, 0.0, 0.25, 1.0)), (6, 4))
    np.testing.assert_array_equal(mirrored, right_half[..., ::-1])


def test_the_whole_image_at_its_own_size_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(view_image(Image.fromarray(pixels), WHOLE, (8, 12)), pixels.transpose(2, 0, 1))


@LIGHT
@given(
    seed=SEEDS,
    least_area=st.floats(0.05, 1),
    aspect=st.floats(1, 3),
    flip=st.floats(0, 1),
)
def test_draw_is_deterministic_and_within_its_bounds(seed: int, least_area: float, aspect: float, flip: float) -> None:
    augmentation = Augmentation(scale=(least_area, 1), ratio=(1 / aspect, aspect), hflip=flip)
    geometry = draw_geometry(augmentation, np.random.default_rng(seed))
    assert geometry == draw_geometry(augmentation, np.random.default_rng(seed))
    left, top, right, bottom = geometry.window
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    width, height = right - left, bottom - top
    assert width * height >= least_area - 1e-9
    assert 1 / aspect - 1e-9 <= width / height <= aspect + 1e-9
    # even a one-pixel image has such a window
    assert view_image(Image.new("RGB", (1, 1), (9, 9, 9)), geometry, (2, 2)).tolist() == [[[9, 9], [9, 9]]] * 3


def test_draw_covers_its_range_and_flips_as_often_as_asked() -> None:
    augmentation = Augmentation(scale=(0.25, 1), ratio=(0.5, 2), hflip=0.3)
    rng = np.random.default_rng(0)
    draws = [draw_geometry(augmentation, rng) for _ in range(2000)]
    areas = np.array([(d.window[2] - d.window[0]) * (d.window[3] - d.window[1]) for d in draws])
    assert areas.mean() == pytest.approx(0.625, abs=0.02)  # uniform in [0.25, 1]
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.3, abs=0.04)
    lefts = np.array([d.window[0] for d in draws])
    assert lefts.std() > 0.05


def test_no_cropping_and_no_flip_is_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    assert all(draw_geometry(Augmentation(scale=(1, 1), hflip=0), rng) == WHOLE for _ in range(20))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"scale": (0, 1)}, "scale must be above 0 to 1, got 0, 1"),
        ({"scale": (0.5, 1.1)}, "scale must be above 0 to 1"),
        ({"scale": (0.9, 0.5)}, "scale must be a least and a largest value"),
        ({"ratio": (1.1, 0.9)}, "ratio must be a least and a largest value"),
        ({"ratio": (0, 1)}, "ratio must be positive and finite"),
        ({"hflip": -0.1}, "hflip must be from 0 to 1"),
        ({"hflip": 2}, "hflip must be from 0 to 1, got 2"),
    ],
)
def test_impossible_distributions_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Augmentation(**wrong)


MIRRORED = Geometry(True, WHOLE.window)


def _stored(store: TargetStore, position: int, view: str) -> tuple[torch.Tensor, list[int]]:
    """Decoded maps [L, M, gh, gw] and word ids of a sample."""
    targets = store.read(position, view)
    maps = decode_maps(torch.from_numpy(targets.maps), torch.from_numpy(targets.scale), store.spec.codec.name)
    return maps, targets.words.tolist()


def _asked(
    teacher: CocaTeacher, store: TargetStore, position: int, caption: str, ids: Sequence[int], geometry: Geometry
) -> torch.Tensor:
    """The teacher's own maps [L, M, gh, gw] of what `geometry` shows of an image while it reads `caption`."""
    image = Image.open(store.data_root / store.index.paths[position]).convert("RGB")
    pixels = torch.from_numpy(view_image(image, geometry, teacher.image_size)).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (teacher.mean, teacher.std))
    text = teacher.encode_text(caption)
    found = {word.text: word for word in text.words}
    words = [found[store.vocabulary.words[i]] if i >= 0 else None for i in ids]
    layers, kind = store.spec.layers, store.spec.kind
    maps = teacher.interaction_maps(
        ((pixels - mean) / std)[None], [text], [words], kind=kind, layers=layers, settings=store.spec.maps
    )
    return maps.maps[0]


def test_the_stored_mirrored_view_is_the_teachers_map_of_the_mirrored_image(
    tiny_targets: Path, tiny_teacher: CocaTeacher
) -> None:
    """Replayed through a flip, view `hflip` is what the teacher says of the pixels that the student sees.

    Nothing else would do: neither the mirrored map of the image, nor view `hflip` mirrored once more.
    """
    store = TargetStore.open(tiny_targets)
    window = torch.tensor([MIRRORED.window])
    for position in range(0, len(store), 4):
        caption = mirrored_caption(store.index.captions[position])
        stored, ids = _stored(store, position, "hflip")
        seen = view_maps(stored[None], window, tiny_teacher.grid)[0]
        asked = _asked(tiny_teacher, store, position, caption, ids, MIRRORED)
        present = np.array(ids) >= 0
        assert present.any()

        def away(maps: torch.Tensor, asked: torch.Tensor = asked, present: np.ndarray = present) -> float:
            return codec_kl(asked[:, present].numpy(), maps[:, present].clamp_min(1e-6).numpy())

        assert away(seen) < 1e-3
        assert away(_stored(store, position, "full")[0].flip(-1)) > 10 * away(seen)
        assert away(seen.flip(-1)) > 10 * away(seen)


def test_words_of_direction_have_no_row_in_the_mirrored_view(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    names, lost = store.vocabulary.words, 0
    for position in range(len(store)):
        (_, upright), (mirrored_maps, mirrored) = (_stored(store, position, view) for view in ("full", "hflip"))
        for row, (before, after) in enumerate(zip(upright, mirrored, strict=True)):
            direction = before >= 0 and names[before] in DIRECTION_WORDS
            assert after == (-1 if direction else before)
            if direction:
                assert not mirrored_maps[:, row].any()
                lost += 1
    assert lost
