from __future__ import annotations

import open_clip
import pytest
import torch

from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.data import load_manifest, manifest_names
from lfi_pipeline.data.manifest import DEFAULT_TEACHER
from lfi_pipeline.teachers import CocaTeacher, load_teacher, registry
from lfi_pipeline.teachers.catalog import describe, parameters, teacher_names, weak_contrast
from lfi_pipeline.teachers.dual_trunks import trunk_of


def test_names_are_the_embedded_teacher_then_cocas_then_dual_encoders() -> None:
    names = teacher_names()
    cocas = {"scenes-coca", "coca_base", "coca_ViT-B-32", "coca_ViT-L-14", "coca_roberta-ViT-B-32"}
    assert names[0] == "scenes-coca"
    assert set(teacher_names("coca")) == cocas
    assert names == teacher_names("coca") + teacher_names("dual")
    assert {"ViT-B-32", "ViT-L-14-336", "ViT-B-16-SigLIP2", "EVA02-L-14", "PE-Core-B-16"} <= set(teacher_names("dual"))
    assert not {"RN50", "convnext_base", "ViTamin-S", "MobileCLIP-S1", "swin_base_patch4_window7_224"} & set(names)
    with pytest.raises(UnknownNameError, match=r"family 'clip'.*coca, dual"):
        teacher_names("clip")


def test_every_dual_encoder_that_is_listed_has_the_tower_that_its_config_promises() -> None:
    """Built without memory: the config alone decided that it is one, and what its grid is."""
    for name in teacher_names("dual"):
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            visual = open_clip.model._build_vision_tower(
                config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
            )
        found = describe(name)
        assert trunk_of(visual, name).grid == found.grid, name
        assert tuple(visual.image_size) == found.image_size, name


def test_the_embedded_teacher_is_as_described() -> None:
    teacher, found = load_teacher("scenes-coca"), describe("scenes-coca")
    assert isinstance(teacher, CocaTeacher)
    assert (found.grid, found.image_size) == (teacher.grid, teacher.image_size)
    assert (found.kinds, found.tags) == (teacher.kinds, (teacher.identity.tag,))
    assert parameters("scenes-coca") == sum(parameter.numel() for parameter in teacher.model.parameters())


def test_configs_are_described() -> None:
    assert describe("coca_base").kinds[0] == "relevance"  # without a pooler there is no agreement
    assert "agreement" not in describe("coca_base").kinds
    assert describe("coca_roberta-ViT-B-32").repositories == ("roberta-base",)
    assert parameters("coca_roberta-ViT-B-32") is None
    clip = describe("ViT-B-32")
    assert (clip.kinds[:2], clip.generates, clip.repositories) == (("contrastive", "value"), False, ())
    assert "openai" in clip.tags
    assert parameters("ViT-B-32") == 151_277_313  # as published
    with pytest.raises(UnknownNameError, match=r"teacher 'RN50'"):
        describe("RN50")


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_checkpoints_that_were_tuned_without_contrast_are_told(name: str) -> None:
    tags = describe(name).tags
    weak = [tag for tag in tags if weak_contrast(name, tag)]
    assert weak == [tag for tag in tags if "mscoco" in tag]
    for tag in weak:
        instead = tag.removeprefix("mscoco_finetuned_")
        assert instead in tags
        assert f"take {name}:{instead} " in weak_contrast(name, tag)
    assert not weak_contrast("ViT-B-32", "laion2b_s34b_b79k")
    assert registry._default_tag(name) == "laion2b_s13b_b90k"


def test_no_manifest_names_a_weak_teacher() -> None:
    named = [load_manifest(name).teacher for name in manifest_names()]
    for each in (*named, DEFAULT_TEACHER):  # of folders, and of manifests that name none
        teacher, _, tag = each.partition(":")
        assert not weak_contrast(teacher, tag)
        assert not tag or tag in describe(teacher).tags
