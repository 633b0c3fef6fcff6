"""Rates, and the least time that follows from them."""

from __future__ import annotations

import pytest

from lfi_kernels.bench import Ceilings, Shape, ceiling_rows, ceilings, gain_bound, measure_ceilings
from tests.lfi_kernels.bench.stand_in import stand_in, tick

SHAPE = Shape(model="ViT-T/16", batch=3, heads=4, words=2, patches=10, dtype="bf16")
X, U, T = 3 * 10 * 192 * 2, 3 * 4 * 2 * 192 * 2, 3 * 2 * 10
PRODUCT = 2 * 3 * (4 * 2) * 10 * 192


def test_bytes_bound_a_gpu_that_computes_for_nothing() -> None:
    least = Ceilings(copied=1.0, products=1e30).least_seconds(SHAPE)
    assert least == {
        "forward": X + T + 2 * U,
        "backward": 2 * X + T + 4 * U,
        "both": 3 * X + 2 * T + 6 * U,
    }


def test_operations_bound_a_gpu_with_endless_bandwidth() -> None:
    least = Ceilings(copied=1e30, products=1.0).least_seconds(SHAPE)
    assert least == {"forward": 2 * PRODUCT, "backward": 5 * PRODUCT, "both": 7 * PRODUCT}


def test_ceilings_count_bytes_both_ways_and_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 4096)
    monkeypatch.setattr(ceilings, "PRODUCT_SIZE", 8)
    taken = iter([0.5, 2.0])
    real = ceilings._median_seconds

    def slow(run: object) -> float:
        seconds = next(taken)

        def call() -> None:
            run()  # type: ignore[operator]
            tick(seconds)

        return real(call)

    monkeypatch.setattr(ceilings, "_median_seconds", slow)
    found = measure_ceilings("cpu")
    assert found.copied == pytest.approx(2 * 4096 / 0.5)
    assert found.products == pytest.approx(2 * 8**3 / 2.0)


def test_ceilings_are_rows_of_their_own() -> None:
    rows = ceiling_rows(Ceilings(copied=3.5e12, products=7e14))
    assert [(row.value, row.unit) for row in rows] == [(3500, "GB/s"), (700, "TFLOP/s")]


def test_what_folding_can_gain_grows_with_the_channels_of_a_query_and_falls_with_words() -> None:
    few = Shape(model="ViT-S/16", words=16, query_dim=128)
    assert gain_bound(few) == pytest.approx(1.75, abs=0.01)
    assert gain_bound(Shape(model="ViT-S/16", words=16, query_dim=384)) == pytest.approx(3.40, abs=0.01)
    assert gain_bound(Shape(model="ViT-S/16", words=8, query_dim=128)) > 1.8 * gain_bound(few)
