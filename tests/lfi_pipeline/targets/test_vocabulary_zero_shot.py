"""The stored classifier: written once, carried over, refused where it differs, and its logits are cosines."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, SpecMismatchError
from lfi_pipeline.targets import (
    DatasetSpec,
    TargetStore,
    TargetWriter,
    ZeroShot,
    class_weights,
    image_logits,
    teacher_logits,
)
from lfi_pipeline.targets.pack import pack
from lfi_pipeline.targets.verify import verify

OTHER = {"zarr": "webdataset", "webdataset": "zarr"}
FILES = {"classes.json", "classes.npy"}


def _open(path: Path, synthetic: Any, zero_shot: Any, **changes: Any) -> TargetWriter:
    spec = dataclasses.replace(synthetic.spec(), **changes)
    return TargetWriter.open(path, spec, synthetic.plan(), synthetic.vocabulary(), "/data", zero_shot=zero_shot)


def test_what_was_written_is_read(synthetic: Any, both: dict[str, Path], layout: str) -> None:
    written, read = synthetic.zero_shot(), TargetStore.open(both[layout]).zero_shot
    assert read is not None
    assert (read.names, read.templates, read.logit_scale) == (written.names, written.templates, written.logit_scale)
    assert read.embeddings.dtype == np.float32
    np.testing.assert_array_equal(read.embeddings, written.embeddings.astype(np.float32))
    body = json.loads((both[layout] / "classes.json").read_text())
    assert body == {"names": ["cat", "dog"], "templates": list(written.templates), "logit_scale": 31.4}
    assert np.load(both[layout] / "classes.npy", allow_pickle=False).dtype == np.float16


def test_logits_are_scaled_cosines_whatever_the_length_and_type(synthetic: Any) -> None:
    zero_shot, rng = synthetic.zero_shot(), np.random.default_rng(0)
    images = (3 * rng.normal(size=(5, 8))).astype(np.float16)
    expected = [
        [31.4 * float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in zero_shot.embeddings.astype(np.float64)]
        for a in images.astype(np.float64)
    ]
    found = teacher_logits(torch.from_numpy(images), zero_shot)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    again = image_logits(torch.from_numpy(images), class_weights(zero_shot))
    torch.testing.assert_close(again, found, atol=0, rtol=0)


def test_a_data_set_without_classes_has_no_files(synthetic: Any, tmp_path: Path) -> None:
    dataset = DatasetSpec(name="x", split="train", classes=(), listing_sha256="cd" * 32, samples=10)
    writer = _open(tmp_path / "a", synthetic, None, dataset=dataset)
    assert writer.zero_shot is None
    assert TargetStore.open(tmp_path / "a", require_complete=False).zero_shot is None
    assert not FILES & {path.name for path in (tmp_path / "a").iterdir()}
    with pytest.raises(ConfigError, match="must be the classes of the spec"):
        _open(tmp_path / "b", synthetic, synthetic.zero_shot(), dataset=dataset)


def test_a_cache_of_an_earlier_release_opens_and_stays_as_it_is(synthetic: Any, tmp_path: Path, layout: str) -> None:
    """Its manifest lists no classes; a rerun that has them finishes it, and restores what is damaged, without."""
    path, whole = tmp_path / "old", tmp_path / "whole"
    synthetic.extract(path, limit=1, layout=layout, zero_shot=None)
    synthetic.extract(whole, layout=layout, zero_shot=None)
    (path / "vocabulary.json").write_bytes(b"damaged")
    synthetic.extract(path, layout=layout)
    assert synthetic.tree(path) == synthetic.tree(whole)
    assert not FILES & set(synthetic.tree(path))
    assert TargetStore.open(path).zero_shot is None
    assert verify(path, images=False) == []
    TargetWriter.open(
        path,
        synthetic.spec(),
        synthetic.plan(),
        synthetic.vocabulary,
        "/data/scenes",
        layout=layout,
        zero_shot=lambda: pytest.fail("computed for a cache that cannot take it"),
    )


def test_half_of_the_files_is_no_cache(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    from lfi_pipeline.core.io import seal, unseal

    path = tmp_path / "targets"
    synthetic.extract(path)
    for change in ({"drop": "classes.npy"}, {"add": "classes.txt"}):
        body = unseal((finished / "manifest.json").read_bytes(), path)
        body["files"].pop(change.get("drop"), None)
        if "add" in change:
            body["files"][change["add"]] = body["files"]["classes.npy"]
        (path / "manifest.json").write_bytes(seal(body))
        with pytest.raises(CorruptTargetsError, match="does not list the files"):
            TargetStore.open(path)


def test_packing_carries_it_over_and_its_absence_too(
    synthetic: Any, both: dict[str, Path], layout: str, pictures: Path, tmp_path: Path
) -> None:
    pack(both[layout], tmp_path / "there", layout=OTHER[layout])
    for name in FILES:
        assert (tmp_path / "there" / name).read_bytes() == (both[layout] / name).read_bytes()
    synthetic.extract(tmp_path / "old", layout=layout, data_root=pictures, zero_shot=None)
    pack(tmp_path / "old", tmp_path / "new", layout=OTHER[layout])
    assert TargetStore.open(tmp_path / "new").zero_shot is None


def test_another_classifier_is_refused_by_field_and_rounding_is_not(synthetic: Any, tmp_path: Path) -> None:
    path, zero_shot = tmp_path / "targets", synthetic.zero_shot()
    synthetic.extract(path, limit=1)
    before = synthetic.tree(path)
    for changes, named in (
        ({"templates": ("a {}",)}, r"classes\.templates: \('a photo"),
        ({"logit_scale": 30.0}, r"classes\.logit_scale: 31\.4 != 30\.0"),
        ({"embeddings": zero_shot.embeddings[::-1]}, r"classes\.embeddings: 2 of 2 classes differ"),
    ):
        with pytest.raises(SpecMismatchError, match=named):
            _open(path, synthetic, dataclasses.replace(zero_shot, **changes))
    rounded = dataclasses.replace(zero_shot, embeddings=zero_shot.embeddings * np.float16(1.001), logit_scale=31.4001)
    writer = _open(path, synthetic, rounded)
    assert writer.zero_shot is not None
    assert writer.zero_shot.logit_scale == 31.4
    after = synthetic.tree(path)
    assert {name: after[name] for name in before if name != "source.json"} == {
        name: before[name] for name in before if name != "source.json"
    }


def test_it_is_computed_once_and_again_only_where_it_is_damaged(synthetic: Any, tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> ZeroShot:
        calls.append(1)
        zero_shot: ZeroShot = synthetic.zero_shot()
        return zero_shot

    for expected in (1, 1):
        _open(tmp_path / "a", synthetic, compute)
        assert len(calls) == expected
    content = (tmp_path / "a" / "classes.npy").read_bytes()
    (tmp_path / "a" / "classes.npy").write_bytes(content[:-1] + b"x")
    _open(tmp_path / "a", synthetic, compute)
    assert len(calls) == 2
    assert (tmp_path / "a" / "classes.npy").read_bytes() == content


def test_a_damaged_byte_is_found(both: dict[str, Path], copy: Path, layout: str) -> None:
    path = copy / "classes.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (fault,) = verify(copy, images=False)
    assert fault.file == "classes.npy"
    with pytest.raises(CorruptTargetsError, match=r"classes\.npy has crc32c"):
        _ = TargetStore.open(copy).zero_shot


def test_what_is_no_classifier_is_refused(synthetic: Any, tmp_path: Path) -> None:
    good = synthetic.zero_shot()
    for changes, message in (
        ({"embeddings": 2 * good.embeddings}, "unit vectors"),
        ({"embeddings": good.embeddings * np.float16(np.nan)}, "unit vectors"),
        ({"embeddings": good.embeddings[:1]}, r"must be \[2, E\]"),
        ({"logit_scale": 0.0}, "positive"),
        ({"logit_scale": math.inf}, "positive"),
        ({"templates": ()}, "one or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(good, **changes)
    longer = dataclasses.replace(good, embeddings=np.eye(2, 9, dtype=np.float16))
    with pytest.raises(ConfigError, match=r"zero_shot\.embeddings must be \[C, 8\]"):
        _open(tmp_path / "a", synthetic, longer)
    swapped = dataclasses.replace(good, names=("dog", "cat"))
    with pytest.raises(ConfigError, match="must be the classes of the spec"):
        _open(tmp_path / "a", synthetic, swapped)
