"""An extraction whose teacher torch compiles: the same cache but for rounding. Graphs are traced and run as they are."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.targets import Summary, TargetStore, decode_maps
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment
from lfi_pipeline.teachers.extract import extract
from tests.lfi_pipeline.teachers.test_module import Letters


@pytest.fixture
def traced(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tiny teacher in place of the one that is named; how many images each run of a compiled graph saw."""
    sizes: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def run(*inputs: Any) -> Any:
            results = graph.forward(*inputs)
            sizes.append(len(results[0]))
            return results

        return run

    torch.compiler.reset()
    monkeypatch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
    monkeypatch.setattr(CocaTeacher, "compiled", partialmethod(CocaTeacher.compiled, backend=backend))
    return sizes


def run(out: Path, root: Path, **changes: Any) -> Summary:
    options: dict[str, Any] = {"words": 6, "samples_per_shard": 12, "batch_size": 5, "device": "cpu"}
    summary, _ = extract(ExtractConfig(dataset="scenes", data_root=root, **(options | changes)), out)
    return summary


def test_the_cache_is_the_same_but_for_rounding(scenes_root: Path, tmp_path: Path, traced: list[int]) -> None:
    run(tmp_path / "plain", scenes_root)
    assert traced == []
    run(tmp_path / "compiled", scenes_root, compile=True)
    assert set(traced) == {5}, "the last two images of a shard are no batch to compile for"
    assert verify(tmp_path / "compiled") == []
    plain, compiled = (TargetStore.open(tmp_path / name) for name in ("plain", "compiled"))
    assert plain.spec == compiled.spec
    positions = np.arange(len(plain))
    for view in plain.spec.views:
        one, other = plain.read_many(positions, view), compiled.read_many(positions, view)
        assert np.array_equal(one.words, other.words)
        np.testing.assert_allclose(one.image_embedding, other.image_embedding, atol=1e-3)
        maps = [decode_maps(each.maps, each.scale, plain.spec.codec.name) for each in (one, other)]
        np.testing.assert_allclose(*maps, atol=2e-3)


def test_a_cache_may_be_finished_with_or_without(scenes_root: Path, tmp_path: Path, traced: list[int]) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"words": 6, "samples_per_shard": 12, "batch_size": 6, "device": "cpu"}
    config = ExtractConfig(dataset="scenes", data_root=scenes_root, **options)
    extract(config, out, share=ShardAssignment(end=1))
    assert run(out, scenes_root, batch_size=6, compile=True).samples == 24
    assert traced
    assert verify(out) == []


def test_what_cannot_be_compiled_is_refused_before_anything_is_made(
    scenes_root: Path, tmp_path: Path, traced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExtractConfig(dataset="scenes", data_root=scenes_root, device="cpu", compile=True)
    with pytest.raises(ConfigError, match="compile is for teachers whose blocks are known; module:Letters shows none"):
        extract(config, tmp_path / "out", module=Letters())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler .* none is on the PATH"):
        extract(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert traced == []
