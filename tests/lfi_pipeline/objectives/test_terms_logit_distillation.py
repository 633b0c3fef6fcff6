"""The term `logits`: a divergence that sees differences between classes and nothing else."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.objectives.terms import logit_distillation, require_zero_shot
from lfi_pipeline.targets import TargetStore

PROPERTY = settings(max_examples=30, deadline=None)
TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 8.0])


@st.composite
def logits(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Of a student and of a teacher, whose scale may be large, [B, C]."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    return draw(st.sampled_from([0.1, 5.0])) * student, draw(st.sampled_from([1.0, 20.0])) * teacher


@given(pair=logits(), temperature=TEMPERATURES)
@PROPERTY
def test_one_number_an_image_never_below_zero_and_zero_where_equal(
    pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    student, teacher = pair
    found = logit_distillation(student, teacher, temperature=temperature)
    assert found.shape == (len(student),)
    assert torch.isfinite(found).all()
    assert (found > -1e-4).all()
    same = logit_distillation(teacher, teacher, temperature=temperature)
    torch.testing.assert_close(same, torch.zeros(len(student)), atol=1e-5, rtol=0)


@given(pair=logits(), temperature=TEMPERATURES, shift=st.floats(-20, 20))
@PROPERTY
def test_a_constant_of_an_image_changes_nothing(pair: tuple[Tensor, Tensor], temperature: float, shift: float) -> None:
    student, teacher = pair
    shifts = shift * torch.arange(1.0, len(student) + 1)[:, None]
    found = logit_distillation(student, teacher, temperature=temperature)
    moved = logit_distillation(student + shifts, teacher - 2 * shifts, temperature=temperature)
    torch.testing.assert_close(moved, found, atol=1e-2, rtol=1e-3)


@given(pair=logits(), temperature=TEMPERATURES)
@PROPERTY
def test_it_is_the_formula_and_images_do_not_mix(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    found = logit_distillation(student, teacher, temperature=temperature)
    for b in range(len(student)):
        t = torch.softmax(teacher[b].double() / temperature, 0)
        s = torch.softmax(student[b].double() / temperature, 0)
        expected = temperature**2 * torch.xlogy(t, t / s).sum()
        torch.testing.assert_close(found[b].double(), expected, atol=2e-3, rtol=1e-3)
        alone = logit_distillation(student[b : b + 1], teacher[b : b + 1], temperature=temperature)
        torch.testing.assert_close(alone[0], found[b])


def test_it_is_teacher_against_student_and_not_the_other_way() -> None:
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(logit_distillation(student, teacher, temperature=1.0)) == pytest.approx(expected)


def test_a_hot_teacher_keeps_the_gradient_and_gets_none() -> None:
    """As T grows the gradient tends to (s - t) / C of centred logits (Hinton et al., section 2.1): T^2 undoes 1/T^2."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 5, generator=generator).requires_grad_()
    teacher = torch.randn(1, 5, generator=generator).requires_grad_()
    logit_distillation(student, teacher, temperature=1000.0).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centred.detach() / 5, atol=1e-2, rtol=0.02)


def test_half_precision_logits_are_compared_in_full() -> None:
    student, teacher = torch.linspace(-3, 3, 21).view(3, 7), torch.linspace(50, -50, 21).view(3, 7)
    found = logit_distillation(student.bfloat16(), teacher, temperature=1.0)
    assert found.dtype == torch.float32
    expected = logit_distillation(student.bfloat16().float(), teacher, temperature=1.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature must be positive"):
        logit_distillation(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_a_cache_that_cannot_serve_says_why(tiny_targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TargetStore.open(tiny_targets)
    assert require_zero_shot(store) is store.zero_shot
    monkeypatch.setattr(type(store.manifest), "has_classes", False)
    old = TargetStore.open(tiny_targets)
    with pytest.raises(ConfigError, match=r"written without, by an earlier release\. Extract it again"):
        require_zero_shot(old)
    bare = dataclasses.replace(store.spec, dataset=dataclasses.replace(store.spec.dataset, classes=()))
    monkeypatch.setattr(TargetStore, "spec", bare)
    with pytest.raises(ConfigError, match="needs a data set with classes"):
        require_zero_shot(old)
