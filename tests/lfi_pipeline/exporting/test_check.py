"""An export is a plain timm model: loaded with nothing of this project, it gives what the student gave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.exporting.check import check_export, noise_images, plain_model, write_checkpoint
from lfi_pipeline.students import Student, StudentConfig
from tests.lfi_pipeline.exporting.conftest import APART, CLASSES, FAMILIES

Make = Callable[[str], Student]

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lfi_pipeline", "lfi_kernels", "lfi_cli"):
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Blocked())
import timm, torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = timm.create_model("local-dir:" + folder + "/export", pretrained=True).eval()
    x = load_file(folder + "/x.safetensors")["x"].contiguous(memory_format=torch.channels_last)  # as the student
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        found = {"features": features.contiguous(), "output": model(x).contiguous()}
    save_file(found, folder + "/found.safetensors")
try:
    import lfi_pipeline
except ImportError:
    print("alone")
"""


@pytest.fixture(scope="module")
def loaded_alone(make_student: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family: `export`, and what a process without this project found there, of normalised images `x`."""
    folders = {}
    for family in FAMILIES:
        folder = folders[family] = tmp_path_factory.mktemp("family")
        student = make_student(family)
        (folder / "export").mkdir()
        write_checkpoint(folder / "export", plain_model(student), FAMILIES[family], student.size, CLASSES)
        x = (pictures(student).float() - student.mean) / student.std
        save_file({"x": x}, folder / "x.safetensors")
    ended = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *map(str, folders.values())], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "alone"
    return folders


def pictures(student: Student) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, *student.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_alone_gives_what_the_student_gave(make_student: Make, loaded_alone: dict[str, Path], family: str) -> None:
    folder, student = loaded_alone[family], make_student(family)
    with torch.no_grad():
        expected = student(pictures(student), with_taps=False)
    assert expected.pooled.std() > 1e-3  # features that are all alike would show nothing
    found = load_file(folder / "found.safetensors")
    config = json.loads((folder / "export" / "config.json").read_text())
    torch.testing.assert_close(found["features"], expected.pooled, rtol=1e-6, atol=1e-6)
    if family in APART:
        head = load_file(folder / "export" / "head.safetensors")
        torch.testing.assert_close(found["output"] @ head["weight"].T + head["bias"], expected.logits)
        assert "label_names" not in config
    else:
        assert not (folder / "export" / "head.safetensors").exists()
        torch.testing.assert_close(found["output"], expected.logits, rtol=1e-5, atol=1e-6)
        assert config["label_names"] == list(CLASSES)


@pytest.mark.parametrize("family", ["vit", "mobilenetv4", "two heads"])
def test_its_parameters_are_those_of_a_plain_timm_model(make_student: Make, family: str, tmp_path: Path) -> None:
    student, config = make_student(family), FAMILIES[family]
    write_checkpoint(tmp_path, plain_model(student), config, student.size, CLASSES)
    size = {"img_size": 48, "patch_size": 16} if family == "vit" else {}
    classes = 0 if family in APART else len(CLASSES)
    ours = timm.create_model(config.name, num_classes=classes, **size, **config.kwargs).state_dict()
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in ours.items()}


def test_timms_transform_is_what_the_student_sees(make_student: Make, tmp_path: Path) -> None:
    student = make_student("vit")
    write_checkpoint(tmp_path, plain_model(student), FAMILIES["vit"], student.size, CLASSES)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    data = timm.data.resolve_data_config(model=model)
    assert (data["input_size"], data["interpolation"]) == ((3, 48, 48), "bicubic")
    assert (data["crop_pct"], data["crop_mode"]) == (1.0, "squash")
    (image, *_) = noise_images((48, 48))
    assert timm.data.create_transform(**data)(image).shape == (3, 48, 48)


def test_nothing_of_timms_own_weights_is_claimed(make_student: Make, tmp_path: Path) -> None:
    student = make_student("vit")
    write_checkpoint(tmp_path, plain_model(student), FAMILIES["vit"], student.size, CLASSES)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"url", "hf_hub_id", "tag", "license", "origin_url", "label_offset"} & config["pretrained_cfg"].keys()
    assert config["architecture"] == "vit_tiny_patch16_224"


def test_a_student_that_started_from_weights_of_ones_own_is_exported(tmp_path: Path) -> None:
    kwargs = {"channels": [8, 8, 16, 16]}
    start = timm.create_model("resnet10t", num_classes=0, **kwargs)
    save_file(start.state_dict(), tmp_path / "mine.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "mine.safetensors")}}
    config = StudentConfig(name="resnet10t", image_size=32, kwargs=kwargs | overlay, pretrained=True)
    student = Student(config, classes=len(CLASSES), embedding_dim=4).eval()
    (tmp_path / "export").mkdir()
    plain = plain_model(student)
    write_checkpoint(tmp_path / "export", plain, config, student.size, CLASSES)
    assert "mine.safetensors" not in (tmp_path / "export" / "config.json").read_text()
    assert check_export(tmp_path / "export", student, plain, []).features < 1e-6


def test_the_student_stays_as_it_was(make_student: Make) -> None:
    student = make_student("vit")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    plain_model(student)
    assert student.backbone.num_classes == 0
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
