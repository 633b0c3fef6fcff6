"""Real maps on the grid that codecs are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lfi_pipeline.benchmarks.inputs import FORMS, demo_maps
from lfi_pipeline.core.errors import UnknownNameError


def test_maps_are_distributions_packed_from_scene_after_scene(tmp_path: Path) -> None:
    made = demo_maps(2, "resize", tmp_path, batch_size=8)
    assert made.shape == (2, 4, 16, 16, 16)
    np.testing.assert_allclose(made.sum((-1, -2)), 1, atol=1e-5)
    assert (made >= 0).all()
    flat = made.transpose(0, 2, 1, 3, 4).reshape(32, -1)
    assert len(np.unique(flat, axis=0)) == 32
    sharp = made.max((-1, -2)).mean((0, 2))  # by layer: attention is the smoothest, agreement the sparsest
    assert sharp.argmin() == 0
    assert sharp.argmax() == 3


def test_a_mosaic_holds_four_rows_untouched() -> None:
    rows = torch.rand(8, 2, 8, 8)
    rows /= rows.sum((-1, -2), keepdim=True)
    mosaic = FORMS["mosaic"](rows)
    assert mosaic.shape == (2, 2, 16, 16)
    torch.testing.assert_close(mosaic[1, :, 8:, :8], rows[6] / 4)
    torch.testing.assert_close(mosaic.sum((-1, -2)), torch.ones(2, 2))


def test_an_unknown_form_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="mosaic, resize"):
        demo_maps(1, "crop", tmp_path)
