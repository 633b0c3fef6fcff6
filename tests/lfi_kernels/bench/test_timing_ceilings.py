"""Rates, and the least time that follows from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lfi_kernels.bench import Ceilings, Shape, ceiling_rows, gain_bound, measure_ceilings, timing
from tests.lfi_kernels.bench.stand_in import stand_in, tick

SHAPE = Shape(model="ViT-T/16", batch=3, heads=4, words=2, patches=10, dtype="bf16")
X, Q, T, KL = 3 * 10 * 192 * 2, 3 * 2 * 128 * 2, 3 * 2 * 10, 3 * 2 * 4 * 4
PRODUCTS = 2 * (3 * 10) * 192 * 256 + 4 * (3 * 2) * 10 * 128 + 4 * (3 * 2) * 128 * 128


def test_bytes_bound_a_gpu_that_computes_for_nothing() -> None:
    least = Ceilings(copied=1.0, products=1e30).least_seconds(SHAPE)
    forward, backward = X + T + 2 * Q + KL, 2 * X + T + 4 * Q + KL
    assert least == {"forward": forward, "backward": backward, "both": forward + backward}


def test_only_the_maps_that_are_there_are_read_and_inference_has_one_pass() -> None:
    bytes_bound = Ceilings(copied=1.0, products=1e30)
    one = bytes_bound.least_seconds(replace(SHAPE, maps=1))["forward"]
    assert one == X + T / 2 + 2 * Q + KL / 2
    assert bytes_bound.least_seconds(replace(SHAPE, maps=0)) == {"forward": X + 2 * Q}


def test_operations_bound_a_gpu_with_endless_bandwidth() -> None:
    least = Ceilings(copied=1e30, products=1.0).least_seconds(SHAPE)
    assert least == {"forward": PRODUCTS, "backward": 2 * PRODUCTS, "both": 3 * PRODUCTS}


def test_ceilings_count_bytes_both_ways_and_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(timing, "COPY_BYTES", 4096)
    monkeypatch.setattr(timing, "PRODUCT_SIZE", 8)
    taken = iter([0.5, 2.0])
    real = timing._median_seconds

    def slow(run: object) -> float:
        seconds = next(taken)

        def call() -> None:
            run()  # type: ignore[operator]
            tick(seconds)

        return real(call)

    monkeypatch.setattr(timing, "_median_seconds", slow)
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
