"""The closed form against autograd through the model's own modules, one word and one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.contrastive import contrastive_mass, first_query

FORMS = ("pooler", "parallel")
WORDS, IMAGES = 3, 2


def _attend(layer: nn.MultiheadAttention, queries: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """[T, C], [S, D] -> output [T, C] and the probabilities [H, T, S] on its path, head by head from raw weights."""
    width, heads = layer.embed_dim, layer.num_heads
    if layer.in_proj_weight is None:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    else:
        weights = [layer.in_proj_weight[i * width : (i + 1) * width] for i in range(3)]
    biases = [layer.in_proj_bias[i * width : (i + 1) * width] for i in range(3)]
    q, k, v = (x @ w.T + b for x, w, b in zip((queries, inputs, inputs), weights, biases, strict=True))
    parts = [slice(head * width // heads, (head + 1) * width // heads) for head in range(heads)]
    probabilities = torch.stack([(q[:, p] @ k[:, p].T / (width / heads) ** 0.5).softmax(-1) for p in parts])
    mixed = torch.cat([probabilities[head] @ v[:, part] for head, part in enumerate(parts)], dim=-1)
    return mixed @ layer.out_proj.weight.T + layer.out_proj.bias, probabilities


def _embed(visual: Any, form: str, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, D] -> z [E], the tokens after the LayerNorm by which they enter, the attention [H, queries, T]."""
    if form == "parallel":
        pool = visual.attn_pool_contrastive
        entering = pool.ln_k(visual.ln_post(tokens))
    else:
        pool = visual.attn_pool
        entering = pool.ln_k(tokens)
    out, attention = _attend(pool.attn, pool.ln_q(pool.query), entering)
    pooled = (out if form == "parallel" else visual.ln_post(out))[0] @ visual.proj
    return pooled / pooled.norm(), entering, attention


def _expected(visual: Any, form: str, tokens: Tensor, direction: Tensor, steps: int) -> Tensor:
    tokens = tokens.clone().requires_grad_()
    z, entering, attention = _embed(visual, form, tokens)
    at_entering, at_attention = torch.autograd.grad(z @ direction, [entering, attention])
    if steps == 1:
        first = (at_entering * entering).sum(-1)
    else:
        start = tokens.detach()[1:].mean(0, keepdim=True)
        path = []
        for step in range(steps):
            x = (start + (tokens.detach() - start) * (step + 0.5) / steps).requires_grad_()
            path.append(torch.autograd.grad(_embed(visual, form, x)[0] @ direction, x)[0])
        first = (torch.stack(path).mean(0) * (tokens.detach() - start)).sum(-1)
    return (first.clamp_min(0) * (attention * at_attention.clamp_min(0))[:, 0].mean(0)).detach()


def _made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 4])
def test_mass_is_that_of_the_definition(random_coca: Callable[[str], CocaTeacher], form: str, steps: int) -> None:
    visual = random_coca(form).model.visual
    query = first_query(visual)
    assert query is not None
    width = visual.conv1.out_channels
    tokens, directions = _made(1, IMAGES, 17, width), _made(2, WORDS, IMAGES, visual.proj.shape[1])
    directions[1, 0] = 0  # a word that is not asked for
    found = contrastive_mass(query, tokens, directions, steps)
    assert found.shape == (IMAGES, WORDS, 17)
    assert not found[0, 1].any()
    for b in range(IMAGES):
        for m in range(WORDS):
            expected = _expected(visual, form, tokens[b], directions[m, b], steps)
            torch.testing.assert_close(found[b, m], expected, atol=1e-7, rtol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_the_query_gives_the_models_own_embedding(random_coca: Callable[[str], CocaTeacher], form: str) -> None:
    model = random_coca(form).model
    query = first_query(model.visual)
    assert query is not None
    images, caught = _made(3, IMAGES, 3, 32, 32), []
    handle = model.visual.transformer.register_forward_hook(lambda layer, args, output: caught.append(output))
    expected = model.encode_image(images, normalize=True).flatten(1)
    handle.remove()
    entering, _ = query.enter(caught[0])
    attention = (query.readers @ entering.transpose(1, 2)).softmax(-1)
    torch.testing.assert_close(query.embed(attention @ entering)[1], expected, atol=1e-5, rtol=1e-4)


def test_several_steps_come_near_the_change_of_the_score(random_coca: Callable[[str], CocaTeacher]) -> None:
    """Completeness of integrated gradients: before relu and attention, the parts sum to the score's change."""
    from lfi_pipeline.teachers import contrastive

    visual = random_coca("pooler").model.visual
    query = first_query(visual)
    assert query is not None
    tokens, direction = _made(4, 1, 17, visual.conv1.out_channels), _made(5, 1, 1, visual.proj.shape[1])
    change = tokens - tokens[:, 1:].mean(1, keepdim=True)
    steps, total = 400, torch.zeros(())
    for step in range(steps):
        there = contrastive._look(query, tokens - change * (1 - (step + 0.5) / steps), direction, change)
        assert there.change is not None
        total = total + contrastive._along(query, there, there.change).sum() / steps
    ends = [_embed(visual, "pooler", x[0])[0] @ direction[0, 0] for x in (tokens, tokens - change)]
    torch.testing.assert_close(total, ends[0] - ends[1], atol=2e-3, rtol=2e-2)


def test_a_pooler_that_is_not_one_query_has_none(random_coca: Callable[[str], CocaTeacher]) -> None:
    assert first_query(random_coca("cascade").model.visual) is None
    assert first_query(random_coca("no pooler").model.visual) is None
