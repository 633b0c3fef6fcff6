"""What every family of teachers offers, and the teacher as a zero-shot classifier of a data set's classes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.targets import Fault, LayerSpec, MapSpec, TargetStore, TeacherSpec, ZeroShot
from lfi_pipeline.targets.vocabulary import SCALE_TOLERANCE, readable_names
from lfi_pipeline.teachers.attention import CompiledBlocks, graphs_pay
from lfi_pipeline.teachers.settings import COMMON_WORDS, WORD_TEMPLATE, on_device
from lfi_pipeline.teachers.text import EncodedText, Word, encode_text

DEFAULT_LAYERS = 4


@dataclass(frozen=True, slots=True)
class InteractionMaps:
    """Maps of C captions over B images.

    Attributes:
        maps: fp32 [C, L, M, gh, gw]; a row sums to 1, or is all zero where there is no word or nothing to show.
        kept: fp32 [C, L, M], share of the row's mass that lay on patches and not on other tokens, such as CLS.
        image_embedding: fp32 [B, E], unit length.
    """

    maps: Tensor
    kept: Tensor
    image_embedding: Tensor

    def leave(self) -> tuple[InteractionMaps, Callable[[], object]]:
        """Begin to copy them to main memory; returns the copies, and what to call before one is read."""
        parts = (self.maps, self.kept, self.image_embedding)
        if not self.maps.is_cuda:
            return InteractionMaps(*(part.cpu() for part in parts)), lambda: None
        copies = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts]
        pairs = zip(copies, parts, strict=True)
        left = InteractionMaps(*(copy.copy_(part, non_blocking=True) for copy, part in pairs))
        return left, torch.cuda.current_stream(self.maps.device).record_event().synchronize


class Teacher(Protocol):
    """A vision-language model that gives interaction maps.

    Attributes:
        model: the open_clip model.
        identity: name, tag, weights digest, family and precision, recorded in the spec.
        image_size: (height, width) in pixels.
        interpolation: filter by which its images are resized.
        mean: per RGB channel, of values in [0, 1].
        std: per RGB channel, of values in [0, 1].
        grid: (gh, gw), cells of a map.
        embedding_dim: E.
        word_template: what a word is put into before it is embedded, with one `{}`.
    """

    model: Any
    identity: TeacherSpec
    image_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: tuple[int, int]
    embedding_dim: int
    word_template: str

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks of the vision trunk, whose outputs [B, P+N, D] end in the N patches."""
        ...

    @property
    def precision(self) -> str:
        """What the trunk and the text tower compute in: `fp32`, `bf16` or `fp16`."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give."""
        ...

    @property
    def default_kind(self) -> str:
        """The kind to take where none is named: the one that points best."""
        ...

    @property
    def can_generate(self) -> bool:
        """Whether `generate` can caption an image."""
        ...

    @property
    def compares(self) -> bool:
        """Whether images and texts are embedded in one space, so that classes can be asked for by their names."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Return embeddings [B, E] of normalised images [B, 3, H, W], of any length."""
        ...

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the layers a map of `kind` is taken at: a number of them, evenly spaced, or those of these indices."""
        ...

    def encode_text(self, text: str, phrases: Sequence[str] = ()) -> EncodedText:
        """Tokenise `text` and find its content words; where phrases are given, only their occurrences."""
        ...

    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Return the text embedding of each word in the template, fp32 unit vectors [V, E] in main memory."""
        ...

    def map_settings(
        self, kind: str, *, centre: Sequence[str] = COMMON_WORDS, steps: int = 0, artefacts: str = "fill"
    ) -> MapSpec:
        """Return how a map of `kind` is made.

        Args:
            kind: one of `kinds`.
            centre: words that the kinds which ask for a word by its text embedding are centred over, best those that
                get maps (`settings.centre_of`); they mean nothing to the other kinds.
            steps: of integrated gradients; 0 for the kind's own.
            artefacts: `fill` or `keep`.

        Raises:
            UnknownNameError: unknown kind or treatment of artefacts.
            ConfigError: steps for a kind that integrates nothing.
        """
        ...

    @property
    def logit_scale(self) -> float:
        """What the cosine of an image and a text embedding is multiplied by to give a logit."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the text embedding of each text, as it is, fp32 unit vectors [N, E] in main memory."""
        ...

    def interaction_maps(
        self,
        images: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        *,
        kind: str,
        layers: Sequence[LayerSpec],
        row: str = "emitting",
        image_of: Sequence[int] | None = None,
        settings: MapSpec | None = None,
    ) -> InteractionMaps:
        """Return the maps of `words[c]` (None leaves a row empty) over the image of caption c, `image_of[c]` or c.

        Without `settings` they are `map_settings(kind)`.
        """
        ...

    def compiled(self, batch_size: int, words: int) -> AbstractContextManager[None]:
        """Have torch compile what it can for batches of this size with so many words an image, while entered."""
        ...

    def generate(self, images: Tensor) -> list[str]:
        """Return a caption of each image [B, 3, H, W]; the same for the same image.

        Raises:
            TeacherError: this teacher cannot, or a package it needs is not installed.
        """
        ...


