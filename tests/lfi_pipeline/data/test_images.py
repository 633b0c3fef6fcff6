from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lfi_pipeline.core.errors import ImageReadError
from lfi_pipeline.data import images
from lfi_pipeline.data.images import decode_image, read_bytes, read_image


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
    image, checksum, size = read_image(tmp_path, "a.jpg")
    assert checksum == google_crc32c.value(content)
    assert size == len(content)
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
    (tmp_path / "mein Ordner").mkdir()
    _picture().save(tmp_path / "mein Ordner/Grüße 写真 🐕.png")
    assert read_image(tmp_path, "mein Ordner/Grüße 写真 🐕.png")[0].size == (6, 4)


def test_truncated(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form in ("JPEG", "PNG"):
        name = f"cut.{form.lower()}"
        (tmp_path / name).write_bytes(_bytes(noise, form)[:-2000])
        with pytest.raises(ImageReadError, match=rf"cut\.{form.lower()}: broken image file"):
            read_image(tmp_path, name)


@pytest.mark.parametrize("content", [b"", b"GIF", b"<html>404</html>", bytes(2000)])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"page\.jpg: not an image file"):
        read_image(tmp_path, "page.jpg")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"absent\.jpg: No such file"):
        read_image(tmp_path, "absent.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageReadError, match=r"folder\.jpg: must be a file"):
        read_image(tmp_path, "folder.jpg")


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

    def open_while_another_thread_changes_filters(*args: Any, **options: Any) -> Image.Image:
        warnings.simplefilter("ignore")
        return open_image(*args, **options)

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
            with contextlib.suppress(ImageReadError):
                assert decode_image(damaged.tobytes(), "damaged").mode == "RGB"


def _cmyk_jpeg(channels: tuple[int, int, int, int], transform: int) -> bytes:
    """A JPEG of four channels, whose Adobe marker says what they are: 0 CMYK, 2 YCCK; Adobe stores both inverted."""
    inverted = tuple(255 - value for value in channels)  # Pillow inverts on writing
    content = _bytes(Image.new("CMYK", (8, 8), inverted), "JPEG", quality=100)
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0
    return content[: marker + 11] + bytes([transform]) + content[marker + 12 :]


def test_inverted_cmyk_and_ycck_of_adobe() -> None:
    red = (255, 0, 0, 255)  # as stored: full red, no green, no blue, no black
    np.testing.assert_allclose(np.asarray(decode_image(_cmyk_jpeg(red, 0), "cmyk"))[4, 4], (255, 0, 0), atol=4)
    as_ycc = (179, 171, 0, 255)  # the same, as the YCbCr of what is left: cyan
    np.testing.assert_allclose(np.asarray(decode_image(_cmyk_jpeg(as_ycc, 2), "ycck"))[4, 4], (255, 0, 0), atol=4)


def test_progressive_jpeg() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    np.testing.assert_array_equal(_decoded(noise, "JPEG", progressive=True), _decoded(noise, "JPEG"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    lossless = {"lossless": True} if form == "WEBP" else {}
    found = _decoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **lossless)
    np.testing.assert_array_equal(found[1, 1], (255, 0, 0))


def test_32_bit_integers_and_floats_of_every_range() -> None:
    wide = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(_decoded(wide, "TIFF")[0, :, 0], [0, 128, 255])
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(_decoded(unit, "TIFF")[0, :, 0], [0, 127, 255])
    odd = Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 200.0]], dtype=np.float32))
    np.testing.assert_array_equal(_decoded(odd, "TIFF")[0, :, 0], [0, 0, 0, 200])


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def test_a_header_that_claims_ten_gigapixels() -> None:
    content = _png(_png_header(100_000, 100_000), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    with pytest.raises(ImageReadError, match="too many pixels"):
        decode_image(content, "bomb.png")


@pytest.mark.parametrize(
    ("kind", "lead"),
    [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
)
def test_a_small_chunk_that_unpacks_to_200_megabytes(kind: bytes, lead: bytes) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(200)) + packer.flush()
    pixel = (b"IDAT", zlib.compress(b"\0\1\2\3"))
    content = _png(_png_header(1, 1), (kind, lead + packed), pixel, (b"IEND", b""))
    assert len(content) < 300_000
    with pytest.raises(ImageReadError, match=r"bomb\.png: broken image file"):
        decode_image(content, "bomb.png")


def test_a_build_of_pillow_without_an_optional_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "AVIF")
    images._formats.cache_clear()
    try:
        assert "AVIF" not in images._formats()
        assert decode_image(_bytes(_picture()), "a.png").size == (6, 4)
    finally:
        images._formats.cache_clear()


