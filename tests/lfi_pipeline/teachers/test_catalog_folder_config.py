"""A folder's config: what open_clip publishes passes, what would run or allocate anything does not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import open_clip
import pytest

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.teachers.catalog import check_config, teacher_names

GOOD: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_every_config_of_open_clip_passes() -> None:
    for name in teacher_names():
        config = open_clip.get_model_config(name)
        if config is not None:
            check_config(config, name)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("text_cfg.tokenizer_kwargs", {"trust_remote_code": True}, "may set clean, strip_sep_token only"),
        ("text_cfg.tokenizer_kwargs", {"clean": "x" * 1000}, "clean"),
        ("text_cfg.hf_tokenizer_name", "/tmp/evil", "repository of the hub"),
        ("text_cfg.hf_model_name", "../evil", "repository of the hub"),
        ("text_cfg.hf_model_config", {"auto_map": {}}, "no model takes"),
        ("vision_cfg.timm_model_name", "local-dir:/tmp/evil", "must be a model of timm"),
        ("vision_cfg.timm_model_name", "hf-hub:evil/model", "must be a model of timm"),
        ("vision_cfg.act_kwargs", {"eps": 1, "fn": "os.system"}, "may set"),
        ("vision_cfg.width", 10**9, "within 1,048,576"),
        pytest.param("vision_cfg.layers", 10**5000, "bits", id="digits"),
        ("vision_cfg.mlp_ratio", float("inf"), "within"),
        ("vision_cfg.pool_type", "__import__('os')", "short name"),
        ("checkpoint_path", "evil.pth", "no model takes: checkpoint_path"),
        ("text_cfg", None, "must be an object"),
    ],
)
def test_anything_else_is_refused(place: str, value: object, words: str) -> None:
    config = deepcopy(GOOD)
    check_config(config, "local-dir:x")
    part, _, name = place.rpartition(".")
    (config[part] if part else config)[name] = value
    with pytest.raises(TeacherError, match=words):
        check_config(config, "local-dir:x")


@pytest.mark.parametrize("config", [None, [], {"embed_dim": 1}, "text"])
def test_a_config_that_is_none_is_refused(config: object) -> None:
    with pytest.raises(TeacherError, match=r"open_clip_config\.json must"):
        check_config(config, "local-dir:x")