class BaseTeacher(ABC):
    """What teachers of all families do alike; a family adds the rest of `Teacher`.

    Attributes:
        model: its network.
        tokenizer: open_clip's tokenizer for it; None where it shows none.
        identity: name, tag, weights digest, family and precision.
        word_template: what a word is put into before it is embedded.
    """

    model: Any
    tokenizer: Any = None
    identity: TeacherSpec
    word_template: str = WORD_TEMPLATE

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def precision(self) -> str:
        """What the trunk and the text tower compute in; what is differentiated and the maps are fp32."""
        return self.identity.precision

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the vision trunk."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map this teacher can give, the default first."""

    def _require_kind(self, kind: str) -> None:
        if kind not in self.kinds:
            raise UnknownNameError("map kind", kind, self.kinds)

    def encode_text(self, text: str, phrases: Sequence[str] = ()) -> EncodedText:
        """Tokenise `text` and find its content words; where `phrases` are given, their occurrences instead."""
        return encode_text(self.tokenizer, text, phrases)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return embeddings [B, E] of normalised images [B, 3, H, W]."""
        embeddings: Tensor = self.model.encode_image(images)
        return embeddings

    @contextmanager
    def compiled(self, batch_size: int, words: int, **options: Any) -> Iterator[None]:
        """Have torch compile the blocks of the vision trunk, see `CompiledBlocks`; `options` are of `torch.compile`."""
        with CompiledBlocks(self.blocks, batch_size, graphs=graphs_pay(self.blocks), **options):
            yield

    def embed_words(self, words: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each word in the template, fp32 unit vectors [V, E]."""
        return self.embed_texts([self.word_template.format(word) for word in words], batch_size)

    @abstractmethod
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each text, fp32 unit vectors [N, E] in main memory."""


def normalised_images(teacher: Teacher, pixels: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """Return images [3, H, W] of uint8 as `teacher` takes them: fp32 [B, 3, H, W] on its device."""
    mean, std = (torch.tensor(v, device=teacher.device).view(3, 1, 1) * 255 for v in (teacher.mean, teacher.std))
    return (torch.from_numpy(np.stack(pixels)).to(teacher.device).float() - mean) / std


def require_images(texts: int, images: int, image_of: Sequence[int] | None) -> list[int]:
    """Return the image of each text, after a check that each is there.

    Raises:
        ConfigError: no text, not one image per text, or an index of no image.
    """
    chosen = list(range(texts)) if image_of is None else list(image_of)
    whole = image_of is not None or texts == images
    if not texts or not whole or len(chosen) != texts or not all(0 <= i < images for i in chosen):
        got = ", ".join(map(str, chosen))
        raise ConfigError(f"image_of must name one of {images} image(s) for each of {texts} text(s), got {got}.")
    return chosen


def choose_layers(teacher: str, prefix: str, total: int, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
    """Return `chosen` of `total` layers called `prefix.i`: as many, evenly spaced up to the last; or those indices.

    None stands for `DEFAULT_LAYERS`, or for all where there are fewer.

    Raises:
        ConfigError: a number that is not in 1..total; indices that are no layers or not in ascending order.
    """
    if chosen is None:
        chosen = min(DEFAULT_LAYERS, total)
    if isinstance(chosen, int):
        if not 1 <= chosen <= total:
            raise ConfigError(f"layers must be 1 to {total} for {teacher}, got {chosen}.")
        chosen = [round(total * (i + 1) / chosen) - 1 for i in range(chosen)]
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= total:
        raise ConfigError(
            f"layer indices must be ascending and in 0..{total - 1} for {teacher}, got {', '.join(map(str, chosen))}."
        )
    return tuple(LayerSpec(name=f"{prefix}.{i}", depth=(i + 1) / total) for i in chosen)


def logit_scale_of(model: Any) -> float:
    """Return the inverse temperature that an open_clip model learnt as a logarithm; the same on every device."""
    return math.exp(float(model.logit_scale.detach().max()))


def supported(maps: Tensor, sigma: float) -> Tensor:
    """Multiply maps [..., gh, gw] by themselves blurred, and normalise: rows sum to 1 or stay zero.

    A lone cell loses to one of many, so peaks move from an object's rim inwards. This project's choice.

    Args:
        maps: rows sum to 1 or 0.
        sigma: of the Gaussian, in cells, cut at two of them; edge cells repeat beyond the edge. 0 changes nothing.
    """
    if not sigma:
        return maps
    down, across = (on_device(_blur(size, sigma).to(maps.dtype), maps.device) for size in maps.shape[-2:])
    weighted = maps * (down @ maps @ across.T)
    return weighted / weighted.sum((-2, -1), keepdim=True).clamp_min(1e-30)


def _blur(size: int, sigma: float) -> Tensor:
    """The matrix [size, size] that blurs a row of cells."""
    reach = max(1, round(2 * sigma))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    read = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)  # [size, taps]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, read, (weights / weights.sum()).expand(size, -1))


def normalised(mass: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Drop all but the last gh * gw columns of [C, L, M, P+N] and normalise.

    Returns maps [C, L, M, gh, gw] and kept [C, L, M].
    """
    patches = mass[..., -grid[0] * grid[1] :]
    total, on_patches = mass.sum(-1), patches.sum(-1)
    maps = torch.where(on_patches[..., None] > 0, patches / on_patches.clamp_min(1e-30)[..., None], 0.0)
    kept = torch.where(total > 0, on_patches / total.clamp_min(1e-30), 0.0)
    return maps.view(*maps.shape[:-1], *grid), kept


