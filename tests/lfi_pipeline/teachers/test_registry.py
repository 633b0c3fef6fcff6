from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import load_file, save_file

from lfi_pipeline.errors import TeacherError, UnknownNameError
from lfi_pipeline.teachers import load_teacher, teacher_names
from lfi_pipeline.teachers.registry import load_coca_folder, state_sha256
from lfi_pipeline.teachers.scenes_coca.bpe import write_merges

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


def test_names_are_the_embedded_teacher_and_cocas_with_a_clip_tokenizer() -> None:
    assert teacher_names()[0] == "scenes-coca"
    assert {"coca_ViT-B-32", "coca_ViT-L-14", "coca_small"} <= set(teacher_names())


def test_unknown_teacher_lists_choices_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"teacher 'coca_vit-b-32'.*Did you mean 'coca_ViT-B-32'.*scenes-coca"):
        load_teacher("coca_vit-b-32")


@pytest.mark.parametrize(
    ("teacher", "choices"),
    [
        ("scenes-coca:v0", "v1"),
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
    tag = tag or "mscoco_finetuned_laion2b_s13b_b90k"  # the last that open_clip lists
    message = (
        rf"{name}:{tag} are not in the local cache and could not be fetched.*fetch open_clip_model\.safetensors from "
        rf"laion/\S*{name.removeprefix('coca_')}\S*, .*--teacher {name}:PATH/open_clip_model\.safetensors"
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
