"""Captions as a teacher reads them: token ids, and which tokens make up each content word.

A word is a content word (DESIGN section 2): sub-word tokens are merged, stop words, punctuation and special tokens are
dropped. A word that stands twice in a caption is one word with the tokens of both places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import open_clip
import regex
from open_clip.tokenizer import SigLipTokenizer, basic_clean, canonicalize_text


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


@dataclass(frozen=True, slots=True)
class _Piece:
    """What stands between two word boundaries: a word, a number, a clitic or punctuation; lower case."""

    text: str
    positions: tuple[int, ...]


def encode_text(tokenizer: Any, caption: str, phrases: Sequence[str] = ()) -> EncodedText:
    """Tokenise as the teacher does and group the tokens of each content word.

    A caption longer than the context keeps the words that lie wholly inside it.

    Args:
        tokenizer: one of open_clip's.
        caption: the text.
        phrases: where given, the words are these instead: wherever a phrase stands in the caption (as whole words,
            whatever the case) all its tokens are its own; the longest phrase wins where two begin at one place.
    """
    read = _read_simple if isinstance(tokenizer, open_clip.SimpleTokenizer) else _read_fast
    ids, pieces = read(tokenizer, caption)
    found = _phrases(tokenizer, pieces, phrases) if phrases else _content_words(pieces)
    positions: dict[str, list[int]] = {}
    for text, where in found:
        positions.setdefault(text, []).extend(where)
    return EncodedText(ids, tuple(Word(text, tuple(where)) for text, where in positions.items()))


def pad_id(model: Any) -> int:
    """Return the token that pads a caption for this open_clip model."""
    config = getattr(getattr(model, "text", None), "config", None)  # of a text tower of transformers
    return int(config.pad_token_id) if config is not None else int(getattr(model, "pad_id", 0))


def _content_words(pieces: Iterable[_Piece]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for piece in pieces:  # clitics are set apart, and begin with an apostrophe
        if piece.text[0].isalnum() and piece.text not in stop_words():
            yield piece.text, piece.positions


def _phrases(tokenizer: Any, pieces: Sequence[_Piece], phrases: Iterable[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    split = _split_simple if isinstance(tokenizer, open_clip.SimpleTokenizer) else _split_fast
    parts = {phrase: [text.lower() for text in split(tokenizer, phrase)] for phrase in phrases}
    longest_first = sorted((phrase for phrase in parts if parts[phrase]), key=lambda phrase: -len(parts[phrase]))
    texts, at = [piece.text for piece in pieces], 0
    while at < len(pieces):
        phrase = next((each for each in longest_first if texts[at : at + len(parts[each])] == parts[each]), None)
        size = 1 if phrase is None else len(parts[phrase])
        if phrase is not None:
            yield phrase, tuple(position for piece in pieces[at : at + size] for position in piece.positions)
        at += size


def _read_simple(tokenizer: open_clip.SimpleTokenizer, caption: str) -> tuple[tuple[int, ...], list[_Piece]]:
    """CLIP's byte-pair encoding: the last token of a word ends in `</w>`."""
    body = tokenizer.encode(caption)[: tokenizer.context_length - 2]
    ids = (tokenizer.sot_token_id, *body, tokenizer.eot_token_id)
    found: list[_Piece] = []
    symbols, first = "", 1
    for position, token in enumerate(body, start=1):
        symbols += tokenizer.decoder[token]
        if symbols.endswith("</w>"):
            found.append(_Piece(_to_text(tokenizer, symbols), tuple(range(first, position + 1))))
            symbols, first = "", position + 1
    return ids, found


def _split_simple(tokenizer: open_clip.SimpleTokenizer, text: str) -> list[str]:
    joined = "".join(tokenizer.decoder[token] for token in tokenizer.encode(text))
    return [_to_text(tokenizer, symbols) for symbols in joined.split("</w>") if symbols]


def _to_text(tokenizer: open_clip.SimpleTokenizer, symbols: str) -> str:
    codes = (tokenizer.byte_decoder[symbol] for symbol in symbols.removesuffix("</w>"))
    return bytearray(codes).decode("utf-8", errors="replace")


# As CLIP's tokenizer splits, but a number is one word
_WORD = regex.compile(r"'(?:s|t|re|ve|m|ll|d)\b|\p{L}[\p{L}\p{M}]*|\p{N}+|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def _read_fast(tokenizer: Any, caption: str) -> tuple[tuple[int, ...], list[_Piece]]:
    """A tokenizer of transformers, of any kind: a token belongs to the word whose characters it covers."""
    text = _cleaned(tokenizer, caption)
    encoded = tokenizer.tokenizer(
        text, max_length=tokenizer.context_length, truncation=True, return_offsets_mapping=True
    )
    spans = [_trimmed(text, *span) for span in encoded["offset_mapping"]]  # empty for special tokens
    found, first = [], 0
    for match in _WORD.finditer(text):
        while first < len(spans) and spans[first][1] <= match.start():
            first += 1
        positions = []
        for position in range(first, len(spans)):
            start, end = spans[position]
            if start >= match.end() and end > start:
                break
            if start < match.end() and end > match.start():
                positions.append(position)
        if positions and spans[positions[-1]][1] >= match.end():  # not cut off by the context
            found.append(_Piece(match.group().lower(), tuple(positions)))
    return tuple(encoded["input_ids"]), found


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the space that a byte-level or SentencePiece token carries in front."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _split_fast(tokenizer: Any, text: str) -> list[str]:
    return [match.group() for match in _WORD.finditer(_cleaned(tokenizer, text))]


def _cleaned(tokenizer: Any, text: str) -> str:
    """The text as open_clip's wrapper hands it to the tokenizer inside."""
    if isinstance(tokenizer, SigLipTokenizer):
        return str(canonicalize_text(basic_clean(text)))
    return str(tokenizer.clean_fn(text))
