from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.text import EncodedText, Word, encode_text, stop_words, stop_words_sha256


@pytest.fixture(scope="module")
def clip() -> open_clip.SimpleTokenizer:
    """The tokenizer of the large CoCas."""
    return open_clip.SimpleTokenizer(context_length=76)


def _texts(encoded: EncodedText) -> list[str]:
    return [word.text for word in encoded.words]


def test_ids_are_those_that_the_tokenizer_gives_the_teacher(clip: open_clip.SimpleTokenizer) -> None:
    for caption in ("A man with a red helmet.", "", "strawberries & cream!", "naïve café"):
        ids = clip([caption])[0]
        assert list(encode_text(clip, caption).ids) == ids[: int((ids != 0).sum())].tolist()


def test_stop_words_and_punctuation_have_no_map(clip: open_clip.SimpleTokenizer) -> None:
    caption = "A man with a red helmet, on a small moped; it is on a dirt-road!!! (photo)"
    assert _texts(encode_text(clip, caption)) == ["man", "red", "helmet", "small", "moped", "dirt", "road"]


def test_clitics_have_no_map(clip: open_clip.SimpleTokenizer) -> None:
    assert _texts(encode_text(clip, "the dog's bowl, we'll see, they're cows' and I'm 'quoted'")) == [
        "dog",
        "bowl",
        "cows",
        "quoted",
    ]


@pytest.mark.parametrize("caption", ["an umbrella left of a pineapple", "pretzel", "a strawberry and a strawberry"])
def test_the_tokens_of_a_word_spell_it(tiny_teacher: CocaTeacher, caption: str) -> None:
    tokenizer = tiny_teacher.tokenizer
    encoded = tiny_teacher.encode_text(caption)
    assert any(len(word.positions) > 1 for word in encoded.words)
    for word in encoded.words:
        spelled = tokenizer.decode([encoded.ids[position] for position in word.positions])
        assert spelled.split() == [word.text] * caption.split().count(word.text)


def test_words_come_in_reading_order_and_a_repeated_one_once(clip: open_clip.SimpleTokenizer) -> None:
    encoded = encode_text(clip, "a zebra and a dog and a zebra")
    assert _texts(encoded) == ["zebra", "dog"]
    assert encoded.words[0].positions == (2, 8)
    assert encoded.words[1].positions == (5,)


def test_case_and_characters_beyond_ascii(clip: open_clip.SimpleTokenizer) -> None:
    assert _texts(encode_text(clip, "Ein GRÜNER Käse, 猫 и кошка")) == ["ein", "grüner", "käse", "猫", "и", "кошка"]


def test_a_digit_is_a_word(clip: open_clip.SimpleTokenizer) -> None:
    assert _texts(encode_text(clip, "bus 42")) == ["bus", "4", "2"]


@pytest.mark.parametrize("caption", ["", "  ", "...!?", "a of the", "🐕"])
def test_a_caption_may_have_no_words(clip: open_clip.SimpleTokenizer, caption: str) -> None:
    encoded = encode_text(clip, caption)
    assert encoded.words == ()
    assert (encoded.ids[0], encoded.ids[-1]) == (clip.sot_token_id, clip.eot_token_id)


def test_a_caption_beyond_the_context_keeps_whole_words_only(tiny_teacher: CocaTeacher) -> None:
    tokenizer = tiny_teacher.tokenizer
    for length in range(1, 40):  # so that some word is cut at every place
        caption = "dog " + "x" * length + " pineapple strawberry"
        encoded = tiny_teacher.encode_text(caption)
        assert len(encoded.ids) <= tokenizer.context_length
        assert list(encoded.ids) == [token for token in tokenizer([caption])[0].tolist() if token]
        assert set(_texts(encoded)) <= {"dog", "x" * length, "pineapple", "strawberry"}
        assert all(max(word.positions) < len(encoded.ids) - 1 for word in encoded.words)


def test_stop_words_are_those_of_the_file_and_so_is_their_digest() -> None:
    content = (resources.files("lfi_pipeline.teachers") / "stop_words.txt").read_bytes()
    assert stop_words_sha256() == hashlib.sha256(content).hexdigest()
    assert {"a", "the", "photo", "with"} <= stop_words()
    assert not {"left", "right", "dog"} & stop_words()


# --- every family of tokenizers -----------------------------------------------------------------------------

