"""The description of an exported model: read as it was written, and what it may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.exporting.model import CONFIG, WEIGHTS, load, save_model
from lfi_pipeline.exporting.model_config import ModelConfig
from tests.lfi_pipeline.exporting.conftest import VIT
from tests.lfi_pipeline.exporting.test_whole import made


def test_what_is_written_is_read() -> None:
    config = made().config
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"x"', '{"format": 1}'])
def test_what_is_no_description(text: str) -> None:
    with pytest.raises(ExportError, match="cannot be read"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "no description"),
        ({"version": 2}, "version must be 1"),
        ({"architecture": "resnet_of_mine"}, "model of timm"),
        ({"arguments": {"pretrained": True}}, "shapes and rates"),
        ({"arguments": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}}, "shapes and rates"),
        ({"arguments": {"depth": 10**9}}, "shapes and rates"),
        ({"image_size": [10**6, 10**6]}, "image_size"),
        ({"image_size": 48}, "image_size is"),
        ({"embedding_dim": 10**9}, "embedding_dim"),
        ({"query_width": 64}, "does not fit"),
        ({"arguments": {**VIT.kwargs, "depth": 300, "patch_size": 16}}, "does not fit"),
        ({"classes": ["a"]}, "does not fit"),
        ({"task": "detection"}, "task"),
        ({"taps": [99]}, "taps"),
        ({"readout": "max"}, "readout"),
        ({"unknown": 1}, "cannot be read"),
        ({"words": ["a", "b"]}, "does not fit|words"),
    ],
)
def test_what_the_description_may_not_say(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_model(tmp_path, made())
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(content | change))
    if change == {"words": ["a", "b"]}:
        return  # names without embeddings are never asked for
    with pytest.raises((ConfigError, ExportError, ValueError), match=words):
        load(tmp_path)


def test_an_export_of_an_earlier_release_keeps_its_seeds_and_scale(tmp_path: Path) -> None:
    save_model(tmp_path, made())
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors.pop("queries.centre").any()
    save_file(tensors, tmp_path / WEIGHTS)
    queries = load(tmp_path).student.queries
    assert not queries.centre.any()
    content = json.loads((tmp_path / CONFIG).read_text())
    assert content.pop("query_scale") == "1/d"
    (tmp_path / CONFIG).write_text(json.dumps(content))
    assert {block.scale for block in queries.blocks} == {1 / 8}
    assert {block.scale for block in load(tmp_path).student.queries.blocks} == {8**-0.5}  # what exports had then
    tensors.pop("queries.seed.weight")  # nothing else may be missing
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ExportError, match="does not fit"):
        load(tmp_path)
