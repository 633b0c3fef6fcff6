"""The teacher asked again: what is stored is what it says, or the sample that is not is named."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, TeacherError
from lfi_pipeline.targets import Fault, PlannedSample, ShardPayload, TargetStore, TargetWriter, ViewArrays
from lfi_pipeline.targets.codec import decode_maps
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher, extract, recompute
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import RecomputeConfig
from lfi_pipeline.teachers.recompute import Recomputation

Arrays = dict[str, dict[str, np.ndarray]]
Extract = Callable[..., Path]


@pytest.fixture(autouse=True)
def _tiny(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "load_teacher", lambda name, **options: tiny_teacher)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **options: tiny_teacher)


@pytest.fixture
def extracted(scenes_root: Path, tmp_path: Path) -> Extract:
    """Write a cache of the val scenes with the tiny teacher."""

    def run(name: str = "cache", **changes: Any) -> Path:
        options: dict[str, Any] = {
            "dataset": "scenes",
            "data_root": scenes_root,
            "split": "val",
            "words": 6,
            "samples_per_shard": 8,
            "batch_size": 8,
            "device": "cpu",
        }
        extract.extract(extract.ExtractConfig(**(options | changes)), tmp_path / name)
        return tmp_path / name

    return run


def _check(share: float = 1.0, **options: Any) -> Recomputation:
    return Recomputation(RecomputeConfig(**{"share": share, "device": "cpu", "seed": 0, "batch_size": 5} | options))


def _faults(cache: Path, **options: Any) -> list[Fault]:
    return verify(cache, further=(_check(**options),))


def _rewritten(cache: Path, out: Path, change: Callable[[Arrays], None]) -> Path:
    """A cache of the same spec and plan with valid checksums, whose arrays `change` has changed."""
    store = TargetStore.open(cache)
    index, spec = store.index, store.spec
    everyone = np.arange(len(store))
    arrays: Arrays = {}
    for view in spec.views:
        found = store.read_many(everyone, view)
        arrays[view] = {
            "maps": decode_maps(found.maps, found.scale, spec.codec.name),
            "words": found.words.copy(),
            "kept": found.kept.astype(np.float32),
            "image_embedding": found.image_embedding.astype(np.float32),
        }
    change(arrays)
    plan = [
        PlannedSample(
            key=index.keys[i],
            path=index.paths[i],
            labels=tuple(index.labels[i]),
            domain=index.domains[i],
            caption=index.captions[i],
        )
        for i in range(len(store))
    ]
    writer = TargetWriter.open(out, spec, plan, store.vocabulary, store.data_root)
    for shard in writer.pending_shards():
        part = slice(writer.shard_range(shard).start, writer.shard_range(shard).stop)
        views = {
            view: ViewArrays(**{name: array[part] for name, array in each.items()}) for view, each in arrays.items()
        }
        writer.commit(shard, ShardPayload(views=views, image_crc32c=index.image_crc32c[part]))
    return out


@pytest.mark.parametrize("layout", ["zarr", "webdataset"])
def test_a_sound_cache_passes_in_any_batches(extracted: Extract, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "CHUNK", 6)  # so that there are several
    cache = extracted(layout=layout)
    assert _faults(cache) == []
    assert _faults(cache, batch_size=1, share=0.3) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "attention", "layers": 2, "row": "reading"},
        {"text": "prompts", "prompts": ("a photo of a {}.", "there is a {} in it.")},
        {"text": "prompts", "prompts": ("a photo of a {}.", "there is a {} in it."), "captions": "all"},
        {"captions": "longest"},
        {"captions": "all"},
    ],
    ids=["two layers", "prompts", "all prompts", "longest caption", "all captions"],
)
def test_texts_are_rebuilt_from_the_index_alone(
    extracted: Extract, scenes_root: Path, tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    cache = extracted(**changes)
    shutil.copytree(scenes_root / "val", tmp_path / "images" / "val")  # no annotations here
    assert verify(cache, data_root=tmp_path / "images", further=(_check(),)) == []


def test_a_quarantined_sample_is_not_asked_for(extracted: Extract, scenes_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "root"))
    (root / "val/000000000002.png").write_bytes(b"no image")
    assert _faults(extracted(data_root=root)) == []
    for image in sorted((root / "val").iterdir())[1:]:
        image.write_bytes(b"no image")
    assert _faults(extracted("one", data_root=root)) == []


@pytest.mark.parametrize("view", ["full", "hflip"])
def test_maps_of_another_image_are_found_and_the_samples_named(extracted: Extract, tmp_path: Path, view: str) -> None:
    cache, pair = extracted(kind="relevance"), [3, 12]

    def swap(arrays: Arrays) -> None:
        maps, present = arrays[view]["maps"], (arrays[view]["words"][pair] >= 0).all(axis=0)
        first, second = (maps[position][:, present].copy() for position in pair)
        maps[pair[0]][:, present], maps[pair[1]][:, present] = second, first

    wrong = _rewritten(cache, tmp_path / "wrong", swap)
    assert verify(wrong) == []  # every checksum holds
    faults = _faults(wrong)
    assert [(fault.sample, fault.shard) for fault in faults] == [(3, 0), (12, 1)]
    keys = TargetStore.open(wrong).index.keys
    assert all(keys[position] in fault.message for position, fault in zip(pair, faults, strict=True))
    assert all(f"view {view} the mean KL" in fault.message for fault in faults)


def _roll(arrays: Arrays) -> None:
    maps = arrays["full"]["maps"]
    present = np.flatnonzero(maps[5].sum(axis=(0, 2, 3)))
    maps[5][:, present] = maps[5][:, np.roll(present, 1)]


def _mirror(arrays: Arrays) -> None:
    arrays["hflip"]["maps"][5] = arrays["hflip"]["maps"][5][..., ::-1]


def _drop(arrays: Arrays) -> None:
    arrays["full"]["maps"][5][:, 0] = 0


def _word(arrays: Arrays) -> None:
    arrays["full"]["words"][5][0] = (arrays["full"]["words"][5][0] + 1) % 3


def _embedding(arrays: Arrays) -> None:
    arrays["full"]["image_embedding"][5] = np.roll(arrays["full"]["image_embedding"][5], 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_roll, "mean KL"),
        (_mirror, "mean KL"),
        (_drop, "the teacher gives"),
        (_word, "words"),
        (_embedding, "cosine"),
    ],
    ids=["rows of other words", "a view not mirrored", "a map left out", "another word", "another embedding"],
)
def test_what_is_wrong_is_told(extracted: Extract, tmp_path: Path, change: Callable[[Arrays], None], told: str) -> None:
    wrong = _rewritten(extracted(kind="relevance"), tmp_path / "wrong", change)
    (fault,) = _faults(wrong)
    assert fault.sample == 5
    assert told in fault.message


def test_an_image_that_changed_since_is_a_fault_even_where_images_were_not_checked(
    extracted: Extract, scenes_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "root"))
    cache = extracted(data_root=root)
    images = sorted((root / "val").iterdir())
    shutil.copyfile(images[0], images[1])
    images[4].unlink()
    faults = verify(cache, images=False, further=(_check(),))
    assert [fault.sample for fault in faults] == [1, 4]
    assert "crc32c" in faults[0].message
    assert "cannot be read" in faults[1].message


def test_other_weights_are_refused_and_both_digests_named(
    extracted: Extract, tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = extracted()
    other = copy.copy(tiny_teacher)
    other.identity = replace(tiny_teacher.identity, weights_sha256="f" * 64)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **options: other)
    with pytest.raises(TeacherError, match=f"{tiny_teacher.identity.weights_sha256}.*{'f' * 64}"):
        _faults(cache)


def test_the_teacher_is_the_one_that_the_spec_names(extracted: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = extracted()
    monkeypatch.undo()
    with pytest.raises(TeacherError, match=r"made by tiny-coca:test.*`teacher=tiny-coca:PATH"):
        _faults(cache)


def test_the_share_says_how_many_and_the_seed_which(
    extracted: Extract, tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, seen = extracted(views=("full",)), list[int]()
    make = tiny_teacher.interaction_maps

    def counted(images: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(images))
        return make(images, *rest, **options)

    monkeypatch.setattr(tiny_teacher, "interaction_maps", counted)
    for share, expected in ((0.001, 1), (0.25, 4), (1.0, 16)):
        seen.clear()
        assert _faults(cache, share=share) == []
        assert sum(seen) == expected
    store = TargetStore.open(cache)
    drawn = [recompute._chosen(store.usable, 16, RecomputeConfig(share=0.25, seed=seed)).tolist() for seed in range(9)]
    assert len({tuple(each) for each in drawn}) > 5
    assert drawn[3] == recompute._chosen(store.usable, 16, RecomputeConfig(share=0.25, seed=3)).tolist()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"share must be (above 0 to 1|a finite number)"):
        RecomputeConfig(share=share)
