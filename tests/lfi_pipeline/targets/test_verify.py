"""No changed bit and no missing file goes unnoticed."""

from __future__ import annotations

import dataclasses
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import CorruptTargetsError, LFIError, TargetsError
from lfi_pipeline.core.io import FileRecord
from lfi_pipeline.targets import Fault, TargetStore
from lfi_pipeline.targets.manifest import Manifest
from lfi_pipeline.targets.store import checked_image
from lfi_pipeline.targets.stream import TargetStream
from lfi_pipeline.targets.verify import verify


def read_everything(path: Path, layout: str) -> None:
    """What a user of a cache reads: the store, its columns, both views, the images, and the stream."""
    store = TargetStore.open(path)
    _ = store.vocabulary, store.zero_shot, store.source_root
    for column in ("keys", "paths", "labels", "domains", "captions", "reasons", "image_crc32c"):
        _ = getattr(store.index, column)
    for view in store.spec.views:
        store.read_many(range(len(store)), view)
    for position in store.usable.tolist():
        crc32c = int(store.index.image_crc32c[position])
        checked_image(store.data_root, store.index.paths[position], crc32c, store.index.keys[position])
    if layout == "webdataset":
        list(TargetStream(store, views=store.spec.views, shuffle=0))


def test_an_undamaged_cache_has_no_faults(both: dict[str, Path], layout: str) -> None:
    assert verify(both[layout]) == []
    read_everything(both[layout], layout)


def test_one_flipped_bit_in_any_file_is_found_there_and_refused(synthetic: Any, copy: Path, layout: str) -> None:
    for number, name in enumerate(synthetic.tree(copy)):
        file = copy / name
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1, 7919 * number % len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << (number % 8)
            file.write_bytes(data)
            faults = verify(copy)
            assert {fault.file for fault in faults} == {name}, (name, place)
            with pytest.raises(LFIError):
                read_everything(copy, layout)
        file.write_bytes(whole)
    assert verify(copy) == []


@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_found_and_refused(
    synthetic: Any, copy: Path, layout: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(synthetic.tree(copy))))
    whole = (copy / name).read_bytes()
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (copy / name).write_bytes(flipped)
    try:
        assert {fault.file for fault in verify(copy)} == {name}
        with pytest.raises(LFIError):
            read_everything(copy, layout)
    finally:
        (copy / name).write_bytes(whole)


def test_a_missing_file_is_found(synthetic: Any, copy: Path, layout: str, tmp_path: Path) -> None:
    for name in synthetic.tree(copy):
        if name != "manifest.json":
            (copy / name).rename(tmp_path / "aside")
            assert {fault.file for fault in verify(copy)} == {name}
            (tmp_path / "aside").rename(copy / name)


@pytest.mark.parametrize("name", ["notes.txt", "commits/000003.json", "index/000003.parquet", "shards/x.tar", ".tmp"])
def test_a_file_too_many_is_found(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"more")
    (copy / "staging").mkdir()
    (copy / "staging/half").write_bytes(b"being written")
    (fault,) = verify(copy)
    assert fault.file == name
    assert "not part of this cache" in fault.message


def test_damage_in_a_tar_is_pinned_to_the_sample(both: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(both["webdataset"], tmp_path / "targets"))
    file = path / "shards/000001.tar"
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        members = {member.name: member for member in tar}
    for name, sample in (
        ("000000006.jpg", 6),
        ("000000006.json", 6),
        ("000000006.hflip.zst", 6),
        ("000000005.json", 5),
    ):
        for place in (members[name].offset_data, members[name].offset_data + 20):
            data = bytearray(whole)
            data[place] ^= 1
            file.write_bytes(data)
            (fault,) = verify(path)
            assert (fault.shard, fault.file, fault.sample) == (1, "shards/000001.tar", sample)
    data = bytearray(whole)
    data[members["000000006.jpg"].offset + 3] ^= 1
    file.write_bytes(data)
    (fault,) = verify(path)
    assert fault.sample in (5, 6)


def test_a_forged_record_over_a_tar_with_foreign_members_does_not_help(both: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(both["webdataset"], tmp_path / "targets"))
    file = path / "shards/000002.tar"
    whole = file.read_bytes()
    link = tarfile.TarInfo("000000008.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    outside = tarfile.TarInfo("../000000008.jpg")
    for member in (link, outside):
        file.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + whole)
        with pytest.raises(CorruptTargetsError):
            read_everything(path, "webdataset")
        store = TargetStore.open(path)
        record = store.records[2]
        files = {**record.files, "shards/000002.tar": FileRecord.of(file.read_bytes())}
        forged = dataclasses.replace(record, files=files).to_bytes()
        original = (path / "commits/000002.json").read_bytes()
        (path / "commits/000002.json").write_bytes(forged)
        assert [fault.file for fault in verify(path)] == ["shards/000002.tar"]
        with pytest.raises(CorruptTargetsError, match="header at byte 0"):
            list(TargetStream(TargetStore.open(path), views=()))
        (path / "commits/000002.json").write_bytes(original)


def test_a_changed_or_missing_image_is_found(both: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    (root / "images/5.jpg").unlink()  # quarantined: not looked at
    assert verify(both["zarr"], data_root=root) == []
    data = bytearray((root / "images/7.jpg").read_bytes())
    data[-1] ^= 1
    (root / "images/7.jpg").write_bytes(data)
    (root / "images/2.jpg").unlink()
    faults = verify(both["zarr"], data_root=root)
    assert [(fault.shard, fault.sample, fault.file) for fault in faults] == [
        (0, 2, "images/2.jpg"),
        (1, 7, "images/7.jpg"),
    ]
    assert verify(both["zarr"], data_root=root, images=False) == []
    (fault,) = verify(both["zarr"], data_root=tmp_path / "nowhere")
    assert "does not exist" in fault.message
    assert verify(both["webdataset"], data_root=tmp_path / "nowhere") == []


def test_further_checks_run_on_a_sound_cache(both: dict[str, Path], copy: Path, layout: str) -> None:
    fault = Fault(shard=0, file="", sample=3, message="another map")

    def further(store: TargetStore) -> list[Fault]:
        assert len(store) == 10
        return [fault]

    assert verify(copy, further=[further]) == [fault]
    (copy / "commits/000000.json").unlink()
    assert fault not in verify(copy, further=[further])


def test_many_missing_shards_are_not_told_one_by_one(synthetic: Any, tmp_path: Path) -> None:
    spec = synthetic.spec(
        dataset=dataclasses.replace(synthetic.spec().dataset, samples=2**30), samples_per_shard=1, views=("full",)
    )
    vocabulary = synthetic.vocabulary()
    files = {name: FileRecord.of(content) for name, content in vocabulary.to_files().items()}
    manifest = Manifest(spec=spec, layout="webdataset", plan={}, files=files)
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    faults = verify(tmp_path)
    assert len(faults) < 110
    assert f"{2**30 - 100} more shards" in faults[-1].message


def test_damage_is_pinned_to_the_sample(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    shutil.copytree(finished, path)
    file = path / "views/hflip/maps/c.1.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[3] ^= 1  # in the first inner chunk
    file.write_bytes(data)
    (fault,) = verify(path, images=False)
    assert (fault.shard, fault.sample) == (1, 4)
    assert "commits/000001.json" in fault.message


def test_missing_shards_are_named(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    assert [(fault.shard, fault.file) for fault in verify(path, images=False)] == [
        (1, "commits/000001.json"),
        (2, "commits/000002.json"),
    ]


def test_what_is_not_a_cache_is_no_fault_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="not a targets cache"):
        verify(tmp_path)
