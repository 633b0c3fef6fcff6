"""Sizes by name, and batches that no cache holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_kernels.bench import ON_CPU, ON_GPU, WIDTHS, Shape, Sizes, case_names, shapes

L2 = 50 * 2**20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=L2))


def test_the_cpu_compares_the_small_models_with_few_and_with_as_many_channels() -> None:
    assert {(each.model, each.words, each.query_dim, each.dtype) for each in shapes("cpu")} == {
        (model, words, query_dim, "fp32")
        for model, dim in (("ViT-T/16", 192), ("ViT-S/16", 384))
        for words in (8, 16)
        for query_dim in (128, dim)
    }


@pytest.mark.usefixtures("gpu")
def test_a_gpu_compares_every_model_on_features_of_four_times_its_cache() -> None:
    found = shapes("cuda:0")
    assert len(found) == len(set(found)) == 4 * 3 * 2 * 2
    assert {each.model for each in found} == set(WIDTHS)
    assert {each.patches for each in found} == {196, 256, 1024}
    assert {each.words for each in found} == {16, 32}
    for each in found:
        tokens = each.batch * each.patches
        assert each.dtype == "bf16"
        assert tokens >= 262_144
        assert 2 * tokens * each.dim >= 4 * L2
        assert tokens - each.patches < max(262_144, 4 * L2 / (2 * each.dim))  # and no more than that


def test_parts_can_be_named() -> None:
    asked = Sizes(models=("ViT-B/16",), patches=("49", "1024"), words=("1",), query_dims=("D",))
    assert [str(each) for each in shapes("cpu", asked)] == [
        "ViT-B/16 B8 H4 M1 N49 D768 Dq768 fp32",
        "ViT-B/16 B8 H4 M1 N1024 D768 Dq768 fp32",
    ]
    (quick,) = shapes("cpu", quick=True)
    assert (quick.batch, quick.patches, quick.words) == (2, 16, 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"models": ("ViT-T/16", "ViT-H")}, "Unknown model 'ViT-H'. Choices: ViT-T/16, ViT-S/16, ViT-B/16, ViT-L/16"),
        ({"patches": ("0",)}, "patches must be whole numbers from 1 to 4096, got '0'"),
        ({"words": ("21001",)}, "words must be whole numbers from 1 to 21000, got '21001'"),
        ({"words": ("-1",)}, "words must be whole numbers from 1 to 21000, got '-1'"),
        ({"query_dims": ("d",)}, r"query-dims must be D .* or multiples of 4, got 'd'"),
        ({"query_dims": ("30",)}, "multiples of 4, got '30'"),
        ({"query_dims": ("0",)}, "multiples of 4, got '0'"),
    ],
)
def test_bad_sizes_are_refused(asked: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sizes(**asked)


def test_cases_of_the_device() -> None:
    assert case_names("cpu") == ON_CPU
    assert case_names("cuda:0") == ON_GPU
    assert case_names("cuda", ("sdpa", "fused")) == ("fused", "sdpa")
    with pytest.raises(ValueError, match=r"Unknown case 'fused' on cpu\. Choices: folded, projected, sdpa"):
        case_names("cpu", ("fused",))


sizes = st.integers(1, 9999)


@settings(max_examples=20)
@given(
    st.builds(
        Shape,
        model=st.sampled_from(list(WIDTHS)),
        **dict.fromkeys(("batch", "heads", "words", "patches", "query_dim"), sizes),  # type: ignore[arg-type]
        dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
        maps=st.none() | st.integers(0, 9),
    )
)
def test_a_shape_is_read_back_from_its_text(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape


@pytest.mark.parametrize("text", ["", "1024 MiB", str(Shape()).replace("D384", "D192"), f"{Shape()} "])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="A shape must read like ViT-S/16 B8 H4 M16 N196 D384 Dq128 fp32, got"):
        Shape.parse(text)
