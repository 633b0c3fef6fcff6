"""One interface to the vision transformers of open_clip's dual encoders, of open_clip's own make or timm's.

Two makes exist: open_clip's own `VisionTransformer`, and timm's `VisionTransformer` (SigLIP) and `Eva` (EVA-CLIP, PE)
inside open_clip's `TimmModel` or our `TimmTower`. They pool their tokens in three ways: the CLS token (`token`), the
mean of the patches (`average`), or a learned query's attention over them (`attention`; SigLIP calls it MAP).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.teachers.attention import attend, probe_attention, split_heads
from lfi_pipeline.teachers.transformers_folder import TimmTower

POOL = "visual.trunk.attn_pool"


@dataclass(frozen=True, slots=True)
class Trunk:
    """One vision tower.

    Attributes:
        visual: the tower: images in, embeddings [B, E] out.
        prefix: module path of its blocks.
        blocks: its transformer blocks, each with an attention called `attn`.
        pooling: how tokens become one embedding.
        norm: the module whose output an `average` is taken of.
        grid: (gh, gw) of its patches, which are its last tokens.
    """

    visual: Any
    prefix: str
    blocks: list[Any]
    pooling: Literal["token", "average", "attention"]
    norm: nn.Module
    grid: tuple[int, int]

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return self.grid[0] * self.grid[1]

    @property
    def own_blocks(self) -> bool:
        """Whether these are open_clip's own blocks, with a CLS token that is pooled."""
        return self.pooling == "token" and isinstance(self.visual, VisionTransformer)

    @property
    def width(self) -> int:
        """Width of the tokens, D."""
        if isinstance(self.visual, VisionTransformer):
            return int(self.visual.conv1.out_channels)
        return int(self.visual.trunk.embed_dim)

    def embed_alone(self, tokens: Tensor) -> Tensor:
        """Embed each token [B, N, D] as the model would were it all that is pooled: [B, N, E].

        For CLS and average pooling that is the model's final norm and projection. The attention of a pool over one
        token is one, so for attention pooling it is the pool's value path, with its own projection and MLP.
        """
        visual = self.visual
        if isinstance(visual, VisionTransformer):
            x = visual.ln_post(tokens)
            embedded: Tensor = x @ visual.proj if visual.proj is not None else x
            return embedded
        trunk = visual.trunk
        x = trunk.norm(tokens)
        if self.pooling == "attention":
            x = torch.stack([trunk.attn_pool(each[:, None]) for each in x])
        embedded = visual.head(trunk.head(trunk.fc_norm(x)))
        return embedded

    @contextmanager
    def probed(self, names: list[str], precise: torch.device) -> Iterator[dict[str, Tensor]]:
        """Yield a dict that fills with the differentiable attention [B, H, T, S] of the named layers as the model runs.

        From the first of them on, the model computes in fp32.
        """
        with ExitStack() as stack:
            layers = {name: self._attention(name) for name in names}
            first = names[0].removeprefix(f"{self.prefix}.")
            start = layers[names[0]] if names[0] == POOL else self.blocks[int(first)]
            stack.enter_context(_full_precision_from(start, precise))
            ours = {name: layer for name, layer in layers.items() if isinstance(layer, nn.MultiheadAttention)}
            if ours:
                yield stack.enter_context(probe_attention(ours))
            else:
                yield stack.enter_context(_probe_timm(layers))

    @contextmanager
    def entering(self, precise: torch.device) -> Iterator[list[Tensor]]:
        """Yield a list that fills with the tokens [B, T, D] that enter the last pooling step, as leaves of autograd.

        They are normalised already: before a norm, gradient times input cancels. With a CLS token the last step is
        the attention of the last block, by which it takes its last look at the patches.
        """
        caught: list[Tensor] = []

        def leaf(x: Tensor) -> Tensor:
            caught.append(x.detach().float().requires_grad_())
            return caught[-1]

        with ExitStack() as stack:
            if self.pooling == "average":
                stack.enter_context(_full_precision_from(self.norm, precise))
                handle = self.norm.register_forward_hook(lambda _module, _args, output: leaf(output))
            else:
                last: Any = self._attention(POOL) if self.pooling == "attention" else self.blocks[-1]
                stack.enter_context(_full_precision_from(last, precise))
                place = last if self.pooling == "attention" else last.attn

                def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                    return (leaf(args[0]),) * len(args), kwargs  # query, key and value are one

                handle = place.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(handle.remove)
            yield caught

    def _attention(self, name: str) -> nn.Module:
        if name == POOL:
            pool: nn.Module = self.visual.trunk.attn_pool
            return pool
        attention: nn.Module = self.blocks[int(name.removeprefix(f"{self.prefix}."))].attn
        return attention


