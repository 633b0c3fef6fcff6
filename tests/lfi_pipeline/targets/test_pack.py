"""Packing from one layout to the other and back changes no byte, can be interrupted, and passes no damage on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError, IncompleteTargetsError, SpecMismatchError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.pack import pack
from lfi_pipeline.targets.verify import verify

OTHER = {"zarr": "webdataset", "webdataset": "zarr"}


def test_there_and_back_gives_the_same_bytes(
    synthetic: Any, both: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    packed = pack(both[layout], there, layout=OTHER[layout])
    assert synthetic.tree(there) == synthetic.tree(both[OTHER[layout]])
    assert packed.summary == TargetStore.open(there).summary()
    assert packed.images_missing == 0
    pack(there, back, layout=layout)
    assert synthetic.tree(back) == synthetic.tree(both[layout])
    assert verify(there) == verify(back) == []


def test_an_unrecorded_size_stays_unrecorded(synthetic: Any, pictures: Path, tmp_path: Path) -> None:
    writer = synthetic.open_writer(tmp_path / "a", data_root=pictures)
    for shard in writer.pending_shards():
        writer.commit(shard, dataclasses.replace(synthetic.payload(writer.spec, shard), image_size=None, images=None))
    pack(tmp_path / "a", tmp_path / "b", layout="webdataset")
    pack(tmp_path / "b", tmp_path / "c", layout="zarr")
    assert synthetic.tree(tmp_path / "a") == synthetic.tree(tmp_path / "c")


def test_an_interrupted_pack_goes_on(
    synthetic: Any, both: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", []
    read_many = TargetStore.read_many

    def failing(self: TargetStore, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # in the second shard
            raise KeyboardInterrupt
        return read_many(self, *arguments, **named)

    monkeypatch.setattr(TargetStore, "read_many", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(both["zarr"], out, layout="webdataset")
    assert len(list((out / "commits").iterdir())) == 1
    pack(both["zarr"], out, layout="webdataset")
    assert len(calls) == 3 + 2 * 2  # the first shard is not read again
    assert synthetic.tree(out) == synthetic.tree(both["webdataset"])


def test_missing_and_changed_images_are_named(
    synthetic: Any, both: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    image = root / "images/6.jpg"
    image.write_bytes(b"another")
    with pytest.raises(CorruptTargetsError, match=r"images/6\.jpg \(sample 006\).*not the image that the teacher saw"):
        pack(both["zarr"], tmp_path / "out", layout="webdataset", data_root=root)
    image.unlink()
    with pytest.raises(CorruptTargetsError, match=r"images/6\.jpg \(sample 006\).*No such file"):
        pack(both["zarr"], tmp_path / "out", layout="webdataset", data_root=root)
    image.write_bytes(synthetic.image(6))
    (root / "images/5.jpg").unlink()  # quarantined: not needed
    pack(both["zarr"], tmp_path / "out", layout="webdataset", data_root=root)
    expected = synthetic.tree(both["webdataset"])
    found = synthetic.tree(tmp_path / "out")
    assert {name for name in expected if expected[name] != found[name]} == {"source.json"}


def test_images_that_stay_behind_are_counted(both: dict[str, Path], tmp_path: Path) -> None:
    packed = pack(both["webdataset"], tmp_path / "out", layout="zarr", data_root=tmp_path / "nowhere")
    assert packed.images_missing == 9
    assert TargetStore.open(tmp_path / "out").data_root == packed.data_root == tmp_path / "nowhere"


def test_damage_is_not_passed_on(synthetic: Any, copy: Path, layout: str, tmp_path: Path) -> None:
    name = "views/hflip/maps/c.2.0.0.0.0" if layout == "zarr" else "shards/000002.tar"
    data = bytearray((copy / name).read_bytes())
    data[40 if layout == "zarr" else 600] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CorruptTargetsError, match=r"sample (8|008)"):
        pack(copy, tmp_path / "out", layout="webdataset")
    assert not (tmp_path / "out/commits/000002.json").exists()


def test_what_cannot_be_packed(synthetic: Any, both: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another directory"):
        pack(both["zarr"], both["zarr"], layout="zarr")
    with pytest.raises(SpecMismatchError, match="layout: 'webdataset' != 'zarr'"):
        pack(both["zarr"], both["webdataset"], layout="zarr")
    synthetic.extract(tmp_path / "part", limit=1)
    with pytest.raises(IncompleteTargetsError):
        pack(tmp_path / "part", tmp_path / "out", layout="webdataset")


def test_a_packed_store_reads_as_its_source(both: dict[str, Path], tmp_path: Path) -> None:
    pack(both["zarr"], tmp_path / "out", layout="webdataset")
    one, other = TargetStore.open(both["zarr"]), TargetStore.open(tmp_path / "out")
    assert one.spec.fingerprint == other.spec.fingerprint
    for name in ("maps", "scale", "words", "kept", "image_embedding"):
        np.testing.assert_array_equal(
            getattr(one.read_many(range(10), "hflip"), name), getattr(other.read_many(range(10), "hflip"), name)
        )
