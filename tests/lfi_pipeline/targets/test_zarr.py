"""Shards of arrays: what is encoded is read alike by both readers, and damage is told from absence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lfi_pipeline.core.errors import CorruptTargetsError
from lfi_pipeline.targets.commits import ArrayLayout, array_layouts, shard_key, zarr_metadata
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.zarr import ShardFiles, ZarrView, encode_shard, first_line, new_context


def content(layout: ArrayLayout, samples: int) -> npt.NDArray[np.generic]:
    """Values of an array's own type, another one in every cell as far as the type goes."""
    numbers = 1 + np.arange(samples * int(np.prod(layout.tail))) % 250
    return numbers.reshape(samples, *layout.tail).astype(layout.dtype)


def write(folder: Path, spec: Any, name: str, shard: int) -> npt.NDArray[np.generic]:
    """Encode one shard of an array into `folder`; return what it holds."""
    layout, positions = array_layouts(spec)[name], spec.shard_range(shard)
    array = content(layout, len(positions))
    key = shard_key(layout, shard)
    metadata = zarr_metadata(spec)[f"views/full/{name}/zarr.json"]
    folder.mkdir(exist_ok=True)
    (folder / key).write_bytes(encode_shard(metadata, key, positions.start, array))
    return array


@pytest.mark.parametrize("name", ["maps", "scale", "words", "kept", "image_embedding"])
def test_a_shard_encoded_is_read_by_position(synthetic: Any, tmp_path: Path, name: str) -> None:
    spec = synthetic.spec()
    array = write(tmp_path, spec, name, 1)  # samples 4 to 7
    files = ShardFiles(tmp_path, array_layouts(spec)[name])
    np.testing.assert_array_equal(files.read(5), array[1])
    read = files.read_many(np.array([7, 4, 7]))
    np.testing.assert_array_equal(read, array[[3, 0, 3]])
    assert read.dtype == np.dtype(array_layouts(spec)[name].dtype)
    with pytest.raises(FileNotFoundError):
        files.read(0)


def test_a_shard_has_the_same_bytes_every_time_and_a_file_whatever_it_holds(synthetic: Any) -> None:
    spec = synthetic.spec()
    layout, metadata = array_layouts(spec)["words"], zarr_metadata(spec)["views/full/words/zarr.json"]
    pads = np.full((4, 3), layout.fill, dtype=np.int32)
    first, second = (encode_shard(metadata, "c.0.0", 0, pads) for _ in range(2))
    assert first == second
    assert len(first) > 16 * (layout.shard // layout.inner) + 4  # more than its index: the chunk is stored


def test_a_chunk_that_the_index_says_is_absent_has_the_fill_value(tmp_path: Path) -> None:
    import google_crc32c

    layout = ArrayLayout(name="words", dtype="int32", tail=(3,), inner=2, shard=4, fill=-1)
    index = b"\xff" * 32  # two chunks, both absent: offset and length 2**64 - 1
    (tmp_path / "c.0.0").write_bytes(index + google_crc32c.value(index).to_bytes(4, "little"))
    np.testing.assert_array_equal(ShardFiles(tmp_path, layout).read_many(np.arange(4)), np.full((4, 3), -1))


def test_damage_is_found_in_index_and_chunk(synthetic: Any, tmp_path: Path) -> None:
    spec = synthetic.spec()
    array = write(tmp_path, spec, "image_embedding", 0)
    layout, path = array_layouts(spec)["image_embedding"], tmp_path / "c.0.0"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # in the chunk of the first sample; the index ends the file
    damaged = ShardFiles(tmp_path, layout)
    with pytest.raises(ValueError, match="the chunk does not match its crc32c"):
        damaged.read(0)
    np.testing.assert_array_equal(damaged.read(1), array[1])
    for content in (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="the shard's index does not match its crc32c"):
            ShardFiles(tmp_path, layout).read(1)


def test_both_readers_of_a_view_read_alike_and_name_the_damaged_sample(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "copy"))
    manifest = Manifest.load(root)
    positions = np.array([9, 0, 3, 3])
    fast, plain = (ZarrView(root, manifest, "hflip", context) for context in (new_context(), None))
    one, other = fast.read(positions), plain.read(positions)
    assert one.keys() == other.keys() == array_layouts(manifest.spec).keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    damaged = root / "views/hflip/kept/c.2.0.0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for context in (new_context(), None):
        view = ZarrView(root, manifest, "hflip", context)
        view.read(np.array([0, 7]))
        with pytest.raises(
            CorruptTargetsError, match=r"Cannot read shard 2, array hflip/kept, sample 9 of .*delete .*000002\.json"
        ):
            view.read(positions)


def test_damaged_metadata_is_refused_when_a_view_is_opened(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "copy"))
    (root / "views/full/scale/zarr.json").write_bytes(b"{}")
    with pytest.raises(CorruptTargetsError, match=r"scale/zarr\.json has 2 bytes, .* Run the same extract command"):
        ZarrView(root, Manifest.load(root), "full", None)


def test_a_process_forked_after_tensorstore_was_used_reads_without_it_and_does_not_write(
    synthetic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfi_pipeline.targets.zarr._first_user", os.getpid() + 1)  # as in a child
    assert new_context() is None
    spec = synthetic.spec()
    with pytest.raises(RuntimeError, match=r"start the process with 'spawn'\."):
        encode_shard(zarr_metadata(spec)["views/full/words/zarr.json"], "c.0.0", 0, np.zeros((4, 3), dtype=np.int32))


def test_the_first_line_of_an_error_is_a_sentence() -> None:
    assert first_line(ValueError("bad chunk\n[source locations='x.cc']")) == "bad chunk."
    assert first_line(OSError("It ends.")) == "It ends."
    assert first_line(ValueError()) == "ValueError."
