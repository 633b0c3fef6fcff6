"""A patch that is made a store: the map that peaked there does not, and all else stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.contrastive import artefacts_by_block

PLANTED, GRID = 6, 4


@contextmanager
def _planted(teacher: CocaTeacher, channel: int, size: float) -> Iterator[None]:
    """While entered, the trunk's last block leaves `size` in one channel of one patch."""

    def add(_module: object, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 1 + PLANTED, channel] += size
        return output

    handle = teacher.model.visual.transformer.resblocks[-1].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["attention", "gradcam_pooler", "contrastive"])
def test_no_peak_stays_on_an_artefact(random_coca: Callable[[str], CocaTeacher], kind: str) -> None:
    teacher = random_coca("pooler")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    texts = [teacher.encode_text("a strawberry left of a dog")] * 4
    words, layers = [text.words for text in texts], teacher.layers(kind, 1)

    def made(artefacts: str) -> Tensor:
        settings = teacher.map_settings(kind, artefacts=artefacts)
        found = teacher.interaction_maps(images, texts, words, kind=kind, layers=layers, settings=settings)
        return found.maps[:, 0, : len(words[0])].flatten(2)  # [B, M, N]

    clean, peaks = made("fill"), 0
    torch.testing.assert_close(clean, made("keep"), atol=0, rtol=0)  # where there is none, nothing changes
    for channel in range(0, 24, 4):
        for size in (-500.0, 500.0):
            with _planted(teacher, channel, size):
                kept, filled = made("keep"), made("fill")
            peaks += int((kept.argmax(-1) == PLANTED).sum())
            present = filled.sum(-1) > 0
            assert not (filled.argmax(-1) == PLANTED)[present].any()
            if kind != "contrastive":  # whose blur carries the filled value to its neighbours
                others = torch.arange(GRID**2) != PLANTED
                left, right = filled[..., others], kept[..., others]
                scale = left.sum(-1, keepdim=True) / right.sum(-1, keepdim=True).clamp_min(1e-30)
                torch.testing.assert_close(left, right * scale, atol=1e-6, rtol=1e-4)
    assert peaks > 0  # the plant does draw peaks where nothing is done


def test_a_report_says_after_which_block(random_coca: Callable[[str], CocaTeacher]) -> None:
    teacher = random_coca("pooler")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    with _planted(teacher, 5, 500.0):
        first, last = artefacts_by_block(teacher, images)
    assert (first.layer, first.with_artefacts) == ("block 0", 0)
    assert (last.layer, last.images, last.with_artefacts, last.share) == ("block 1", 4, 4, 1 / GRID**2)
    assert last.largest_norm > 2
