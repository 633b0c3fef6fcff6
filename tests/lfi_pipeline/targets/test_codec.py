"""Properties of the quantisers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets import CODECS, codec_kl, decode_maps, encode_maps

FP16 = 2.0**-11


@st.composite
def map_rows(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    """Rows [3, gh, gw] from flat to one cell, some with exact zeros and tiny values, the last one absent."""
    gh, gw = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = draw(st.floats(0, 40)) * rng.normal(size=(3, gh, gw))
    maps = np.exp(logits - logits.max(axis=(1, 2), keepdims=True))
    maps *= rng.random(maps.shape) >= draw(st.floats(0, 0.9))
    maps[:, 0, 0] += 1e-12
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    maps[-1] = 0
    return maps.astype(np.float32)


@pytest.mark.parametrize("codec", sorted(CODECS))
@settings(max_examples=150, deadline=None)
@given(maps=map_rows())
def test_decoded_rows_are_distributions(codec: str, maps: npt.NDArray[np.float32]) -> None:
    q, scale = encode_maps(maps, codec)
    assert q.dtype == np.uint8
    assert scale.dtype == np.float16
    decoded = decode_maps(q, scale, codec)
    assert decoded.dtype == np.float32
    assert (decoded >= 0).all()
    sums = decoded.sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums[:2], 1, atol=1.1 * FP16)
    assert (decoded[-1] == 0).all()
    assert scale[-1] == 0
    for row in range(2):
        assert decoded[row].ravel()[maps[row].argmax()] == decoded[row].max()
    assert ((decoded > 0) == (maps > 0)).all()
    np.testing.assert_array_equal(decoded, decode_maps(torch.from_numpy(q), torch.from_numpy(scale), codec))


@settings(max_examples=150, deadline=None)
@given(maps=map_rows())
def test_square_root_codec_keeps_kl_small(maps: npt.NDArray[np.float32]) -> None:
    decoded = decode_maps(*encode_maps(maps))
    # Rounding costs under 1e-3; the floor of one code adds at most (number of cells) / 255^2 of mass.
    assert 0 <= codec_kl(maps, decoded) + 1e-12 < 1e-3 + maps[0].size / 255**2


@settings(max_examples=150, deadline=None)
@given(maps=map_rows())
def test_cube_root_codec_of_five_bits_keeps_kl_small(maps: npt.NDArray[np.float32]) -> None:
    q, scale = encode_maps(maps, "uint5_cbrt")
    assert q.max() == 31
    # A code is 1/31 wide; the floor of one code adds at most (number of cells) / 31^3 of mass.
    assert 0 <= codec_kl(maps, decode_maps(q, scale, "uint5_cbrt")) + 1e-12 < 2e-2 + maps[0].size / 31**3


@pytest.mark.parametrize("codec", sorted(CODECS))
@settings(max_examples=100, deadline=None)
@given(maps=map_rows())
def test_what_was_decoded_encodes_to_the_same_codes(codec: str, maps: npt.NDArray[np.float32]) -> None:
    q, scale = encode_maps(maps, codec)
    again, same_scale = encode_maps(decode_maps(q, scale, codec), codec)
    np.testing.assert_array_equal(again, q)
    np.testing.assert_array_equal(same_scale, scale)


def test_kl_is_zero_for_itself_infinite_for_lost_mass_and_zero_without_rows() -> None:
    p = np.full((1, 2, 2), 0.25)
    assert codec_kl(p, p) == 0
    assert codec_kl(p, np.array([[[0.5, 0.5], [0, 0]]])) == np.inf
    assert codec_kl(0 * p, 0 * p) == 0
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert codec_kl(np.array([[[0.5, 0.5]]]), np.array([[[0.25, 0.75]]])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6], "sum to 1"),
        ([1.5, -0.5], "non-negative"),
        ([np.nan, 1.0], "finite"),
        ([0.2, 0.1], "sum to 1"),
    ],
)
def test_what_is_not_a_distribution_is_refused(row: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode_maps(np.array([[row]], dtype=np.float32))


def test_unknown_codec_and_mismatched_scale() -> None:
    q, scale = encode_maps(np.full((2, 1, 2), 0.5, dtype=np.float32))
    with pytest.raises(UnknownNameError, match="uint5_cbrt, uint8_linear, uint8_sqrt"):
        decode_maps(q, scale, "uint4")
    with pytest.raises(ConfigError, match="scale must be"):
        decode_maps(q, scale[:1])
