"""The spec round-trips, is fingerprinted canonically, and complains by field name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, TargetsError, UnknownNameError
from lfi_pipeline.targets import CodecSpec, LayerSpec, MapSpec, TargetSpec


def test_json_round_trip_keeps_equality_and_fingerprint(synthetic: Any) -> None:
    spec = synthetic.spec()
    again = TargetSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert list(json.loads(spec.to_json())) == sorted(json.loads(spec.to_json()))


def test_fingerprint_does_not_depend_on_how_a_number_was_written(synthetic: Any) -> None:
    whole = synthetic.spec(layers=(LayerSpec(name="a", depth=1),))
    assert whole.fingerprint == synthetic.spec(layers=(LayerSpec(name="a", depth=1.0),)).fingerprint


def test_differences_name_nested_fields(synthetic: Any) -> None:
    spec = synthetic.spec()
    other = dataclasses.replace(
        spec,
        teacher=dataclasses.replace(spec.teacher, tag="other"),
        layers=(spec.layers[0], LayerSpec(name="block.1", depth=0.75)),
        grid=(5, 7),
    )
    assert spec.differences(spec) == []
    assert spec.differences(other) == [
        "grid[1]: 6 != 7",
        "layers[1].depth: 1.0 != 0.75",
        "teacher.tag: 'test' != 'other'",
    ]
    assert spec.fingerprint != other.fingerprint


def test_unknown_version_names_both_versions(synthetic: Any) -> None:
    plain = {**synthetic.spec().to_plain(), "version": 7}
    with pytest.raises(TargetsError, match=r"version 7; this release knows versions 1 and 2\. Read them with"):
        TargetSpec.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plain: plain.pop("grid"), "field 'grid' must be 2 values, got nothing"),
        (lambda plain: plain["teacher"].pop("tag"), r"field 'teacher\.tag' must be a string, got nothing"),
        (lambda plain: plain.update(extra=1), r"field 'extra' must be left out \(unknown field\)"),
        (lambda plain: plain["codec"].update(level="3"), r"field 'codec\.level' must be a whole number, got '3'"),
        (
            lambda plain: plain.update(words_per_sample=True),
            "field 'words_per_sample' must be a whole number, got True",
        ),
        (lambda plain: plain.update(row="other"), "field 'row' must be one of 'emitting', 'reading'"),
        (lambda plain: plain["layers"][0].update(depth=0.0), r"layers\.depth must be in \(0, 1\]"),
        (lambda plain: plain.update(grid=[1, 2, 3]), r"field 'grid' must be 2 values, got \[1, 2, 3\]"),
        (lambda plain: plain["maps"].update(steps=0), r"maps\.steps must be positive"),
        (lambda plain: plain["maps"].update(word_template="a dog"), r"maps\.word_template must have exactly one"),
        (lambda plain: plain["maps"].update(artefacts="drop"), "'maps.artefacts' must be one of 'fill', 'keep'"),
        (lambda plain: plain["maps"].update(support=float("inf")), r"maps\.support must be in"),
        (lambda plain: plain.pop("maps"), "field 'maps' must be an object, got nothing"),
        (lambda plain: plain.update(version=1), "unknown field maps in version 1"),
    ],
)
def test_bad_fields_are_named(synthetic: Any, change: Any, named: str) -> None:
    plain = synthetic.spec().to_plain()
    change(plain)
    with pytest.raises(TargetsError, match=named):
        TargetSpec.from_json(json.dumps(plain))


def test_malformed_json_is_a_targets_error() -> None:
    with pytest.raises(TargetsError, match="not valid JSON"):
        TargetSpec.from_json("{")


@pytest.mark.parametrize(
    "changes",
    [{"views": ("full", "full")}, {"views": ("../up",)}, {"views": ()}, {"layers": ()}, {"grid": [5, 6]}],
)
def test_constructor_refuses_what_cannot_work(synthetic: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        synthetic.spec(**changes)


def test_unknown_codec_lists_choices() -> None:
    with pytest.raises(UnknownNameError, match="uint8_sqrt"):
        CodecSpec(name="uint8_sqr")


def test_shard_range_ends_with_the_data(synthetic: Any) -> None:
    spec = synthetic.spec()
    assert [spec.shard_range(i) for i in range(spec.shards)] == [range(4), range(4, 8), range(8, 10)]
    with pytest.raises(ConfigError, match="shard must be"):
        spec.shard_range(3)


@pytest.mark.parametrize(
    ("kind", "family", "steps", "template"),
    [("agreement", "coca", 8, "{}"), ("relevance", "coca", 1, "{}"), ("similarity", "dual", 1, "a photo of a {}.")],
)
def test_a_spec_of_version_1_is_read_and_written_as_it_was(
    synthetic: Any, kind: str, family: str, steps: int, template: str
) -> None:
    spec = synthetic.spec(kind=kind)
    plain = dataclasses.replace(spec, teacher=dataclasses.replace(spec.teacher, family=family)).to_plain()
    del plain["maps"]
    plain["version"] = 1
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    found = TargetSpec.from_json(text)
    assert found.maps == MapSpec(steps=steps, word_template=template)
    assert found.to_json() == text  # and so its fingerprint is that of the release that wrote it
    assert found.fingerprint == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "maps",
    [{"steps": 4}, {"word_template": "a {}"}, {"centre": ("cat", "dog")}, {"artefacts": "fill"}, {"support": 1.0}],
)
def test_what_changes_a_map_changes_the_fingerprint(synthetic: Any, maps: dict[str, Any]) -> None:
    (name,) = maps
    spec, other = synthetic.spec(), synthetic.spec(maps=MapSpec(**maps))
    assert spec.fingerprint != other.fingerprint
    assert spec.differences(other)[0].startswith(f"maps.{name}")
