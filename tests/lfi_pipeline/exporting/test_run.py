"""Exporting a run: which weights, what is written, what is refused, and that a failure leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.core.errors import ConfigError, ExportError, OutputExistsError, OutputWriteError, RunError
from lfi_pipeline.core.parse import unseal_folder
from lfi_pipeline.exporting import export_run
from lfi_pipeline.exporting.check import noise_images
from lfi_pipeline.training.learner import load_run


def loaded(out: Path) -> Any:
    return timm.create_model(f"local-dir:{out}", pretrained=True).eval()


def test_what_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    os.umask(mask := os.umask(0))
    result = export_run(run, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "lfi.json",
        "lfi.safetensors",
        "model.safetensors",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert sizes.pop("checksums.json")
    assert result["files"] == sizes
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {oct(0o666 & ~mask)}
    assert result["check"] == {
        "images": 4,
        "noise": 4,
        "features": pytest.approx(0, abs=1e-6),
        "logits": pytest.approx(0, abs=1e-6),
        "inputs": pytest.approx(0, abs=1e-5),
        "onnx": None,
    }
    assert (result["head"], result["classes"], result["weights"]) == ("inside", 64, "best")
    student = load_run(run, device="cpu", weights="best").student
    counts = student.parameter_counts()
    assert result["parameters"] == counts["backbone"] + counts["head"]
    assert result["parameters"] == sum(p.numel() for p in loaded(out).parameters())
    names = json.loads((out / "config.json").read_text())["label_names"]
    assert names == list(load_run(run, device="cpu").store.spec.dataset.classes)


def test_the_best_weights_where_there_are_any(run: Path, tmp_path: Path) -> None:
    last = load_file(run / "checkpoints/last.safetensors")
    unseal_folder(run)  # changed by hand
    save_file({name: tensor + 0.01 for name, tensor in last.items()}, run / "checkpoints/best.safetensors")
    for asked, got, added in ((None, "best", 0.01), ("best", "best", 0.01), ("last", "last", 0.0)):
        out = tmp_path / f"out-{asked}"
        assert export_run(run, out, weights=asked)["weights"] == got
        assert torch.equal(loaded(out).head.weight, last["head.weight"] + added)
        assert f"| exported weights | {got} |" in (out / "README.md").read_text()


def test_without_the_images_it_is_checked_on_noise_alone(run: Path, tmp_path: Path) -> None:
    path = run / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["data_root"] = str(tmp_path)
    unseal_folder(run)  # changed by hand
    path.write_text(json.dumps(record))
    check = export_run(run, tmp_path / "out")["check"]
    assert (check["images"], check["noise"]) == (0, 4)
    assert "0 images, 4 of noise" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_gives_what_timm_gives_for_any_batch(run: Path, tmp_path: Path) -> None:
    result = export_run(run, tmp_path / "out", onnx=True)
    assert result["check"]["onnx"] <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    model = loaded(tmp_path / "out")
    for batch in (1, 5):
        x = torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(["output"], {"images": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)
    assert "model.onnx" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_without_its_packages_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ConfigError, match=r"not installed: onnxscript\. .*pip install 'lfi-pipeline\[onnx\]'"):
        export_run(run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["weights", "mean", "crop", "head"])
def test_an_export_that_is_not_the_student_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What timm loads is spoilt in one place after it was written."""
    from lfi_pipeline.exporting import run as module

    write = module.write_checkpoint

    def spoilt(folder: Path, *arguments: Any) -> None:
        write(folder, *arguments)
        tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        if where == "weights":
            tensors["blocks.1.mlp.fc1.weight"][0] += 1e-2
        elif where == "head":
            tensors["head.bias"] += 1e-4
        elif where == "mean":
            config["pretrained_cfg"]["mean"] = [0.4, 0.4, 0.4]
        else:
            config["pretrained_cfg"]["crop_mode"] = "center"
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(module, "write_checkpoint", spoilt)
    what = {"weights": "features", "head": "logits"}.get(where, "inputs")
    with pytest.raises(ExportError, match=f"The {what} of the exported model must equal"):
        export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["lfi-0"]


def test_what_timm_cannot_load_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfi_pipeline.exporting import run as module

    write = module.write_checkpoint

    def spoilt(folder: Path, *arguments: Any) -> None:
        write(folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        del tensors["norm.weight"]
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(module, "write_checkpoint", spoilt)
    with pytest.raises(ExportError, match=r"timm cannot load (?s:.*)norm\.weight"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_holds_something_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for out in (full, file):
        with pytest.raises(OutputExistsError, match="must be absent or an empty directory"):
            export_run(run, out)
    assert (full / "mine.txt").read_text() == file.read_text() == "mine"
    export_run(run, empty)
    assert (empty / "model.safetensors").is_file()


def test_what_cannot_be_written_or_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError, match="Cannot write the export"):
        export_run(run, tmp_path / "file" / "out")
    (run / "checkpoints" / "best.safetensors").unlink()
    with pytest.raises(RunError, match="best"):
        export_run(run, tmp_path / "out", weights="best")
    with pytest.raises(RunError, match="must be a run directory"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noise_is_not_square_and_always_the_same() -> None:
    first, again = noise_images((32, 48)), noise_images((32, 48))
    assert first[0].size == (55, 51)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
