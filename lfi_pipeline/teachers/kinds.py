"""How a map is made from one reading of a caption: the kinds.

All are this project's choice (the paper's selection was not known to us when this was written). With s_w the score of word w:

- `attention`: head mean of the decoder's cross-attention at the word's rows, composed with the pooler.
- `gradcam`: A * relu(d s_w / dA) of the decoder's cross-attention, head mean, composed with the pooler (the
  gradient weighting of Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679, equation 5, one layer at a time).
- `gradcam_pooler`: the same on the pooler's attention, summed over its queries.
- `relevance`: relu(sum_d g x) at the patch tokens x that enter the pooler, g = d s_w / dx (gradient times input), taken
  after the pooler's LayerNorm: before it the sum is zero up to rounding, since scaling a token changes nothing. Without
  a pooler, the sum of that over the LayerNorms by which tokens enter the decoder's layers.
- `integrated`: relu(sum_d g (x - b)), g the mean gradient along the straight path from b, the image's mean patch token,
  to x: integrated gradients (Sundararajan, Taly, Yan, ICML 2017, arXiv 1703.01365, equation 3) in 8 steps. The
  baseline is the image with its places made alike, so a patch counts by what sets it apart.
- `agreement`: `integrated` times `gradcam_pooler`: what a patch adds, where the pooler looks for it.
- `agreement_contrastive`: that times `contrastive`: what the decoder and the image embedding both say.
- `contrastive` needs no caption and is not made here: see `contrastive`.

s_w is the log-probability of the word where it is emitted, mean over its tokens. Its gradient sets the word against the
others that could have come next, which the gradient of the bare logit does not. README has how each kind points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_pipeline.teachers.attention import batched_gradients
from lfi_pipeline.teachers.caption_reader import CaptionReader, Request, Seen
from lfi_pipeline.teachers.contrastive import CONTRASTIVE, STEPS

POOLER, TRUNK, BLOCKS = "visual.attn_pool", "visual.trunk", "visual.transformer.resblocks"


@dataclass(frozen=True, slots=True)
class Reading:
    """The images as the decoder sees them, and a reader of their captions.

    Attributes:
        reader: reads the captions.
        seen: what the decoder sees, on the path from what entered.
        entering: the tokens after the LayerNorm by which they enter the pooler [B, 1+N, D]; None without a pooler.
        pooler: its attention [B, H, queries, 1+N]; None without a pooler.
    """

    reader: CaptionReader
    seen: Seen
    entering: Tensor | None
    pooler: Tensor | None

    @property
    def request(self) -> Request:
        """The captions, words and layers that maps are made of."""
        return self.reader.request

    def gradients(self, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Yield groups of slots [m] and the gradients of s_w in `inputs`, [m, B, ...]; images do not interact."""
        for slots, rows, cotangent in self.reader.readings(self.seen):
            at_tokens = self.reader.at_tokens(rows, cotangent)
            yield (
                slots,
                batched_gradients(self.seen.tokens, inputs, at_tokens),
            )

    def to_patches(self, rows: Tensor) -> Tensor:
        """Compose decoder rows [..., B, Q] with the head-mean attention [B, Q, 1+N] of the pooler's last Q queries."""
        if self.pooler is None:
            return rows
        pool = self.pooler.mean(1)[:, -rows.shape[-1] :]
        return torch.einsum("...bq,bqn->...bn", rows, pool)

    def empty(self, *shape: int) -> Tensor:
        """Zero mass [M, ...] for the slots to be filled in."""
        return torch.zeros(self.request.slots, *shape, device=self.seen.tokens.device)


Read = Callable[[Tensor], Reading]  # from the trunk's tokens [B, 1+N, D]


def _attention(read: Read, tokens: Tensor, _steps: int) -> Tensor:
    reading = read(tokens)
    looks = reading.reader.chosen(reading.reader.read(reading.seen, reading.request.length))
    weights = reading.request.weights
    rows = torch.stack([torch.einsum("mbt,btq->mbq", weights, look.probabilities.mean(1)) for look in looks])
    return reading.to_patches(rows).permute(2, 0, 1, 3)  # [L, M, B, n] -> [B, L, M, n]


def _gradcam(read: Read, tokens: Tensor, _steps: int) -> Tensor:
    reading = read(tokens)
    mass = reading.empty(len(reading.request.layers), *reading.seen.tokens.shape[:2])  # [M, L, B, Q]
    for slots, rows, cotangent in reading.reader.readings(reading.seen):
        attention = [look.probabilities for look in reading.reader.chosen(rows)]  # each [B, H, T, Q]
        gradients = batched_gradients(rows.hidden, attention, cotangent)
        weights = reading.request.weights[slots, :, : rows.hidden.shape[1]]
        weighted = [(a * g.relu()).mean(2) for a, g in zip(attention, gradients, strict=True)]
        mass[slots] = torch.stack([torch.einsum("mbt,mbtq->mbq", weights, each) for each in weighted], dim=1)
    return reading.to_patches(mass).permute(2, 1, 0, 3)  # [M, L, B, n] -> [B, L, M, n]


