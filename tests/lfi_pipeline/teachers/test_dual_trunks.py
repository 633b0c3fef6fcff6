"""Small towers of both makes and all poolings, with a pass that must stay the model's own while it is looked into."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.teachers.dual_trunks import POOL, Trunk, trunk_of

CPU = torch.device("cpu")
TOWERS = ("own token", "own average", "own average, norm after", "timm token", "timm average", "timm attention")


def built(name: str) -> Any:
    """A tower of two blocks on 32 x 48 pixels; embeddings have 8 numbers."""
    make, _, pooling = name.partition(" ")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if make == "own":
            visual: Any = VisionTransformer(
                image_size=(32, 48),
                patch_size=16,
                width=24,
                layers=2,
                heads=2,
                mlp_ratio=2.0,
                output_dim=8,
                pool_type="tok" if pooling == "token" else "avg",
                final_ln_after_pool=pooling.endswith("after"),
            )
        else:
            pool = {"token": "token", "average": "avg", "attention": "map"}[pooling]
            visual = TimmModel("test_vit", embed_dim=8, pool="avg", proj="linear")
            sizes = {"img_size": (32, 48), "patch_size": 16, "embed_dim": 24, "num_heads": 2, "depth": 2}
            kinds = {"num_classes": 0, "global_pool": pool, "class_token": pool == "token"}
            visual.trunk = timm.create_model("test_vit", **sizes, **kinds)
            visual.head = nn.Linear(24, 8)
        for parameter in visual.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return visual.eval()


@pytest.fixture(params=TOWERS)
def trunk(request: pytest.FixtureRequest) -> Trunk:
    return trunk_of(built(request.param), request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def tokens_of(trunk: Trunk, images: Tensor) -> Tensor:
    """What the last block gives [B, T, D]."""
    caught: list[Tensor] = []
    handle = trunk.blocks[-1].register_forward_hook(lambda _module, _args, output: caught.append(output))
    with torch.no_grad():
        trunk.visual(images)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_described(name: str) -> None:
    visual = built(name)
    found = trunk_of(visual, name)
    pooling = name.partition(" ")[2]
    assert found.pooling == pooling.partition(",")[0]
    assert found.grid == (2, 3)
    assert found.patches == 6
    assert found.width == 24
    assert found.own_blocks == (name == "own token")
    named = list(nn.ModuleDict({"visual": visual}).get_submodule(found.prefix))
    assert all(a is b for a, b in zip(found.blocks, named, strict=True))


def test_a_token_alone_is_embedded_as_the_model_embeds_its_pool(trunk: Trunk, images: Tensor) -> None:
    tokens = tokens_of(trunk, images)
    with torch.no_grad():
        expected = trunk.visual(images)
        if trunk.pooling == "token":
            found = trunk.embed_alone(tokens)[:, 0]
        elif trunk.pooling == "attention":  # over tokens that are all alike attention does not matter
            alike = tokens[:, :1].expand(-1, 6, -1)
            expected = trunk.visual.head(trunk.visual.trunk.forward_head(trunk.visual.trunk.norm(alike)))
            found = trunk.embed_alone(tokens[:, :1])[:, 0]
        elif trunk.norm is getattr(trunk.visual, "transformer", None):  # its norm comes after the mean
            found = trunk.embed_alone(tokens[:, -6:].mean(1, keepdim=True))[:, 0]
        else:  # norm by token, then nothing but a mean and a projection
            found = trunk.embed_alone(tokens[:, -6:]).mean(1)
            if hasattr(trunk.visual, "trunk"):  # unless timm has another norm after the mean
                alone = trunk.visual.trunk.fc_norm(trunk.visual.trunk.norm(tokens))
                expected = trunk.visual.head(alone)[:, -6:].mean(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_probing_shows_attention_on_the_path_and_changes_nothing(trunk: Trunk, images: Tensor) -> None:
    names = [f"{trunk.prefix}.{i}" for i in range(2)] + [POOL] * (trunk.pooling == "attention")
    fused = [getattr(block.attn, "fused_attn", None) for block in trunk.blocks]
    plain = trunk.visual(images).detach()
    with trunk.probed(names, CPU) as seen:
        found = trunk.visual(images)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert list(seen) == names
    for probabilities in seen.values():
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    gradients = torch.autograd.grad(found.sum(), list(seen.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    if trunk.pooling == "attention":
        assert seen[POOL].shape[2:] == (1, 6)
    assert [getattr(block.attn, "fused_attn", None) for block in trunk.blocks] == fused
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trunk.visual.modules())


def test_the_pass_goes_on_from_the_tokens_that_enter_the_pool(trunk: Trunk, images: Tensor) -> None:
    plain = trunk.visual(images).detach()
    with trunk.entering(CPU) as caught:
        found = trunk.visual(images)
    (tokens,) = caught
    assert tokens.is_leaf
    assert tokens.shape == (2, tokens_of(trunk, images).shape[1], trunk.width)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), tokens)
    assert (gradient[:, -6:].abs().amax((1, 2)) > 0).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trunk.visual.modules())


def test_what_is_looked_at_is_fp32_within_autocast_and_what_comes_before_is_not(trunk: Trunk, images: Tensor) -> None:
    before: list[torch.dtype] = []
    handle = trunk.blocks[0].mlp.register_forward_hook(lambda _module, _args, output: before.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        with trunk.entering(CPU) as caught:
            found = trunk.visual(images)
    assert torch.is_autocast_enabled("cpu") is False
    after_all = trunk.norm is getattr(trunk.visual, "transformer", None)  # all blocks lie within what its mean is of
    first = torch.float32 if after_all else torch.bfloat16
    assert before == [first]
    assert caught[0].dtype == found.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), trunk.probed([f"{trunk.prefix}.0"], CPU) as seen:
        trunk.visual(images)
    assert before == [first, torch.float32]
    assert seen[f"{trunk.prefix}.0"].dtype == torch.float32
    handle.remove()


def test_towers_that_attend_or_pool_in_other_ways_are_refused() -> None:
    own, other = built("own token"), built("timm average")
    own.transformer.resblocks[0].attn = nn.Identity()
    with pytest.raises(TeacherError, match=r"^a must be a plain .* its attention is normalised .*`lfi teachers` lists"):
        trunk_of(own, "a")
    other.trunk.global_pool = "max"
    with pytest.raises(TeacherError, match=r"^b must be a plain .* it pools its tokens by 'max'\."):
        trunk_of(other, "b")
    other.trunk.global_pool = "map"  # but there is no pool
    with pytest.raises(TeacherError, match=r"it pools its tokens by 'map'\."):
        trunk_of(other, "b")
    with pytest.raises(TeacherError, match="its vision tower is a Linear, not a vision transformer"):
        trunk_of(nn.Linear(2, 2), "c")
