"""A CLIP or SigLIP as transformers saves it becomes a teacher that computes what transformers computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import _snapshot_download as snapshot
from huggingface_hub import constants, file_download, try_to_load_from_cache
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lfi_pipeline.core import hub
from lfi_pipeline.core.errors import LFIError, TeacherError
from lfi_pipeline.teachers import load_teacher
from lfi_pipeline.teachers.contrastive import artefacts_by_block
from lfi_pipeline.teachers.dual import DualTeacher
from lfi_pipeline.teachers.transformers_folder import load_folder

transformers = pytest.importorskip("transformers")
SIDES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {**SIDES, "vocab_size": 400, "max_position_embeddings": 40, "bos_token_id": 0, "pad_token_id": 1}
VISION = {**SIDES, "image_size": 32, "patch_size": 8}


def saved(folder: Path, kind: str, tokenizer: Path, **text: Any) -> Path:
    """A random model of transformers in `folder`, with the tokenizer of another."""
    names = ("CLIPConfig", "CLIPModel") if kind == "clip" else ("SiglipConfig", "SiglipModel")
    config_class, model_class = (getattr(transformers, name) for name in names)
    own = {"projection_dim": 20} if kind == "clip" else {}
    config = config_class(text_config={**TEXT, "eos_token_id": 3, **text}, vision_config=VISION, **own)
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    shutil.copytree(tokenizer, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, roberta_folder: Path) -> Path:
    return saved(tmp_path_factory.mktemp("clip") / "tiny-clip", "clip", roberta_folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory, sentencepiece_folder: Path) -> Path:
    return saved(tmp_path_factory.mktemp("siglip") / "tiny-siglip", "siglip", sentencepiece_folder)


def theirs(folder: Path, kind: str) -> Any:
    model = getattr(transformers, "CLIPModel" if kind == "clip" else "SiglipModel")
    return model.from_pretrained(folder).eval()


def require_same(folder: Path, kind: str, ids: torch.Tensor) -> None:
    ours, _ = load_folder(folder)
    expected = theirs(folder, kind)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = expected(input_ids=ids, pixel_values=images)
        image, text = ours.eval().visual(images), ours.encode_text(ids)
        logits = ours.logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
    torch.testing.assert_close(F.normalize(image, dim=-1), output.image_embeds, rtol=0, atol=2e-6)
    torch.testing.assert_close(F.normalize(text, dim=-1), output.text_embeds, rtol=0, atol=2e-6)
    bias = getattr(expected, "logit_bias", torch.zeros(()))
    torch.testing.assert_close(logits, output.logits_per_text - bias, rtol=0, atol=1e-4)


IDS = torch.tensor([[0, 7, 300, 3] + [1] * 36, [0, 9, 3] + [1] * 37])


@pytest.mark.parametrize("text", [{}, {"hidden_act": "gelu"}, {"eos_token_id": 2, "layer_norm_eps": 1e-3}])
def test_a_clip_computes_what_it_computes_in_transformers(
    text: dict[str, Any], tmp_path: Path, roberta_folder: Path
) -> None:
    # with 2 for the end of a text, as early configs have it, the largest id is the end
    ids = IDS.where(IDS != 3, 399) if text.get("eos_token_id") == 2 else IDS
    require_same(saved(tmp_path / "clip", "clip", roberta_folder, **text), "clip", ids)


def test_a_siglip_computes_what_it_computes_in_transformers(siglip: Path) -> None:
    require_same(siglip, "siglip", IDS.clamp_max(69))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_kind_of_map_is_made(kind: str, clip: Path, siglip: Path) -> None:
    folder = clip if kind == "clip" else siglip
    teacher = load_teacher(f"local-dir:{folder}")
    assert isinstance(teacher, DualTeacher)
    assert (teacher.identity.name, teacher.identity.tag) == (f"local-dir:{folder.name}", "local")
    assert (teacher.grid, teacher.image_size, teacher.interpolation) == ((4, 4), (32, 32), "bicubic")
    assert teacher.mean == ((0.5, 0.5, 0.5) if kind == "siglip" else (0.48145466, 0.4578275, 0.40821073))
    text = teacher.encode_text("a strawberry left of a dog")
    assert {word.text for word in text.words} == {"strawberry", "left", "dog"}
    images = torch.randn(1, 3, 32, 32)
    for each in teacher.kinds:
        made = teacher.interaction_maps(images, [text], [text.words], kind=each, layers=teacher.layers(each, 1))
        torch.testing.assert_close(made.maps.sum((-2, -1)), torch.ones(1, 1, 3))
    assert ("value" in teacher.kinds) == (kind == "clip")
    assert [count.images for count in artefacts_by_block(teacher, images)] == [1, 1]


def test_pixels_are_normalised_as_the_folder_says(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "pixels")
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 2, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    teacher = load_teacher(f"local-dir:{folder}")
    assert (teacher.mean, teacher.std, teacher.interpolation) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bilinear")


def digest(folder: Path) -> str:
    return load_teacher(f"local-dir:{folder}").identity.weights_sha256


def test_weights_in_several_files_or_as_torch_saves_them_are_the_same(clip: Path, tmp_path: Path) -> None:
    state = load_file(clip / "model.safetensors")
    parts, old = shutil.copytree(clip, tmp_path / "parts"), shutil.copytree(clip, tmp_path / "old")
    for folder in (parts, old):
        (folder / "model.safetensors").unlink()
    names = sorted(state)
    for number, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in chosen}, parts / f"model-{number}.safetensors")
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save(state | {"vision_model.embeddings.position_ids": torch.arange(17)}, old / "pytorch_model.bin")
    assert digest(parts) == digest(old) == digest(clip)
    weight_map[names[0]] = "../model-0.safetensors"
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(TeacherError, match="must name a file of the same folder"):
        load_teacher(f"local-dir:{parts}")


def changed(part: str, name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (config[part] if part else config)[name] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(name):
            path.unlink()

    return change


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def changed_file(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return changed_file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("", "model_type", "bert"), r"model_type must be one of blip, clip, siglip, got 'bert'"),
        (changed("vision_config", "hidden_size", 10**9), r"config\.json must be .*1<<|<= 65536.*vision_config"),
        (changed("vision_config", "num_hidden_layers", "two"), r"Expected `int`, got `str`.*num_hidden_layers"),
        (changed("text_config", "max_position_embeddings", 10**6), r"max_position_embeddings"),
        (changed("text_config", "hidden_act", "os.system"), r"hidden_act"),
        (changed("vision_config", "num_attention_heads", 5), r"hidden_size \(24\) must be a multiple of num_att"),
        (changed("vision_config", "patch_size", 7), r"image_size \(32\) must be a multiple of patch_size \(7\)"),
        (changed("vision_config", "patch_size", 16), r"weights do not fit config\.json.*size mismatch"),
        (changed("vision_config", "num_hidden_layers", 3), r"12 are missing, such as visual\.transformer\.resbl"),
        (with_weights(lambda state: state.update(extra=torch.ones(1))), r"1 are too many, such as extra"),
        (
            with_weights(lambda state: state.pop("text_model.encoder.layers.0.self_attn.k_proj.weight")),
            r"must have weights for queries, keys and values",
        ),
        (without("model.safetensors"), r"must hold the weights as one of model\.safetensors, .*; none is there"),
        (without("[tvms]*.json"), r"must hold a tokenizer"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 40),
            r"model\.safetensors must hold weights alone, in whole",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    change: Callable[[Path], None], message: str, clip: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip, tmp_path / "changed")
    change(folder)
    with pytest.raises(LFIError, match=message):
        load_teacher(f"local-dir:{folder}")


def test_a_repository_of_the_hub_is_read_from_the_cache(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(clip, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(hub, "answers", lambda url: False)
    with pytest.raises(TeacherError, match=r"open_clip_config\.json of \S+/org/tiny-clip must be in the local cache"):
        load_teacher("hf-hub:org/tiny-clip")
    for module in (constants, file_download, snapshot):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(hub, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path / "hub"))
    teacher = load_teacher("hf-hub:org/tiny-clip")
    assert (teacher.identity.name, teacher.identity.tag) == ("hf-hub:org/tiny-clip", "hub")
    assert teacher.identity.weights_sha256 == digest(clip)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"model\.safetensors or .* of \S+/org/tiny-clip must be in the local cache"):
        load_teacher("hf-hub:org/tiny-clip")
