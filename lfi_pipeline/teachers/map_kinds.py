"""How a map is made from one reading of a caption: the kinds.

All are this project's choice (the paper's selection is not public). With s_w the score of word w:

- `attention`: head mean of the decoder's cross-attention at the word's rows, composed with the pooler.
- `gradcam`: A * relu(d s_w / dA) of the decoder's cross-attention, head mean, composed with the pooler (the
  gradient weighting of Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679, equation 5, one layer at a time).
- `gradcam_pooler`: the same on the pooler's attention, summed over its queries.
- `relevance`: relu(sum_d g x) at the patch tokens x that enter the pooler, g = d s_w / dx (gradient times input), taken
  after the pooler's LayerNorm: before it the sum is zero up to rounding, since scaling a token changes nothing. Without
  a pooler, the sum of that over the LayerNorms by which tokens enter the decoder's layers.
- `integrated`: relu(sum_d g (x - b)), g the mean gradient along the straight path from b, the image's mean patch token,
  to x: integrated gradients (Sundararajan, Taly, Yan, ICML 2017, arXiv 1703.01365, equation 3) in `STEPS` steps. The
  baseline is the image with its places made alike, so a patch counts by what sets it apart.
- `agreement`: `integrated` times `gradcam_pooler`: what a patch adds, where the pooler looks for it. The default.

s_w is the log-probability of the word where it is emitted, mean over its tokens. Its gradient sets the word against the
others that could have come next, which the gradient of the bare logit does not. README has how each kind points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lfi_pipeline.teachers.words import Word

POOLER, TRUNK = "visual.attn_pool", "visual.trunk"
STEPS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """Which words of which captions to map.

    Attributes:
        ids: token ids [B, T].
        words: for each image the words that get a row, None for an empty one.
        row: `emitting` or `reading`.
        layers: names of decoder layers, for kinds that have several.
    """

    ids: Tensor
    words: Sequence[Sequence[Word | None]]
    row: str
    layers: Sequence[str]

    @property
    def slots(self) -> int:
        """M, the most rows of any image (1 at least)."""
        return max(1, max(len(words) for words in self.words))

    def select(self, slot: int) -> Tensor:
        """Weights [B, T-1] that average over the rows of the word in `slot`; all zero where there is none."""
        weights = torch.zeros(len(self.words), self.ids.shape[1] - 1)
        for b, words in enumerate(self.words):
            word = words[slot] if slot < len(words) else None
            if word is not None:
                rows = [p - 1 if self.row == "emitting" else p for p in word.positions]
                weights[b, rows] = 1 / len(rows)
        return weights.to(self.ids.device)


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass of pooler and decoder.

    Attributes:
        request: what is asked.
        entering: the tokens after each LayerNorm by which they enter the pooler [B, 1+N, D] or decoder [B, N, D].
        log_probability: [B, T-1], of the token that each row emits.
        probabilities: layer name -> attention [B, H, rows, columns].
    """

    request: Request
    entering: Sequence[Tensor]
    log_probability: Tensor
    probabilities: dict[str, Tensor]

    def gradients(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Gradients of s_w in `inputs` for each slot, over the whole batch at once: images do not interact."""
        slots = self.request.slots
        return [
            torch.autograd.grad(
                (self.log_probability * self.request.select(slot)).sum(), inputs, retain_graph=slot < slots - 1
            )
            for slot in range(slots)
        ]

    def to_patches(self, rows: Tensor) -> Tensor:
        """Compose decoder rows [..., B, Q] with the head-mean attention [B, Q, 1+N] of the pooler's last Q queries."""
        if POOLER not in self.probabilities:
            return rows
        pool = self.probabilities[POOLER].mean(1)[:, -rows.shape[-1] :]
        return torch.einsum("...bq,bqn->...bn", rows, pool)


Read = Callable[[Tensor], Reading]  # from the trunk's tokens [B, 1+N, D]


def _attention(read: Read, tokens: Tensor) -> Tensor:
    reading = read(tokens)
    request = reading.request
    per_layer = [reading.probabilities[name].mean(1) for name in request.layers]  # each [B, T-1, Q]
    slots = [
        torch.stack([torch.einsum("bt,btq->bq", request.select(slot), rows) for rows in per_layer])
        for slot in range(request.slots)
    ]
    return reading.to_patches(torch.stack(slots, dim=1)).permute(2, 0, 1, 3)  # [L, M, B, n] -> [B, L, M, n]


def _gradcam(read: Read, tokens: Tensor) -> Tensor:
    reading = read(tokens.requires_grad_())
    request = reading.request
    attention = [reading.probabilities[name] for name in request.layers]  # each [B, H, T-1, Q]
    slots = []
    for slot, gradients in enumerate(reading.gradients(attention)):
        weights = request.select(slot)
        weighted = [(a * g.relu()).mean(1) for a, g in zip(attention, gradients, strict=True)]
        slots.append(torch.stack([torch.einsum("bt,btq->bq", weights, rows) for rows in weighted]))
    return reading.to_patches(torch.stack(slots, dim=1)).permute(2, 0, 1, 3)


def _gradcam_pooler(read: Read, tokens: Tensor) -> Tensor:
    reading = read(tokens.requires_grad_())
    attention = reading.probabilities[POOLER]  # [B, H, Q, 1+N]
    slots = [(attention * gradient.relu()).mean(1).sum(1) for (gradient,) in reading.gradients([attention])]
    return torch.stack(slots, dim=1)[:, None]


def _relevance(read: Read, tokens: Tensor) -> Tensor:
    reading = read(tokens.requires_grad_())
    slots = [
        torch.stack([(g * x).sum(-1) for g, x in zip(gradients, reading.entering, strict=True)]).sum(0).relu()
        for gradients in reading.gradients(reading.entering)
    ]
    return torch.stack(slots, dim=1)[:, None]


def _integrated(read: Read, tokens: Tensor) -> Tensor:
    change = tokens - tokens[:, 1:].mean(1, keepdim=True)
    mass = torch.zeros((), device=tokens.device)
    for step in range(1, STEPS + 1):
        x = (tokens - change * (1 - step / STEPS)).requires_grad_()
        gradients = torch.stack([gradient for (gradient,) in read(x).gradients([x])], dim=1)  # [B, M, 1+N, D]
        mass = mass + (gradients * change[:, None]).sum(-1)
    return mass.relu()[:, None]  # [B, 1, M, 1+N]


def _agreement(read: Read, tokens: Tensor) -> Tensor:
    return _integrated(read, tokens) * _gradcam_pooler(read, tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One way to make maps.

    Attributes:
        make: from a reader and the trunk's tokens to unnormalised mass on CLS and patches [B, L, M, 1+N] (on patches
            alone, [B, L, M, N], where the model shows its decoder the patches).
        place: the one place in the model where it is taken; "" for kinds with a map per decoder layer.
        attention: it is made of attention probabilities, so those must be probed.
        pooler: it cannot do without an attentional pooler.
        gradient: it differentiates.
    """

    make: Callable[[Read, Tensor], Tensor]
    place: str = ""
    attention: bool = False
    pooler: bool = False
    gradient: bool = True


KINDS: dict[str, Kind] = {
    "attention": Kind(make=_attention, attention=True, gradient=False),
    "gradcam": Kind(make=_gradcam, attention=True),
    "gradcam_pooler": Kind(make=_gradcam_pooler, place=POOLER, attention=True, pooler=True),
    "relevance": Kind(make=_relevance, place=TRUNK),
    "integrated": Kind(make=_integrated, place=TRUNK),
    "agreement": Kind(make=_agreement, place=TRUNK, attention=True, pooler=True),
}
