"""The block: gradients, and two independent truths (K and V built by hand; PyTorch's own attention)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_kernels import InteractionQueryBlock, interaction_query


@pytest.fixture(params=[True, False], ids=["folded", "projected"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the CPU, whatever the sizes ask for."""
    monkeypatch.setattr(interaction_query, "folds", lambda *_: request.param)


def make_block(
    query_dim: int = 12, feature_dim: int = 10, heads: int = 3, dtype: torch.dtype = torch.float64
) -> InteractionQueryBlock:
    """A block with an output projection that is not zero, so that every path carries something."""
    torch.manual_seed(0)
    block = InteractionQueryBlock(query_dim, feature_dim, heads)
    nn.init.xavier_uniform_(block.w_o)
    return block.to(dtype)


def draw(
    block: InteractionQueryBlock, batch: int = 2, words: int = 4, patches: int = 7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    queries = torch.randn(batch, words, block.query_dim, generator=g).to(block.w_q.dtype)
    features = torch.randn(batch, patches, block.feature_dim, generator=g).to(block.w_q.dtype)
    target = (2 * torch.randn(batch, words, patches, generator=g)).softmax(-1).to(block.w_q.dtype)
    weight = 1 - torch.rand(batch, words, generator=g).to(block.w_q.dtype)
    return queries.requires_grad_(), features.requires_grad_(), target, weight


def unfolded(
    block: InteractionQueryBlock, queries: Tensor, features: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The equations as they are usually computed: K, V and one map a head in memory."""
    heads, width = block.heads, block.query_dim // block.heads

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, width)).transpose(1, 2)

    x = F.layer_norm(features, (block.feature_dim,))
    q = split(F.layer_norm(queries, (block.query_dim,)) @ block.w_q)
    k, v = split(x @ block.w_k), split(x @ block.w_v)
    scores = q @ k.mT / math.sqrt(width)
    out = (F.softmax(scores, -1) @ v).transpose(1, 2).flatten(2) @ block.w_o
    maps = target[:, None].expand_as(scores)
    kl = F.kl_div(F.log_softmax(scores, -1), maps, reduction="none").sum(-1) * weight[:, None]
    return queries + out, kl


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=g)).sum() for out in outputs)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, inputs))


def test_gradients_are_those_of_finite_differences() -> None:
    block = make_block(6, 5, 2)
    queries, features, target, weight = draw(block, 2, 3, 4)
    weight[0, 0] = 0.0
    names = [name for name, _ in block.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def op(queries: Tensor, features: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights = dict(zip(names, parameters, strict=True))
        out: tuple[Tensor, Tensor] = torch.func.functional_call(block, weights, (queries, features, target, weight))
        return out

    assert torch.autograd.gradcheck(op, (queries, features, *parameters))


@pytest.mark.parametrize(("query_dim", "feature_dim", "heads"), [(12, 10, 3), (8, 8, 1), (6, 20, 6), (192, 48, 3)])
@pytest.mark.parametrize(("words", "patches"), [(1, 1), (4, 7), (17, 49)])
def test_matches_k_and_v_built_by_hand(query_dim: int, feature_dim: int, heads: int, words: int, patches: int) -> None:
    block = make_block(query_dim, feature_dim, heads)
    queries, features, target, weight = draw(block, 2, words, patches)
    inputs = [queries, features, *block.parameters()]
    found = block(queries, features, target, weight)
    truth = unfolded(block, queries, features, target, weight)
    for a, b in zip((*found, *gradients(found, inputs)), (*truth, *gradients(truth, inputs)), strict=True):
        torch.testing.assert_close(a, b)


def test_attention_is_that_of_multihead_attention_with_the_same_weights() -> None:
    block = make_block(12, 10, 3)
    queries, features, _, _ = draw(block)
    twin = nn.MultiheadAttention(12, 3, bias=False, kdim=10, vdim=10, batch_first=True, dtype=torch.float64)
    ours = {"q_proj_weight": block.w_q, "k_proj_weight": block.w_k, "v_proj_weight": block.w_v}
    twin.load_state_dict({name: w.detach().T for name, w in ours.items()} | {"out_proj.weight": block.w_o.T})
    x = F.layer_norm(features, (10,))
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    for ignore in (None, mask):
        out, maps = twin(F.layer_norm(queries, (12,)), x, x, key_padding_mask=ignore, average_attn_weights=False)
        torch.testing.assert_close(block(queries, features, key_padding_mask=ignore)[0], queries + out)
        torch.testing.assert_close(block.attention(queries, features, ignore), maps)


@pytest.mark.parametrize(("words", "patches"), [(1, 9), (17, 3)])  # folded; projected
def test_a_scale_multiplies_the_scores(words: int, patches: int) -> None:
    usual, scaled = make_block(), InteractionQueryBlock(12, 10, 3, scale=0.125).double()
    scaled.load_state_dict(usual.state_dict())
    with torch.no_grad():
        usual.w_q *= 0.125 * math.sqrt(4)  # what the four channels of a head divide by
    queries, features, target, weight = draw(usual, 2, words, patches)
    for a, b in zip(
        (*scaled(queries, features, target, weight), scaled.attention(queries, features)),
        (*usual(queries, features, target, weight), usual.attention(queries, features)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_cannot_be_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        InteractionQueryBlock(12, 10, 3, scale=scale)


def test_kl_is_that_of_the_maps_it_writes_out() -> None:
    block = make_block()
    queries, features, target, weight = draw(block)
    maps = block.attention(queries, features)
    assert maps.shape == (2, 3, 4, 7)
    by_hand = (target * (target / maps.transpose(0, 1)).log()).sum(-1).transpose(0, 1) * weight[:, None]
    torch.testing.assert_close(block(queries, features, target, weight)[1], by_hand)


def test_a_fresh_block_is_the_identity_and_can_leave_it() -> None:
    torch.manual_seed(0)
    block = InteractionQueryBlock(12, 10, 3).double()
    queries, features, target, weight = draw(block)
    out, kl = block(queries, features, target, weight)
    assert torch.equal(out, queries)
    (out.square().sum() + kl.sum()).backward()
    for name in ("w_q", "w_k", "w_o"):
        assert (getattr(block, name).grad != 0).any(), name


def test_an_affine_change_of_the_features_changes_nothing() -> None:
    """Layer norm without affine: what the patches say must not depend on the backbone's scale."""
    block = make_block()
    queries, features, target, weight = draw(block)
    found = block(queries, features * 1e3 + 5, target, weight)
    for a, b in zip(found, block(queries, features, target, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_codes_reach_the_op() -> None:
    block = make_block(dtype=torch.float32)
    queries, features, target, weight = draw(block)
    codes, scale = (target * 255).round().to(torch.uint8), torch.ones(2, 4)
    for companding in ("linear", "sqrt"):
        decoded = codes.float() / 255 if companding == "linear" else (codes.float() / 255) ** 2
        found = block(queries, features, codes, weight, scale, companding)[1]
        torch.testing.assert_close(found, block(queries, features, decoded, weight)[1])


def test_runs_under_autocast_and_in_bfloat16() -> None:
    block = make_block(48, 32, 3, dtype=torch.float32)
    queries, features, target, weight = draw(block, words=16, patches=49)
    truth = block(queries, features, target, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = block(queries, features, target, weight)
    cast[1].sum().backward()
    assert features.grad is not None
    narrow = block.to(torch.bfloat16)(queries.bfloat16(), features.bfloat16(), target, weight)
    assert narrow[0].dtype == torch.bfloat16
    for found in (cast, narrow):
        assert found[1].dtype == torch.float32
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((12, 10, 5), "query_dim must be divisible by heads, got 12 and 5"),
        ((12, 10, 0), "heads must be at least 1, got 0"),
        ((0, 10, 1), "query_dim must be at least 1, got 0"),
        ((12, -1, 1), "feature_dim must be at least 1, got -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InteractionQueryBlock(*sizes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    block = make_block()
    queries, features, _, _ = draw(block)
    with pytest.raises(ValueError, match=r"queries must be \[B, M, Dq\] with Dq=12, got shape \[2, 4, 11\]"):
        block(queries[..., :11], features)
    with pytest.raises(ValueError, match=r"features must be \[B, N, D\] with D=10, got shape \[2, 7, 9\]"):
        block(queries, features[..., :9])
    with pytest.raises(ValueError, match=r"features must be \[B, N, D\] with B=2 as in queries"):
        block(queries, features[:1])
    with pytest.raises(ValueError, match=r"features must be"):
        block.attention(queries, features[0])
    with pytest.raises(ValueError, match=r"features must hold at least one patch"):
        block(queries, features[:, :0])
    with pytest.raises(ValueError, match=r"features must be floating point, got torch.int64"):
        block(queries, features.long())
    with pytest.raises(ValueError, match=r"queries must be on cpu as the block is, got some on meta"):
        block(queries.to("meta"), features)
    with pytest.raises(ValueError, match=r"key_padding_mask must be \[B, N\] = \[2, 7\], got shape \[2, 6\]"):
        block(queries, features, key_padding_mask=torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"key_padding_mask must be bool"):
        block(queries, features, key_padding_mask=torch.zeros(2, 7))


def test_few_queries_are_folded_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sizes = {"patches": 196, "feature_dim": 384, "query_dim": 128, "heads": 4}
    found = [interaction_query.folds(words, **sizes) for words in (1, 16, 28, 32, 80, 1000)]
    assert found == [True, True, True, False, False, False]
    assert interaction_query.folds(70, **sizes | {"query_dim": 384})
