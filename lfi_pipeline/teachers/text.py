"""What the teacher reads beside each image, and which tokens make up each content word.

A word is a content word: sub-word tokens are merged, stop words, punctuation and special tokens are
dropped. A word that stands twice in a caption is one word with the tokens of both places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import open_clip
import regex
from open_clip.tokenizer import SigLipTokenizer, basic_clean, canonicalize_text

from lfi_pipeline.core.errors import ConfigError, DatasetError, UnknownNameError
from lfi_pipeline.data import Sample
from lfi_pipeline.data.augment import DIRECTION_WORDS, mirrored_caption
from lfi_pipeline.targets import PlannedSample
from lfi_pipeline.targets.vocabulary import readable_names


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
        tokenizer: one of open_clip's; None for a teacher that shows none: there are words then, without token ids.
        caption: the text.
        phrases: where given, the words are these instead: wherever a phrase stands in the caption (as whole words,
            whatever the case) all its tokens are its own; the longest phrase wins where two begin at one place.
    """
    read = _read_simple if isinstance(tokenizer, open_clip.SimpleTokenizer) else _read_fast
    ids, pieces = _read_plain(caption) if tokenizer is None else read(tokenizer, caption)
    occurrences = _phrases(tokenizer, pieces, phrases) if phrases else _content_words(pieces)
    positions: dict[str, list[int]] = {}
    for text, where in occurrences:
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
    pieces: list[_Piece] = []
    symbols, first = "", 1
    for position, token in enumerate(body, start=1):
        symbols += tokenizer.decoder[token]
        if symbols.endswith("</w>"):
            pieces.append(_Piece(_to_text(tokenizer, symbols), tuple(range(first, position + 1))))
            symbols, first = "", position + 1
    return ids, pieces


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
    pieces, first = [], 0
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
            pieces.append(_Piece(match.group().lower(), tuple(positions)))
    return tuple(encoded["input_ids"]), pieces


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the space that a byte-level or SentencePiece token carries in front."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _split_fast(tokenizer: Any, text: str) -> list[str]:
    return [match.group() for match in _WORD.finditer(_cleaned(tokenizer, text))]


def _read_plain(caption: str) -> tuple[tuple[int, ...], list[_Piece]]:
    """Without a tokenizer: words and numbers, of no token."""
    return (), [_Piece(match.group().lower(), ()) for match in _WORD.finditer(caption)]


def _cleaned(tokenizer: Any, text: str) -> str:
    """The text as open_clip's wrapper hands it to the tokenizer inside; as it is where there is none."""
    if tokenizer is None:
        return text
    if isinstance(tokenizer, SigLipTokenizer):
        return str(canonicalize_text(basic_clean(text)))
    return str(tokenizer.clean_fn(text))


MODES = ("auto", "captions", "prompts", "generate")
CAPTION_CHOICES = ("first", "longest", "all")
DEFAULT_PROMPTS = ("a photo of a {}.",)
SEPARATOR = "\n"
"""Between the texts of a sample in the index's caption column."""

_IN_VIEW: dict[str, Callable[[str], str]] = {"full": str, "hflip": mirrored_caption}  # the text that is true of a view
VIEWS = tuple(_IN_VIEW)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadTexts:
    """The texts of one sample.

    Attributes:
        texts: read one by one; a word's map is the mean over those that hold it.
        phrases: what gets a row, each as one word; empty for the texts' content words.
    """

    texts: tuple[str, ...]
    phrases: tuple[str, ...] = ()


