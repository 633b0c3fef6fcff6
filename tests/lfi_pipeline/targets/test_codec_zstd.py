"""Frames of a known size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.targets.codec import compress, decompress


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65791, 65792, 70000, 2**20])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_frame_gives_its_size_and_content_back(size: int, level: int) -> None:
    content = (b"abcde" * size)[:size]
    frame = compress(content, level)
    assert decompress(frame, size) == content
    with pytest.raises(ValueError, match=f"holds {size} bytes, not {size + 1}"):
        decompress(frame, size + 1)


@given(st.binary(max_size=60), st.integers(0, 2000))
@settings(max_examples=100)
def test_other_bytes_are_refused(tail: bytes, size: int) -> None:
    for data in (tail, b"\x28\xb5\x2f\xfd" + tail):
        try:
            assert len(decompress(data, size)) == size
        except ValueError:
            continue
