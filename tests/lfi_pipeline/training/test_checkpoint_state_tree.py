"""Whatever a state dict may hold comes back, in value, type and order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfi_pipeline.training.checkpoint import flatten, unflatten

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)
    return tensor.T if draw(st.booleans()) and tensor.ndim == 2 else tensor


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4), tensors())
KEYS = st.one_of(st.text(max_size=3), st.sampled_from(["tensor", "dict", "list", "a/b", "0"]), st.integers(-2, 9))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_flatten_comes_back_through_json(state: dict[str, Any]) -> None:
    found, plain = flatten(state)
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert same(unflatten(found, json.loads(json.dumps(plain))), state)


def test_tensors_are_copies() -> None:
    weight = torch.zeros(4)
    found, plain = flatten({"a": weight, "b": weight[1:3], 0: weight})
    weight.fill_(7)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    assert len(pointers) == 3
    assert unflatten(found, plain)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("state", [{"a": {"b": object()}}, {"a": {(1, 2): 3}}, {"a": {True: 3}}])
def test_what_cannot_be_kept_is_refused_with_its_path(state: Any) -> None:
    with pytest.raises(TypeError, match="at /a"):
        flatten(state)


@pytest.mark.parametrize("plain", [{"dict": 3}, {"other": []}])
def test_foreign_json_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match="not a node"):
        unflatten({}, plain)
