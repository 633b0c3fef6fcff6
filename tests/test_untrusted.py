"""A payload planted wherever a file of somebody else is read: none is executed, and each is told of."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from lfi_pipeline.core.errors import LFIError
from lfi_pipeline.core.io import seal, unseal
from lfi_pipeline.core.options import build, flatten
from lfi_pipeline.data import load_manifest
from lfi_pipeline.recipes.commands import planned_runs
from lfi_pipeline.recipes.recipe import load_recipe
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.targets.spec import TargetSpec
from lfi_pipeline.teachers import load_teacher
from lfi_pipeline.teachers.recompute import Recomputation, RecomputeConfig
from lfi_pipeline.training import RuntimeConfig, TrainConfig, train
from lfi_pipeline.training.checkpoint import load_state, save_weights
from lfi_pipeline.training.config import RUN_FILE
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.run_dir import CHECKPOINTS, CONFIG, write_json
from lfi_pipeline.training.sweep import plan_sweep, read_sweep
from lfi_pipeline.training.sweep_run import check_runs

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2}


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a payload would leave."""
    return tmp_path / "executed"


@pytest.fixture
def bomb(tmp_path: Path, marker: Path) -> Path:
    """A checkpoint that runs a command where it is unpickled; a copy of it calls itself safetensors."""
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"state_dict": Payload(marker)}))
    (tmp_path / "weights.safetensors").write_bytes(path.read_bytes())
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", path.read_bytes())
        archive.writestr("archive/version", "3")
    pickle.loads(path.read_bytes())  # noqa: S301 - the payload works
    assert marker.exists()
    marker.unlink()
    return path


def arguments(bomb: Path) -> list[dict[str, Any]]:
    """Every way of handing a file to timm's factory."""
    hidden = bomb.with_suffix(".safetensors")
    return [
        {"checkpoint_path": str(bomb)},
        {"checkpoint_path": str(hidden)},
        {"pretrained_cfg": {"file": str(bomb)}},
        {"pretrained_cfg": str(bomb)},
        {"pretrained_cfg_overlay": {"file": str(bomb)}},
        {"pretrained_cfg_overlay": {"file": str(bomb.with_suffix(".pt"))}},
        {"pretrained_cfg_overlay": {"file": str(hidden)}},
        {"pretrained_cfg_overlay": {"url": bomb.as_uri()}},
        {"pretrained_cfg_overlay": {"file": str(bomb), "custom_load": True}},
        {"cache_dir": str(bomb.parent)},
        {"features_only": True, "feature_cls": "os.system"},
    ]


def settings(targets: Path, **student_arg: Any) -> dict[str, Any]:
    """Of a run that somebody else wrote."""
    flat = {"targets": str(targets), "student": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 16}
    return {**flat, "pretrained": True, "student_arg": {**SMALL, **student_arg}}


def test_a_finished_run(tiny_targets: Path, tmp_path: Path, bomb: Path, marker: Path) -> None:
    for number, planted in enumerate(arguments(bomb)):
        run = tmp_path / f"run-{number}"
        (run / CHECKPOINTS).mkdir(parents=True)
        flat = flatten(build(TrainConfig, settings(tiny_targets))) | {"student_arg": {**SMALL, **planted}}
        write_json(run / CONFIG, {"settings": flat, "task": "multi-label"})
        save_weights(run / CHECKPOINTS / "last.safetensors", {}, {})
        with pytest.raises(LFIError):
            load_run(run, device="cpu")
        with pytest.raises(LFIError):
            train([(build(TrainConfig, flat), tmp_path / "again")], RuntimeConfig(device="cpu", track=()))
    assert not marker.exists()


def test_a_run_without_code_but_without_end(tiny_targets: Path, tmp_path: Path) -> None:
    """Sizes are compared with the file of weights before a network of them is built."""
    run = tmp_path / "run"
    (run / CHECKPOINTS).mkdir(parents=True)
    for change in ({"depth": 100_000}, {"depth": 900, "embed_dim": 2048}, {"embed_dim": 4096}):
        write_json(run / CONFIG, {"settings": settings(tiny_targets, **change), "task": "multi-label"})
        save_weights(run / CHECKPOINTS / "last.safetensors", {"a": torch.zeros(8)}, {})
        with pytest.raises(LFIError, match=r"depth must be|must have at most \d+ parameters"):
            load_run(run, device="cpu")


def test_a_config_file_and_a_sweep(tiny_targets: Path, tmp_path: Path, bomb: Path, marker: Path) -> None:
    for planted in arguments(bomb):
        file = tmp_path / "config.toml"
        file.write_text(tomli_w.dumps(settings(tiny_targets, **planted)), encoding="utf-8")
        with pytest.raises(LFIError):
            train([(build(TrainConfig, RUN_FILE.read(file)), tmp_path / "out")], RuntimeConfig(device="cpu", track=()))
        sweep = tmp_path / "sweep.toml"
        grid = {"student_arg": [{**SMALL, **planted}]}
        base = {name: value for name, value in settings(tiny_targets).items() if name != "student_arg"}
        sweep.write_text(tomli_w.dumps({"base": base, "grid": grid}), encoding="utf-8")
        with pytest.raises(LFIError):
            check_and_train(plan_sweep(read_sweep(sweep), tmp_path / "sweep"), sweep)
    assert not marker.exists()


