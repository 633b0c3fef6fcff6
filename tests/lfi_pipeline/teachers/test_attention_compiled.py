"""Blocks as torch compiles them: the same numbers, in pieces between the places where somebody looks.

Graphs are traced and run as they are, as a compiler takes half a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.teachers import Teacher, load_teacher
from lfi_pipeline.teachers.attention import SMALL, CompiledBlocks, graphs_pay, outputs_of
from lfi_pipeline.teachers.coca import CocaTeacher

BATCH = 4


class Block(nn.Module):
    """Tokens in, tokens out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        changed: Tensor = x + scale * self.inner(x).tanh()
        return changed


class Traced:
    """A backend that runs graphs as they are; how many linear layers each holds, and how it was asked for."""

    def __init__(self) -> None:
        self.linear: list[int] = []
        self.runs = 0
        self.options: list[dict[str, Any]] = []

    def __call__(self, graph: Any, _inputs: Any, **options: Any) -> Any:
        self.linear.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        self.options.append(options)

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    torch.compiler.reset()
    return nn.Sequential(*(Block() for _ in range(5))).requires_grad_(False)


@pytest.fixture
def traced() -> Traced:
    return Traced()


def images(count: int = BATCH) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(1))


def test_a_trunk_that_nobody_looks_at_is_one_piece(trunk: nn.Sequential, traced: Traced) -> None:
    plain, names = trunk(images()), list(trunk.state_dict())
    with CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        assert torch.equal(trunk(images()), plain)
        assert torch.equal(trunk(images()), plain)
        assert list(trunk.state_dict()) == names
    assert (traced.linear, traced.runs) == ([5], 2)
    assert torch.equal(trunk(images()), plain)
    assert traced.runs == 2
    assert not any("forward" in vars(block) for block in trunk)


def test_pieces_end_where_somebody_looks(trunk: nn.Sequential, traced: Traced) -> None:
    with outputs_of([trunk[1], trunk[4]]) as plain:
        trunk(images())
    with CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        with outputs_of([trunk[1], trunk[4]]) as after:
            trunk(images())
        entering: list[Tensor] = []
        handle = trunk[3].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        trunk(images())
        handle.remove()
    assert [torch.equal(*pair) for pair in zip(plain, after, strict=True)] == [True, True]
    assert torch.equal(entering[0], trunk[:3](images()))
    assert sorted(traced.linear) == [2, 3]  # cut after the second, then before the fourth: pieces of a length are one


def test_a_block_that_is_looked_into_runs_as_it_is(trunk: nn.Sequential, traced: Traced) -> None:
    seen: list[Tensor] = []
    handle = trunk[2].inner.register_forward_hook(lambda _, __, output: seen.append(output))
    with CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        found = trunk(images())
        found = trunk(images())
    handle.remove()
    assert len(seen) == 2
    assert torch.equal(found, trunk(images()))
    assert traced.linear == [2]  # the two before and the two behind it


