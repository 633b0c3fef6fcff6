from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets import MapSpec
from lfi_pipeline.teachers import CocaTeacher, settings
from lfi_pipeline.teachers.settings import COMMON_WORDS, MOST_CENTRE, AskedWords, centre_of
from lfi_pipeline.teachers.teacher import supported
from lfi_pipeline.teachers.text import Word


class _Embedder:
    """Unit vectors [N, 8] that depend on the text alone; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_a_centre_depends_on_the_words_alone() -> None:
    words = [f"word{i}" for i in range(2 * MOST_CENTRE)]
    assert centre_of(words) == centre_of([*reversed(words), *words])
    assert len(centre_of(words)) == MOST_CENTRE
    assert set(centre_of(["b", "a"])) == {"a", "b"}


@pytest.mark.parametrize("words", [(), ("dog",), ("dog", "dog")])
def test_one_word_is_no_vocabulary(words: tuple[str, ...]) -> None:
    assert centre_of(words) == COMMON_WORDS
    assert len(set(COMMON_WORDS)) == len(COMMON_WORDS)


def test_directions_are_embeddings_less_the_centre() -> None:
    embed = _Embedder()
    asked, spec = AskedWords(embed), MapSpec(word_template="a {}", centre=("cat", "dog", "owl"))
    words = [[Word("dog", (1,)), None], [None, Word("hot dog", (1, 2)), Word("dog", (3,))]]
    found = asked.directions(words, spec, torch.device("cpu"))
    assert found.shape == (3, 2, 8)
    centre = embed(["a cat", "a dog", "a owl"]).mean(0)
    torch.testing.assert_close(found[0, 0], embed(["a dog"])[0] - centre)
    torch.testing.assert_close(found[1, 1], embed(["a hot dog"])[0] - centre)
    torch.testing.assert_close(found[2, 1], found[0, 0])
    assert not found[1, 0].any()
    assert not found[0, 1].any()
    plain = asked.directions(words, MapSpec(), torch.device("cpu"))
    torch.testing.assert_close(plain[0, 0], embed(["dog"])[0])


def test_words_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    embed, spec = _Embedder(), MapSpec(centre=("cat", "owl"))
    asked, device = AskedWords(embed), torch.device("cpu")
    for _ in range(3):
        asked.directions([[Word("dog", (1,))]], spec, device)
    assert sorted(embed.asked) == ["cat", "dog", "owl"]
    monkeypatch.setattr(settings, "KEPT_WORDS", 2)
    many = asked.directions([[Word(text, (1,)) for text in ("dog", "cow", "hen")]], spec, device)
    assert many.shape == (3, 1, 8)  # more at once than are kept


def test_support_is_the_blurred_map_times_the_map() -> None:
    maps = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    maps[1, 2] = 0
    maps = maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    weights = torch.exp(-(torch.arange(-2, 3.0) ** 2) / 2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2)[None, None]
    padded = torch.nn.functional.pad(maps.view(-1, 1, 5, 7), (2, 2, 2, 2), mode="replicate")
    expected = maps * torch.nn.functional.conv2d(padded, kernel).view(maps.shape)
    found = supported(maps, 1.0)
    torch.testing.assert_close(found, expected / expected.sum((-2, -1), keepdim=True).clamp_min(1e-30))
    assert not found[1, 2].any()
    assert supported(maps, 0.0) is maps
    assert torch.isfinite(supported(maps[..., :1, :1], 2.0)).all()


@pytest.mark.parametrize(("kind", "steps"), [("relevance", 2), ("contrastive", -1)])
def test_steps_that_a_kind_has_not_are_refused(tiny_teacher: CocaTeacher, kind: str, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps must be .*; {kind} got {steps}"):
        tiny_teacher.map_settings(kind, steps=steps)
    with pytest.raises(UnknownNameError, match="fill, keep"):
        tiny_teacher.map_settings(kind, artefacts="drop")
    assert tiny_teacher.map_settings("relevance").centre == ()  # of no kind that asks by an embedding
    assert tiny_teacher.map_settings("contrastive", steps=7).steps == 7
