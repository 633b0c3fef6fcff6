"""Candidates give distributions back, and the loss that their formula says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lfi_pipeline.benchmarks.codec import FLOOR, Companded, Half, TopK, candidates, compressors, row_kl
from lfi_pipeline.targets import CODECS, codec_kl


def some_rows(cells: int = 256) -> npt.NDArray[np.float32]:
    rows = np.exp(2 * np.random.default_rng(0).normal(size=(3, 5, cells)))
    rows[:, 0, ::2] = 0
    normalised: npt.NDArray[np.float32] = (rows / rows.sum(-1, keepdims=True)).astype(np.float32)
    return normalised


@pytest.mark.parametrize("name", sorted(candidates()))
def test_decoded_rows_are_distributions_near_the_map(name: str) -> None:
    rows, candidate = some_rows(), candidates()[name]
    codes, side = candidate.encode(rows)
    decoded = candidate.decode(codes, side)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded.sum(-1, dtype=np.float64), 1, atol=2e-3)
    kl = row_kl(rows, decoded)
    assert np.isfinite(kl).all()
    assert 0 <= kl.mean() < (6 if name.startswith("top") else 0.1)
    assert (decoded.argmax(-1) == rows.argmax(-1)).mean() > 0.5


def test_candidates_that_the_cache_has_go_through_its_code() -> None:
    assert set(CODECS) <= set(candidates())


def test_packing_two_codes_in_a_byte_loses_nothing() -> None:
    rows = some_rows()
    packed, plain = Companded(15, 2, packed=True), Companded(15, 2)
    assert packed.encode(rows)[0].nbytes * 2 == plain.encode(rows)[0].nbytes
    np.testing.assert_array_equal(packed.decode(*packed.encode(rows)), plain.decode(*plain.encode(rows)))


def test_top_k_keeps_the_largest_and_floors_the_rest() -> None:
    rows = some_rows()
    largest = np.sort(rows, axis=-1)[..., -32:].sum(-1)
    for rest, spread in ((False, FLOOR * (1 - 32 / 256)), (True, 1 - largest)):
        candidate = TopK(32, rest=rest)
        codes, side = candidate.encode(rows)
        assert codes.shape == (3, 5, 64)
        decoded = candidate.decode(codes, side)
        lowest = np.sort(decoded, axis=-1)[..., : 256 - 32].sum(-1)
        np.testing.assert_allclose(lowest, np.broadcast_to(spread, (3, 5)), rtol=2e-2)


def test_half_precision_loses_no_cell() -> None:
    rows = np.array([[[1 - 1e-12, 1e-12, 0.0]]], dtype=np.float32)
    half = Half()
    decoded = half.decode(*half.encode(rows))
    assert (decoded > 0).tolist() == [[[True, True, False]]]


def test_kl_of_rows_is_the_caches_own() -> None:
    p, d = some_rows(), np.full((3, 5, 256), 1 / 256, np.float32)
    assert row_kl(p, d).mean() == pytest.approx(codec_kl(p[..., None, :], d[..., None, :]))
    assert row_kl(p, np.roll(p, 1, axis=-1))[0, 0] == np.inf


@pytest.mark.parametrize("name", sorted(compressors()))
def test_compressors_are_lossless(name: str) -> None:
    data = np.arange(4096, dtype=np.uint16) // 9
    compressor = compressors()[name]
    packed = compressor.encode(data)
    assert bytes(compressor.decode(packed)) == data.tobytes()
    assert name == "none" or len(packed) < data.nbytes
