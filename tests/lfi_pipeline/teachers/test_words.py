from __future__ import annotations

import hashlib
from importlib import resources

import open_clip
import pytest

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.words import EncodedText, encode_text, stop_words, stop_words_sha256


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