def _gradcam_pooler(read: Read, tokens: Tensor, _steps: int) -> Tensor:
    reading = read(tokens.requires_grad_())
    attention = reading.pooler
    assert attention is not None
    mass = reading.empty(len(tokens), attention.shape[-1])
    for slots, (gradient,) in reading.gradients([attention]):
        mass[slots] = _weighted(attention, gradient)
    return mass.transpose(0, 1)[:, None]


def _weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """A * relu(gradient): [B, H, Q, n] and [m, B, H, Q, n] -> [m, B, n], mean over heads, sum over queries."""
    return (attention * gradient.relu()).mean(2).sum(2)


def _relevance(read: Read, tokens: Tensor, _steps: int) -> Tensor:
    reading = read(tokens.requires_grad_())
    entering = reading.entering
    if entering is None:
        mass = reading.empty(*reading.seen.tokens.shape[:2])
        for slots, rows, cotangent in reading.reader.readings(reading.seen):
            mass[slots] = reading.reader.relevance_of_tokens(reading.seen, rows, cotangent).relu()
    else:
        mass = reading.empty(*entering.shape[:2])
        for slots, (gradient,) in reading.gradients([entering]):
            mass[slots] = torch.einsum("mbnd,bnd->mbn", gradient, entering.detach()).relu()
    return mass.transpose(0, 1)[:, None]


def _integrated(read: Read, tokens: Tensor, steps: int) -> Tensor:
    return _integrate(read, tokens, steps)[0].relu()[:, None]  # [B, 1, M, 1+N]


def _agreement(read: Read, tokens: Tensor, steps: int) -> Tensor:
    mass, pooled = _integrate(read, tokens, steps, pooler=True)
    assert pooled is not None
    return (mass.relu() * pooled)[:, None]


def _integrate(read: Read, tokens: Tensor, steps: int, pooler: bool = False) -> tuple[Tensor, Tensor | None]:
    """Gradient times change, summed along the path [B, M, 1+N], and on request the pooler's `_weighted` at its end."""
    change = tokens - tokens[:, 1:].mean(1, keepdim=True)
    mass: Tensor = torch.zeros((), device=tokens.device)
    weighted: Tensor | None = None
    for step in range(1, steps + 1):
        x = (tokens - change * (1 - step / steps)).requires_grad_()
        reading = read(x)
        step_mass = reading.empty(*x.shape[:2])
        weighted = reading.empty(*x.shape[:2]) if pooler and step == steps else None
        inputs = [x] if weighted is None or reading.pooler is None else [x, reading.pooler]
        for slots, gradients in reading.gradients(inputs):
            step_mass[slots] = torch.einsum("mbnd,bnd->mbn", gradients[0], change)
            if weighted is not None and reading.pooler is not None:
                weighted[slots] = _weighted(reading.pooler, gradients[1])
        mass = mass + step_mass.detach()
    return mass.transpose(0, 1), None if weighted is None else weighted.detach().transpose(0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One way to make maps.

    Attributes:
        make: from a reader, the trunk's tokens and a number of steps to unnormalised mass on CLS and patches
            [B, L, M, 1+N] (on patches alone, [B, L, M, N], where the model shows its decoder the patches); None where
            no caption is read.
        place: the one place in the model where it is taken; "" for kinds with a map per decoder layer.
        pooler: it needs an attentional pooler.
        gradient: it differentiates.
        steps: of integrated gradients unless others are asked for; 0 where it integrates nothing.
        support: as in `MapSpec`.
        contrastive: it needs a pooler whose first query makes the image embedding.
    """

    make: Callable[[Read, Tensor, int], Tensor] | None
    place: str = ""
    pooler: bool = False
    gradient: bool = True
    steps: int = 0
    support: float = 0.0
    contrastive: bool = False


KINDS: dict[str, Kind] = {
    "attention": Kind(make=_attention, gradient=False),
    "gradcam": Kind(make=_gradcam),
    "gradcam_pooler": Kind(make=_gradcam_pooler, place=POOLER, pooler=True),
    "relevance": Kind(make=_relevance, place=TRUNK),
    "integrated": Kind(make=_integrated, place=TRUNK, steps=8),
    "agreement": Kind(make=_agreement, place=TRUNK, pooler=True, steps=8),
    CONTRASTIVE: Kind(make=None, pooler=True, steps=STEPS, support=1.0, contrastive=True),
    "agreement_contrastive": Kind(make=_agreement, place=TRUNK, pooler=True, steps=8, support=1.0, contrastive=True),
}


def coca_kinds(*, pooler: bool | str) -> tuple[str, ...]:
    """Return the kinds that a CoCa can give, the default first.

    Args:
        pooler: open_clip's `attentional_pool`: whether it has a pooler, or `parallel` or `cascade`. In a cascade no
            query reads the image and makes its embedding, so nothing is contrastive.
    """
    one_query = bool(pooler) and pooler != "cascade"
    default = CONTRASTIVE if one_query else "agreement" if pooler else "relevance"
    names = [
        name for name, kind in KINDS.items() if (pooler or not kind.pooler) and (one_query or not kind.contrastive)
    ]
    return (default, *(name for name in names if name != default))
