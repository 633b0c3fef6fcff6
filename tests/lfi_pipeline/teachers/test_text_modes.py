"""Which texts a sample is read with, and which words get a row in which view."""

from __future__ import annotations

from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, DatasetError, UnknownNameError
from lfi_pipeline.data import Sample
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.shards import Plan
from lfi_pipeline.teachers.text import ReadTexts, TextSource, resolve_mode, sample_words, telling_sample, view_words

CLASSES = ("cat", "guinea_pig")


def make_sample(**changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "key": "a",
        "path": "a.png",
        "captions": ("a cat", "a very big  dog\nsits", "", "a cat"),
        "labels": (0, 1),
        "domain": "",
        "height": 1,
        "width": 1,
    }
    return Sample(**fields | changes)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("first", ("a cat",)), ("longest", ("a very big dog sits",)), ("all", ("a cat", "a very big dog sits"))],
)
def test_captions_are_chosen_without_blanks_and_repeats(choice: str, expected: tuple[str, ...]) -> None:
    source = TextSource("captions", choice)
    assert source(make_sample()).texts == expected
    assert Plan([make_sample()], source)[0].caption == "\n".join(expected)


def test_prompts_hold_every_class_name_as_one_phrase() -> None:
    source = TextSource("prompts", "all", classes=CLASSES, prompts=("a photo of a {}.", "art of a {}."))
    read = source(make_sample())
    assert read.texts == ("a photo of a cat and guinea pig.", "art of a cat and guinea pig.")
    assert read.phrases == ("cat", "guinea pig")
    assert (
        TextSource("prompts", "first", classes=CLASSES, prompts=source.prompts)(make_sample()).texts == read.texts[:1]
    )


def test_the_teachers_own_captions_are_found_by_key() -> None:
    assert TextSource("generate", "first", generated={"a": "a bird"})(make_sample(captions=())).texts == ("a bird",)


def test_a_sample_that_cannot_be_read_so_is_named_with_what_would_serve() -> None:
    with pytest.raises(DatasetError, match=r"Sample a has no caption.*`text='prompts'`"):
        TextSource("captions", "first")(make_sample(captions=("",)))
    with pytest.raises(DatasetError, match=r"Sample a has no label.*`text='captions'`"):
        TextSource("prompts", "first", prompts=("{}",))(make_sample(labels=()))


def test_an_image_without_annotations_has_no_words() -> None:
    background = make_sample(captions=(), labels=())
    for source in (
        TextSource("captions", "first"),
        TextSource("captions", "all"),
        TextSource("prompts", "all", classes=CLASSES, prompts=("a {}.", "{}")),
    ):
        assert source(background) == ReadTexts(texts=("",))


def test_the_mode_is_that_of_the_data_set_and_not_of_a_background_that_comes_first() -> None:
    background, labelled = make_sample(captions=(), labels=()), make_sample(captions=())
    assert telling_sample([background, labelled]) is labelled
    assert telling_sample([background, labelled, make_sample()]) == make_sample()
    assert telling_sample([background]) is background


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}", "a {0}", "a {name}", "{{}}"])
def test_a_template_without_one_place_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"exactly one \{\}"):
        TextSource("prompts", "first", classes=CLASSES, prompts=(prompt,))


def test_auto_takes_what_is_there() -> None:
    assert resolve_mode("auto", make_sample()) == "captions"
    assert resolve_mode("auto", make_sample(captions=())) == "prompts"
    assert resolve_mode("auto", make_sample(captions=(), labels=())) == "generate"
    assert resolve_mode("prompts", make_sample()) == "prompts"
    with pytest.raises(UnknownNameError, match="text mode 'poem'"):
        resolve_mode("poem", make_sample())


def test_words_of_several_texts_are_rows_once_and_absent_where_a_text_lacks_them(tiny_teacher: CocaTeacher) -> None:
    read = TextSource("captions", "all")(make_sample(captions=("a cat left of a dog", "the dog sleeps")))
    words = sample_words(tiny_teacher.encode_text, read, 16)
    assert words == ["cat", "left", "dog", "sleeps"]
    assert sample_words(tiny_teacher.encode_text, read, 2) == ["cat", "left"]
    full = view_words(tiny_teacher.encode_text, read, words, "full")
    assert [[word is not None for word in row] for row in full.rows] == [
        [True, True, True, False],
        [False, False, True, True],
    ]
    assert full.present == (True, True, True, True)
    assert full.rows[1][2] != full.rows[0][2]  # the same word at other places
    mirrored = view_words(tiny_teacher.encode_text, read, words, "hflip")
    assert mirrored.present == (True, False, True, True)
    assert mirrored.texts[0] == tiny_teacher.encode_text("a cat right of a dog")
    assert mirrored.texts[1] == full.texts[1]
