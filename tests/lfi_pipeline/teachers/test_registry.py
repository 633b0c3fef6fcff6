from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import factory
from safetensors.torch import load_file, save_file

from lfi_pipeline.core import hub
from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.teachers import load_teacher
from lfi_pipeline.teachers.registry import load_coca_folder, state_sha256
from lfi_pipeline.teachers.scenes_coca.recipe import write_merges

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": 16,
        "head_width": 8,
        "layers": 1,
        "attentional_pool": True,
        "attn_pooler_queries": 3,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}


@pytest.fixture(autouse=True)
def small_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows a config `coca_small`, for one test."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "coca_small.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "coca_small.json")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host")

    for name in ("download_pretrained", "download_pretrained_from_hf"):
        monkeypatch.setattr(factory, name, refuse)


def test_a_name_of_open_clip_that_has_no_patches_is_refused_with_the_reason() -> None:
    with pytest.raises(TeacherError, match=r"RN50 cannot give maps: its vision tower is a ResNet.*lfi teachers"):
        load_teacher("RN50:openai")


def test_unknown_teacher_lists_choices_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"teacher 'coca_vit-b-32'.*Did you mean 'coca_ViT-B-32'.*more"):
        load_teacher("coca_vit-b-32")


@pytest.mark.parametrize(
    ("teacher", "choices"),
    [
        ("scenes-coca:v0", "v2"),
        ("coca_ViT-B-32:openai", r"laion2b_s13b_b90k, mscoco_finetuned_laion2b_s13b_b90k, rand"),
    ],
)
def test_unknown_tag_lists_choices(teacher: str, choices: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"tag of {teacher.partition(':')[0]}.*Choices: {choices}"):
        load_teacher(teacher)


def test_a_config_without_weights_says_what_to_give() -> None:
    with pytest.raises(TeacherError, match=r"no weights for coca_small\. Give coca_small:PATH.*coca_small:random"):
        load_teacher("coca_small")


@pytest.mark.usefixtures("poisoned")
def test_random_weights_are_finite_and_the_same_every_time() -> None:
    state = torch.random.get_rng_state()
    first = load_teacher("coca_small:random")
    torch.manual_seed(99)
    again = load_teacher("coca_small:random")
    assert all(torch.isfinite(value).all() for value in first.model.state_dict().values())
    assert first.identity == again.identity
    assert (first.identity.name, first.identity.tag, first.identity.family) == ("coca_small", "random", "coca")
    assert first.identity.weights_sha256 == state_sha256(first.model.state_dict())
    torch.random.set_rng_state(state)


def test_random_weights_leave_the_callers_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    load_teacher("coca_small:random")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_local_checkpoint_is_loaded(tmp_path: Path, form: str) -> None:
    random = load_teacher("coca_small:random")
    state = {name: value + 0.01 for name, value in random.model.state_dict().items()}
    path = tmp_path / f"my weights.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    teacher = load_teacher(f"coca_small:{path}")
    assert teacher.identity.tag == path.name  # where it lies is not part of what it is
    assert teacher.identity.weights_sha256 == state_sha256(state)
    assert teacher.grid == (2, 2)
    assert teacher.tokenizer.context_length == 16


@pytest.mark.parametrize("damage", ["cut", "lacking", "other"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path, damage: str) -> None:
    state = load_teacher("coca_small:random").model.state_dict()
    path = tmp_path / "weights.safetensors"
    if damage == "lacking":
        del state["visual.proj"]
    if damage == "other":
        state["visual.proj"] = torch.zeros(3, 3)
    save_file(state, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TeacherError, match=r"weights\.safetensors must be a checkpoint of coca_small"):
        load_teacher(f"coca_small:{path}")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "teacher", ["coca_ViT-B-32:laion2b_s13b_b90k", "coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k", "coca_ViT-B-32"]
)
def test_weights_that_cannot_be_fetched_say_what_to_fetch_and_where_to_put_it(teacher: str) -> None:
    name, _, tag = teacher.partition(":")
    tag = tag or "laion2b_s13b_b90k"  # not the last that open_clip lists, which is weak in contrast
    message = (
        rf"{name}:{tag} are not in the local cache and could not be fetched.*fetch open_clip_model\.safetensors from "
        rf"laion/\S*{name.removeprefix('coca_')}\S*, .*`teacher={name}:PATH/open_clip_model\.safetensors"
    )
    with pytest.raises(TeacherError, match=message):
        load_teacher(teacher)