FAMILIES = ("clip", "roberta", "sentencepiece")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """CLIP's byte pairs; byte-level pairs with the case kept; a SentencePiece unigram of canonical text."""
    if request.param == "clip":
        return request.param, open_clip.SimpleTokenizer(context_length=77)
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    clean = "canonicalize" if request.param == "sentencepiece" else "whitespace"
    return request.param, open_clip.tokenizer.HFTokenizer(str(folder), context_length=120, clean=clean)


def _plain_words(name: str, caption: str) -> list[str]:
    """Words of a caption by splitting it alone, first places, stop words dropped."""
    number = r"\d" if name == "clip" else r"\d+"
    if name == "sentencepiece":
        caption = open_clip.tokenizer.canonicalize_text(caption)
    found = regex.findall(rf"'(?:s|t|re|ve|m|ll|d)\b|\p{{L}}+|{number}", caption.lower())
    return list(dict.fromkeys(word for word in found if word[0] != "'" and word not in stop_words()))


_WORDS = st.sampled_from(
    ["strawberry", "dog", "the", "Unbelievable", "umbrella's", "naïve", "42", "guinea-pig", "(photo)", "it's", "a"]
)
_SPACES = st.sampled_from([" ", "  ", ", ", ". ", "!\n", " – "])


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(_WORDS, _SPACES), max_size=9))
def test_merged_words_are_those_of_a_plain_split(family: tuple[str, Any], parts: list[tuple[str, str]]) -> None:
    name, tokenizer = family
    caption = "".join(word + space for word, space in parts)
    encoded = encode_text(tokenizer, caption)
    assert _texts(encoded) == _plain_words(name, caption)
    claimed = [position for word in encoded.words for position in word.positions]
    assert len(claimed) == len(set(claimed))  # no token belongs to two words
    assert all(0 <= position < len(encoded.ids) for position in claimed)


@pytest.mark.parametrize("caption", ["an unbelievable strawberry", "dog", "GRÜNER Käse (photo)", "owls, owls"])
def test_the_tokens_of_a_word_spell_it_in_every_family(family: tuple[str, Any], caption: str) -> None:
    name, tokenizer = family
    encoded = encode_text(tokenizer, caption)
    assert encoded.words
    decode = tokenizer.decode if name == "clip" else tokenizer.tokenizer.decode
    for word in encoded.words:
        spelled = decode([encoded.ids[position] for position in word.positions]).lower().split()
        assert set(spelled) == {word.text}


def test_ids_are_those_that_every_tokenizer_gives_its_model(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    for caption in ("a strawberry left of a dog", "it's the dog's bowl", ""):
        padded = tokenizer([caption])[0].tolist()
        ids = list(encode_text(tokenizer, caption).ids)
        assert padded[: len(ids)] == ids
        assert len(set(padded[len(ids) :])) <= 1  # nothing but padding follows


def test_a_word_that_the_context_cuts_is_dropped_in_every_family(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    length, tokenizer.context_length = tokenizer.context_length, 9
    try:
        for filler in range(1, 30):
            encoded = encode_text(tokenizer, "dog " + "x" * filler + " strawberry")
            assert len(encoded.ids) <= 9
            assert set(_texts(encoded)) <= {"dog", "x" * filler, "strawberry"}
            assert _texts(encoded)[0] == "dog"
    finally:
        tokenizer.context_length = length


# --- phrases ------------------------------------------------------------------------------------------------


def test_a_phrase_is_one_word_with_all_its_tokens(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    text = "a photo of a Guinea Pig on a table"
    whole = encode_text(tokenizer, text)
    encoded = encode_text(tokenizer, text, ["guinea pig"])
    assert encoded.ids == whole.ids
    assert _texts(encoded) == ["guinea pig"]
    parts = {word.text: word.positions for word in whole.words}
    assert encoded.words[0].positions == parts["guinea"] + parts["pig"]


def test_phrases_are_whole_words_and_the_longest_wins(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    assert _texts(encode_text(tokenizer, "a pigeon and pigs", ["pig"])) == []
    both = encode_text(tokenizer, "a pig and a guinea pig", ["pig", "guinea pig", "cat"])
    assert _texts(both) == ["pig", "guinea pig"]
    assert not set(both.words[0].positions) & set(both.words[1].positions)
    assert _texts(encode_text(tokenizer, "the t-shirt of a dog", ["t-shirt", "the"])) in (["the", "t-shirt"], ["the"])


def test_a_phrase_that_stands_twice_is_one_word_as_any_word_is(clip: open_clip.SimpleTokenizer) -> None:
    encoded = encode_text(clip, "fire truck next to a fire truck", ["Fire truck"])
    assert encoded.words == (Word("Fire truck", (1, 2, 6, 7)),)
