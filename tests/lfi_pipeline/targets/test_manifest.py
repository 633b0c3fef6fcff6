"""The manifest: what is read of it and what is not, and the fixed files that go with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import (
    ConfigError,
    CorruptTargetsError,
    NotTargetsError,
    SpecMismatchError,
    TargetsError,
)
from lfi_pipeline.core.io import FileRecord, seal, unseal
from lfi_pipeline.targets import DatasetSpec, Vocabulary
from lfi_pipeline.targets.commits import CLASSES, MANIFEST, VOCABULARY, fixed_files
from lfi_pipeline.targets.manifest import (
    MAX_SAMPLES,
    KindChoice,
    KindScore,
    Manifest,
    Source,
    prepare,
    read_source,
)

DIGESTS = {"keys": "11" * 32, "captions": "22" * 32}


def manifest(spec: Any, layout: str = "webdataset", classes: bool = False) -> Manifest:
    names = fixed_files(spec, layout) | (set(CLASSES) if classes else set())
    return Manifest(
        spec=spec, layout=layout, plan=DIGESTS, files={name: FileRecord.of(name.encode()) for name in names}
    )


@pytest.mark.parametrize("classes", [False, True])
def test_a_manifest_comes_back(synthetic: Any, tmp_path: Path, layout: str, classes: bool) -> None:
    made = manifest(synthetic.spec(), layout, classes)
    (tmp_path / MANIFEST).write_bytes(made.to_bytes())
    assert Manifest.load(tmp_path) == made
    assert Manifest.load(tmp_path).has_classes is classes


SCORE = KindScore(
    kind="relevance", cost=1.5, score=0.5, behind=0.0, error=0.0, pointing=0.75, mass_in_mask=None, same_peak=None
)
CHOICE = KindChoice(kind="relevance", by="masks", images=3, words=4, scores=(SCORE,))


def test_why_a_kind_of_map_was_taken_stays_with_the_cache(synthetic: Any, tmp_path: Path) -> None:
    made = dataclasses.replace(manifest(synthetic.spec()), choice=CHOICE)
    (tmp_path / MANIFEST).write_bytes(made.to_bytes())
    assert Manifest.load(tmp_path).choice == CHOICE
    body = unseal(made.to_bytes(), tmp_path)
    body["choice"]["scores"][0]["cost"] = "dear"
    (tmp_path / MANIFEST).write_bytes(seal(body))
    with pytest.raises(
        CorruptTargetsError, match=r"how its kind of map was chosen: Expected `float`.*scores\[0\]\.cost"
    ):
        Manifest.load(tmp_path)


def test_other_content_is_told_from_damaged_content(synthetic: Any, tmp_path: Path) -> None:
    made = manifest(synthetic.spec())
    body = unseal(made.to_bytes(), tmp_path)
    path = tmp_path / MANIFEST
    other_spec = synthetic.spec(words_per_sample=5).to_plain()
    for content, kind, message in (
        (b"[1]", NotTargetsError, r"its manifest\.json has another format\. A cache holds manifest\.json"),
        (made.to_bytes()[:-9], CorruptTargetsError, r"manifest\.json does not match its checksum"),
        (seal({**body, "layout": "hdf5"}), TargetsError, r"has layout .*hdf5.*; this release knows zarr, webdataset\."),
        (seal({**body, "spec": other_spec}), CorruptTargetsError, "has a spec that does not match its fingerprint"),
        (seal({**body, "layout": "zarr"}), CorruptTargetsError, "does not list the files of a cache of its spec"),
        (seal({**body, "plan": []}), CorruptTargetsError, "does not list the files of a cache of its spec"),
    ):
        path.write_bytes(content)
        with pytest.raises(kind, match=message):
            Manifest.load(tmp_path)


def test_counts_that_only_a_forged_manifest_has_are_refused(synthetic: Any, tmp_path: Path) -> None:
    def written(samples: int) -> Path:
        dataset = DatasetSpec(name="x", split="train", classes=(), listing_sha256="cd" * 32, samples=samples)
        (tmp_path / MANIFEST).write_bytes(manifest(synthetic.spec(dataset=dataset)).to_bytes())
        return tmp_path

    assert Manifest.load(written(MAX_SAMPLES)).spec.dataset.samples == 2**30
    with pytest.raises(TargetsError, match=r"describes targets larger than any: at most 1073741824 samples"):
        Manifest.load(written(MAX_SAMPLES + 1))


def test_what_lies_there_instead_of_a_cache_is_described(tmp_path: Path) -> None:
    file, folder, gone = tmp_path / "file", tmp_path / "folder", tmp_path / "gone"
    file.touch()
    folder.mkdir()
    for name in "gfedcba":
        (folder / name).touch()
    (tmp_path / ".gone.lfi-before").mkdir()
    for root, message in (
        (file, "it is a file"),
        (folder, r"it holds a, b, c, d, e, \.\.\.\. A cache"),
        (gone, r"it does not exist, but .*/\.gone\.lfi-before does: run the same extraction again to restore it"),
    ):
        with pytest.raises(NotTargetsError, match=message):
            Manifest.load(root)


def test_everything_that_differs_is_listed_the_caches_value_first(synthetic: Any, tmp_path: Path) -> None:
    spec = synthetic.spec()
    made = manifest(spec)
    made.require_same(spec, "webdataset", dict(DIGESTS), [], tmp_path)
    with pytest.raises(SpecMismatchError) as caught:
        made.require_same(
            synthetic.spec(words_per_sample=5), "zarr", {**DIGESTS, "keys": "33" * 32}, ["a line of its own"], tmp_path
        )
    first, *lines, last = str(caught.value).splitlines()
    assert first == f"The cache at {tmp_path} was begun with other settings (cache != this run):"
    assert lines[:2] == ["  words_per_sample: 3 != 5", "  layout: 'webdataset' != 'zarr'"]
    assert lines[2].startswith("  plan.keys: ")
    assert lines[3:] == ["  a line of its own"]
    assert last == "Run with the cache's settings, or choose another output directory."


def test_the_place_of_the_data_is_a_path(tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    source.write_bytes(seal({"data_root": "/data/scenes"}))
    assert read_source(tmp_path) == Source(Path("/data/scenes"))
    source.write_bytes(Source(Path("/data/scenes"), 'name = "mine"').to_bytes())
    assert read_source(tmp_path).manifest == 'name = "mine"'
    for body in ({}, {"data_root": 3}, {"data_root": "/data\0"}, {"data_root": "/data", "manifest": 3}):
        source.write_bytes(seal(body))
        with pytest.raises(CorruptTargetsError, match="does not say where the data set lies"):
            read_source(tmp_path)


def test_vocabulary_and_classes_must_fit_the_spec_before_anything_is_written(synthetic: Any, tmp_path: Path) -> None:
    spec, vocabulary, zero_shot = synthetic.spec(), synthetic.vocabulary(), synthetic.zero_shot()
    narrow = Vocabulary(words=vocabulary.words, embeddings=vocabulary.embeddings[:, :5])
    swapped = dataclasses.replace(zero_shot, names=("dog", "cat"))
    for words, classes, message in (
        (narrow, zero_shot, r"vocabulary\.embeddings must be \[V, 8\] as embedding_dim says, got \(7, 5\)\."),
        (vocabulary, swapped, r"zero_shot\.names must be the classes of the spec, in their order\."),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(tmp_path, spec, "zarr", DIGESTS, words, classes)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_vocabulary_is_made_anew_only_while_no_shard_refers_to_it(
    synthetic: Any, tmp_path: Path, layout: str
) -> None:
    spec, vocabulary = synthetic.spec(), synthetic.vocabulary()
    other = Vocabulary(words=vocabulary.words, embeddings=vocabulary.embeddings + np.float16(1))
    begun = prepare(tmp_path, spec, layout, DIGESTS, vocabulary, None)
    assert begun == Manifest.load(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        MANIFEST,
        *begun.files,
    }
    assert prepare(tmp_path, spec, layout, DIGESTS, lambda: pytest.fail("it is there"), None) == begun
    (tmp_path / VOCABULARY[1]).write_bytes(b"damaged")
    anew = prepare(tmp_path, spec, layout, DIGESTS, lambda: other, None)
    assert anew.files[VOCABULARY[1]] != begun.files[VOCABULARY[1]]
    assert Vocabulary.load(tmp_path, spec.embedding_dim).differences(other) == []
    (tmp_path / VOCABULARY[1]).write_bytes(b"damaged")
    (tmp_path / "commits/000000.json").touch()
    with pytest.raises(
        CorruptTargetsError, match=r"has damaged files \(vocabulary\.npy\) that this run cannot restore; restore them"
    ):
        prepare(tmp_path, spec, layout, DIGESTS, vocabulary, None)
    assert prepare(tmp_path, spec, layout, DIGESTS, other, None) == anew
    assert Vocabulary.load(tmp_path, spec.embedding_dim).differences(other) == []
