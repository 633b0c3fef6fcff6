"""How slots become class logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lfi_pipeline.students import QueryConfig
from lfi_pipeline.students.config import READOUTS
from lfi_pipeline.students.queries import SlotReadout

K, WIDTH, CLASSES = 3, 8, 5


def make(form: str) -> SlotReadout:
    torch.manual_seed(0)
    return SlotReadout(QueryConfig(mode="learned", slots=K, width=WIDTH, heads=2, readout=form), CLASSES)


def states() -> torch.Tensor:
    return torch.randn(2, K, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", READOUTS)
def test_every_slot_reaches_the_logits_and_its_scale_does_not(form: str) -> None:
    readout, x = make(form), states().requires_grad_()
    logits = readout(x)
    assert logits.shape == (2, CLASSES)
    logits.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(-1) > 0).all()
    torch.testing.assert_close(readout(10 * x), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("form", "depends"), [("concat", True), ("max", False)])
def test_only_concat_tells_slots_apart(form: str, depends: bool) -> None:
    readout, x = make(form), states()
    assert torch.allclose(readout(x), readout(x.flip(1)), atol=1e-5) is not depends


def test_max_is_the_log_mean_exp_of_the_slots_own_logits() -> None:
    readout, x = make("max"), states()
    own = readout.linear(F.layer_norm(x, (WIDTH,)))
    torch.testing.assert_close(readout(x), own.exp().mean(1).log())
    alike = x[:, :1].expand_as(x)
    torch.testing.assert_close(readout(alike), own[:, 0])