def test_what_is_differentiated_runs_as_it_is_and_can_be_so_for_many_words(
    trunk: nn.Sequential, traced: Traced
) -> None:
    def gradients() -> tuple[Tensor, ...]:
        leaves: list[Tensor] = []

        def leaf(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            leaves.append(args[0].detach().requires_grad_())
            return (leaves[-1],)

        handle = trunk[3].register_forward_pre_hook(leaf)
        found = trunk(images())
        handle.remove()
        words = torch.eye(3)[:, None, None].expand(3, *found.shape)
        return torch.autograd.grad(found, leaves, words, is_grads_batched=True)

    plain = gradients()
    with CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        (found,) = gradients()
    assert torch.equal(found, plain[0])
    assert traced.linear == [3]


def test_batches_of_another_size_compile_nothing(trunk: nn.Sequential, traced: Traced) -> None:
    with CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        for count in (1, 3, BATCH + 1):
            assert len(trunk(images(count))) == count
        assert traced.linear == []
        trunk(images())
        trunk(images(3))
    assert (traced.linear, traced.runs) == ([5], 1)


def test_graphs_are_asked_for_and_their_memory_is_not_handed_out(
    trunk: nn.Sequential, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    held = torch.zeros(BATCH, 2, 3)

    def graph(module: Any, _inputs: Any, **options: Any) -> Any:
        traced.options.append(options)
        return lambda *inputs: (held.copy_(module.forward(*inputs)[0]),)  # the same memory every time

    plain = trunk(images())
    with CompiledBlocks(trunk, BATCH, graphs=True, backend=graph):
        first = trunk(images())
        trunk(2 * images())
    assert torch.equal(first, plain)
    assert traced.options == [{"mode": "reduce-overhead"}]
    assert len(steps) == 2


def test_an_error_leaves_the_blocks_as_they_were(trunk: nn.Sequential, traced: Traced) -> None:
    with pytest.raises(RuntimeError), CompiledBlocks(trunk, BATCH, graphs=False, backend=traced):
        trunk(images()[..., :2])
    assert not any("forward" in vars(block) for block in trunk)


def test_graphs_are_for_small_trunks_on_a_gpu() -> None:
    def of(kind: str, numbers: int) -> Any:
        parameter = SimpleNamespace(device=SimpleNamespace(type=kind), numel=lambda: numbers)
        return SimpleNamespace(parameters=lambda: [parameter])

    assert graphs_pay([of("cuda", 1000), of("cuda", 1000)])
    assert not graphs_pay([of("cpu", 1000)])
    assert not graphs_pay([of("cuda", SMALL // 2), of("cuda", SMALL // 2)])
    assert not graphs_pay([])


@pytest.fixture(scope="module")
def scenes_coca() -> Teacher:
    return load_teacher("scenes-coca")


@pytest.mark.parametrize("kind", ["contrastive", "attention", "gradcam", "relevance"])
@pytest.mark.filterwarnings("ignore")  # of the tracer itself
def test_maps_are_those_of_the_teacher_that_is_not_compiled(scenes_coca: Teacher, kind: str, traced: Traced) -> None:
    assert isinstance(scenes_coca, CocaTeacher)
    pixels = torch.rand(BATCH, 3, *scenes_coca.image_size, generator=torch.Generator().manual_seed(0))
    texts = [scenes_coca.encode_text(each) for each in ("a dog left of a tulip", "a cat", "two cars", "a dog")]
    words, layers = [text.words for text in texts], scenes_coca.layers(kind, None)

    def make(count: int = BATCH) -> Any:
        return scenes_coca.interaction_maps(pixels[:count], texts[:count], words[:count], kind=kind, layers=layers)

    torch.compiler.reset()
    plain, few, names = make(), make(3), list(scenes_coca.model.state_dict())
    with scenes_coca.compiled(BATCH, 6, backend=traced):
        found, found_few = make(), make(3)
        programs = len(traced.linear)
        make()
        assert list(scenes_coca.model.state_dict()) == names
    for name in ("maps", "kept", "image_embedding"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), atol=2e-5, rtol=1e-4)
        assert torch.equal(getattr(found_few, name), getattr(few, name)), "a smaller batch is not compiled"
    assert len(traced.linear) == programs > 0
    assert sum(traced.linear) > 0
    assert traced.runs >= 2


def test_fewer_words_need_no_other_program(scenes_coca: Teacher, traced: Traced) -> None:
    assert isinstance(scenes_coca, CocaTeacher)
    make: Callable[..., Any] = scenes_coca.interaction_maps
    pixels = torch.rand(2, 3, *scenes_coca.image_size, generator=torch.Generator().manual_seed(0))
    layers = scenes_coca.layers("contrastive", 1)
    torch.compiler.reset()
    with scenes_coca.compiled(2, 4, backend=traced):
        counts = []
        for caption in ("a dog left of a tulip", "a dog", "a dog and a cat", "a dog, a cat, a tulip, a car and a bus"):
            text = scenes_coca.encode_text(caption)
            words = text.words[:5]
            made = make(pixels, [text] * 2, [words] * 2, kind="contrastive", layers=layers)
            plain = CocaTeacher.interaction_maps(
                scenes_coca, pixels[:1], [text], [words], kind="contrastive", layers=layers
            )
            assert made.maps.shape[2] == len(words)
            torch.testing.assert_close(made.maps[:1], plain.maps, atol=2e-5, rtol=1e-4)
            counts.append(len(traced.linear))
    assert counts == [counts[0]] * 4
