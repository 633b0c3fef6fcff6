"""Patches in which a vision transformer stores what has nothing to do with their place, and maps without them.

Large ViTs turn a few patches of plain background into registers: their tokens get several times the norm of the others
and global content (Darcet, Oquab, Mairal, Bojanowski, ICLR 2024, arXiv 2309.16588), written by few neurons into few
channels (Sun et al., "Massive Activations in Large Language Models", COLM 2024, arXiv 2402.17762, section 5; Jiang et
al., 2025, arXiv 2506.08010). A map that peaks there points at nothing.

A norm alone does not tell them: in the embedded teacher, which has none, tokens of objects have up to eight times the
median norm. So a patch is an artefact if both hold, in its own image:

- its norm is over `RATIO` times the median norm of the image's patches,
- `CHANNELS` of the channels (2 at least) hold over `SHARE` of its squared norm.

These bounds are this project's choice: the embedded teacher has no such patch in any of its blocks (over two objects'
worth of scenes the greatest share is 0.3 where the first bound holds), a planted massive activation has a share near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.teachers.attention import outputs_of
from lfi_pipeline.teachers.teacher import Teacher

RATIO, CHANNELS, SHARE = 2.0, 0.01, 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtefactCount:
    """Artefacts among the patches of some images after one block.

    Attributes:
        layer: name of the block.
        images: looked at.
        with_artefacts: images that have one.
        share: of all patches.
        largest_norm: of any patch, over the median norm of its image's patches.
    """

    layer: str
    images: int
    with_artefacts: int
    share: float
    largest_norm: float


def artefact_patches(tokens: Tensor, patches: int) -> Tensor:
    """Return which patches are artefacts, bool [..., N].

    Args:
        tokens: [..., T, D] after a block; the last `patches` of them are patches.
        patches: N.
    """
    found = tokens[..., -patches:, :].detach().float()
    norms = found.norm(dim=-1)
    large = norms > RATIO * norms.median(-1, keepdim=True).values
    result = torch.zeros_like(large)
    if large.any():
        squares = found[large].square()
        few = max(2, round(CHANNELS * squares.shape[-1]))
        result[large] = squares.topk(few).values.sum(-1) > SHARE * squares.sum(-1)
    return result


def count_artefacts(tokens: Tensor, patches: int, layer: str) -> ArtefactCount:
    """Count the artefacts among `tokens` [B, T, D] after the block called `layer`."""
    found = artefact_patches(tokens, patches)
    norms = tokens[:, -patches:].float().norm(dim=-1)
    return ArtefactCount(
        layer=layer,
        images=len(tokens),
        with_artefacts=int(found.any(-1).sum()),
        share=float(found.float().mean()),
        largest_norm=float((norms / norms.median(-1, keepdim=True).values).max()),
    )


@torch.no_grad()
def artefacts_by_block(teacher: Teacher, pixels: Tensor) -> tuple[ArtefactCount, ...]:
    """Count the artefacts after each block of a teacher's trunk, for a report.

    Args:
        teacher: any.
        pixels: normalised images [B, 3, H, W] at its size, on its device.
    """
    with outputs_of(teacher.blocks) as after:
        teacher.model.encode_image(pixels)
    count = teacher.grid[0] * teacher.grid[1]
    return tuple(count_artefacts(tokens, count, f"block {i}") for i, tokens in enumerate(after))


def without_artefacts(mass: Tensor, artefacts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give each artefact the median mass of those of its eight neighbours that are none.

    So it is no peak, takes little where its surroundings have little, and leaves no hole in an object.

    Args:
        mass: [B, L, M, P+N], the last N = gh * gw columns on patches; other columns stay.
        artefacts: bool [B, L, N].
        grid: (gh, gw).
    """
    if not artefacts.any():
        return mass
    count = grid[0] * grid[1]
    found = mass.clone()
    touched = artefacts.any(-1)  # [B, L]
    patches, flagged = mass[touched][..., -count:], artefacts[touched][:, None]  # [R, M, N], [R, 1, N]
    sound = patches.masked_fill(flagged, torch.nan).view(-1, 1, *grid)
    around = F.unfold(F.pad(sound, (1, 1, 1, 1), value=torch.nan), 3)  # [R M, 9, N]; its own cell is nan if asked for
    median = around.nanmedian(1).values.nan_to_num(nan=0.0).view(patches.shape)
    filled = found[touched]
    filled[..., -count:] = torch.where(flagged, median, patches)
    found[touched] = filled
    return found