TEXTS_AT_ONCE = 4096
"""Texts whose embeddings are in memory at a time: ImageNet with CLIP's 80 templates has 80,000."""
COSINE = 0.999
"""Least cosine of a recomputed and a stored class embedding: the text tower's precision rounds."""


def class_embeddings(teacher: Teacher, classes: Sequence[str], templates: Sequence[str]) -> ZeroShot:
    """Embed every class: the mean over the templates of the unit text embeddings, made unit again.

    Args:
        teacher: that reads the texts.
        classes: one or more names; "_" is read as a space.
        templates: one or more, each with one `{}`.

    Raises:
        TeacherError: an embedding is not finite, or those of a class cancel out.
    """
    names, parts = readable_names(classes), []
    step = max(1, TEXTS_AT_ONCE // len(templates))
    for first in progress_bar(range(0, len(names), step), desc="classes", unit="batch", delay=2):
        chosen = names[first : first + step]
        texts = [template.format(name) for name in chosen for template in templates]
        each = F.normalize(teacher.embed_texts(texts).float(), dim=-1).view(len(chosen), len(templates), -1)
        parts.append(F.normalize(each.mean(1), dim=-1))
    embeddings = torch.cat(parts)
    if not torch.allclose(embeddings.norm(dim=-1), torch.ones(len(embeddings)), atol=1e-3):
        bad = names[int((embeddings.norm(dim=-1) - 1).abs().nan_to_num(nan=2.0).argmax())]
        raise TeacherError(
            f"Text embeddings of a class must be finite and not cancel out; those of {bad!r} in {len(templates)} "
            "template(s) do not give a direction. Check the teacher's weights, or give other prompts."
        )
    return ZeroShot(
        names=tuple(classes),
        templates=tuple(templates),
        logit_scale=teacher.logit_scale,
        embeddings=embeddings.numpy().astype(np.float16),
    )


def class_faults(store: TargetStore, teacher: Teacher, *, share: float, seed: int | None) -> Iterator[Fault]:
    """Yield a fault for each class, of a random share of them, whose stored embedding is not the teacher's.

    Args:
        store: a cache whose files are intact; one without class embeddings has none of these faults.
        teacher: that the spec names.
        share: of the classes, in (0, 1]; at least one is embedded again.
        seed: of the choice; None chooses others each time.
    """
    stored = store.zero_shot
    if stored is None:
        return
    count = max(1, round(share * len(stored.names)))
    chosen = np.sort(np.random.default_rng(seed).choice(len(stored.names), count, replace=False))
    made = class_embeddings(teacher, [stored.names[i] for i in chosen.tolist()], stored.templates)
    remedy = "Extract into another directory."
    if not math.isclose(made.logit_scale, stored.logit_scale, rel_tol=SCALE_TOLERANCE):
        message = f"The logit scale is {stored.logit_scale:.6g}, the teacher's is {made.logit_scale:.6g}. {remedy}"
        yield Fault(shard=None, file="classes.json", sample=None, message=message)
    ours = F.normalize(torch.from_numpy(stored.embeddings[chosen]).float(), dim=-1)
    cosines = (ours * torch.from_numpy(made.embeddings).float()).sum(-1)
    for name, cosine in zip(made.names, cosines.tolist(), strict=True):
        if not cosine > COSINE:
            message = f"The cosine of class {name} and the teacher's is {cosine:.4f}, below {COSINE}. {remedy}"
            yield Fault(shard=None, file="classes.npy", sample=None, message=message)
