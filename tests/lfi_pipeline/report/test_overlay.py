"""Contact sheets of maps over images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from lfi_pipeline.report.overlay import CELL, EMPTY, PAPER, MapColumn, contact_sheet, overlay, stacked


def one_hot(row: int, column: int, shape: tuple[int, int] = (8, 8)) -> npt.NDArray[np.float32]:
    grid = np.zeros(shape, np.float32)
    grid[row, column] = 1
    return grid


def brightest(image: Image.Image) -> tuple[float, float]:
    """Down and across of the centre of the brightest pixels, as shares."""
    grey = np.asarray(image.convert("L"), dtype=float)
    rows, columns = np.nonzero(grey > 0.8 * grey.max())
    return rows.mean() / grey.shape[0], columns.mean() / grey.shape[1]


@pytest.mark.parametrize("size", [(160, 160), (240, 120), (80, 200)])
@pytest.mark.parametrize("cell", [(1, 6), (6, 2), (4, 4)])
def test_light_falls_where_the_map_is(size: tuple[int, int], cell: tuple[int, int]) -> None:
    drawn = overlay(Image.new("RGB", (64, 48), (90, 90, 90)), one_hot(*cell), size)
    assert drawn.size == size
    down, across = brightest(drawn)
    assert down == pytest.approx((cell[0] + 0.5) / 8, abs=0.04)
    assert across == pytest.approx((cell[1] + 0.5) / 8, abs=0.04)


def test_the_image_shines_through_where_there_is_no_mass() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 200
    drawn = np.asarray(overlay(Image.fromarray(pixels), one_hot(0, 0), (64, 64))).astype(int)
    assert drawn[60, 60].sum() > drawn[60, 4].sum() + 200


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (64, 64), (1, 1), (3000, 20), (7, 900)])
def test_a_sheet_of_any_image(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (20, 140, 60))
    maps = np.stack([one_hot(1, 1, (4, 6)), np.zeros((4, 6), np.float32), one_hot(3, 5, (4, 6))])
    columns = [MapColumn(title=(f"layer {i}", "full"), image=image, maps=maps) for i in range(4)]
    words = ["dog", "a-word-that-is-far-too-long-for-its-place", "котёнок"]
    sheet = contact_sheet(image, "key " * 60, ["caption " * 80, "x" * 400], words, columns)
    assert sheet.mode == "RGB"
    assert CELL * 4 // 4 < sheet.width < 1400
    assert sheet.height < 2000
    pixels = np.asarray(sheet)
    assert (pixels[:8] == PAPER).all()
    assert (pixels[:, -8:] == PAPER).all()
    assert (pixels[:, :8] == PAPER).all()
    assert (pixels == EMPTY).all(-1).any()  # the second word has no map


def test_a_sheet_shows_the_image_first_and_a_cell_a_map() -> None:
    image = Image.new("RGB", (100, 50), (20, 140, 60))
    maps = np.stack([one_hot(1, 1), one_hot(5, 5)])

    def height(rows: int, columns: int) -> tuple[int, int]:
        many = [MapColumn(title=("layer",), image=image, maps=maps[:rows]) for _ in range(columns)]
        return contact_sheet(image, "key", [], ["a", "b"][:rows], many).size

    (wide, low), (_, high), (wider, _) = height(1, 4), height(2, 4), height(1, 5)
    assert high - low == CELL // 2 + 8
    assert wider - wide == CELL + 8
    sheet = np.asarray(contact_sheet(image, "key", [], ["a"], []))
    assert (sheet[24 + 70, 24 + 140] == (20, 140, 60)).all()


def test_sheets_one_below_the_other() -> None:
    first, second = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")
    whole = stacked([first, second])
    assert whole.size == (30, 25)
    assert whole.getpixel((5, 5)) == (255, 0, 0)
    assert whole.getpixel((20, 5)) == PAPER
    assert whole.getpixel((20, 22)) == (0, 0, 255)