def test_a_recipe(tiny_targets: Path, tmp_path: Path, bomb: Path, marker: Path) -> None:
    base = {"name": "r", "title": "t", "dataset": "scenes", "splits": [{"train": "train", "val": "val"}]}
    path = tmp_path / "recipe.toml"
    for planted in arguments(bomb):
        path.write_text(tomli_w.dumps({**base, "base": settings(tiny_targets, **planted)}), encoding="utf-8")
        recipe = load_recipe(str(path))
        with pytest.raises(LFIError):
            check_and_train(planned_runs({"base": dict(recipe.base)}, tmp_path / "out"), path)
    for planted in ({"extract": {"teacher": f"local-dir:{bomb}"}}, {"run": "touch x"}, {"evaluate": [{"cmd": "x"}]}):
        path.write_text(tomli_w.dumps({**base, **planted}), encoding="utf-8")
        with pytest.raises(LFIError):
            load_recipe(str(path))
    assert not marker.exists()


def check_and_train(plan: Any, source: Path) -> None:
    check_runs(plan, source)
    train([(run.config, run.folder) for run in plan], RuntimeConfig(device="cpu", track=()))


def teacher_folder(path: Path, **text: Any) -> Path:
    """A folder as open_clip saves one, with fields of somebody else in its text_cfg."""
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
    plain = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.mkdir()
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": plain}
    save_file(open_clip.CLIP(**config).state_dict(), path / "open_clip_model.safetensors")
    config["text_cfg"] = {**plain, **text}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
    return path


def test_a_folder_of_a_teacher(tmp_path: Path, bomb: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # where transformers asks, everything is allowed
    code = f"import os\nos.system('touch {marker}')\n"
    planted: list[dict[str, Any]] = [
        {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"clean": "whitespace"}},
        {"hf_tokenizer_name": "x/y"},
        {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path)},
    ]
    for number, text in enumerate(planted):
        folder = teacher_folder(tmp_path / f"teacher-{number}", **text)
        (folder / "tokenization_evil.py").write_text(code + "class Evil:\n    pass\n", encoding="utf-8")
        auto = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
        for name in ("tokenizer_config.json", "config.json"):
            (folder / name).write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}), encoding="utf-8")
        with pytest.raises(LFIError):
            load_teacher(f"local-dir:{folder}")
    folder = teacher_folder(tmp_path / "pickled")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(bomb.read_bytes())
    with pytest.raises(LFIError):
        load_teacher(f"local-dir:{folder}")
    with pytest.raises(LFIError):
        load_teacher(f"ViT-B-32:{bomb}")
    assert not marker.exists()
    load_teacher(f"local-dir:{teacher_folder(tmp_path / 'harmless')}")


def test_a_folder_of_transformers(tmp_path: Path, bomb: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sides, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**sides, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    code = f"import os\nos.system('touch {marker}')\nclass Evil:\n    pass\n"
    for name in ("code", "pickle", "tokens"):
        folder = tmp_path / name
        transformers.CLIPModel(config).save_pretrained(folder)
        (folder / "evil.py").write_text(code, encoding="utf-8")
        auto = {"AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}))
        plain = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(plain | {"auto_map": auto, "custom_pipelines": auto}))
    (tmp_path / "pickle" / "model.safetensors").unlink()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(bomb.read_bytes())
    (tmp_path / "tokens" / "tokenizer.json").write_bytes(bomb.read_bytes())
    for name in ("code", "pickle", "tokens"):
        with pytest.raises(LFIError):
            load_teacher(f"local-dir:{tmp_path / name}")
    assert not marker.exists()


def test_a_manifest_of_a_cache_and_of_a_data_set(tiny_targets: Path, tmp_path: Path, bomb: Path, marker: Path) -> None:
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(tiny_targets, cache)
    folder = teacher_folder(tmp_path / "teacher", tokenizer_kwargs={"trust_remote_code": True}, hf_tokenizer_name="x/y")
    body = unseal((cache / "manifest.json").read_bytes(), cache)
    body["spec"]["teacher"] |= {"name": f"local-dir:{folder}", "tag": "local"}
    body["fingerprint"] = TargetSpec.from_plain(body["spec"]).fingerprint
    (cache / "manifest.json").write_bytes(seal(body))
    with pytest.raises(LFIError):
        list(Recomputation(RecomputeConfig(share=1.0, device="cpu"))(TargetStore.open(cache)))
    manifest = tmp_path / "data.toml"
    for entry in (
        "!!python/object/apply:os.system",
        f"$(touch {marker})",
        f"__import__('os').system('touch {marker}')",
    ):
        table = {"name": entry, "layout": entry, "splits": {"train": {"images": entry}}, "options": {"x": entry}}
        manifest.write_text(tomli_w.dumps(table), encoding="utf-8")
        with pytest.raises(LFIError):
            load_manifest(str(manifest))
    assert not marker.exists()


def test_the_metadata_of_safetensors(tmp_path: Path, bomb: Path, marker: Path) -> None:
    text = pickle.dumps(Payload(marker), protocol=0).decode()
    trees = [text, json.dumps({"__reduce__": ["os.system", [f"touch {marker}"]]}), json.dumps({"tensor": text}), "["]
    for tree in trees:
        metadata = {"format": "lfi-training-state", "version": "1", "fingerprint": text, "state": tree, "crc32c": ""}
        save_file({"a": torch.zeros(1)}, tmp_path / "state.safetensors", metadata=metadata)
        with pytest.raises(LFIError):
            load_state(tmp_path / "state.safetensors")
    assert not marker.exists()
