"""timm's weights: found in the cache or fetched, and where neither can be, one error at once that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lfi_pipeline.core import hub
from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.students.backbone import build_backbone

NAME, REPO = "test_vit", "timm/test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No server answers and the caches are empty; the list fills with the servers that were asked."""
    found: list[str] = []
    monkeypatch.setattr(hub, "answers", lambda url: bool(found.append(url)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    find = hub.try_to_load_from_cache
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *args, **kwargs: find(*args, cache_dir=tmp_path / "hub", **kwargs)
    )
    return found


def _weights(file: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint as timm publishes it, with a head."""
    torch.manual_seed(1)
    state = timm.create_model(NAME).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return dict(state)


def test_offline_the_error_names_model_repository_file_and_ways_out(asked: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone(StudentConfig(name=NAME, pretrained=True))
    message = str(caught.value)
    for part in (
        NAME,
        REPO,
        "model.safetensors",
        "does not answer",
        "pretrained_cfg_overlay",
        "leave `pretrained` out",
    ):
        assert part in message
    assert f"hf download {REPO} model.safetensors" in message
    assert asked == [constants.ENDPOINT]


def test_offline_mode_is_named_and_no_server_is_asked(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        build_backbone(StudentConfig(name=NAME, pretrained=True))
    assert not asked


def test_a_model_without_weights_asked_for_needs_no_server(asked: list[str]) -> None:
    build_backbone(StudentConfig(name=NAME))
    assert not asked


def test_cached_weights_are_loaded_without_a_server(tmp_path: Path, asked: list[str]) -> None:
    folder = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    state = _weights(folder / "snapshots/0123/model.safetensors")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123", encoding="utf-8")
    model = build_backbone(StudentConfig(name=NAME, pretrained=True))
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert not asked
    assert constants.HF_HUB_OFFLINE is False


def test_weights_of_a_file_are_loaded_without_their_head(tmp_path: Path, asked: list[str]) -> None:
    state = _weights(tmp_path / "mine.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "mine.safetensors")}}
    model = build_backbone(StudentConfig(name=NAME, pretrained=True, kwargs=overlay))
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert model.num_classes == 0
    assert not asked


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "none.safetensors")}}
    with pytest.raises(ConfigError, match=r"there is no .*none\.safetensors"):
        build_backbone(StudentConfig(name=NAME, pretrained=True, kwargs=overlay))


def test_weights_that_do_not_fit_the_overrides_are_a_short_error(tmp_path: Path) -> None:
    _weights(tmp_path / "mine.safetensors")
    kwargs = {"pretrained_cfg_overlay": {"file": str(tmp_path / "mine.safetensors")}, "depth": 20}
    with pytest.raises(ConfigError, match=r"they lack 168 of its tensors, such as blocks\.6\.norm1\.weight") as caught:
        build_backbone(StudentConfig(name=NAME, pretrained=True, kwargs=kwargs))
    assert len(str(caught.value)) < 1000


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """Without its head timm loads what fits, which may be nothing, and goes on."""
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "other.safetensors")}}
    with pytest.raises(ConfigError, match="do not fit test_vit"):
        build_backbone(StudentConfig(name=NAME, pretrained=True, kwargs=overlay))


def test_a_tag_chooses_the_weights() -> None:
    with pytest.raises(ConfigError, match=r"timm/vit_tiny_patch16_224\.augreg_in21k;"):
        build_backbone(StudentConfig(name="vit_tiny_patch16_224.augreg_in21k", pretrained=True))
    model = build_backbone(StudentConfig(name="vit_tiny_patch16_224.augreg_in21k", kwargs={"depth": 1}))
    assert model.pretrained_cfg["tag"] == "augreg_in21k"


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_unknown_tag_lists_the_tags(pretrained: bool, asked: list[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"augreg_in1k.*Did you mean.*augreg_in21k, augreg_in21k_ft_in1k"):
        build_backbone(StudentConfig(name="vit_tiny_patch16_224.augreg_in1k", pretrained=pretrained))
    assert not asked


def test_a_model_that_timm_has_no_weights_of_says_so(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"timm has no weights of coatnet_0_224.*leave `pretrained` out"):
        build_backbone(StudentConfig(name="coatnet_0_224", pretrained=True))
    assert not asked


def test_weights_that_break_off_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object, **kwargs: object) -> None:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "answers", lambda url: True)
    monkeypatch.setattr(timm, "create_model", breaks)
    with pytest.raises(ConfigError, match=r"test_vit could not be fetched.*reset by peer.*leave `pretrained` out"):
        build_backbone(StudentConfig(name=NAME, pretrained=True))
