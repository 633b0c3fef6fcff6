"""What is compared: sizes, the names they go by, and the least time that a GPU could take for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

import torch

WIDTHS = {"ViT-T/16": 192, "ViT-S/16": 384, "ViT-B/16": 768, "ViT-L/16": 1024}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEADS = 4
TOKENS = 262_144
"""Patch tokens of a batch on a GPU: they fill the chip."""
_WRITTEN = re.compile(r"(\S+) B(\d+) H(\d+) M(\d+) N(\d+) D(\d+) Dq(\d+) (fp32|fp16|bf16)(?: R(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of one comparison, and the dtype it is timed in; `maps` of the words of an image have a map, None: all."""

    model: str = "ViT-S/16"
    batch: int = 8
    heads: int = HEADS
    words: int = 16
    patches: int = 196
    query_dim: int = 128
    dtype: str = "fp32"
    maps: int | None = None

    @property
    def dim(self) -> int:
        """D, the width of a patch token of `model`."""
        return WIDTHS[self.model]

    def __str__(self) -> str:
        sizes = f"B{self.batch} H{self.heads} M{self.words} N{self.patches} D{self.dim} Dq{self.query_dim}"
        return f"{self.model} {sizes} {self.dtype}{'' if self.maps is None else f' R{self.maps}'}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read back what `str` wrote.

        Raises:
            ValueError: it is not the text of a shape.
        """
        match = _WRITTEN.fullmatch(text)
        if match is None or WIDTHS.get(match[1]) != int(match[6]):
            raise ValueError(f"A shape must read like {cls()}, got {text!r}.")
        batch, heads, words, patches, _, query_dim = map(int, match.groups()[1:7])
        return cls(
            model=match[1],
            batch=batch,
            heads=heads,
            words=words,
            patches=patches,
            query_dim=query_dim,
            dtype=match[8],
            maps=None if match[9] is None else int(match[9]),
        )


def known(kind: str, names: Iterable[str], choices: Collection[str], where: str = "") -> None:
    """Refuse a name that is not among the choices; `where` follows the name in the message, as in " on cpu".

    Raises:
        ValueError: there is one.
    """
    for name in names:
        if name not in choices:
            raise ValueError(f"Unknown {kind} {name!r}{where}. Choices: {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Which shapes to compare, every combination; empty: what `shapes` chooses for the device.

    Attributes:
        models: names in WIDTHS.
        patches: numbers N of patches.
        words: numbers M of words.
        query_dims: channels Dq of a query, multiples of the 4 heads; D: as many as a patch has.
        maps: of the words of an image that have a map; 0: inference, None: all of them have one.

    Raises:
        ValueError: a name or number that is none.
    """

    models: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    query_dims: tuple[str, ...] = ()
    maps: int | None = None

    def __post_init__(self) -> None:
        known("model", self.models, WIDTHS)
        for field, most in (("patches", 4096), ("words", 21_000)):
            for text in getattr(self, field):
                if not (text.isdecimal() and 1 <= int(text) <= most):
                    raise ValueError(f"{field} must be whole numbers from 1 to {most}, got {text!r}.")
        for text in self.query_dims:
            if text != "D" and not (text.isdecimal() and int(text) and int(text) % HEADS == 0):
                raise ValueError(f"query-dims must be D (that of a patch) or multiples of {HEADS}, got {text!r}.")

    def named(self, other: Sizes) -> Sizes:
        """Return these sizes, with those of `other` where these are empty; `maps` stays."""
        named = {each.name: getattr(self, each.name) or getattr(other, each.name) for each in fields(self)}
        return Sizes(**named | {"maps": self.maps})


_ON_GPU = Sizes(models=tuple(WIDTHS), patches=("196", "256", "1024"), words=("16", "32"), query_dims=("128", "D"))
_ON_CPU = Sizes(models=("ViT-T/16", "ViT-S/16"), patches=("196",), words=("8", "16"), query_dims=("128", "D"))


def shapes(device: str, chosen: Sizes | None = None, *, quick: bool = False) -> list[Shape]:
    """List the shapes.

    On a GPU every model in bf16, with batches that fill it and whose features are at least four times its L2 cache;
    on the CPU the two small models in fp32, 8 images at a time.
    """
    chosen = chosen or Sizes()
    is_cuda = device.startswith("cuda")
    dtype = "bf16" if is_cuda else "fp32"
    if quick:
        tiny = Sizes(models=("ViT-T/16",), patches=("16",), words=("3",), query_dims=("128",))
        sizes, cache = chosen.named(tiny), 0
    else:
        sizes = chosen.named(_ON_GPU if is_cuda else _ON_CPU)
        cache = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0

    def batch(model: str, patches: int) -> int:
        if quick:
            return 2
        return batch_beyond(cache, WIDTHS[model], patches) if is_cuda else 8

    return [
        Shape(
            model=model,
            batch=batch(model, int(patches)),
            words=int(words),
            patches=int(patches),
            query_dim=WIDTHS[model] if query_dim == "D" else int(query_dim),
            dtype=dtype,
            maps=None if sizes.maps is None else min(sizes.maps, int(words)),
        )
        for model in sizes.models
        for patches in sizes.patches
        for words in sizes.words
        for query_dim in sizes.query_dims
    ]


def batch_beyond(cache: int, dim: int, patches: int) -> int:
    """Return how many samples make TOKENS tokens, and 16-bit features of four times `cache` bytes or more."""
    tokens = max(TOKENS, -(-4 * cache // (2 * dim)))
    return -(-tokens // patches)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Rates of this GPU, measured in this run.

    Attributes:
        copied: bytes a second, read and written, of a copy of 1 GiB.
        products: operations a second of an 8192 x 8192 x 8192 bf16 matrix product of random numbers.
    """

    copied: float
    products: float

    def least_seconds(self, shape: Shape) -> dict[str, float]:
        """The least time of the block by pass: its bytes at `copied`, its operations at `products` if that is longer.

        Forward: x, the codes and the queries are read, the new queries and kl written; keys and values, scores and
        values, W_q and W_o. Backward: x read and dx written, codes, queries and two gradients read, one written; twice
        the products. Both: the one after the other. Without a target there is no backward pass.
        """
        tokens, rows = shape.batch * shape.patches, shape.batch * shape.words
        maps = rows if shape.maps is None else shape.batch * shape.maps
        x, codes, queries, kl = (
            2 * tokens * shape.dim,
            maps * shape.patches,
            2 * rows * shape.query_dim,
            4 * maps * shape.heads,
        )
        products = 2 * tokens * shape.dim * 2 * shape.query_dim
        products += 4 * rows * shape.patches * shape.query_dim + 4 * rows * shape.query_dim**2
        forward = max((x + codes + 2 * queries + kl) / self.copied, products / self.products)
        if shape.maps == 0:
            return {"forward": forward}
        backward = max((2 * x + codes + 4 * queries + kl) / self.copied, 2 * products / self.products)
        return {"forward": forward, "backward": backward, "both": forward + backward}
