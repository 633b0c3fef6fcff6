"""A teacher of one's own: any `nn.Module` with three methods, whose maps are cached as those of any other teacher.

class Mine(torch.nn.Module):
    image_size = (224, 224)

    def embed_images(self, images): ...      # [B, 3, H, W] -> [B, E]
    def embed_texts(self, texts): ...        # N strings -> [N, E]
    def maps(self, images, words): ...       # B lists of words -> [B, L, M, gh, gw]

lfi.extract("photos", teacher=Mine(), out="shards")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, TeacherError
from lfi_pipeline.core.runtime import autocast, resolve_precision
from lfi_pipeline.targets import LayerSpec, MapSpec, TeacherSpec
from lfi_pipeline.teachers.config import require_row
from lfi_pipeline.teachers.registry import state_sha256
from lfi_pipeline.teachers.settings import COMMON_WORDS
from lfi_pipeline.teachers.teacher import (
    BaseTeacher,
    InteractionMaps,
    choose_layers,
    normalised,
    require_images,
)
from lfi_pipeline.teachers.text import EncodedText, Word

KIND, PREFIX = "own", "module"
_LOGIT_SCALE = 100.0  # that CLIP's training is bounded by, and ends at (Radford et al., ICML 2021, section 2.5)


@runtime_checkable
class TeacherModule(Protocol):
    """What a module must have to be a teacher.

    Attributes:
        image_size: (height, width) in pixels of the images that it takes.

    It may have more: `mean` and `std` (per RGB channel, of values in [0, 1]) by which images are normalised, 0 and 1
    where it has none; `logit_scale`, what the cosine of an image and a text is multiplied by to give a logit, else 100.
    """

    image_size: tuple[int, int]

    def embed_images(self, images: Tensor) -> Tensor:
        """Return embeddings [B, E] of normalised images [B, 3, H, W]; their lengths do not matter."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [N, E] of N texts in the space of the images; students are seeded by those of words."""
        ...

    def maps(self, images: Tensor, words: Sequence[Sequence[str]]) -> Tensor:
        """Return where each image holds its words: [B, L, M, gh, gw], none negative, at L depths, shallow to deep.

        Args:
            images: normalised, [B, 3, H, W].
            words: for each image its words; M is the most that one has, and what lies beyond an image's own is ignored.
        """
        ...


