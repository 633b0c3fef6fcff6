"""Captions as a teacher reads them: token ids, and which tokens make up each content word.

A word is a content word (DESIGN section 2): sub-word tokens are merged, stop words, punctuation and special tokens are
dropped. A word that stands twice in a caption is one word with the tokens of both places.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import open_clip


@dataclass(frozen=True, slots=True)
class Word:
    """A content word and the positions of its tokens in `EncodedText.ids`."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A caption as token ids, start and end tokens included and unpadded, with its content words in reading order."""

    ids: tuple[int, ...]
    words: tuple[Word, ...]


@cache
def _stop_words_text() -> str:
    return (resources.files(__package__) / "stop_words.txt").read_text(encoding="utf-8")


@cache
def stop_words() -> frozenset[str]:
    """Return the words that never get a map."""
    return frozenset(_stop_words_text().split())


def stop_words_sha256() -> str:
    """Return the digest of the stop word list, recorded in the spec."""
    return hashlib.sha256(_stop_words_text().encode("utf-8")).hexdigest()


def encode_text(tokenizer: open_clip.SimpleTokenizer, caption: str) -> EncodedText:
    """Tokenise as the teacher does and group the tokens of each content word.

    A caption longer than the context keeps the words that lie wholly inside it.
    """
    body = tokenizer.encode(caption)[: tokenizer.context_length - 2]
    ids = (tokenizer.sot_token_id, *body, tokenizer.eot_token_id)
    positions: dict[str, list[int]] = {}
    pieces: list[str] = []
    first = 1
    for position, token in enumerate(body, start=1):
        pieces.append(tokenizer.decoder[token])
        if not pieces[-1].endswith("</w>"):
            continue
        text = _to_text(tokenizer, "".join(pieces).removesuffix("</w>"))
        if text[0].isalnum() and text not in stop_words():  # the tokenizer sets 's, 'll, ... and punctuation apart
            positions.setdefault(text, []).extend(range(first, position + 1))
        pieces, first = [], position + 1
    return EncodedText(ids, tuple(Word(text, tuple(where)) for text, where in positions.items()))


def _to_text(tokenizer: open_clip.SimpleTokenizer, symbols: str) -> str:
    return bytearray(tokenizer.byte_decoder[symbol] for symbol in symbols).decode("utf-8", errors="replace")
