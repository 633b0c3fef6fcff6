"""The query head: logits and maps of the class queries, in blocks or whole, and what a readout knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lfi_kernels import InteractionQueryBlock
from lfi_pipeline.students import query_head as module
from lfi_pipeline.students.query_head import QueryConfig, QueryHead, QueryOutput, gather
from lfi_pipeline.students.student import merged_maps

WIDTHS, GRIDS = (12, 20), (9, 4)
CONFIG = QueryConfig(width=16, heads=2)


def head(classes: int = 5, readout: str = "class", presence: bool = False) -> QueryHead:
    torch.manual_seed(0)
    made = QueryHead(torch.randn(classes, 7), WIDTHS, replace(CONFIG, readout=readout), presence=presence)
    for block in made.blocks:
        nn.init.normal_(block.w_o, std=0.5)  # as if trained: at the start nothing enters the state
    return made


def features(batch: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, cells, width) for cells, width in zip(GRIDS, WIDTHS, strict=True)]


def test_gather_is_the_block_without_a_target() -> None:
    torch.manual_seed(0)
    block = InteractionQueryBlock(16, 12, 2)
    nn.init.normal_(block.w_o)
    state, x = torch.randn(3, 5, 16), torch.randn(3, 9, 12)
    found, looked = gather(block, state, x)
    torch.testing.assert_close(found, block(state, x)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(looked, block.attention(state, x), atol=1e-6, rtol=1e-5)
    shared, _ = gather(block, state[:1], x)
    torch.testing.assert_close(shared, block(state[:1].expand(3, -1, -1), x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("readout", ["class", "text"])
def test_the_query_of_a_class_is_that_of_the_word_that_names_it(readout: str) -> None:
    made, x = head(readout=readout), features()
    logits, maps = made.logits_and_maps(x)
    torch.testing.assert_close(made.logits(x), logits)
    words = made.classes.expand(3, -1, -1)
    asked = made(words, x)
    for found, expected in zip(maps, made.maps(words, x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(3, 5))
    if readout == "text":
        torch.testing.assert_close(made.presence_scores(asked), logits, atol=1e-5, rtol=1e-5)
    else:
        assert made.readout is not None
        torch.testing.assert_close(made.readout(asked.states), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("readout", ["class", "text"])
def test_classes_in_blocks_answer_and_learn_as_they_do_at_once(readout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = head(classes=7, readout=readout), [each.requires_grad_() for each in features()]
    whole = made.logits(x)
    gradients = torch.autograd.grad(whole.square().sum(), [*x, *made.parameters()])
    monkeypatch.setattr(module, "CLASSES_AT_ONCE", 3)
    parts = made.logits(x)
    torch.testing.assert_close(parts, whole)
    for found, expected in zip(
        torch.autograd.grad(parts.square().sum(), [*x, *made.parameters()]), gradients, strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(made.logits(x), whole)


def test_text_scores_any_name_and_the_order_of_names_does_not_matter() -> None:
    made, x = head(readout="text"), features()
    logits, maps = made.logits_and_maps(x, made.classes[[3, 1]])
    torch.testing.assert_close(logits, made.logits(x)[:, [3, 1]])
    assert [each.shape for each in maps] == [(3, 2, 9), (3, 2, 4)]


def test_text_has_no_weights_of_a_class() -> None:
    count = {k: sum(p.numel() for p in head(k, "text").parameters()) for k in (2, 50)}
    assert count[2] == count[50]
    assert sum(p.numel() for p in head(50).parameters()) - sum(p.numel() for p in head(2).parameters()) == 48 * 17


def test_words_beside_a_class_readout_have_a_readout_of_their_own() -> None:
    made, x = head(presence=True), features()
    scores = made.presence_scores(made(torch.randn(3, 2, 7), x))
    assert scores.shape == (3, 2)
    assert made.presence_scores(QueryOutput(torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))).shape == (1, 1)


def test_the_classes_travel_with_the_weights() -> None:
    made, other = head(), QueryHead(torch.zeros(5, 7), WIDTHS, CONFIG)
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other.logits(features()), made.logits(features()))


def test_what_all_names_share_is_taken_off_their_seeds() -> None:
    """Embeddings that a common part makes alike give seeds as different as those of their own parts."""
    torch.manual_seed(0)
    own, common = torch.randn(5, 7), 20 * torch.randn(7)
    plain, shifted = (QueryHead(each, WIDTHS, CONFIG) for each in (own, own + common))
    shifted.seed.load_state_dict(plain.seed.state_dict())
    torch.testing.assert_close(shifted.seeds_of(own + common), plain.seeds_of(own), atol=1e-5, rtol=1e-4)
    unlike = torch.nn.functional.normalize(own - own.mean(0), dim=-1)
    torch.testing.assert_close(plain.seeds_of(own), plain.seed(unlike))
    torch.testing.assert_close(shifted.seeds_of(own[:1] + common), shifted.seeds_of(own + common)[:1])  # a word alone


@pytest.mark.parametrize("classes", [0, 1])
def test_of_fewer_than_two_names_nothing_is_taken_off(classes: int) -> None:
    assert not QueryHead(torch.ones(classes, 7), WIDTHS, replace(CONFIG, readout="text")).centre.any()


def test_a_head_that_was_trained_before_seeds_were_centred_keeps_its_seeds() -> None:
    made, names = head(), torch.nn.functional.normalize(torch.randn(5, 7), dim=-1)
    old = {name: tensor for name, tensor in QueryHead(names, WIDTHS, CONFIG).state_dict().items() if name != "centre"}
    made.load_state_dict(old)
    assert not made.centre.any()
    torch.testing.assert_close(made.seeds_of(names), made.seed(names))


def test_no_classes_no_logits() -> None:
    made = QueryHead(torch.zeros(0, 7), WIDTHS, replace(CONFIG, readout="text"))
    assert made.logits(features()).shape == (3, 0)


def test_reset_starts_every_tap_from_the_names() -> None:
    torch.manual_seed(0)
    made = QueryHead(torch.randn(5, 7), WIDTHS, QueryConfig(width=16, heads=2, state="reset"))
    for block in made.blocks:
        nn.init.normal_(block.w_o, std=0.5)
    x = features()
    _, maps = made.logits_and_maps(x)
    _, last = gather(made.blocks[-1], made.seeds_of(made.classes)[None], x[-1])
    torch.testing.assert_close(maps[-1], last.mean(1))


def test_maps_of_all_taps_are_merged_on_the_finest_grid() -> None:
    fine, coarse = torch.zeros(1, 1, 16), torch.zeros(1, 1, 4)
    fine[..., 5], fine[..., 10], coarse[..., 3] = 0.6, 0.4, 1.0
    merged = merged_maps([fine, coarse], [(4, 4), (2, 2)])
    assert merged.shape == (1, 1, 4, 4)
    assert int(merged.flatten().argmax()) == 10  # the other is where the coarse one did not look
    torch.testing.assert_close(merged.sum(), torch.tensor(1.0))
