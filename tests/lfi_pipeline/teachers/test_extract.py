"""Stage one end to end: scenes on disk, a tiny random teacher, a cache that the reader opens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, DatasetError, SpecMismatchError, UnknownNameError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.augment import WHOLE, mirrored_caption, view_image
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import Summary, TargetStore, TargetWriter, decode_maps
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher, extract
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.kinds import KINDS
from lfi_pipeline.teachers.text import stop_words_sha256

Run = Callable[..., Summary]


@pytest.fixture
def run(tiny_teacher: CocaTeacher, scenes_root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extract into `out` with the tiny teacher; changes go to the config of the shared caches."""
    asked: list[str] = []
    monkeypatch.setattr(job, "load_teacher", lambda name, **_: asked.append(name) or tiny_teacher)

    def extracted(out: Path, *, retry_quarantined: bool = False, **changes: Any) -> Summary:
        options: dict[str, Any] = {
            "dataset": "scenes",
            "data_root": scenes_root,
            "words": 6,
            "samples_per_shard": 8,
            "batch_size": 8,
            "device": "cpu",
        }
        config = ExtractConfig(**(options | changes))
        summary, seconds = extract.extract(config, out, retry_quarantined=retry_quarantined)
        assert seconds >= 0
        return summary

    extracted.asked = asked  # type: ignore[attr-defined]
    return extracted


