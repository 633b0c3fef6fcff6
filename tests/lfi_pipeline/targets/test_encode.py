"""Payloads: what is refused, what is stored of them, and what their loss is measured on."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.io import FileRecord
from lfi_pipeline.targets import DatasetSpec
from lfi_pipeline.targets.commits import shard_files, zarr_metadata
from lfi_pipeline.targets.encode import BLOCK, ShardPayload, StoredShard, check_payload, encode_stored, store_payload


def changed(payload: ShardPayload, **arrays: Any) -> ShardPayload:
    """The payload with other arrays in its view `full`."""
    views = {**payload.views, "full": dataclasses.replace(payload.views["full"], **arrays)}
    return dataclasses.replace(payload, views=views)


def kl_by_hand(payload: ShardPayload, stored: StoredShard, skip: frozenset[tuple[str, int, int]]) -> float:
    """KL(map || codes squared over their sum) in nats, over the rows of all words; without (view, sample, layer)."""
    total = 0.0
    for view, arrays in payload.views.items():
        for n, layer, word in np.ndindex(arrays.maps.shape[:3]):
            if arrays.words[n, word] >= 0 and (view, n, layer) not in skip and n not in payload.quarantined:
                p = arrays.maps[n, layer, word].astype(np.float64)
                squares = stored.views[view]["maps"][n, layer, word].astype(np.float64) ** 2
                total += rel_entr(p / p.sum(), squares / squares.sum()).sum()
    return total


def test_arrays_of_another_shape_are_named_with_both_shapes(synthetic: Any) -> None:
    spec = synthetic.spec()
    good = synthetic.payload(spec, 0)
    check_payload(spec, 7, 4, good)
    full = good.views["full"]
    for bad, message in (
        (dataclasses.replace(good, image_size=np.zeros(3, dtype=np.int64)), r"image_size must be \[4\], got \[3\]\."),
        (
            dataclasses.replace(good, donated=np.zeros((2, 4), dtype=bool)),
            r"donated must be \[2, 4, 2\], got \[2, 4\]\.",
        ),
        (changed(good, kept=full.kept[:, :1]), r"views\['full'\]\.kept must be \[4, 2, 3\], got \[4, 1, 3\]\."),
        (changed(good, words=full.words[:, :2]), r"views\['full'\]\.words must be \[4, 3\], got \[4, 2\]\."),
    ):
        with pytest.raises(ConfigError, match=message):
            check_payload(spec, 7, 4, bad)


def test_values_are_checked_but_not_those_of_quarantined_samples(synthetic: Any) -> None:
    spec = synthetic.spec()
    good = synthetic.payload(spec, 0)
    full = good.views["full"]
    words, kept = full.words.copy(), full.kept.copy()
    words[2, 0], kept[2, 0, 0] = 7, np.inf
    for bad, message in (
        (changed(good, words=words), r"words must be in -1\.\.6, got -1\.\.7\."),
        (changed(good, kept=kept), "must have finite image_embedding and kept, got NaN or infinity"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_payload(spec, 7, 4, bad)
        check_payload(spec, 7, 4, dataclasses.replace(bad, quarantined={2: "cannot be decoded"}))
    nothing_left = dict.fromkeys(range(4), "cannot be decoded")
    check_payload(spec, 7, 4, dataclasses.replace(changed(good, words=words, kept=kept), quarantined=nothing_left))


def test_pads_and_quarantined_samples_are_stored_as_absent(synthetic: Any) -> None:
    spec = synthetic.spec()
    payload = changed(synthetic.payload(spec, 1), kept=None)  # sample 1 is quarantined, sample 0 ends with a pad
    stored = store_payload(spec, payload).views["full"]
    for name, absent in {"maps": 0, "scale": 0, "words": -1, "kept": 0, "image_embedding": 0}.items():
        assert (stored[name][1] == absent).all()
    given = payload.views["full"].words
    assert (given[1, :2] >= 0).all()  # it had words and maps
    assert stored["words"][0].tolist() == given[0].tolist()
    assert given[0, 2] == -1
    assert not stored["maps"][0, :, 2].any()
    assert stored["maps"][0, :, :2].max(axis=(-1, -2)).tolist() == [[255, 255], [255, 255]]  # a peak is full
    assert stored["kept"][0].tolist() == [[1, 1, 0], [1, 1, 0]]
    np.testing.assert_array_equal(
        stored["image_embedding"][0], payload.views["full"].image_embedding[0].astype(np.float16)
    )


def test_the_loss_is_of_present_rows_and_donated_ones_bring_theirs(synthetic: Any) -> None:
    spec = synthetic.spec()
    payload = synthetic.payload(spec, 1)
    stored = store_payload(spec, payload)
    # two views, two layers; words: sample 0 and 2 have 2, sample 1 is quarantined, sample 3 has 3
    assert stored.kl_rows == 2 * 2 * (2 + 2 + 3)
    assert stored.kl_sum == pytest.approx(kl_by_hand(payload, stored, frozenset()), rel=1e-6)
    donated = np.zeros((2, 4, 2), dtype=bool)
    donated[0, 0, 1] = donated[1, 3, 0] = donated[1, 1, 1] = True  # 2 rows, 3 rows, and none: quarantined
    again = store_payload(spec, dataclasses.replace(payload, donated=donated, donated_kl=0.125))
    others = kl_by_hand(payload, again, frozenset([("full", 0, 1), ("hflip", 3, 0)]))
    assert again.kl_rows == stored.kl_rows
    assert again.kl_sum == pytest.approx(others + 5 * 0.125, rel=1e-6)
    for view in stored.views:
        for name, array in stored.views[view].items():
            np.testing.assert_array_equal(array, again.views[view][name])


def test_blocks_leave_no_seam(synthetic: Any) -> None:
    n = BLOCK + 3
    dataset = DatasetSpec(name="x", split="train", classes=("cat", "dog"), listing_sha256="cd" * 32, samples=n)
    spec = synthetic.spec(dataset=dataset, samples_per_shard=n)
    payload = synthetic.payload(spec, 0)
    whole = store_payload(spec, payload)
    rest = slice(BLOCK - 2, n)
    views = {
        view: dataclasses.replace(
            arrays,
            maps=arrays.maps[rest],
            words=arrays.words[rest],
            image_embedding=arrays.image_embedding[rest],
            kept=arrays.kept[rest],
        )
        for view, arrays in payload.views.items()
    }
    part = store_payload(spec, ShardPayload(views=views, image_crc32c=payload.image_crc32c[rest]))
    for view in spec.views:
        for name, array in part.views[view].items():
            np.testing.assert_array_equal(whole.views[view][name][rest], array)
    assert whole.kl_sum == pytest.approx(kl_by_hand(payload, whole, frozenset()), rel=1e-6)


def test_the_record_is_of_the_files_and_quarantine_by_position_in_the_data_set(synthetic: Any, layout: str) -> None:
    spec = synthetic.spec()
    plan, words = synthetic.plan()[4:8], synthetic.vocabulary().words
    stored = store_payload(spec, synthetic.payload(spec, 1))
    metadata = zarr_metadata(spec)
    files, record = encode_stored(spec, layout, 1, plan, stored, metadata, words)
    assert files.keys() == shard_files(spec, layout, 1)
    assert record.files == {name: FileRecord.of(data) for name, data in files.items()}
    assert (record.shard, record.samples, record.quarantined) == (1, 4, {5: "cannot be decoded"})
    assert (record.kl_sum, record.kl_rows) == (stored.kl_sum, stored.kl_rows)
    assert encode_stored(spec, layout, 1, plan, stored, metadata, words) == (files, record)


def test_the_json_of_a_sample_says_what_the_plan_and_its_words_are(synthetic: Any) -> None:
    spec = synthetic.spec()
    plan, words = synthetic.plan()[4:8], synthetic.vocabulary().words
    stored = store_payload(spec, synthetic.payload(spec, 1))
    files, _ = encode_stored(spec, "webdataset", 1, plan, stored, {}, words)
    bodies = []
    with tarfile.open(fileobj=io.BytesIO(files["shards/000001.tar"])) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            assert opened is not None
            bodies += [json.loads(opened.read())] if member.name.endswith(".json") else []
    first, second = bodies[:2]
    ids = stored.views["hflip"]["words"][0].tolist()
    assert {name: first[name] for name in ("key", "path", "labels", "classes", "domain", "caption")} == {
        "key": "004",
        "path": "images/4.jpg",
        "labels": [0],
        "classes": ["cat"],
        "domain": "photo",
        "caption": "a cat 4",
    }
    assert first["quarantine"] is None
    assert first["words"]["hflip"] == {"ids": ids, "text": [f"word{ids[0]}", f"word{ids[1]}", None]}
    assert (second["quarantine"], second["crc32c"]) == ("cannot be decoded", {})
    assert second["words"]["full"] == {"ids": [-1, -1, -1], "text": [None, None, None]}