class TextSource:
    """The texts of any sample, made at each call: a data set of ten million has no list of them in memory.

    Args:
        mode: `captions`, `prompts` or `generate`.
        captions: `first`, `longest` or `all` of a sample's captions, or of the prompts.
        classes: class names of the data set.
        prompts: templates with one `{}`; of several, `first` takes the first. Kept as `templates` in every mode, as
            `prompts` where they are read.
        generated: for `generate`, the teacher's caption by key; an image that could not be read has none.
        vocabulary: words that captions list, as `listed` writes them; empty where captions are sentences.

    Raises:
        ConfigError: a template without exactly one `{}`.
    """

    def __init__(
        self,
        mode: str,
        captions: str,
        *,
        classes: Sequence[str] = (),
        prompts: Sequence[str] = (),
        generated: Mapping[str, str] | None = None,
        vocabulary: Sequence[str] = (),
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.mode, self._choice, self._generated = mode, captions, generated or {}
        self._names = readable_names(classes)
        self.templates = tuple(prompts)
        self.prompts = self.templates if mode == "prompts" else ()
        for prompt in self.templates:
            if prompt.count("{}") != 1 or prompt.count("{") != 1 or prompt.count("}") != 1:
                raise ConfigError(f"A prompt must have exactly one {{}}, where the class name goes; got {prompt!r}.")

    def __call__(self, sample: Sample) -> ReadTexts:
        """Return the texts of `sample`.

        Raises:
            DatasetError: it has no caption, or for prompts there are no classes; says which mode would serve.
        """
        if self.mode == "prompts":
            return self._prompted(sample)
        if self.mode == "generate" and sample.key not in self._generated:
            return ReadTexts(texts=("",))
        texts = (self._generated[sample.key],) if self.mode == "generate" else sample.captions
        texts = tuple(text for caption in texts if (text := " ".join(caption.split())))
        if not texts and self.mode == "captions" and not sample.captions and not sample.labels:
            return ReadTexts(texts=("",))  # nothing is said of it and nothing is in it: it has no words, that is all
        if not texts:
            raise DatasetError(
                f"Sample {sample.key} has no caption; every image of the split must have one. Check the captions, or "
                "use `text='prompts'` (class names) or `text='generate'` (the teacher writes them)."
            )
        if self.vocabulary:
            shown = frozenset(words_listed(texts[0]))
            return ReadTexts(texts=texts, phrases=tuple(word for word in self.vocabulary if word in shown))
        return ReadTexts(texts=self._chosen(texts))

    def _prompted(self, sample: Sample) -> ReadTexts:
        if not self._names:
            raise DatasetError(
                f"Sample {sample.key} has no label; prompts need one. Use `text='captions'` or `text='generate'`."
            )
        if not sample.labels:
            return ReadTexts(texts=("",))  # an image of none of the classes has no words, that is all
        names = tuple(self._names[label] for label in sample.labels)
        return ReadTexts(
            texts=self._chosen(tuple(prompt.format(" and ".join(names)) for prompt in self.prompts)), phrases=names
        )

    def _chosen(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        if self._choice == "longest":
            return (max(texts, key=len),)
        return texts[:1] if self._choice == "first" else tuple(dict.fromkeys(texts))


_LISTED = "a photo of "


def listed(words: Sequence[str]) -> str:
    """Write a caption that lists words of a vocabulary; no word has a comma."""
    return f"{_LISTED}{', '.join(words)}."


def words_listed(caption: str) -> tuple[str, ...]:
    """Return the words that `listed` wrote."""
    return tuple(caption.removeprefix(_LISTED).removesuffix(".").split(", "))


def resolve_mode(mode: str, sample: Sample) -> str:
    """Return what `auto` stands for: captions where the data set has them, else prompts, else generated captions.

    Args:
        mode: one of `MODES`.
        sample: one that tells what the data set has, as `telling_sample`.

    Raises:
        UnknownNameError: unknown mode.
    """
    if mode not in MODES:
        raise UnknownNameError("text mode", mode, MODES)
    if mode != "auto":
        return mode
    return "captions" if sample.captions else "prompts" if sample.labels else "generate"


def telling_sample(samples: Sequence[Sample]) -> Sample:
    """Return the first sample with a caption, or else the first with a label, or else the first."""
    first = samples[0]
    if first.captions:
        return first
    captioned = next((sample for sample in samples if sample.captions), None)
    return captioned or next((sample for sample in samples if sample.labels), first)


_SHOWN = 3


def read_by_some(samples: Sequence[Sample], source: TextSource) -> list[str]:
    """Return lines that say what the teacher reads, by the texts of the first, a middle and the last image."""
    places = sorted({0, (len(samples) - 1) // 2, len(samples) - 1})[:_SHOWN]
    some = (samples[place] for place in places)
    examples = (f"  {each.path}: {' | '.join(filter(None, source(each).texts)) or '(no words)'}" for each in some)
    read = {"prompts": "prompts of class names", "generate": "captions that it wrote itself"}.get(
        source.mode, "captions"
    )
    if source.vocabulary:
        read = f"those of {len(source.vocabulary)} words that it scores above chance"
    return [f"The teacher reads {read}, such as", *examples]


def planned(sample: Sample, source: TextSource) -> PlannedSample:
    """Return the sample's row of the index."""
    return PlannedSample(
        key=sample.key,
        path=sample.path,
        labels=sample.labels,
        domain=sample.domain,
        caption=SEPARATOR.join(source(sample).texts),
    )


@dataclass(frozen=True, slots=True)
class ViewWords:
    """The texts of one sample as a view reads them.

    Attributes:
        texts: as token ids.
        rows: for each text the word of each of the sample's m rows, None where this text, or this view, lacks it.
    """

    texts: tuple[EncodedText, ...]
    rows: tuple[tuple[Word | None, ...], ...]

    @property
    def present(self) -> tuple[bool, ...]:
        """For each of the m rows whether the view has it."""
        return tuple(any(word is not None for word in words) for words in zip(*self.rows, strict=True))


Encode = Callable[[str, Sequence[str]], EncodedText]


def sample_words(encode: Encode, texts: ReadTexts, limit: int) -> list[str]:
    """Return the words that get a row, at most `limit`, in reading order, each once."""
    words = dict.fromkeys(word.text for text in texts.texts for word in encode(text, texts.phrases).words)
    return list(words)[:limit]


def view_words(encode: Encode, texts: ReadTexts, words: Sequence[str], view: str) -> ViewWords:
    """Find the rows of `words` in the texts as `view` reads them; a mirrored view has no rows for directions."""
    encoded = tuple(encode(_IN_VIEW[view](text), texts.phrases) for text in texts.texts)
    mirrored = view == "hflip"
    rows = []
    for text in encoded:
        by_text = {word.text: word for word in text.words}
        rows.append(tuple(None if mirrored and word in DIRECTION_WORDS else by_text.get(word) for word in words))
    return ViewWords(encoded, tuple(rows))