class ModuleTeacher(BaseTeacher):
    """A `Teacher` made of a `TeacherModule`. Its maps have the one kind `own`.

    Args:
        module: put in eval mode; no gradient of its parameters is taken.
        device: where to put it.
        precision: as `load_teacher` takes it; the module runs under autocast.

    Raises:
        ConfigError: `module` lacks something of `TeacherModule`.
        TeacherError: what a method returns has another shape, or is not finite; names the method.
    """

    default_kind = KIND
    can_generate = False
    compares = True
    interpolation = "bicubic"

    def __init__(self, module: nn.Module, *, device: str | torch.device = "cpu", precision: str = "fp32") -> None:
        _require_protocol(module)
        self.model: Any = module.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        height, width = getattr(module, "image_size")  # noqa: B009 - of the protocol, which nn.Module does not have
        self.image_size = (int(height), int(width))
        self.mean = _channels(module, "mean", 0.0)
        self.std = _channels(module, "std", 1.0)
        self.identity = TeacherSpec(
            name=f"{PREFIX}:{type(module).__qualname__}",
            tag="own",
            weights_sha256=state_sha256(module.state_dict()),
            family=PREFIX,
            precision=resolve_precision(precision, self._device),
        )
        pixels = torch.zeros(1, 3, *self.image_size, device=self._device)
        self.embedding_dim = int(self._embeddings("embed_texts", ["dog"], 1).shape[1])
        self._embeddings("embed_images", pixels, 1)
        maps = self._maps(pixels, [["dog"]])
        self._layers, self.grid = maps.shape[1], (maps.shape[3], maps.shape[4])

    @property
    def device(self) -> torch.device:
        """Where the module was put."""
        return self._device

    @property
    def blocks(self) -> list[nn.Module]:
        """None: nothing is known of what is inside, so artefacts are neither looked for nor taken out."""
        return []

    @property
    def kinds(self) -> tuple[str, ...]:
        """The one kind of map that a module gives."""
        return (KIND,)

    @property
    def logit_scale(self) -> float:
        """What the cosine of an image and a text embedding is multiplied by to give a logit."""
        return float(getattr(self.model, "logit_scale", _LOGIT_SCALE))

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the depths to take; see `Teacher`. None takes four, or all where there are fewer."""
        self._require_kind(kind)
        return choose_layers(self.identity.name, PREFIX, self._layers, chosen)

    def map_settings(
        self, kind: str, *, centre: Sequence[str] = COMMON_WORDS, steps: int = 0, artefacts: str = "fill"
    ) -> MapSpec:
        """Return how maps are made: as the module does, so the centre and artefacts mean nothing."""
        self._require_kind(kind)
        if steps:
            raise ConfigError(f"steps must be 0 for maps of a module of your own, got {steps}.", argument="steps")
        return MapSpec(steps=1, word_template=self.word_template, centre=(), artefacts="keep", support=0.0)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit embeddings [B, E] of normalised images [B, 3, H, W]."""
        return self._embeddings("embed_images", images, len(images))

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the text embedding of each text, fp32 unit vectors [N, E]."""
        parts = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
        embedded = [self._embeddings("embed_texts", list(part), len(part)).cpu() for part in parts]
        return torch.cat(embedded) if embedded else torch.zeros(0, self.embedding_dim)

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
        """Return the maps of `words[c]` (None leaves a row empty) over the image of caption c; see `Teacher`.

        The module is asked for the words of all captions of an image at once.
        """
        self._require_kind(kind)
        require_row(row, kind)
        chosen = require_images(len(texts), len(images), image_of)
        slots = max(1, *map(len, words), 1)
        requested: list[list[str]] = [[] for _ in images]
        for c, image in enumerate(chosen):
            requested[image] += [
                each.text for each in words[c] if each is not None and each.text not in requested[image]
            ]
        depths = [int(layer.name.rpartition(".")[2]) for layer in layers]
        made = self._maps(images, requested)[:, depths].float() if any(requested) else None
        mass = torch.zeros(len(texts), len(depths), slots, self.grid[0] * self.grid[1], device=images.device)
        for c, image in enumerate(chosen):
            for slot, word in enumerate(words[c]):
                if word is not None and made is not None:
                    mass[c, :, slot] = made[image, :, requested[image].index(word.text)].flatten(1)
        return InteractionMaps(*normalised(mass, self.grid), self.encode_image(images))

    def generate(self, images: Tensor) -> list[str]:
        """Refuse: a module of one's own has no method that writes.

        Raises:
            TeacherError: always.
        """
        raise TeacherError(f"{self.identity.name} cannot write captions. Give captions, prompts, or a vocabulary.")

    def _embeddings(self, method: str, inputs: Any, count: int) -> Tensor:
        with torch.no_grad(), autocast(self._device, self.precision):
            embeddings = getattr(self.model, method)(inputs)
        size = getattr(self, "embedding_dim", None)
        fits = isinstance(embeddings, Tensor) and embeddings.ndim == 2 and len(embeddings) == count
        if not fits or (size is not None and embeddings.shape[1] != size) or not torch.isfinite(embeddings).all():
            raise self._wrong(method, f"finite embeddings [{count}, {size or 'E'}]", embeddings)
        return F.normalize(embeddings.float(), dim=-1)

    def _maps(self, images: Tensor, words: Sequence[Sequence[str]]) -> Tensor:
        with torch.no_grad(), autocast(self._device, self.precision):
            maps: Tensor = self.model.maps(images, words)
        grid, most = getattr(self, "grid", None), max(map(len, words))
        fits = isinstance(maps, Tensor) and maps.ndim == 5 and len(maps) == len(images) and maps.shape[2] >= most
        known = fits and (grid is None or (maps.shape[1] == self._layers and tuple(maps.shape[3:]) == grid))
        if not known or not torch.isfinite(maps).all() or (maps < 0).any():
            shape = (
                f"[{len(images)}, {getattr(self, '_layers', 'L')}, {most}, {', '.join(map(str, grid or ('gh', 'gw')))}]"
            )
            raise self._wrong("maps", f"finite maps {shape}, none negative", maps)
        return maps

    def _wrong(self, method: str, wanted: str, value: Any) -> TeacherError:
        returned = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return TeacherError(f"{type(self.model).__qualname__}.{method} must return {wanted}, and returned {returned}.")


def _require_protocol(module: object) -> None:
    lacking = [name for name in ("image_size", "embed_images", "embed_texts", "maps") if not hasattr(module, name)]
    if not isinstance(module, nn.Module) or lacking:
        raise ConfigError(
            "A teacher of your own must be an nn.Module with image_size, embed_images, embed_texts and maps "
            f"(lfi_pipeline.teachers.TeacherModule); {type(module).__qualname__} "
            + (f"lacks {', '.join(lacking)}." if lacking else "is no nn.Module."),
            argument="teacher",
        )


def _channels(module: nn.Module, name: str, default: float) -> tuple[float, float, float]:
    red, green, blue = (float(each) for each in getattr(module, name, (default,) * 3))
    return red, green, blue
