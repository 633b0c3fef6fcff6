"""The gate: what is wrong anywhere is refused, wherever in the batch it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lfi_kernels.bench import Shape
from lfi_kernels.bench.cases import Case, flex, folded, make, make_cases
from lfi_kernels.bench.compare import GATE, check
from lfi_kernels.bench.timing import Work

SHAPE = Shape(model="ViT-T/16", batch=11, words=3, patches=16)


def case(name: str = "projected", shape: Shape = SHAPE) -> Case:
    return make_cases(shape, "cpu", [name])[name]


def spoiled(work: Work, part: int, sample: int, value: float) -> Work:
    def run() -> tuple[Tensor, Tensor]:
        outputs = [each.clone() for each in work.run()]
        outputs[part][sample] *= value
        return outputs[0], outputs[1]

    return replace(work, run=run)


@pytest.mark.parametrize("name", ["folded", "projected", "sdpa"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_ways_agree_with_float64(name: str, dtype: str) -> None:
    found = case(name, replace(SHAPE, dtype=dtype))
    errors = check(name, found.work, found.exact, dtype)
    assert {"fp32": 1e-8, "fp16": 1e-5, "bf16": 1e-4}[dtype] < errors.rms < GATE[dtype] / 2
    assert 0.3 * errors.rms < errors.largest < 10 * errors.rms


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("sample", [0, 10])
@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_a_wrong_output_is_refused(part: int, sample: int, value: float) -> None:
    found = case()
    with pytest.raises(ValueError, match=r"projected must be within 2e-05 of the float64 reference in fp32.*not timed"):
        check("projected", spoiled(found.work, part, sample, value), found.exact, "fp32")


@pytest.mark.parametrize("leaf", range(6))
def test_a_wrong_gradient_is_refused(leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case()

    def backward(self: Work, outputs: object, upstream: object) -> tuple[Tensor, ...]:
        gradients = list(torch.autograd.grad(outputs, self.leaves, upstream))  # type: ignore[arg-type]
        if self is found.work:
            gradients[leaf] = gradients[leaf] * 1.001
        return tuple(gradients)

    monkeypatch.setattr(Work, "backward", backward)
    with pytest.raises(ValueError, match="not timed"):
        check("projected", found.work, found.exact, "fp32")


@pytest.mark.parametrize("maps", [None, 2, 0])
@pytest.mark.parametrize("name", ["folded", "projected", "sdpa"])
def test_the_ways_agree_where_few_words_have_a_map_or_none(name: str, maps: int | None) -> None:
    found = case(name, replace(SHAPE, maps=maps))
    assert check(name, found.work, found.exact, "fp32").rms < GATE["fp32"] / 2


@pytest.mark.filterwarnings("ignore")  # FlexAttention wants a compiler, and has no backward pass on the CPU
@pytest.mark.parametrize("maps", [None, 2, 0])
def test_flex_attention_gives_the_same_divergence_from_its_log_sum_exp(maps: int | None) -> None:
    block, inputs = make(replace(SHAPE, maps=maps), "cpu")
    with torch.no_grad():
        for found, truth in zip(flex(block, inputs), folded(block, inputs), strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_a_wrong_divergence_of_a_row_is_refused() -> None:
    found = case("projected", replace(SHAPE, maps=2))
    with pytest.raises(ValueError, match="not timed"):
        check("projected", spoiled(found.work, 1, 21, 1.001), found.exact, "fp32")  # the last sample's second row
