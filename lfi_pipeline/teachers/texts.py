"""What the teacher reads beside each image: the data set's captions, prompts from class names, or its own captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lfi_pipeline.data import Sample
from lfi_pipeline.data.directions import DIRECTION_WORDS, mirrored_caption
from lfi_pipeline.errors import ConfigError, DatasetError, UnknownNameError
from lfi_pipeline.targets import PlannedSample
from lfi_pipeline.targets.zero_shot import readable_names
from lfi_pipeline.teachers.words import EncodedText, Word

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
    """The texts of any sample, made when asked for: a data set of ten million has no list of them in memory.

    Args:
        mode: `captions`, `prompts` or `generate`.
        captions: `first`, `longest` or `all` of a sample's captions, or of the prompts.
        classes: class names of the data set.
        prompts: templates with one `{}`; of several, `first` takes the first. Kept as `templates` in every mode, as
            `prompts` where they are read.
        generated: for `generate`, the teacher's caption by key.

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
    ) -> None:
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
            DatasetError: it has no caption, or for prompts no label; says which mode would serve.
        """
        if self.mode == "prompts":
            return self._prompted(sample)
        found = (self._generated[sample.key],) if self.mode == "generate" else sample.captions
        found = tuple(text for caption in found if (text := " ".join(caption.split())))
        if not found:
            raise DatasetError(
                f"Sample {sample.key} has no caption; every image of the split must have one. Check the captions, or "
                "use --text prompts (class names) or --text generate (the teacher writes them)."
            )
        return ReadTexts(texts=self._chosen(found))

    def _prompted(self, sample: Sample) -> ReadTexts:
        if not sample.labels:
            raise DatasetError(
                f"Sample {sample.key} has no label; prompts need one. Use --text captions or --text generate."
            )
        names = tuple(self._names[label] for label in sample.labels)
        return ReadTexts(
            texts=self._chosen(tuple(prompt.format(" and ".join(names)) for prompt in self.prompts)), phrases=names
        )

    def _chosen(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        if self._choice == "longest":
            return (max(texts, key=len),)
        return texts[:1] if self._choice == "first" else tuple(dict.fromkeys(texts))


def resolve_mode(mode: str, sample: Sample) -> str:
    """Return what `auto` stands for: captions where the data set has them, else prompts, else generated captions.

    Args:
        mode: one of `MODES`.
        sample: the first of the data set.

    Raises:
        UnknownNameError: unknown mode.
    """
    if mode not in MODES:
        raise UnknownNameError("text mode", mode, MODES)
    if mode != "auto":
        return mode
    return "captions" if sample.captions else "prompts" if sample.labels else "generate"


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
