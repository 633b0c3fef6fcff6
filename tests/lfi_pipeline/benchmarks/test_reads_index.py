"""Resident memory."""

from __future__ import annotations

import mmap
import sys

import pytest

from lfi_pipeline.benchmarks.reads import peak_rss, reset_peak, rss


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets")
def test_the_peak_stays_when_memory_is_given_back_until_it_is_reset() -> None:
    reset_peak()
    before, size = rss(), 64 * 2**20
    with mmap.mmap(-1, size) as block:  # pages of its own: what the heap has free would not show
        for _ in range(64):  # in parts, of which the heap keeps little
            block.write(b"1" * (size // 64))
        assert rss() > before + size // 2
    assert rss() < before + size // 2
    assert before + size // 2 < peak_rss() < before + 2 * size
    reset_peak()
    assert peak_rss() < before + size // 2
