"""What a request asks for, by hand; what the reader reads and its closed-form gradients, against the decoder's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.caption_reader import CaptionReader, Request, Seen
from lfi_pipeline.teachers.text import Word

LENGTH = 8
ONE = Word("one", (2, 3))  # two tokens
TWO = Word("two", (5,))
LATE = Word("late", (6,))


def request(*words: tuple[Word | None, ...], row: str = "emitting", vocabulary: int = 50) -> Request:
    ids = torch.randint(0, vocabulary, (len(words), LENGTH), generator=torch.Generator().manual_seed(3))
    return Request(ids=ids, words=words, row=row, layers=["text_decoder.cross_attn.2", "text_decoder.cross_attn.0"])


def test_a_word_is_emitted_one_row_before_it_is_read() -> None:
    emitting, reading = (request((ONE, None), (TWO,), row=row) for row in ("emitting", "reading"))
    assert emitting.slots == reading.slots == 2
    assert emitting.last_rows == [4, -1]
    assert reading.last_rows == [5, -1]
    assert (emitting.length, reading.length) == (5, 6)
    expected = torch.zeros(2, 2, 5)
    expected[0, 0, [1, 2]] = 0.5
    expected[0, 1, 4] = 1.0
    assert torch.equal(emitting.weights, expected)
    assert torch.equal(reading.weights, F.pad(expected, (1, 0)))


def test_captions_without_words_need_one_slot_and_one_row_of_no_weight() -> None:
    empty = request((), ())
    assert (empty.slots, empty.length, empty.last_rows) == (1, 1, [-1])
    assert empty.weights.shape == (1, 2, 1)
    assert not empty.weights.any()
    assert empty.groups(10) == []


def test_groups_hold_slots_that_end_near_each_other_and_none_without_words() -> None:
    words = tuple(Word(str(position), (position,)) for position in (7, 1, 5, 3, 6))
    asked = request((*words, None))
    assert asked.groups(100) == [[1, 3, 2], [4, 0]]  # ceil(sqrt(5)) = 3 a group
    assert asked.groups(2) == [[1, 3], [2, 4], [0]]
    assert asked.groups(1) == [[1], [3], [2], [4], [0]]


@pytest.fixture(params=["pooler", "no pooler"])
def decoder(request: pytest.FixtureRequest, random_coca: Callable[[str], CocaTeacher]) -> Any:
    return random_coca(request.param).model.text_decoder


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    """What the decoder sees of the images [B, 5, 32], and embeddings of the text [B, T, 32]."""
    g = torch.Generator().manual_seed(0)
    return 1.5 * torch.randn(batch, 5, 32, generator=g) + 0.3, torch.randn(batch, LENGTH, 32, generator=g)


def test_it_reads_as_the_decoder_does_and_no_further_than_it_is_told(decoder: Any) -> None:
    tokens, text = inputs()
    reader = CaptionReader(decoder, request((ONE,), (TWO,)), text)
    with torch.no_grad():
        seen = reader.see(tokens)
        rows = reader.read(seen, LENGTH)
        torch.testing.assert_close(rows.hidden @ decoder.text_projection, decoder(tokens, text), atol=1e-4, rtol=1e-4)
        short = reader.read(seen, 3)
    torch.testing.assert_close(short.hidden, rows.hidden[:, :3], atol=1e-5, rtol=1e-4)
    assert not any(each.requires_grad for each in (*seen.keys, *seen.values))
    for look in rows.looks:
        torch.testing.assert_close(look.probabilities.sum(-1), torch.ones(look.probabilities.shape[:-1]))
    chosen = reader.chosen(rows)
    assert [each is rows.looks[i] for each, i in zip(chosen, (2, 0), strict=True)] == [True, True]


def scores(decoder: Any, tokens: Tensor, text: Tensor, asked: Request) -> dict[tuple[int, int], Tensor]:
    """(slot, caption) -> mean log-probability of the word's tokens, from the decoder itself."""
    told = decoder(tokens, text).log_softmax(-1)
    return {
        (slot, b): torch.stack([told[b, at - 1, asked.ids[b, at]] for at in word.positions]).mean()
        for b, words in enumerate(asked.words)
        for slot, word in enumerate(words)
        if word is not None
    }


def test_gradients_at_the_tokens_are_those_of_each_words_score(decoder: Any) -> None:
    """The reader's stop at the normalised tokens; the LayerNorm before it is autograd's in both."""
    tokens, text = inputs()
    tokens.requires_grad_()
    asked = request((ONE, LATE), (TWO, None))
    reader = CaptionReader(decoder, asked, text)
    seen = reader.see(tokens)
    normed = F.layer_norm(tokens, (32,), eps=reader.eps)
    truth = scores(decoder, tokens, text, asked)
    found = {}
    for slots, rows, cotangent in reader.readings(seen):
        assert cotangent.shape == (len(slots), *rows.hidden.shape)
        for slot, of_slot in zip(slots.tolist(), reader.at_tokens(rows, cotangent), strict=True):
            for b in range(2):
                found[slot, b] = torch.autograd.grad(normed[b], tokens, of_slot[b], retain_graph=True)[0][b]
    assert not found.pop((1, 1)).any()
    assert set(found) == set(truth)
    for place, score in truth.items():
        (expected,) = torch.autograd.grad(score, tokens, retain_graph=True)
        assert expected[place[1]].abs().max() > 1e-3
        torch.testing.assert_close(found[place], expected[place[1]], atol=1e-4, rtol=2e-3)


def test_relevance_is_gradient_times_what_enters_each_layer(decoder: Any) -> None:
    tokens, text = inputs()
    asked = request((ONE,), (LATE,))
    reader = CaptionReader(decoder, asked, text)
    entering: list[Tensor] = []
    handles = [
        block.ln_1_kv.register_forward_hook(
            lambda _module, _args, output: entering.append(output.detach().requires_grad_()) or entering[-1]
        )
        for block in decoder.cross_attn
    ]
    truth = scores(decoder, tokens, text, asked)
    for handle in handles:
        handle.remove()
    assert len(entering) == 2 * 3  # for the keys and for the values of each layer
    gradients = torch.autograd.grad(truth[0, 0] + truth[0, 1], entering)
    expected = sum((g * x).sum(-1) for g, x in zip(gradients, (each.detach() for each in entering), strict=True))
    seen: Seen = reader.see(tokens)
    ((slots, rows, cotangent),) = reader.readings(seen)
    assert slots.tolist() == [0]
    found = reader.relevance_of_tokens(seen, rows, cotangent)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=2e-3)


def test_a_token_that_the_decoder_cannot_emit_has_no_gradient(decoder: Any) -> None:
    tokens, text = inputs()
    asked = request((TWO,), (TWO,))
    asked.ids[0, 5] = decoder.text_projection.shape[1] + 7
    reader = CaptionReader(decoder, asked, text)
    ((_, _, cotangent),) = reader.readings(reader.see(tokens))
    assert not cotangent[0, 0].any()
    assert cotangent[0, 1, 4].any()
    assert not cotangent[0, 1, :4].any()
