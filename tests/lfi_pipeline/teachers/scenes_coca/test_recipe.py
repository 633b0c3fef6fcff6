"""A further phase of the recipe on a small model; the whole recipe takes hours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.teachers import scenes_coca
from lfi_pipeline.teachers.dual import DualTeacher
from lfi_pipeline.teachers.registry import load_coca_folder, load_teacher
from lfi_pipeline.teachers.scenes_coca.recipe import TAUGHT, Recipe, learn_merges, train, write_merges

EMBEDDED = Path(scenes_coca.__file__).parent
RECIPE = Recipe(scenes=16, epochs=2, batch_size=8, warmup_steps=2)


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def phase_one(tmp_path: Path) -> Path:
    """What an earlier phase leaves: a small model of 64 pixels."""
    folder = tmp_path / "one"
    folder.mkdir()
    write_merges(learn_merges(["a dog left of an owl", "there is a strawberry"], 30), folder / "bpe.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(str(folder / "bpe.txt.gz"))
    text = {"context_length": 32, "vocab_size": tokenizer.vocab_size, "width": 16, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 16,
            "head_width": 8,
            "layers": 1,
            "attentional_pool": True,
            "attn_pooler_queries": 3,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CoCa(**config)
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)
    save_file({name: value.half() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps({"phases": [{"recipe": {"seed": 1}}]}), encoding="utf-8")
    return folder


def test_a_phase_leaves_a_folder_that_loads_and_says_how_it_was_made(phase_one: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    train(RECIPE, out, init=phase_one)
    assert {file.name for file in out.iterdir()} == {"config.json", "bpe.txt.gz", "model.safetensors", "recipe.json"}
    record = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert record["domains"] == sorted(set(TAUGHT))
    assert record["phases"][0] == {"recipe": {"seed": 1}}
    assert record["phases"][1]["recipe"]["scenes"] == 16
    assert all(0 < loss < 50 for loss in record["phases"][1]["final_losses"].values())
    model, _ = load_coca_folder(out)
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    before, after = load_file(phase_one / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())


def test_a_dual_encoder_is_a_teacher_of_its_own_family(tmp_path: Path) -> None:
    out = tmp_path / "dual"
    train(RECIPE, out, dual=True)
    teacher = load_teacher(f"local-dir:{out}")
    assert isinstance(teacher, DualTeacher)
    assert "contrastive" in teacher.kinds
    assert torch.isfinite(teacher.embed_texts(["a dog left of an owl"])).all()
    begun, _ = load_coca_folder(EMBEDDED)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    before, after = begun.state_dict()[name], load_file(out / "open_clip_model.safetensors")[name].float()
    assert 0 < float((after - before).norm() / before.norm()) < 0.5  # it goes on from there


def test_its_seed_is_not_that_of_a_demo_data_set() -> None:
    assert Recipe().seed != ScenesConfig().seed