def test_digest_depends_on_values_and_names_and_not_on_the_file(tmp_path: Path) -> None:
    state = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3), "c": torch.tensor([True, False])}
    digest = state_sha256(state)
    torch.save(state, tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    assert state_sha256(torch.load(tmp_path / "x.pt", weights_only=True)) == digest
    assert state_sha256(load_file(tmp_path / "x.safetensors")) == digest
    assert state_sha256(dict(reversed(state.items()))) == digest
    assert state_sha256(state | {"b": state["b"].T.contiguous().T}) == digest  # strides do not matter
    changes = {
        "value": {"b": state["b"] + torch.eye(2, 3) * 1e-6},
        "dtype": {"b": state["b"].half()},
        "shape": {"b": state["b"].view(3, 2)},
    }
    found = {name: state_sha256(state | change) for name, change in changes.items()}
    found["name"] = state_sha256({("d" if name == "a" else name): value for name, value in state.items()})
    assert len({digest, *found.values()}) == 5, found


def test_a_folder_of_the_recipe_is_loaded_in_single_precision(tmp_path: Path) -> None:
    write_merges([("d", "o"), ("do", "g</w>")], tmp_path / "bpe.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(str(tmp_path / "bpe.txt.gz"))
    config = json.loads(json.dumps(CONFIG))
    for part in ("text_cfg", "multimodal_cfg"):
        config[part]["vocab_size"] = tokenizer.vocab_size
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
    torch.nn.init.normal_(model.text_decoder.text_projection)
    halves = {name: value.half() for name, value in model.state_dict().items()}
    save_file(halves, tmp_path / "model.safetensors")
    loaded, tokenizer = load_coca_folder(tmp_path)
    assert tokenizer.context_length == 16
    assert len(tokenizer.encode("dog")) == 1
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[name].float())


# --- local folders and the hub ------------------------------------------------------------------------------


@pytest.fixture
def dual_folder(tmp_path: Path) -> Path:
    """A folder as open_clip saves one, with a small CLIP."""
    config = {"embed_dim": 16, "vision_cfg": {**CONFIG["vision_cfg"], "attentional_pool": False}, "text_cfg": TEXT}
    config["vision_cfg"].pop("output_tokens")
    folder = tmp_path / "small-clip"
    folder.mkdir()
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
    content = {"model_cfg": config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_a_local_folder_is_loaded_with_its_pixels(dual_folder: Path) -> None:
    teacher = load_teacher(f"local-dir:{dual_folder}")
    stored = load_file(dual_folder / "open_clip_model.safetensors")
    assert teacher.identity.weights_sha256 == state_sha256(stored)
    assert (teacher.identity.name, teacher.identity.family) == ("local-dir:small-clip", "dual")
    assert (teacher.mean, teacher.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (teacher.interpolation, teacher.grid, teacher.image_size) == ("bilinear", (2, 2), (32, 32))


@pytest.mark.parametrize("file", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_local_folder_that_lacks_a_file_is_refused(dual_folder: Path, file: str) -> None:
    (dual_folder / file).unlink()
    with pytest.raises(TeacherError, match=r"small-clip must be a folder with open_clip_config\.json and"):
        load_teacher(f"local-dir:{dual_folder}")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No server answers; the list fills with those that were asked."""
    asked: list[str] = []
    monkeypatch.setattr(hub, "answers", lambda url: bool(asked.append(url)))
    return asked


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            "hf-hub:timm/ViT-B-16-SigLIP",
            r"open_clip_config\.json of \S+/timm/ViT-B-16-SigLIP must be.*open_clip_model\.safe.*local-dir:PATH",
        ),
        ("ViT-B-32:openai", r"fetch open_clip_model\.safetensors from timm/vit_base_patch32_clip_224\.openai, copy it"),
        (
            "ViT-B-16-SigLIP:webli",
            r"tokenizer\.json from timm/ViT-B-16-SigLIP.*hf download timm.*HF_HOME",
        ),
        ("coca_roberta-ViT-B-32:random", r"fetch config\.json from roberta-base.*hf download roberta-base"),
    ],
)
def test_without_a_network_the_files_to_fetch_are_named_at_once(
    no_network: list[str], teacher: str, message: str
) -> None:
    if teacher.split(":")[0] in ("ViT-B-16-SigLIP", "coca_roberta-ViT-B-32"):
        pytest.importorskip("transformers")
    began = time.monotonic()
    with pytest.raises(TeacherError, match=message):
        load_teacher(teacher)
    assert no_network
    assert time.monotonic() - began < 10  # the hub's client alone retries for minutes


def test_the_hub_is_not_asked_where_that_is_forbidden(no_network: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match=r"HF_HUB_OFFLINE is set"):
        load_teacher("hf-hub:timm/ViT-B-16-SigLIP")
    assert not no_network


def test_an_id_of_the_hub_that_is_none_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"hf-hub: must be followed by ORG/REPO, got 'roberta'"):
        load_teacher("hf-hub:roberta")


def test_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/constants.pkl", b"")
        archive.writestr("weights/code/__torch__.py", b"raise SystemExit")
    with pytest.raises(TeacherError, match=r"weights\.pt must be a checkpoint of coca_small, but it is a TorchScript"):
        load_teacher(f"coca_small:{path}")


def test_a_pickle_that_is_not_only_weights_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"state_dict": Path("/nowhere")}, path)
    with pytest.raises(TeacherError, match=r"weights\.bin must be a checkpoint of coca_small.*weights.only"):
        load_teacher(f"coca_small:{path}")


@pytest.mark.parametrize("file", ["config.json", "bpe.txt.gz", "model.safetensors"])
def test_an_embedded_teacher_that_lacks_a_file_is_told(tmp_path: Path, file: str) -> None:
    for name in {"config.json", "bpe.txt.gz", "model.safetensors"} - {file}:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(TeacherError, match=rf"must hold config\.json.*but {file} is not there"):
        load_coca_folder(tmp_path)


def test_precision_is_resolved_and_recorded() -> None:
    assert load_teacher("coca_small:random", precision="bf16").identity.precision == "bf16"
    assert load_teacher("coca_small:random", precision="auto").precision == "fp32"  # on a CPU
    with pytest.raises(UnknownNameError, match=r"precision 'fp8'.*auto, bf16, fp16, fp32"):
        load_teacher("coca_small:random", precision="fp8")


def test_a_path_without_its_architecture_is_told_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"must name its architecture.*Write NAME:ckpt\.pt, as coca_ViT-L-14:ckpt\.pt"
    ):
        load_teacher("ckpt.pt")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"Write local-dir:.*mine\."):
        load_teacher(str(tmp_path / "mine"))
    with pytest.raises(UnknownNameError, match=r"'coca_vit'\. Did you mean 'coca_ViT-B-32'\? .* more"):
        load_teacher("coca_vit")
