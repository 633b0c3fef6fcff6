"""An extended cache is what a fresh one would be, and the teacher ran on what was missing only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, SpecMismatchError, TargetsError
from lfi_pipeline.core.io import exchange
from lfi_pipeline.targets import Summary, TargetStore
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher, reuse
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.extract import extract

Run = Callable[..., Summary]
reuse_of = reuse.Extension.of
OUTSIDE = ("manifest.json", "source.json")


class Counting:
    """The tiny teacher, counting the images and layers that it is asked for."""

    def __init__(self, teacher: CocaTeacher) -> None:
        self.teacher, self.asked, self.fail_after = teacher, [], 10**9

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def interaction_maps(self, images: Any, *args: Any, **options: Any) -> Any:
        if sum(count for count, _ in self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append((len(images), tuple(layer.name for layer in options["layers"])))
        return self.teacher.interaction_maps(images, *args, **options)

    @property
    def images(self) -> int:
        return sum(count for count, _ in self.asked)


@pytest.fixture
def counting(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> Counting:
    teacher = Counting(tiny_teacher)
    monkeypatch.setattr(job, "load_teacher", lambda *args, **options: teacher)
    monkeypatch.setattr(job, "cost_beside_default", lambda *args: [])  # it runs the teacher too
    return teacher


@pytest.fixture
def run(counting: Counting, scenes_root: Path) -> Run:
    def extracted(out: Path, *, extend: bool = False, overwrite: bool = False, **changes: Any) -> Summary:
        counting.asked.clear()
        fields: dict[str, Any] = {"dataset": "scenes", "data_root": scenes_root, "words": 6, "samples_per_shard": 8}
        fields |= {"batch_size": 8, "kind": "attention", "layers": (1,), "device": "cpu"}
        return extract(ExtractConfig(**fields | changes), out, extend=extend, overwrite=overwrite)[0]

    return extracted


def _arrays(path: Path) -> dict[str, bytes]:
    files = sorted(file for folder in ("views", "index") for file in (path / folder).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("before", "after", "images", "layers"),
    [
        ({"views": ("full",)}, {"views": ("full", "hflip")}, 24, {1}),
        ({"layers": (1,)}, {"layers": (0, 1)}, 48, {0}),
        ({"words": 16}, {"words": 2}, 0, set()),
        ({"samples_per_shard": 4}, {"samples_per_shard": 8}, 0, set()),
        ({"views": ("full",), "layers": (0,)}, {"layers": (0, 1)}, 48, {0, 1}),
    ],
    ids=["a view", "a layer", "fewer words", "other shards", "a view and a layer"],
)
def test_only_what_is_missing_is_made_and_the_bytes_are_those_of_a_fresh_cache(
    run: Run, counting: Counting, tmp_path: Path, before: Any, after: Any, images: int, layers: set[int]
) -> None:
    fresh = run(tmp_path / "fresh", **after)
    run(tmp_path / "cache", **before)
    extended = run(tmp_path / "cache", extend=True, **after)
    assert counting.images == images
    asked = {name for _, names in counting.asked for name in names}
    assert asked == {f"text_decoder.cross_attn.{i}" for i in layers}
    assert _arrays(tmp_path / "cache") == _arrays(tmp_path / "fresh")
    for name in ("manifest.json", "vocabulary.json", "classes.json", "classes.npy"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert verify(tmp_path / "cache") == []
    assert extended.codec_kl == pytest.approx(fresh.codec_kl, rel=0.3)
    assert extended.codec_kl > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "fresh"]


def _fewer(root: Path, out: Path, count: int) -> Path:
    """The first `count` images of the train split."""
    shutil.copytree(root, out)
    for name in ("captions_train.json", "instances_train.json"):
        path = out / "annotations" / name
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {image["id"] for image in sorted(content["images"], key=lambda image: image["id"])[:count]}
        content["images"] = [image for image in content["images"] if image["id"] in kept]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        path.write_text(json.dumps(content), encoding="utf-8")
    return out


def test_new_images_join_and_old_ones_keep_their_bytes(
    run: Run, counting: Counting, scenes_root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run(cache, data_root=_fewer(scenes_root, tmp_path / "few", 13))
    old = TargetStore.open(cache).read_many(range(13))
    names = TargetStore.open(cache).vocabulary.words
    run(cache, extend=True)
    assert counting.images == 2 * (24 - 13)
    store = TargetStore.open(cache)
    new = store.read_many(range(24))
    assert np.array_equal(new.maps[:13], old.maps)
    assert np.array_equal(new.scale[:13], old.scale)
    words = store.vocabulary.words
    for ours, theirs in zip(new.words[:13], old.words, strict=True):
        assert [words[i] for i in ours if i >= 0] == [names[i] for i in theirs if i >= 0]
    assert (new.scale[13:] > 0).any(axis=(1, 2)).all()
    assert verify(cache) == []


def test_an_interrupted_extension_leaves_the_cache_readable_and_goes_on(
    run: Run, counting: Counting, tmp_path: Path
) -> None:
    fresh, cache = tmp_path / "fresh", tmp_path / "cache"
    run(fresh)
    run(cache, views=("full",))
    counting.fail_after = 16
    with pytest.raises(KeyboardInterrupt):
        run(cache, extend=True)
    assert TargetStore.open(cache).spec.views == ("full",)
    counting.fail_after = 10**9
    run(cache, extend=True)
    assert 0 < counting.images < 24
    assert _arrays(cache) == _arrays(fresh)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("moment", range(6))
def test_killed_while_the_new_cache_takes_its_place(
    run: Run, counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, exchanges: bool
) -> None:
    """Before each of the renames, the exchange and the removal: nothing is made again, and nothing is left."""
    cache = tmp_path / "cache"
    run(cache, views=("full",))
    left, rename, remove = moment, Path.rename, shutil.rmtree

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*args: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return do(*args, **options)

        return dying

    with monkeypatch.context() as patch:
        patch.setattr(reuse.Extension, "of", classmethod(lambda cls, *args: patched(patch, args)))  # the swap alone
        of = reuse_of

        def patched(patch: pytest.MonkeyPatch, args: Any) -> Any:
            found = of(*args)
            patch.setattr(Path, "rename", counted(rename))
            patch.setattr("lfi_pipeline.teachers.reuse.exchange", counted(exchange) if exchanges else lambda *_: False)
            patch.setattr("lfi_pipeline.teachers.reuse.shutil.rmtree", counted(remove))
            return found

        try:
            run(cache, extend=True)
        except KeyboardInterrupt:
            assert exchanges is False or TargetStore.open(cache)  # at no moment without a cache
    if not cache.exists():
        with pytest.raises(TargetsError, match=r"\.cache\.lfi-before.*run the same extraction again"):
            TargetStore.open(cache)
    run(cache, extend=True)
    assert counting.images == 0
    assert TargetStore.open(cache).spec.views == ("full", "hflip")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_rows_that_would_not_be_true_are_refused_by_field(run: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(cache)
    before = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    with pytest.raises(SpecMismatchError, match="kind: 'attention' != 'gradcam'"):
        run(cache, extend=True, kind="gradcam")
    with pytest.raises(SpecMismatchError, match=r"dataset\.split"):
        run(cache, extend=True, split="val")
    assert {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_image_that_changed_is_not_mixed_with_its_old_rows(run: Run, scenes_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "root"))
    run(tmp_path / "cache", data_root=root, views=("full",))
    images = sorted((root / "train").iterdir())
    shutil.copy(images[1], images[0])
    with pytest.raises(CorruptTargetsError, match=rf"{images[0].name} is not the image"):
        run(tmp_path / "cache", data_root=root, extend=True)


def test_a_new_cache_needs_no_old_one(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "cache", extend=True)
    assert verify(tmp_path / "cache") == []


def test_a_webdataset_cache_is_extended_images_and_all(
    run: Run, counting: Counting, tmp_path: Path, scenes_root: Path
) -> None:
    fresh, cache = tmp_path / "fresh", tmp_path / "cache"
    run(fresh, layout="webdataset", words=3)
    run(cache, layout="webdataset")
    run(cache, layout="webdataset", words=3, extend=True)
    assert counting.images == 0
    for shard in sorted((fresh / "shards").iterdir()):
        assert (cache / "shards" / shard.name).read_bytes() == shard.read_bytes()


def test_what_is_overwritten_stands_until_the_new_cache_is_complete(
    run: Run, counting: Counting, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run(cache)
    before = _arrays(cache)
    counting.fail_after = 8
    with pytest.raises(KeyboardInterrupt):
        run(cache, overwrite=True, kind="gradcam")
    assert _arrays(cache) == before
    with pytest.raises(KeyboardInterrupt):  # an attempt that was given up makes room for another
        run(cache, overwrite=True, kind="relevance")
    counting.fail_after = 10**9
    run(cache, overwrite=True, kind="relevance")
    assert TargetStore.open(cache).spec.kind == "relevance"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    run(tmp_path / "other", kind="relevance")
    assert _arrays(cache) == _arrays(tmp_path / "other")
    run(cache, overwrite=True, kind="relevance")
    assert counting.images == 2 * 24  # nothing is taken over


def test_only_a_cache_is_overwritten(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overwrite replaces a whole cache by one process"):
        run(tmp_path / "cache", overwrite=True, extend=True)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetsError):
        run(tmp_path / "cache", overwrite=True)
    assert (tmp_path / "cache" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
