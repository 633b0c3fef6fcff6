from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.teachers.attention import probe_attention

FORMS = {
    "self": {},
    "other kdim and vdim": {"kdim": 24, "vdim": 24},
    "kdim unlike vdim": {"kdim": 24, "vdim": 40},
    "no bias": {"bias": False},
}


class Case:
    """A layer in double precision with random biases, and inputs that fit it."""

    def __init__(self, form: str) -> None:
        generator = torch.Generator().manual_seed(7)
        self.layer = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64, **FORMS[form]).eval()
        for parameter in self.layer.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        options = {"generator": generator, "dtype": torch.float64}
        self.query = torch.randn(2, 5, 32, **options)
        self.key = torch.randn(2, 7, FORMS[form].get("kdim", 32), **options)
        self.value = torch.randn(2, 7, FORMS[form].get("vdim", 32), **options)

    def run(self, **options: object) -> tuple[Tensor, Tensor | None]:
        return self.layer(self.query, self.key, self.value, **options)


@pytest.fixture(params=FORMS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_output_is_that_of_the_layer(case: Case) -> None:
    plain = case.run(need_weights=False)[0]
    with probe_attention({"layer": case.layer}):
        probed, weights = case.run(need_weights=False)
    assert weights is None
    torch.testing.assert_close(probed, plain, atol=1e-5, rtol=1e-5)  # probabilities are fp32
    assert plain.abs().mean() > 0.1


def test_probabilities_are_those_of_pytorch(case: Case) -> None:
    expected = case.run(need_weights=True, average_attn_weights=False)[1]
    with probe_attention({"layer": case.layer}) as seen:
        case.run(need_weights=False)
    assert seen["layer"].shape == (2, 4, 5, 7)
    torch.testing.assert_close(seen["layer"].double(), expected, atol=1e-6, rtol=1e-6)
    assert expected.max() > 0.5


def test_the_gradient_in_the_probabilities_is_that_of_finite_differences(case: Case) -> None:
    towards = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with probe_attention({"layer": case.layer}) as seen:
        score = (case.run(need_weights=False)[0] * towards).sum()
        gradient = torch.autograd.grad(score, seen["layer"])[0]
    assert gradient.abs().mean() > 0.01
    attention = case.run(need_weights=True, average_attn_weights=False)[1]
    stacked = case.layer.in_proj_weight
    weight = case.layer.v_proj_weight if stacked is None else stacked[64:]
    value = case.value @ weight.T
    if case.layer.in_proj_bias is not None:
        value = value + case.layer.in_proj_bias[64:]

    def score_of(probabilities: Tensor) -> Tensor:
        heads = [probabilities[:, head] @ value[..., 8 * head : 8 * head + 8] for head in range(4)]
        return (case.layer.out_proj(torch.cat(heads, -1)) * towards).sum()

    assert attention is not None
    for where in [(0, 0, 0, 0), (0, 1, 4, 6), (1, 3, 2, 3), (1, 2, 0, 5)]:
        nudge = torch.zeros_like(attention)
        nudge[where] = 1e-4
        slope = (score_of(attention + nudge) - score_of(attention - nudge)).item() / 2e-4
        assert gradient[where].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_gradients_reach_what_comes_before_as_without_a_probe(case: Case) -> None:
    case.query.requires_grad_()
    plain = torch.autograd.grad(case.run(need_weights=False)[0].square().sum(), case.query)[0]
    with probe_attention({"layer": case.layer}):
        probed = torch.autograd.grad(case.run(need_weights=False)[0].square().sum(), case.query)[0]
    torch.testing.assert_close(probed, plain, atol=1e-4, rtol=1e-4)


def test_each_layer_is_seen_under_its_name() -> None:
    first, second = Case("self"), Case("other kdim and vdim")
    with probe_attention({"a": first.layer, "b": second.layer}) as seen:
        assert seen == {}
        first.run(need_weights=False)
        assert set(seen) == {"a"}
        second.run(need_weights=False)
    assert set(seen) == {"a", "b"}


def test_hooks_are_removed_after_the_block(case: Case) -> None:
    with probe_attention({"layer": case.layer}) as seen:
        assert len(case.layer._forward_hooks) == 1
    assert not case.layer._forward_hooks
    case.run(need_weights=False)
    assert seen == {}


def test_hooks_are_removed_when_the_block_raises() -> None:
    layer = Case("self").layer
    with pytest.raises(KeyboardInterrupt), probe_attention({"layer": layer}):
        raise KeyboardInterrupt
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    "mask", [{"attn_mask": torch.zeros(5, 7).double()}, {"key_padding_mask": torch.zeros(2, 7).bool()}]
)
def test_masked_attention_is_refused_rather_than_wrong(mask: dict[str, Tensor]) -> None:
    case = Case("self")
    with probe_attention({"layer": case.layer}), pytest.raises(NotImplementedError, match="layer: only unmasked"):
        case.run(need_weights=False, **mask)
