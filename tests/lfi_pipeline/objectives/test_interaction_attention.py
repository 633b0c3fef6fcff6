"""A linear head that looks: what is compared, in which students, and that nothing is added to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.students import StudentConfig

MakeBench = Callable[..., Any]
RESNET = StudentConfig(name="resnet18", image_size=64, kwargs={"layers": [1] * 4, "channels": [8, 8, 16, 16]})
NO_TOKEN = {"depth": 3, "embed_dim": 32, "num_heads": 2, "class_token": False, "global_pool": "map"}


def test_a_class_token_is_compared_by_its_attention(bench: MakeBench) -> None:
    made = bench(objective="attention")
    term, student = made.learner.terms["attention"], made.learner.student
    assert term.tokens
    assert student.queries is None
    batch = made.batch(range(6))
    told = made.told(batch)
    seen: list[torch.Tensor] = []
    attention = student.backbone.blocks[-1].attn
    attention.fused_attn = False
    attention.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses = made.losses(told)
    patches = seen[0][:, :, 0, 1:]
    found = patches / patches.sum(-1, keepdim=True)  # [B, H, N]
    cut = told[0].cut.on(student.taps[-1].grid)
    named = (cut.words >= 0) & (term.classes[cut.words.clamp_min(0)] >= 0)
    weights = cut.kept[:, term.layer] * named
    target = (weights[..., None] * cut.maps[:, term.layer]).sum(1) / weights.sum(1).clamp_min(1e-6)[:, None]
    expected = F.kl_div(found.log(), target[:, None].expand_as(found), reduction="none").sum(-1).mean(1)
    torch.testing.assert_close(losses["attention"], (expected * (weights.sum(1) > 0)).mean(), atol=1e-5, rtol=1e-4)
    losses["attention"].backward()
    assert attention.qkv.weight.grad is not None
    assert student.head.weight.grad is None


def test_a_pooling_is_compared_by_what_cells_add_to_the_logit(bench: MakeBench) -> None:
    made = bench(objective="attention", student_config=RESNET)
    term, student = made.learner.terms["attention"], made.learner.student
    assert not term.tokens
    made.losses(made.told(made.batch(range(6))))["attention"].backward()
    assert student.head.weight.grad is not None
    assert student.backbone.conv1.weight.grad is not None


@pytest.mark.parametrize("student_config", [None, RESNET])
def test_pieces_add_up_to_the_batch(bench: MakeBench, student_config: StudentConfig | None) -> None:
    made = bench(objective="attention", **({} if student_config is None else {"student_config": student_config}))
    whole = made.losses(made.told(made.batch(range(6))))["attention"]
    parts = [made.losses(made.told(made.batch(rows), whole=6))["attention"] for rows in (range(2), range(2, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_nothing_is_added_to_the_student(bench: MakeBench) -> None:
    taught, plain = bench(objective="attention").learner, bench(objective="none").learner
    assert taught.state_dict().keys() == plain.state_dict().keys()
    assert taught.parameter_counts()["terms"] == 0


def test_who_cannot_look(bench: MakeBench) -> None:
    config = StudentConfig(name="vit_tiny_patch16_224", image_size=64, kwargs=NO_TOKEN)
    with pytest.raises(ConfigError, match="class token, or a network"):
        bench(objective="attention", student_config=config)
    for changes in ({"head": "queries"}, {"task": "none"}):
        with pytest.raises(ConfigError, match="teaches a linear head"):
            bench(objective="attention", **changes)
