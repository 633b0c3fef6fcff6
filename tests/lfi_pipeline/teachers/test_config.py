"""Settings of stage one: what belongs together, and what is refused before a teacher is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.targets.codec import CODECS
from lfi_pipeline.targets.commits import LAYOUTS
from lfi_pipeline.teachers.config import (
    ExtractConfig,
    PlanConfig,
    PointingConfig,
    RecomputeConfig,
    codec_names,
    layouts,
    require_row,
)


@pytest.mark.parametrize(
    ("values", "root"),
    [
        ({"dataset": "coco"}, "data/coco"),
        ({"dataset": "own/birds.toml"}, "data/birds"),
        ({"dataset": "coco", "data_root": "/mnt/coco"}, "/mnt/coco"),
        ({"dataset": "coco", "data_root": "."}, "."),
    ],
)
def test_a_data_root_is_by_the_name_of_the_data_set(values: dict[str, Any], root: str) -> None:
    found = build(ExtractConfig, values)
    assert found.data_root == Path(root)
    assert build(ExtractConfig, flatten(found)) == found


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ({"views": ()}, ConfigError, "views must include 'full', got none"),
        ({"views": ("full", "vflip")}, UnknownNameError, r"view 'vflip'\. Did you mean 'hflip'"),
        ({"prompts": ("a {}",), "text": "captions"}, ConfigError, "prompts are for the text mode 'prompts', got 'capt"),
        ({"kind": "relevance", "row": "reading"}, ConfigError, "for the kind 'attention' only, got kind 'relevance'"),
        ({"row": "read"}, UnknownNameError, r"row 'read'\. Did you mean 'reading'"),
        ({"artefacts": "drop"}, UnknownNameError, r"treatment of artefacts 'drop'\. Choices: fill, keep"),
        ({"captions": "shortest"}, UnknownNameError, r"caption choice 'shortest'"),
        ({"layers": "4"}, ConfigError, "layers must be a whole number or a list of whole numbers, got '4'"),
        ({"words": 0}, ConfigError, "words must be 1 or more, got 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(values: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        ExtractConfig(dataset="coco", **values)


@pytest.mark.parametrize("kind", ["", "auto", "attention"])
def test_the_reading_row_waits_for_a_kind_that_is_not_chosen_yet(kind: str) -> None:
    assert ExtractConfig(dataset="coco", row="reading", kind=kind).row == "reading"
    assert ExtractConfig(dataset="coco", prompts=("a {}",)).text == "auto"


def test_a_row_is_of_its_kind() -> None:
    require_row("emitting", "relevance")
    require_row("reading", "attention")
    with pytest.raises(ConfigError, match="got kind 'auto'") as raised:
        require_row("reading", "auto")
    assert raised.value.argument == "row"
    with pytest.raises(UnknownNameError, match="Choices: emitting, reading") as raised:
        require_row("writing", "attention")
    assert raised.value.argument == "row"


def test_names_of_layouts_and_codecs_are_those_of_the_cache() -> None:
    assert set(layouts()) == set(LAYOUTS)
    assert set(codec_names()) == set(CODECS)
    for layout in layouts():
        for codec in codec_names():
            assert ExtractConfig(dataset="coco", layout=layout, codec=codec).codec == codec
    with pytest.raises(UnknownNameError, match=r"codec 'uint8'"):
        ExtractConfig(dataset="coco", codec="uint8")


def test_a_plan_is_built_with_the_options_of_what_it_plans() -> None:
    found = build(PlanConfig, {"dataset": "own/birds.toml", "prompts": ["a {}"], "layers": [2, 5], "processes": 3})
    inner = ExtractConfig(dataset="own/birds.toml", prompts=("a {}",), layers=(2, 5))
    assert found == PlanConfig(extract=inner, processes=3)
    assert found.extract.data_root == Path("data/birds")
    with pytest.raises(ConfigError, match="dataset must be given, got none"):
        build(PlanConfig, {"processes": 3})


def test_a_share_to_recompute_is_one_of_samples_or_none() -> None:
    assert RecomputeConfig(share=None).share is None
    assert build(RecomputeConfig, {"recompute": 1}).share == 1.0
    for share in (0, -0.1, 1.01):
        with pytest.raises(ConfigError, match=f"share must be above 0 .*1, got {share}"):
            RecomputeConfig(share=share)
    with pytest.raises(ConfigError, match="images must be 1 or more"):
        PointingConfig(images=0)


def test_a_folder_is_its_own_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert ExtractConfig(dataset="photos").data_root == Path("photos")
    assert ExtractConfig(dataset="photos", data_root=Path("elsewhere")).data_root == Path("elsewhere")
    assert ExtractConfig(dataset="coco").data_root == Path("data/coco")
    (tmp_path / "data/photos").mkdir(parents=True)
    assert ExtractConfig(dataset="photos").data_root == Path("data/photos")
