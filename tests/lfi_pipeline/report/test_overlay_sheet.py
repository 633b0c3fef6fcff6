"""Pictures of cached samples."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, CorruptTargetsError
from lfi_pipeline.report import overlay as module
from lfi_pipeline.report.overlay import position_of, safe_file_name, sample_sheet
from lfi_pipeline.targets import TargetStore, decode_maps


def test_every_map_of_every_view_is_drawn_over_what_the_teacher_saw(
    tiny_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TargetStore.open(tiny_targets)
    given: list[tuple[object, ...]] = []
    right = module.contact_sheet
    monkeypatch.setattr(module, "contact_sheet", lambda *words: given.append(words) or right(*words))
    key = store.index.keys[3]
    sheet = sample_sheet(store, key)
    assert sheet.width > 400
    ((image, title, lines, words, columns),) = given
    assert title == key
    assert store.index.captions[3] in lines[0]  # type: ignore[index]
    stored = {view: store.read(3, view) for view in ("full", "hflip")}
    names = [store.vocabulary.words[i] for i in stored["full"].words if i >= 0]
    assert words == names
    placed = [(view, layer) for view in stored for layer in range(len(store.spec.layers))]
    assert [column.title[1] for column in columns] == [  # type: ignore[attr-defined]
        f"{view}, depth {store.spec.layers[layer].depth:.2f}" for view, layer in placed
    ]
    for column, (view, layer) in zip(columns, placed, strict=True):  # type: ignore[call-overload]
        maps = decode_maps(stored[view].maps, stored[view].scale)[layer, : len(names)]
        np.testing.assert_array_equal(column.maps, maps)
    first_of = [placed.index((view, 0)) for view in ("full", "hflip")]
    full, mirrored = (np.asarray(columns[i].image) for i in first_of)  # type: ignore[index]
    np.testing.assert_array_equal(full, np.asarray(image))
    np.testing.assert_array_equal(mirrored, full[:, ::-1])


def test_an_unknown_key_names_the_nearest(tiny_targets: Path) -> None:
    store = TargetStore.open(tiny_targets)
    assert [position_of(store, key) for key in store.index.keys] == list(range(24))
    key = store.index.keys[5]
    with pytest.raises(ConfigError, match=f"no sample '{key}x' among its 24. Nearest keys: .*{key}"):
        sample_sheet(store, key + "x")
    with pytest.raises(ConfigError, match="Nearest keys: 0"):
        position_of(store, "entirely different")


def test_another_image_is_not_drawn(tiny_targets: Path, scenes_root: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes_root, tmp_path / "scenes")
    store = TargetStore.open(tiny_targets, data_root=tmp_path / "scenes")
    key, path = store.index.keys[0], tmp_path / "scenes" / store.index.paths[0]
    sample_sheet(store, key)
    path.write_bytes((tmp_path / "scenes" / store.index.paths[1]).read_bytes())
    with pytest.raises(CorruptTargetsError, match=f"{path.name} .sample {key}. below .* is not the image"):
        sample_sheet(store, key)
    path.unlink()
    with pytest.raises(CorruptTargetsError, match=f"{path.name}.* cannot be read"):
        sample_sheet(store, key)


def test_a_quarantined_sample_says_why(finished_targets: Path) -> None:
    with pytest.raises(ConfigError, match=r"quarantined .cannot be decoded."):
        sample_sheet(TargetStore.open(finished_targets), "000000000005")


@pytest.fixture
def finished_targets(tmp_path: Path) -> Path:
    """A synthetic cache whose sample 5 is quarantined."""
    from lfi_pipeline.benchmarks.inputs import drawn_maps, maps_spec, payload_of, write_targets
    from lfi_pipeline.targets import ShardPayload

    spec = maps_spec(samples=8, maps_shape=(1, 2, 4, 4))

    def payload(positions: range) -> ShardPayload:
        made = payload_of(spec, drawn_maps(spec, positions))
        return ShardPayload(views=made.views, image_crc32c=made.image_crc32c, quarantined={5: "cannot be decoded"})

    write_targets(tmp_path / "targets", spec, payload)
    return tmp_path / "targets"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("000000000009", "000000000009"),
        ("a/../b c", "a_.._b_c"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("", "sample"),
        ("...", "sample"),
        ("-x", "x"),
        ("кот:1\n", "кот_1_"),
        ("k" * 500, "k" * 120),
    ],
)
def test_a_file_name_is_safe_whatever_the_key(key: str, name: str) -> None:
    assert safe_file_name(key) == name