def test_formats_whose_decoder_runs_a_program_are_not_opened() -> None:
    with pytest.raises(ImageReadError, match="not an image file"):
        decode_image(_bytes(_picture(), "EPS"), "figure.jpg")


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0" + bytes(40), b"Exif\0\0II*\0"])
def test_corrupt_exif_neither_stops_nor_warns(exif: bytes) -> None:
    assert decode_image(_bytes(_picture(), "JPEG", exif=exif), "odd").size == (6, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(_bytes(_picture(), "JPEG", exif=exif), "odd")
    assert not caught


@functools.cache
def _examples() -> tuple[bytes, ...]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO")
    plain = tuple(_bytes(noise, form, **({"exif": exif} if form in ("JPEG", "PNG", "TIFF") else {})) for form in forms)
    return (*plain, _bytes(noise, "JPEG", progressive=True), _bytes(noise.convert("CMYK"), "JPEG"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_prefix_of_any_file_is_an_image_or_an_image_read_error(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(_examples()))
    cut = content[: data.draw(st.integers(0, len(content)))]
    if data.draw(st.booleans()):  # and some bytes of it changed
        damaged = bytearray(cut)
        for where in data.draw(st.lists(st.integers(0, max(0, len(cut) - 1)), max_size=4)):
            damaged[where : where + 1] = bytes([data.draw(st.integers(0, 255))])
        cut = bytes(damaged)
    with contextlib.suppress(ImageReadError):
        assert decode_image(cut, "cut").mode == "RGB"


def test_bytes_inside_a_tar(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(bytes(range(100)))
    assert read_bytes(tmp_path, "shards/a.tar#10+5") == bytes(range(10, 15))
    assert read_bytes(tmp_path, "shards/a.tar#95+5") == bytes(range(95, 100))
    assert read_bytes(tmp_path, "shards/a.tar#95+0") == b""
    assert read_bytes(tmp_path, "shards/a.tar") == bytes(range(100))
    for beyond in ("shards/a.tar#95+6", "shards/a.tar#200+1", f"shards/a.tar#0+{10**17}"):
        with pytest.raises(ImageReadError, match="ends at byte 100"):
            read_bytes(tmp_path, beyond)
    with pytest.raises(ImageReadError, match="No such file"):
        read_bytes(tmp_path, "shards/b.tar#0+1")


def test_an_image_inside_a_tar(tmp_path: Path) -> None:
    content = _bytes(_picture())
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + content + b"y" * 100)
    image, checksum, size = read_image(tmp_path, f"a.tar#512+{len(content)}")
    assert (image.size, checksum, size) == ((6, 4), google_crc32c.value(content), len(content))


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.png", "b/../../a.png", "..", "", "a\0b.png", "../a.tar#0+3"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    _picture().save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match="must stay below the data root"):
        read_bytes(tmp_path / "root", path)


def test_dots_inside_a_name_are_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "a..b.png").write_bytes(b"x")
    assert read_bytes(tmp_path, "a..b.png") == b"x"


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageReadError, match="must be a file"):
        read_bytes(tmp_path, "pipe.jpg")


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(ImageReadError):
            read_bytes(tmp_path, "folder")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _odd_rational(orientation: int) -> bytes:
    """EXIF with an orientation, and behind it a rational of which the denominator is zero and the count is wrong."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(">HHII", 0x011A, 5, 3, 0x20)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4) + struct.pack(">II", 7, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_odd_metadata_costs_neither_the_image_nor_its_orientation(form: str) -> None:
    assert decode_image(_bytes(_picture(), form, exif=_odd_rational(6)), "odd").size == (4, 6)
    assert decode_image(_bytes(_picture(), form, exif=_odd_rational(9)), "odd").size == (6, 4)


def test_metadata_that_cannot_be_written_anew_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Image.Exif, "tobytes", fails)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0) + bytes(4)
    assert decode_image(_bytes(_picture(), "JPEG", exif=exif), "odd").size == (4, 6)
    monkeypatch.setattr(Image.Image, "getexif", fails)
    assert decode_image(_bytes(_picture(), "JPEG", exif=exif), "odd").size == (6, 4)


def test_orientation_of_a_tiff() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(_bytes(_picture(), "TIFF", exif=exif), "turned").size == (4, 6)


def test_twelve_bits_in_sixteen_are_seen_by_their_content_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    images._say_twelve_bits.cache_clear()
    ramp = Image.fromarray(np.array([[0, 16, 2048, 4095]], dtype=np.uint16))
    for _ in range(2):
        np.testing.assert_array_equal(_decoded(ramp)[0, :, 0], [0, 0, 127, 255])
    assert len(caplog.records) == 1
    assert "of 12" in caplog.text


def test_links_out_of_the_root_are_refused_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(_bytes(_picture(), "PNG"))
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data/folder").symlink_to(tmp_path)
    (tmp_path / "data/own.png").write_bytes(_bytes(_picture(), "PNG"))
    (tmp_path / "data/alias.png").symlink_to("own.png")
    (tmp_path / "root").symlink_to(tmp_path / "data")
    for path in ("link.png", "folder/secret.png"):
        with pytest.raises(ImageReadError, match=r"is a link to .*secret"):
            read_image(tmp_path / "data", path)
    assert read_image(tmp_path / "root", "alias.png")[0].size == (6, 4)
    monkeypatch.setenv("LFI_LINKS", "follow")
    assert read_image(tmp_path / "data", "link.png")[0].size == (6, 4)


@pytest.mark.parametrize(
    ("least", "size"),
    [(0, (640, 480)), (481, (640, 480)), (240, (320, 240)), (121, (320, 240)), (60, (80, 60)), (1, (80, 60))],
)
def test_a_draft_keeps_the_pixels_that_it_must(least: int, size: tuple[int, int]) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
    photo = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for options, expected in (({}, size), ({"exif": turned}, size[::-1])):
        draft = decode_image(_bytes(photo, "JPEG", quality=95, **options), "test", least)
        whole = decode_image(_bytes(photo, "JPEG", quality=95, **options), "test")
        assert draft.size == expected
        difference = np.asarray(draft.resize((32, 32)), int) - np.asarray(whole.resize((32, 32)), int)
        assert np.abs(difference).max() <= 4
    assert decode_image(_bytes(photo.convert("CMYK"), "JPEG"), "test", least).size == size
    assert decode_image(_bytes(photo), "test", least).size == (640, 480)  # of other formats there is none
