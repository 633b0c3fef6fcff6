"""What a look at a cache tells, against the files and arrays themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.verify import _general, bytes_by_part, quarantine_groups, word_facts


def test_bytes_by_part_are_those_of_the_files(finished: Path) -> None:
    found = bytes_by_part(TargetStore.open(finished))
    assert set(found) == {"index"} | {
        f"{view}/{array}"
        for view in ("full", "hflip")
        for array in ("maps", "scale", "words", "kept", "image_embedding")
    }
    for part, size in found.items():
        folder = finished / ("index" if part == "index" else f"views/{part}")
        assert size == sum(file.stat().st_size for file in folder.iterdir() if file.name != "zarr.json")


def test_words_and_kept_mass(finished: Path) -> None:
    store = TargetStore.open(finished)
    facts = word_facts(store)
    all_of = store.read_many(store.usable)
    assert facts.looked_at == 9  # one of ten is quarantined
    assert facts.words == pytest.approx((all_of.words >= 0).sum(1).mean())
    assert facts.without_words == 0
    assert facts.kept == pytest.approx(all_of.kept[all_of.scale > 0].astype(np.float64).mean())
    some = word_facts(store, most=2)
    assert some.looked_at == 2
    assert some.words == pytest.approx((store.read_many(store.usable[[0, -1]]).words >= 0).sum(1).mean())


def test_samples_without_words_are_counted(tmp_path: Path, synthetic: Any) -> None:
    spec = synthetic.spec()
    writer = synthetic.open_writer(tmp_path / "targets", spec)
    for shard in writer.pending_shards():
        payload = synthetic.payload(spec, shard)
        for view in payload.views.values():
            view.words[0] = -1
        writer.commit(shard, payload)
    assert word_facts(TargetStore.open(tmp_path / "targets")).without_words == pytest.approx(3 / 9)


def test_quarantine_is_grouped_by_reason(tmp_path: Path, synthetic: Any) -> None:
    spec = synthetic.spec()
    writer, plan = synthetic.open_writer(tmp_path / "targets", spec), synthetic.plan()
    for shard in writer.pending_shards():
        payload = synthetic.payload(spec, shard)
        payload.quarantined.clear()
        for row, position in enumerate(spec.shard_range(shard)):
            if position < 7:
                payload.quarantined[row] = f"/data/{plan[position].path}: broken image file (byte {position})"
            elif position == 8:
                payload.quarantined[row] = f"/data/{plan[position].path}: No such file"
        writer.commit(shard, payload)
    many, one = quarantine_groups(TargetStore.open(tmp_path / "targets"))
    assert (many.reason, many.count) == ("broken image file (byte #)", 7)
    assert many.keys == tuple(f"{i:03d}" for i in range(5))
    assert (one.reason, one.count, one.keys) == ("No such file", 1, ("008",))


def test_a_reason_without_a_path_stays() -> None:
    assert _general("cannot be decoded", "images/5.jpg") == "cannot be decoded"