@pytest.fixture
def own_root(scenes_root: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may damage."""
    return Path(shutil.copytree(scenes_root, tmp_path / "root"))


def _tree(path: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in but
    }


def _decoded(store: TargetStore, position: int, view: str = "full") -> np.ndarray:
    found = store.read(position, view)
    return decode_maps(found.maps, found.scale, store.spec.codec.name)


def test_the_cache_holds_what_the_teacher_says(
    tiny_targets: Path, tiny_teacher: CocaTeacher, scenes_root: Path
) -> None:
    store, dataset = TargetStore.open(tiny_targets), read_dataset("scenes", scenes_root, "train")
    spec = store.spec
    assert verify(tiny_targets) == []
    assert spec.teacher == tiny_teacher.identity
    assert (spec.dataset.name, spec.dataset.split, spec.dataset.samples) == ("scenes", "train", 24)
    assert spec.dataset.classes == dataset.classes
    assert (spec.grid, spec.views, spec.words_per_sample) == ((8, 8), ("full", "hflip"), 6)
    assert spec.text.stop_words_sha256 == stop_words_sha256()
    assert spec.preprocessing.image_size == (64, 64)
    assert spec.preprocessing.mean == tiny_teacher.mean
    names = store.vocabulary.words
    torch.testing.assert_close(
        torch.from_numpy(store.vocabulary.embeddings), tiny_teacher.embed_words(names), atol=1e-3, rtol=1e-2
    )
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (tiny_teacher.mean, tiny_teacher.std))
    for position, sample in enumerate(dataset.samples[:10]):
        image, checksum, _ = read_image(scenes_root, sample.path)
        pixels = (torch.from_numpy(view_image(image, WHOLE, (64, 64))).float() - mean) / std
        for view in ("full", "hflip"):
            flip = view == "hflip"
            text = tiny_teacher.encode_text(mirrored_caption(sample.captions[0]) if flip else sample.captions[0])
            expected = tiny_teacher.interaction_maps(
                (pixels.flip(-1) if flip else pixels)[None],
                [text],
                [text.words[:6]],
                kind=spec.kind,
                layers=spec.layers,
                settings=spec.maps,
            )
            found = store.read(position, view)
            maps = _decoded(store, position, view)
            np.testing.assert_allclose(found.image_embedding, expected.image_embedding[0].numpy(), atol=2e-3)
            for row, word in enumerate(text.words[:6]):
                if flip and word.text in ("left", "right"):
                    assert found.words[row] == -1
                    assert not maps[:, row].any()
                    continue
                assert names[found.words[row]] == word.text
                np.testing.assert_allclose(maps[:, row], expected.maps[0, :, row].numpy(), atol=5e-3)
                np.testing.assert_allclose(found.kept[:, row], expected.kept[0, :, row].numpy(), atol=1e-3)
            assert (found.words[len(text.words[:6]) :] == -1).all()
        content = (scenes_root / sample.path).read_bytes()
        assert store.index.image_crc32c[position] == checksum == google_crc32c.value(content)
        assert store.index.captions[position] == sample.captions[0]
        assert tuple(store.index.labels[position]) == sample.labels
        assert store.index.keys[position] == sample.key


def test_the_spec_knows_the_listing_by_every_field_of_every_sample(tiny_targets: Path, scenes_root: Path) -> None:
    dataset = read_dataset("scenes", scenes_root, "train")
    lines = [json.dumps(asdict(sample), sort_keys=True).encode() for sample in dataset.samples]
    expected = hashlib.sha256(b"".join(lines)).hexdigest()
    assert TargetStore.open(tiny_targets).spec.dataset.listing_sha256 == expected


def test_words_of_direction_lose_their_row_in_the_mirrored_view_only(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    names = store.vocabulary.words
    everyone = range(len(store))
    full, mirrored = (store.read_many(everyone, view) for view in ("full", "hflip"))
    direction = np.isin(full.words, [names.index(word) for word in ("left", "right")])
    assert direction.sum() >= 3
    assert (mirrored.words[direction] == -1).all()
    assert not mirrored.scale[np.broadcast_to(direction[:, None], mirrored.scale.shape)].any()
    np.testing.assert_array_equal(mirrored.words[~direction], full.words[~direction])


def test_no_more_words_than_asked_for_and_in_reading_order(run: Run, tmp_path: Path, tiny_teacher: CocaTeacher) -> None:
    run(tmp_path / "t", words=2, views=("full",))
    store = TargetStore.open(tmp_path / "t")
    names = store.vocabulary.words
    for position in range(len(store)):
        words = [names[i] for i in store.read(position).words if i >= 0]
        assert words == [word.text for word in tiny_teacher.encode_text(store.index.captions[position]).words[:2]]


def test_the_longest_caption_on_request(run: Run, tmp_path: Path, scenes_root: Path) -> None:
    run(tmp_path / "t", captions="longest", views=("full",))
    store = TargetStore.open(tmp_path / "t")
    captions = [sample.captions for sample in read_dataset("scenes", scenes_root, "train").samples]
    assert list(store.index.captions) == [max(each, key=len) for each in captions]
    assert list(store.index.captions) != [each[0] for each in captions]


def test_the_data_sets_own_teacher_is_the_default(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "a", views=("full",))
    run(tmp_path / "b", views=("full",), teacher="coca_base:random")
    assert run.asked == ["scenes-coca", "coca_base:random"]  # type: ignore[attr-defined]


def test_an_unreadable_image_is_quarantined_and_the_run_goes_on(run: Run, own_root: Path, tmp_path: Path) -> None:
    images = sorted((own_root / "train").iterdir())
    images[2].write_bytes(images[2].read_bytes()[:100])
    images[9].unlink()
    for image in images[16:]:  # a whole shard
        image.write_text("not an image", encoding="utf-8")
    summary = run(tmp_path / "t", data_root=own_root, batch_size=3)
    store = TargetStore.open(tmp_path / "t")
    assert store.usable.tolist() == [i for i in range(16) if i not in (2, 9)]
    assert (summary.samples, summary.quarantined) == (24, 10)
    reasons = store.index.reasons
    assert "000000000003.png: broken image file" in str(reasons[2])
    assert "000000000010.png: No such file" in str(reasons[9])
    assert "not an image file" in str(reasons[20])
    assert reasons[0] is None
    assert verify(tmp_path / "t") == []
    assert (store.read(2).words == -1).all()
    assert (store.read(3).words >= 0).any()


def test_quarantine_does_not_shift_its_neighbours(run: Run, own_root: Path, tmp_path: Path, tiny_targets: Path) -> None:
    (own_root / "train/000000000003.png").unlink()
    run(tmp_path / "t", data_root=own_root)
    damaged, whole = TargetStore.open(tmp_path / "t"), TargetStore.open(tiny_targets)
    for position in (0, 1, 3, 7, 12):
        np.testing.assert_allclose(_decoded(damaged, position), _decoded(whole, position), atol=2e-3)
        np.testing.assert_array_equal(damaged.read(position).words, whole.read(position).words)


def test_the_teacher_computes_with_the_threads_it_is_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, before, commit = set(), torch.get_num_threads(), job.run_shards
    monkeypatch.setattr(job, "run_shards", lambda *given: (seen.add(torch.get_num_threads()), commit(*given)))
    run(tmp_path / "t", views=("full",), threads=before + 1)
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_mended_images_are_tried_again_where_that_is_asked_for(
    run: Run, own_root: Path, scenes_root: Path, tmp_path: Path, tiny_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sorted((own_root / "train").iterdir())[i] for i in (2, 9, 17)]
    for image in broken:
        image.write_bytes(b"no image")
    run(tmp_path / "t", data_root=own_root)
    before, source = _tree(tmp_path / "t"), ("source.json",)
    for image in broken[:2]:
        shutil.copy(scenes_root / "train" / image.name, image)
    run(tmp_path / "t", data_root=own_root)
    assert _tree(tmp_path / "t") == before  # a rerun changes nothing
    committed: list[int] = []
    commit = TargetWriter.commit
    monkeypatch.setattr(TargetWriter, "commit", lambda self, *each: (committed.append(each[0]), commit(self, *each)))
    assert run(tmp_path / "t", data_root=own_root, retry_quarantined=True).quarantined == 1
    assert committed == [0, 1]  # the third shard's image is as broken as it was
    shutil.copy(scenes_root / "train" / broken[2].name, broken[2])
    assert run(tmp_path / "t", data_root=own_root, retry_quarantined=True).quarantined == 0
    assert _tree(tmp_path / "t", source) == _tree(tiny_targets, source)


def test_a_run_of_which_no_image_can_be_read_fails_and_a_rerun_tries_again(
    run: Run, own_root: Path, scenes_root: Path, tmp_path: Path, tiny_targets: Path
) -> None:
    for image in (own_root / "train").iterdir():
        image.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"all 24 are quarantined. The first: .*000000000001.png: not an image"):
            run(tmp_path / "t", data_root=own_root)
    shutil.copytree(scenes_root / "train", own_root / "train", dirs_exist_ok=True)
    assert run(tmp_path / "t", data_root=own_root).quarantined == 0
    assert _tree(tmp_path / "t", ("source.json",)) == _tree(tiny_targets, ("source.json",))


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_is_finished_to_the_same_bytes(
    run: Run, tmp_path: Path, tiny_targets: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    commit, done = TargetWriter.commit, []

    def killed(self: TargetWriter, shard: int, payload: Any) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        commit(self, shard, payload)
        done.append(shard)

    with monkeypatch.context() as patch:
        patch.setattr(TargetWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "t")
    assert done == list(range(after))
    assert _tree(tmp_path / "t") != _tree(tiny_targets)
    run(tmp_path / "t")
    assert _tree(tmp_path / "t") == _tree(tiny_targets)


def test_a_finished_cache_is_left_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "t", views=("full",))
    before = _tree(tmp_path / "t")
    monkeypatch.setattr(CocaTeacher, "interaction_maps", None)  # calling it would raise
    assert run(tmp_path / "t", views=("full",)) == first
    assert _tree(tmp_path / "t") == before


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_changes_rounding_only_and_is_not_in_the_spec(run: Run, tmp_path: Path, kind: str) -> None:
    options = {"kind": kind, "layers": 2, "views": ("full",)}
    run(tmp_path / "a", batch_size=8, **options)
    run(tmp_path / "b", batch_size=3, **options)
    first, second = TargetStore.open(tmp_path / "a"), TargetStore.open(tmp_path / "b")
    assert first.spec == second.spec
    for position in range(len(first)):
        np.testing.assert_allclose(_decoded(first, position), _decoded(second, position), atol=1e-3)
        np.testing.assert_allclose(first.read(position).kept, second.read(position).kept, atol=2e-3)


def test_kinds_of_several_layers_are_stored_layer_by_layer(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "t", kind="attention", layers=2, row="reading", views=("full",))
    store = TargetStore.open(tmp_path / "t")
    assert [layer.name for layer in store.spec.layers] == ["text_decoder.cross_attn.0", "text_decoder.cross_attn.1"]
    assert (store.spec.kind, store.spec.row) == ("attention", "reading")
    maps = _decoded(store, 0)
    assert maps.shape == (2, 6, 8, 8)
    assert np.abs(maps[0] - maps[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "attention", "layers": 2}, "kind: 'relevance' != 'attention'"),
        ({"words": 5}, "words_per_sample: 6 != 5"),
        ({"views": ("full",)}, "views"),
        ({"captions": "longest"}, r"text\.captions: 'first' != 'longest'"),
        ({"split": "val"}, r"dataset\.split: 'train' != 'val'"),
    ],
    ids=["kind", "words", "views", "captions", "split"],
)
def test_other_settings_are_refused_and_named(run: Run, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run(tmp_path / "t", kind="relevance")
    before = _tree(tmp_path / "t")
    with pytest.raises(SpecMismatchError, match=named):
        run(tmp_path / "t", **({"kind": "relevance"} | change))
    assert _tree(tmp_path / "t") == before


def test_an_image_without_a_caption_is_named_before_anything_is_written(
    run: Run, own_root: Path, tmp_path: Path
) -> None:
    path = own_root / "annotations/captions_train.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 5]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match="Sample 000000000005 has no caption"):
        run(tmp_path / "t", data_root=own_root)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"captions": "some"}, UnknownNameError, "caption choice 'some'.*all, first, longest"),
        ({"views": ("full", "vflip")}, UnknownNameError, "view 'vflip'.*full, hflip"),
        ({"views": ("hflip",)}, ConfigError, "views must include 'full'"),
        ({"views": ()}, ConfigError, "got none"),
        ({"row": "writing", "kind": "attention"}, UnknownNameError, "row 'writing'.*emitting, reading"),
        ({"row": "reading", "kind": "relevance"}, ConfigError, "for the kind 'attention' only"),
        ({"words": 0}, ConfigError, "words must be 1 or more"),
        ({"samples_per_shard": 0}, ConfigError, "samples_per_shard must be"),
        ({"batch_size": 0}, ConfigError, "batch_size must be"),
        ({"kind": "saliency"}, UnknownNameError, "map kind 'saliency'.*attention"),
        ({"kind": "attention", "layers": 3}, ConfigError, "layers must be 1 to 2"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "t", **change)
    assert not (tmp_path / "t").exists()


def test_all_captions_are_read_and_a_words_map_is_the_mean_over_those_that_hold_it(
    run: Run, tiny_teacher: CocaTeacher, scenes_root: Path, tmp_path: Path, own_root: Path
) -> None:
    path = own_root / "annotations/captions_train.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    first = min(each["image_id"] for each in content["annotations"])
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != first]
    content["annotations"] += [
        {"id": 10**6 + i, "image_id": first, "caption": text} for i, text in enumerate(("a cat", "a dog and a cat"))
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    run(tmp_path / "targets", data_root=own_root, captions="all", kind="relevance", views=("full",))
    store = TargetStore.open(tmp_path / "targets")
    position = store.index.captions.index("a cat\na dog and a cat")
    found = store.read(position)
    names = [store.vocabulary.words[i] for i in found.words if i >= 0]
    assert names == ["cat", "dog"]

    image, _, _ = read_image(own_root, store.index.paths[position])
    pixels = torch.from_numpy(view_image(image, WHOLE, tiny_teacher.image_size)).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny_teacher.mean, tiny_teacher.std))
    texts = [tiny_teacher.encode_text(text) for text in ("a cat", "a dog and a cat")]
    rows = [[text.words[-1], text.words[0] if len(text.words) > 1 else None] for text in texts]
    layers = tiny_teacher.layers("relevance", 1)
    one = [
        tiny_teacher.interaction_maps(
            ((pixels - mean) / std)[None], [text], [words], kind="relevance", layers=layers
        ).maps[0, 0]
        for text, words in zip(texts, rows, strict=True)
    ]
    expected = torch.stack([(one[0][0] + one[1][0]) / 2, one[1][1]])
    decoded = torch.from_numpy(_decoded(store, position)[0, :2])
    torch.testing.assert_close(decoded, expected, atol=2e-3, rtol=0.02)


def test_prompts_give_every_class_name_one_row(run: Run, tmp_path: Path, scenes_root: Path) -> None:
    prompts = ("a photo of a {}.",)
    run(tmp_path / "targets", text="prompts", prompts=prompts, views=("full",), kind="relevance")
    store = TargetStore.open(tmp_path / "targets")
    dataset = read_dataset("scenes", scenes_root, "train")
    assert (store.spec.text.mode, store.spec.text.prompts) == ("prompts", prompts)
    words = store.read_many(range(len(store))).words
    for sample, ids in zip(dataset.samples, words, strict=True):
        wanted = [dataset.classes[label].replace("_", " ") for label in sample.labels][:6]
        assert [store.vocabulary.words[i] for i in ids if i >= 0] == wanted


def test_a_word_list_is_made_once_and_read_by_later_processes(
    run: Run, tmp_path: Path, tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "targets")
    monkeypatch.setattr(tiny_teacher, "embed_texts", lambda texts: pytest.fail("embedded again"))
    run(tmp_path / "targets")


def test_a_webdataset_cache_holds_the_images_and_the_same_targets(run: Run, tmp_path: Path, own_root: Path) -> None:
    broken = sorted((own_root / "train").iterdir())[3]
    broken.write_bytes(b"no image")
    options: dict[str, Any] = {"data_root": own_root, "kind": "relevance"}
    run(tmp_path / "zarr", **options)
    run(tmp_path / "tar", layout="webdataset", **options)
    shutil.rmtree(own_root)
    plain, tars = TargetStore.open(tmp_path / "zarr"), TargetStore.open(tmp_path / "tar")
    assert plain.spec == tars.spec
    assert plain.usable.tolist() == tars.usable.tolist() == [i for i in range(24) if i != 3]
    for position in plain.usable.tolist():
        for view in ("full", "hflip"):
            ours, theirs = tars.read(position, view), plain.read(position, view)
            assert all(np.array_equal(getattr(ours, n), getattr(theirs, n)) for n in ("maps", "scale", "words", "kept"))
        _, crc32c, _ = read_image(tars.data_root, tars.index.paths[position])
        assert crc32c == plain.index.image_crc32c[position]


def test_other_prompts_of_the_class_embeddings_are_refused(run: Run, tmp_path: Path) -> None:
    """They are not in the spec, unless they are what the teacher reads."""
    run(tmp_path / "targets")
    store = TargetStore.open(tmp_path / "targets")
    assert store.zero_shot is not None
    assert store.zero_shot.templates == ("a picture of a {}.",)  # of the manifest
    with pytest.raises(SpecMismatchError, match=r"classes\.templates: \('a picture of a \{\}\.',\) != \('a \{\}',\)"):
        run(tmp_path / "targets", prompts=("a {}",))
