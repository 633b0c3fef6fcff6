from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.data.images import decode_image, read_image
from lfi_pipeline.errors import ImageReadError


def _bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _decoded(image: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    found = decode_image(_bytes(image, form, **options), "test")
    assert found.mode == "RGB"
    return np.asarray(found)


def _picture() -> Image.Image:
    """RGB, 6 x 4: red above, blue below, the left column white."""
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:2, :, 0] = 255
    pixels[2:, :, 2] = 255
    pixels[:, 0] = 255
    return Image.fromarray(pixels)


def test_rgb_passes_through_unchanged() -> None:
    np.testing.assert_array_equal(_decoded(_picture()), np.asarray(_picture()))


def test_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    content = _bytes(_picture(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    image, checksum = read_image(tmp_path / "a.jpg")
    assert checksum == google_crc32c.value(content)
    assert image.size == (6, 4)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda upright: upright),
        (2, lambda upright: upright[:, ::-1]),
        (3, lambda upright: np.rot90(upright, 2)),
        (4, lambda upright: upright[::-1]),
        (5, lambda upright: upright.transpose(1, 0, 2)),
        (6, lambda upright: np.rot90(upright, 1)),
        (7, lambda upright: np.rot90(upright, 2).transpose(1, 0, 2)),
        (8, lambda upright: np.rot90(upright, 3)),
    ],
)
def test_exif_orientation_is_undone(orientation: int, turn) -> None:
    upright = np.asarray(_picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
    np.testing.assert_array_equal(_decoded(stored, exif=exif.tobytes()), upright)


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(_decoded(cmyk, "JPEG", quality=100)[4, 4], (255, 0, 0), atol=4)


def test_16_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(_decoded(Image.fromarray(ramp))[0, :, 0], [0, 1, 128, 255])


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert _decoded(Image.fromarray(np.full((3, 3), 255, dtype=np.uint16))).max() == 0


def test_floating_point() -> None:
    ramp = np.array([[0.0, 51.0, 255.0]], dtype=np.float32)
    np.testing.assert_array_equal(_decoded(Image.fromarray(ramp), "TIFF")[0, :, 1], [0, 51, 255])


def test_transparent_palette_entries_become_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(_decoded(palette, transparency=0)[0], [[255, 255, 255], [200, 0, 0]])
    np.testing.assert_array_equal(_decoded(palette)[0], [[10, 20, 30], [200, 0, 0]])


def test_gif_with_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(_decoded(palette, "GIF", transparency=0)[0], [[255, 255, 255], [200, 0, 0]])


def test_a_transparent_colour_of_rgb_becomes_white() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8))
    np.testing.assert_array_equal(_decoded(image, transparency=(1, 2, 3))[0], [[255, 255, 255], [9, 9, 9]])


def test_alpha_is_laid_over_white() -> None:
    la = Image.fromarray(np.array([[[0, 255], [0, 0], [100, 51]]], dtype=np.uint8))
    assert la.mode == "LA"
    np.testing.assert_array_equal(_decoded(la)[0], [[0] * 3, [255] * 3, [224] * 3])
    rgba = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    np.testing.assert_allclose(_decoded(rgba)[0, 0], (255, 127, 127), atol=1)


def test_grayscale_repeats_over_the_channels() -> None:
    np.testing.assert_array_equal(_decoded(Image.new("L", (1, 1), 77))[0, 0], [77, 77, 77])


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(_decoded(image)[0], [[0, 0, 0], [255, 255, 255]])


def test_one_pixel() -> None:
    np.testing.assert_array_equal(_decoded(Image.new("RGB", (1, 1), (1, 2, 3))), [[[1, 2, 3]]])


def test_non_ascii_file_name(tmp_path: Path) -> None:
    path = tmp_path / "Grüße 写真 🐕.png"
    _picture().save(path)
    assert read_image(path)[0].size == (6, 4)


def test_truncated(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form in ("JPEG", "PNG"):
        path = tmp_path / f"cut.{form.lower()}"
        path.write_bytes(_bytes(noise, form)[:-2000])
        with pytest.raises(ImageReadError, match=rf"cut\.{form.lower()}: broken image file"):
            read_image(path)


@pytest.mark.parametrize("content", [b"", b"GIF", b"<html>404</html>", bytes(2000)])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"page\.jpg: not an image file"):
        read_image(tmp_path / "page.jpg")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"absent\.jpg: No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageReadError, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pixels", [101, 5000])  # Pillow warns above its limit, and raises above twice the limit
def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    content = _bytes(Image.new("RGB", (pixels, 1)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="bomb: too many pixels to decode safely"):
        decode_image(content, "bomb")
    assert decode_image(_bytes(Image.new("RGB", (100, 1))), "large").size == (100, 1)


def test_bombs_are_refused_whatever_other_threads_do_to_the_warning_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read in several threads, and warning filters are one for all of them."""
    bomb = _bytes(Image.new("RGB", (150, 1)))
    open_image = Image.open

    def open_while_another_thread_changes_filters(*args: Any) -> Image.Image:
        warnings.simplefilter("ignore")
        return open_image(*args)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(Image, "open", open_while_another_thread_changes_filters)
    with warnings.catch_warnings(), pytest.raises(ImageReadError, match="too many pixels"):
        decode_image(bomb, "bomb")


def test_damaged_bytes_are_an_image_read_error_or_an_image() -> None:
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        content = _bytes(_picture(), form)
        for _ in range(60):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            where = rng.integers(0, len(damaged), 3)
            damaged[where] = rng.integers(0, 256, 3)
            with warnings.catch_warnings(), contextlib.suppress(ImageReadError):
                warnings.simplefilter("ignore")
                assert decode_image(damaged.tobytes(), "damaged").mode == "RGB"