def trunk_of(visual: Any, name: str) -> Trunk:
    """See the vision tower of the model called `name` as a `Trunk`.

    Raises:
        TeacherError: it is not a plain vision transformer, so it has no patches to map.
    """
    if isinstance(visual, VisionTransformer):
        if visual.attn_pool is not None:
            raise _refused(name, "its attentional pooler belongs to a CoCa")
        if not isinstance(visual.transformer.resblocks[0].attn, nn.MultiheadAttention):
            raise _refused(name, "its attention is normalised in a way that is not written out here")
        pooling: Literal["token", "average"] = "average" if visual.pool_type == "avg" else "token"
        norm = visual.transformer if visual.final_ln_after_pool else visual.ln_post
        blocks = list(visual.transformer.resblocks)
        return Trunk(visual, "visual.transformer.resblocks", blocks, pooling, norm, tuple(visual.grid_size))
    trunk = visual.trunk if isinstance(visual, TimmModel | TimmTower) else visual
    if not isinstance(trunk, TimmVisionTransformer | Eva):
        raise _refused(name, f"its vision tower is a {type(trunk).__name__}, not a vision transformer")
    if type(trunk.patch_embed) is not PatchEmbed:
        raise _refused(name, f"its patches come out of a {type(trunk.patch_embed).__name__}, which mixes them first")
    pooled = {"token": "token", "avg": "average", "map": "attention"}.get(trunk.global_pool)
    if pooled is None or (pooled == "attention") != isinstance(trunk.attn_pool, AttentionPoolLatent):
        raise _refused(name, f"it pools its tokens by {trunk.global_pool!r}")
    grid = tuple(trunk.patch_embed.grid_size)
    return Trunk(visual, "visual.trunk.blocks", list(trunk.blocks), pooled, trunk.norm, grid)  # type: ignore[arg-type]


def _refused(name: str, why: str) -> TeacherError:
    return TeacherError(
        f"{name} must be a plain vision transformer to give maps over its patches, but {why}. "
        "`lfi teachers` lists those that can."
    )


@contextmanager
def _full_precision_from(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave the caller's autocast from `module` on; what enters it is cast to fp32."""

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        torch.set_autocast_enabled(device.type, False)  # until the caller's `with torch.autocast` ends
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args), kwargs

    handle = module.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _probe_timm(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """As `probe_attention`, of timm's layers.

    Its blocks write their attention out where `fused_attn` is off, and pass it through a dropout: a place to see it.
    """
    seen: dict[str, Tensor] = {}

    def catch(name: str, probabilities: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            probabilities.requires_grad_()
        seen[name] = probabilities
        return probabilities

    with ExitStack() as stack:
        for name, layer in layers.items():
            if isinstance(layer, AttentionPoolLatent):

                def pool(layer: Any, args: tuple[Any, ...], _output: Any, name: str = name) -> Tensor:
                    output, seen[name] = _pool(layer, args[0])
                    return output

                handle = layer.register_forward_hook(pool)
            else:
                stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False  # type: ignore[assignment]

                def dropped(_module: nn.Module, args: tuple[Any, ...], _output: Any, name: str = name) -> Tensor:
                    return catch(name, args[0])

                handle = layer.attn_drop.register_forward_hook(dropped)  # type: ignore[union-attr]
            stack.callback(handle.remove)
        yield seen


def _pool(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """`AttentionPoolLatent.forward` with its attention [B, H, latents, N] written out."""
    if layer.pos_embed is not None:
        x = x + layer.pos_embed
    query = layer.q_norm(split_heads(layer.q(layer.latent), layer.num_heads))
    key, value = (split_heads(each, layer.num_heads) for each in layer.kv(x).chunk(2, dim=-1))
    attended = attend(query, layer.k_norm(key), value)
    pooled = layer.proj(attended.mixed.transpose(1, 2).flatten(2))
    if layer.mlp is not None:
        pooled = pooled + layer.mlp(layer.norm(pooled))
    return pooled.mean(1) if layer.pool == "avg" else pooled[:, 0], attended.probabilities
