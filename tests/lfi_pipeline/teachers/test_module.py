"""A module with three methods is a teacher: what it says is what the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfi_pipeline as lfi
from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.core.io import crc32c_hex
from lfi_pipeline.targets.codec import decode_maps
from lfi_pipeline.teachers import TeacherModule
from lfi_pipeline.teachers.module import ModuleTeacher
from lfi_pipeline.teachers.recompute import teacher_of_cache


class Letters(nn.Module):
    """Looks at a cell that a word's letters choose, more sharply at the deeper of two depths; whatever the image."""

    image_size = (32, 48)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).view(3, 4))

    def embed_images(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight + 1

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, len(text), text.count("a"), 0.5] for text in texts])

    def maps(self, images: Tensor, words: Sequence[Sequence[str]]) -> Tensor:
        maps = torch.full((len(images), 2, max(map(len, words)), 4, 6), 0.1)
        for b, row in enumerate(words):
            for m, word in enumerate(row):
                maps[b, :, m].flatten(1)[:, cell(word)] += torch.tensor([1.0, 9.0])
        return maps


def cell(word: str) -> int:
    return int(crc32c_hex(word.encode()), 16) % 24


def test_what_a_module_says_is_what_the_cache_holds(scenes_root: Path, tmp_path: Path) -> None:
    module = Letters()
    assert isinstance(module, TeacherModule)
    store = lfi.extract("scenes", data_root=scenes_root, teacher=module, out=tmp_path / "shards", device="cpu")
    spec = store.spec
    assert (spec.teacher.name, spec.teacher.family, spec.kind) == ("module:Letters", "module", "own")
    assert (spec.grid, spec.preprocessing.image_size) == ((4, 6), (32, 48))
    assert [(layer.name, layer.depth) for layer in spec.layers] == [("module.0", 0.5), ("module.1", 1.0)]
    rows = store.read_many(range(store.summary().samples))
    maps = decode_maps(rows.maps, rows.scale, spec.codec.name)
    names, checked = store.vocabulary.words, 0
    for b, ids in enumerate(rows.words.tolist()):
        for m, word in enumerate(ids):
            if word >= 0:
                shallow, deep = maps[b, :, m].reshape(2, -1)
                assert shallow.argmax() == deep.argmax() == cell(names[word])
                assert deep.max() == pytest.approx(9.1 / 11.4, abs=0.01)
                assert shallow.max() == pytest.approx(1.1 / 3.4, abs=0.01)
                checked += 1
    assert checked > 40
    expected = torch.nn.functional.normalize(module.embed_texts([f"a photo of a {names[0]}."]), dim=-1)[0].numpy()
    np.testing.assert_allclose(store.vocabulary.embeddings[0], expected, atol=1e-3)
    run = lfi.train(
        targets=tmp_path / "shards",
        student="resnet10t",
        student_arg={"channels": [8, 16, 32, 64]},
        pretrained=False,
        epochs=1,
        image_size=64,
        batch_size=8,
        hflip=0,
        out=tmp_path / "run",
        device="cpu",
    )
    assert run is not None
    with pytest.raises(TeacherError, match=r"module of somebody's own \(module:Letters\), which cannot be loaded by"):
        teacher_of_cache(spec, "", "cpu")


def test_several_captions_and_empty_rows() -> None:
    teacher = ModuleTeacher(Letters())
    first, second = (teacher.encode_text(text) for text in ("A dog, near the Ice cream!", "two cats"))
    assert [word.text for word in first.words] == ["dog", "ice", "cream"]
    (phrase,) = teacher.encode_text("A dog, near the Ice cream!", ["ice cream"]).words
    assert phrase.text == "ice cream"
    words = [[first.words[0], None, phrase], [second.words[-1]], []]
    made = teacher.interaction_maps(
        torch.zeros(2, 3, 32, 48),
        [first, second, second],
        words,
        kind="own",
        layers=teacher.layers("own", [1]),
        image_of=[0, 0, 1],
    )
    assert made.maps.shape == (3, 1, 3, 4, 6)
    totals = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(made.maps.sum((-2, -1)).squeeze(1), totals)
    assert made.maps[0, 0, 2].flatten().argmax() == cell("ice cream")
    assert made.maps[1, 0, 0].flatten().argmax() == cell(second.words[-1].text)
    nothing = teacher.interaction_maps(
        torch.zeros(1, 3, 32, 48), [first], [[None]], kind="own", layers=teacher.layers("own", None)
    )
    assert not nothing.maps.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_texts": lambda self, texts: torch.ones(4)}, r"Bad\.embed_texts must return finite .* returned \[4\]"),
        ({"embed_images": lambda self, images: torch.ones(1, 9)}, r"embed_images must .*\[1, 4\].*returned \[1, 9\]"),
        ({"embed_images": lambda self, images: torch.full((1, 4), torch.nan)}, r"embed_images must return finite"),
        ({"maps": lambda self, images, words: torch.ones(1, 1, 4, 4)}, r"maps must return .*returned \[1, 1, 4, 4\]"),
        ({"maps": lambda self, images, words: -torch.ones(1, 1, 1, 4, 4)}, r"none negative"),
        ({"maps": lambda self, images, words: "maps"}, r"maps must return .* and returned str"),
    ],
)
def test_a_method_that_returns_something_else_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        ModuleTeacher(type("Bad", (Letters,), changes)())


def test_a_module_without_the_methods_is_refused(scenes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Linear lacks image_size, embed_images, embed_texts, maps\."):
        lfi.extract("scenes", data_root=scenes_root, teacher=nn.Linear(1, 1), out=tmp_path / "shards", device="cpu")
    with pytest.raises(UnknownNameError, match=r"'contrastive'.*own"):
        ModuleTeacher(Letters()).layers("contrastive", 1)
    with pytest.raises(TeacherError, match="cannot write captions"):
        ModuleTeacher(Letters()).generate(torch.zeros(1, 3, 32, 48))


def test_other_weights_are_another_teacher() -> None:
    module = Letters()
    before = ModuleTeacher(module).identity
    module.weight.data += 1
    assert ModuleTeacher(module).identity != before
