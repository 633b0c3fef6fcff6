from __future__ import annotations

import pytest
import torch

from lfi_pipeline.teachers import contrastive
from lfi_pipeline.teachers.contrastive import artefact_patches, count_artefacts, without_artefacts

GRID = (4, 5)


def _tokens(channels: int = 128) -> torch.Tensor:
    return torch.randn(3, 1 + 20, channels, generator=torch.Generator().manual_seed(1))


def test_a_massive_activation_is_found_where_it_is() -> None:
    tokens = _tokens()
    tokens[1, 1 + 7, 5] = 60.0
    tokens[2, 0, 5] = 60.0  # of CLS, which is no patch
    found = artefact_patches(tokens, 20)
    assert found.nonzero().tolist() == [[1, 7]]
    counted = count_artefacts(tokens, 20, "blocks.3")
    assert (counted.layer, counted.images, counted.with_artefacts) == ("blocks.3", 3, 1)
    assert counted.share == torch.tensor(1 / 60).item()
    assert counted.largest_norm > 4


def test_a_large_token_whose_norm_is_spread_over_its_channels_is_none() -> None:
    tokens = _tokens()
    tokens[0, 4] *= 8
    assert not artefact_patches(tokens, 20).any()


def test_a_channel_that_is_large_everywhere_is_none() -> None:
    tokens = _tokens()
    tokens[..., 9] = 60.0
    assert not artefact_patches(tokens, 20).any()


def test_an_artefact_gets_the_median_of_its_sound_neighbours() -> None:
    mass = torch.arange(1.0, 22.0).view(1, 1, 1, 21).repeat(2, 1, 1, 1)  # CLS, then 4 x 5 patches worth 2 to 21
    artefacts = torch.zeros(2, 1, 20, dtype=torch.bool)
    artefacts[1, 0, [0, 1]] = True  # the corner and its right neighbour
    found = without_artefacts(mass, artefacts, GRID)
    torch.testing.assert_close(found[0], mass[0])
    patches, before = found[1, 0, 0, 1:].view(GRID), mass[1, 0, 0, 1:].view(GRID)
    torch.testing.assert_close(patches[0, 0], before[1, :2].median())
    torch.testing.assert_close(patches[0, 1], torch.tensor([before[0, 2], *before[1, :3]]).median())
    torch.testing.assert_close(patches.flatten()[2:], before.flatten()[2:])
    assert found[1, 0, 0, 0] == mass[1, 0, 0, 0]


def test_nothing_but_artefacts_leaves_nothing() -> None:
    mass = torch.ones(1, 1, 2, 20)
    assert not without_artefacts(mass, torch.ones(1, 1, 20, dtype=torch.bool), GRID).any()


@pytest.mark.parametrize("planted", [[], [(1, 7)], [(0, 0), (0, 1), (2, 19)]])
@pytest.mark.parametrize("at_a_time", [1, 1 << 26])
def test_a_gpu_which_is_not_asked_whether_there_are_any_gets_the_same(
    monkeypatch: pytest.MonkeyPatch, planted: list[tuple[int, int]], at_a_time: int
) -> None:
    tokens = _tokens()
    for image, patch in planted:
        tokens[image, 1 + patch, 5] = 60.0
    tokens[1, 1 + 3] *= 8  # large, and none
    mass = torch.rand(3, 2, 4, 21, generator=torch.Generator().manual_seed(2))
    marked, cleaned = [], []
    for known in (contrastive._known_empty, lambda _: False):
        monkeypatch.setattr(contrastive, "_known_empty", known)
        monkeypatch.setattr(contrastive, "AROUND_NUMBERS", at_a_time)
        marked.append(artefact_patches(tokens, 20))
        cleaned.append(without_artefacts(mass, marked[-1][:, None].expand(-1, 2, -1), GRID))
    assert marked[0].nonzero().tolist() == [list(each) for each in planted]
    assert torch.equal(*marked)
    assert torch.equal(*cleaned)
    assert torch.equal(cleaned[0], mass) == (not planted)
