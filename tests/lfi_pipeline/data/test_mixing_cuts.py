"""What a map keeps of its image, and which classes are still seen then."""

from __future__ import annotations

import torch
from torch import Tensor

from lfi_pipeline.data.mixing import shown_by_maps, visible_labels


def maps(*rows: tuple[int, float]) -> Tensor:
    """[M, 2, 4]; each row holds a share of its mass in one cell, and an eighth of a hundredth in each."""
    found = torch.full((len(rows), 8), 1e-3)
    for row, (cell, mass) in enumerate(rows):
        found[row, cell] = mass
    return found.view(len(rows), 2, 4)


def test_alpha_is_the_square_of_the_clamped_map_and_the_largest_of_the_words() -> None:
    mass = maps((0, 0.9), (5, 0.8), (7, 0.9))[None]
    mass[0, 0, 0, 1] = 0.9 * 0.15  # half of 0.3 of the largest
    alpha = shown_by_maps(mass, torch.tensor([[True, True, False]]))[0].flatten()
    assert alpha[[0, 5]].tolist() == [1, 1]
    torch.testing.assert_close(alpha[1], torch.tensor(0.25))
    assert alpha[7] < 1e-3  # that word was not chosen


def test_images_without_a_map_are_left_alone() -> None:
    mass = torch.stack([maps((0, 0.9)), maps((0, 0.4)), torch.zeros(1, 2, 4), maps((0, 0.9))])
    chosen = torch.tensor([[True], [True], [True], [False]])
    alpha = shown_by_maps(mass, chosen)
    assert alpha[0].mean() < 0.2
    assert torch.equal(alpha[1:], torch.ones(3, 2, 4))  # most of it cropped away; no map; no class


def test_labels_are_what_more_than_half_of_is_seen() -> None:
    mass = torch.stack([maps((0, 0.9), (3, 0.9)), maps((0, 0.9), (7, 0.9))])
    classes = torch.tensor([[0, 1], [2, 3]])
    labels = torch.tensor([[1.0, 1, 0, 0, 1], [0, 0, 1, 1, 0]])
    own = torch.zeros(2, 2, 4)
    own[0, 0, 0], own[1] = 1, 1
    found = visible_labels(labels, mass, classes, own, torch.tensor([1, 0]))
    # of the first: class 0 stays, class 1 and 4 (no map, an eighth is seen) go; of the other, 3 lies uncovered, 2 not
    assert found.tolist() == [[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]]


def test_a_word_that_is_not_labelled_adds_no_label() -> None:
    mass, own = maps((0, 0.9))[None], torch.ones(1, 2, 4)
    assert visible_labels(torch.zeros(1, 2), mass, torch.tensor([[1]]), own, torch.tensor([0])).sum() == 0
