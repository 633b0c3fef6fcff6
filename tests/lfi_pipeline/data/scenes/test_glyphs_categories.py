from __future__ import annotations

from lfi_pipeline.data.scenes import NAMES
from lfi_pipeline.data.scenes.glyphs import GLYPHS
from lfi_pipeline.data.scenes.write import with_article
from lfi_pipeline.teachers.text import stop_words


def test_names_are_64_single_words_that_get_a_map() -> None:
    assert len(NAMES) >= 64
    assert all(name.isalpha() and name.islower() for name in NAMES)
    assert not set(NAMES) & stop_words()


def test_every_category_has_a_glyph_of_its_own() -> None:
    assert len(set(GLYPHS.values())) == len(GLYPHS)


def test_order_is_part_of_the_data_set() -> None:
    assert (NAMES[0], NAMES[8], NAMES[32], NAMES[63]) == ("dog", "elephant", "mushroom", "chair")


def test_articles() -> None:
    vowels = {name for name in NAMES if with_article(name).startswith("an ")}
    assert vowels == {"elephant", "owl", "octopus", "apple", "airplane", "umbrella"}
