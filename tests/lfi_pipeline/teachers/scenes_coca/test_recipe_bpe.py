from __future__ import annotations

from pathlib import Path

import open_clip

from lfi_pipeline.teachers.scenes_coca.recipe import learn_merges, write_merges


def test_most_frequent_pairs_first_and_ties_by_spelling() -> None:
    merges = learn_merges(["abc abc abc", "ab xb"], limit=10)
    assert merges == [("a", "b"), ("ab", "c</w>"), ("a", "b</w>"), ("x", "b</w>")]


def test_the_words_of_the_paper() -> None:
    """Sennrich et al., figure 1: low 5, lowest 2, newer 6, wider 3. Pairs er 9, then lo 7, then ew, ner, wer 6."""
    texts = ["low"] * 5 + ["lowest"] * 2 + ["newer"] * 6 + ["wider"] * 3
    assert learn_merges(texts, limit=3) == [("e", "r</w>"), ("l", "o"), ("e", "w")]


def test_repeated_symbols_merge_from_the_left() -> None:
    assert learn_merges(["aaaa"], limit=9) == [("a", "a"), ("a", "a</w>"), ("aa", "aa</w>")]


def test_no_more_than_the_limit_and_none_of_nothing() -> None:
    assert len(learn_merges(["strawberry pineapple"], limit=3)) == 3
    assert learn_merges([], limit=5) == []
    assert learn_merges(["a b c"], limit=5) == []


def test_the_file_is_what_open_clip_reads_and_always_the_same_bytes(tmp_path: Path) -> None:
    merges = learn_merges(["a strawberry left of a dog"] * 3, limit=200)
    for name in ("one.gz", "two.gz"):
        write_merges(merges, tmp_path / name)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    tokenizer = open_clip.SimpleTokenizer(str(tmp_path / "one.gz"), context_length=16)
    assert tokenizer.vocab_size == 512 + len(merges) + 2
    assert len(tokenizer.encode("strawberry dog")) == 2
    assert tokenizer.decode(tokenizer.encode("a strawberry dog")).split() == ["a", "strawberry", "dog"]
