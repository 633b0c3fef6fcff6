"""Settings of a kind of map, the directions in embedding space that stand for words, and their way to a device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.data import Dataset
from lfi_pipeline.targets import MapSpec
from lfi_pipeline.targets.vocabulary import readable_names
from lfi_pipeline.teachers.config import ARTEFACTS
from lfi_pipeline.teachers.text import Encode, TextSource, Word

WORD_TEMPLATE = "a photo of a {}."
"""Text towers were trained on captions, so a word is put into one; "{}" embeds the bare word. This project's choice."""
MOST_CENTRE = 512
"""Words that a centre is the mean of, at most: it stands in the spec."""
CENTRE_SAMPLES = 2048
"""Samples whose texts are looked at for a centre."""
KEPT_WORDS = 1 << 16
"""Embeddings of words that are kept from batch to batch."""
COMMON_WORDS = (
    *("man", "woman", "child", "face", "hand", "dog", "cat", "bird", "horse", "sheep"),
    *("fish", "tree", "flower", "grass", "mountain", "river", "sea", "sky", "cloud", "snow"),
    *("rock", "road", "bridge", "building", "house", "window", "door", "wall", "floor", "table"),
    *("chair", "bed", "lamp", "book", "box", "bag", "bottle", "cup", "plate", "bowl"),
    *("fork", "food", "fruit", "bread", "cake", "car", "bus", "train", "boat", "bicycle"),
    *("wheel", "sign", "clock", "phone", "computer", "camera", "ball", "hat", "shirt", "shoe"),
)
"""Stands for a vocabulary where none is known. A data set's own words are better: README of this package."""


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` out of main memory; a GPU is not waited for, which takes a copy out of pinned memory."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def centre_of(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words that a data set's maps are centred over, from those that may get a map.

    Up to `MOST_CENTRE` of them, chosen and ordered by a digest of the word, so that nothing but the words decides.
    With fewer than two there is nothing to be set apart from, and `COMMON_WORDS` stand in.
    """
    known = sorted(set(words), key=lambda word: hashlib.sha256(word.encode()).digest())
    return tuple(known[:MOST_CENTRE]) if len(known) > 1 else COMMON_WORDS


def settings_of_kind(
    kind: str,
    *,
    own_steps: int,
    steps: int,
    word_template: str,
    centre: Sequence[str],
    artefacts: str,
    support: float = 0.0,
) -> MapSpec:
    """Return the settings of a kind, `own_steps` of its own where `steps` is 0; raises as `Teacher.map_settings`."""
    if artefacts not in ARTEFACTS:
        raise UnknownNameError("treatment of artefacts", artefacts, ARTEFACTS)
    if steps < 0 or (steps and not own_steps):
        raise ConfigError(
            f"steps must be 1 or more where gradients are integrated, or 0 for the kind's own; {kind} got {steps}."
        )
    return MapSpec(
        steps=steps or own_steps or 1,
        word_template=word_template,
        centre=tuple(centre),
        artefacts="fill" if artefacts == "fill" else "keep",
        support=support,
    )


def data_centre(encode: Encode, dataset: Dataset, source: TextSource) -> tuple[str, ...]:
    """Return what the maps of a data set are centred over: its classes where they are read, else words of its texts.

    Of the texts, those of some `CENTRE_SAMPLES` samples spread evenly over the split are looked at, so that every
    process finds the same words without reading ten million captions.

    Args:
        encode: the teacher's `encode_text`.
        dataset: the split.
        source: of its texts.
    """
    if source.vocabulary:
        return centre_of(source.vocabulary)
    if source.mode == "prompts":
        return centre_of(readable_names(dataset.classes))
    step = max(1, len(dataset) // CENTRE_SAMPLES)
    texts = (source(dataset.samples[i]) for i in range(0, len(dataset), step))
    return centre_of(word.text for each in texts for text in each.texts for word in encode(text, each.phrases).words)


class AskedWords:
    """Embeds words, each once, and turns them to directions in the space of image embeddings.

    Args:
        embed: from texts to unit embeddings [N, E] in main memory.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Tensor]) -> None:
        self._embed = embed
        self._known: dict[tuple[str, str], Tensor] = {}
        self._centres: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def directions(self, words: Sequence[Sequence[Word | None]], settings: MapSpec, device: torch.device) -> Tensor:
        """Return the direction of each word, fp32 [M, C, E]: its text embedding less the centre; zero for an empty row.

        Args:
            words: for each of C captions at most M.
            settings: the template and the centre.
            device: where to put them.
        """
        template = settings.word_template
        self._learn({word.text for row in words for word in row if word is not None}, template)
        centre = self.centre(settings)
        directions = torch.zeros(max(1, *map(len, words), 1), len(words), len(centre))
        asked = [(slot, c, word) for c, row in enumerate(words) for slot, word in enumerate(row) if word is not None]
        if asked:  # all at once: a thousand small tensors take as long as a GPU takes for the maps
            slots, captions, _ = zip(*asked, strict=True)
            embeddings = torch.stack([self._known[template, word.text] for _, _, word in asked])
            directions[torch.tensor(slots), torch.tensor(captions)] = embeddings - centre
        return on_device(directions, device)

    def centre(self, settings: MapSpec) -> Tensor:
        """Return the mean text embedding [E] of the centre's words; zero where there are none."""
        key = settings.word_template, settings.centre
        if key not in self._centres:
            texts = [settings.word_template.format(word) for word in settings.centre or COMMON_WORDS[:1]]
            mean = F.normalize(self._embed(texts).float(), dim=-1).mean(0)
            self._centres[key] = mean if settings.centre else torch.zeros_like(mean)
        return self._centres[key]

    def _learn(self, words: set[str], template: str) -> None:
        new = sorted(word for word in words if (template, word) not in self._known)
        if len(self._known) + len(new) > KEPT_WORDS:
            self._known.clear()
            new = sorted(words)
        if new:
            embeddings = self._embed([template.format(word) for word in new]).float()
            self._known |= {(template, word): each for word, each in zip(new, embeddings, strict=True)}
