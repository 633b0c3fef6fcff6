"""The whole model: as the student answers so it answers, from its files alone; what its files may not say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.exporting.check import difference
from lfi_pipeline.exporting.model import WEIGHTS, Model, load, save_model
from lfi_pipeline.exporting.model_config import ModelConfig
from lfi_pipeline.exporting.whole import exported_program, head_cost, whole_model, write_onnx, write_whole
from lfi_pipeline.students import QueryConfig, Student, StudentConfig
from lfi_pipeline.training import DataConfig, RuntimeConfig, TrainConfig, train
from lfi_pipeline.training.learner import load_run
from tests.lfi_pipeline.exporting.conftest import CLASSES, FAMILIES, VIT

MadeRun = Callable[..., Path]
ASKED = ("vit", "dinov2 with registers", "swin", "convnext", "resnet", "mobilenetv4", "head after a batch norm")


def described(config: StudentConfig, student: Student, **changes: Any) -> ModelConfig:
    arguments = dict(config.kwargs) | ({"patch_size": config.patch_size} if config.patch_size else {})
    facts: dict[str, Any] = {
        "name": "run", "architecture": config.name, "arguments": arguments, "image_size": student.size,
        "taps": tuple(tap.index for tap in student.taps), "mean": (128.0, 120.0, 110.0), "std": (60.0, 61.0, 62.0),
        "classes": CLASSES, "task": "multi-label", "head": "queries", "readout": "auto", "query_width": 16,
        "query_heads": 2, "state": "persistent", "embedding_dim": 8, "words": (), "teacher": ("t", "x"), **changes,
    }  # fmt: skip
    return ModelConfig(**facts)


def made(family: str = "vit", readout: str = "class", words: int = 0) -> Model:
    """A model of that family with a query head, as if trained."""
    torch.manual_seed(1)
    config = FAMILIES[family]
    queries = QueryConfig(width=16, heads=2, scale="1/d", readout=readout)
    student = Student(
        config, classes=len(CLASSES), embedding_dim=8, queries=queries, head="queries",
        class_embeddings=torch.randn(len(CLASSES), 8),
    )  # fmt: skip
    for block in student.queries.blocks:  # type: ignore[union-attr, union-attr]
        nn.init.normal_(block.w_o, std=0.5)
        nn.init.normal_(block.w_q, std=0.5)
    facts = described(
        config, student, readout=readout, words=tuple(f"word{i}" for i in range(words)), query_scale="1/d"
    )
    student.mean.copy_(torch.tensor(facts.mean).view(3, 1, 1))
    student.std.copy_(torch.tensor(facts.std).view(3, 1, 1))
    return Model(student, facts, torch.randn(words, 8).half().float() if words else None).eval()


def pixels(model: Model, count: int = 3) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(0, 256, (count, 3, *model.config.image_size), dtype=torch.uint8)


@pytest.mark.parametrize("family", ASKED)
def test_what_is_loaded_is_what_was_saved(family: str, tmp_path: Path) -> None:
    model = made(family)
    check = write_whole(tmp_path, model, [])
    assert check.logits is not None
    assert check.logits <= 1e-5
    assert check.peaks == 1
    again, images = load(tmp_path), pixels(model)
    logits, maps = again(images)
    assert torch.equal(logits, model(images).logits)
    assert maps is not None
    assert maps.shape[:2] == (3, len(CLASSES))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, len(CLASSES)))
    torch.testing.assert_close(again(images.float()).logits, logits)
    assert again.config == model.config


def test_a_module_of_ones_own_is_loaded_into_that_module(tmp_path: Path) -> None:
    from tests.lfi_pipeline.students.test_backbone_own import Own, student

    mine = student(Own())
    facts = described(StudentConfig(), mine, architecture="", arguments={}, classes=("a", "b", "c"), embedding_dim=5)
    model = Model(mine, facts).eval()
    save_model(tmp_path, model)
    with pytest.raises(ConfigError, match="give it as backbone"):
        load(tmp_path)
    mine.mean.copy_(torch.tensor(facts.mean).view(3, 1, 1))
    mine.std.copy_(torch.tensor(facts.std).view(3, 1, 1))
    images = pixels(model)
    assert torch.equal(load(tmp_path, backbone=Own())(images).logits, model(images).logits)


def test_weights_that_are_damaged_or_missing(tmp_path: Path) -> None:
    save_model(tmp_path, made())
    tensors = load_file(tmp_path / WEIGHTS)
    tensors.pop("queries.seed.weight")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ExportError, match=r"1 tensors differ, queries\.seed\.weight"):
        load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\0" * 64)
    with pytest.raises(ExportError, match="damaged"):
        load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ExportError, match="must hold"):
        load(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_programs_give_the_same(family: str, batch: int | None, tmp_path: Path) -> None:
    model = made(family)
    differs = write_onnx(model, tmp_path / "model.onnx", batch=batch)
    assert differs is not None
    assert differs <= 1e-4
    images = pixels(model, batch or 5)
    logits, maps = exported_program(model, batch=batch).module()(images)
    expected = model(images)
    assert difference(logits, expected.logits) <= 1e-5
    assert expected.maps is not None
    assert difference(maps, expected.maps) <= 1e-5
    with pytest.raises(ConfigError, match="batch"):
        exported_program(model, batch=0)


@pytest.fixture(scope="session")
def query_run(tiny_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """Return a run with these settings, trained once."""
    runs: dict[str, Path] = {}

    def make(head: str, readout: str = "auto", task: str = "auto", objective: str = "lfi") -> Path:
        key = f"{head}-{readout}-{task}-{objective}"
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("runs") / key
            data = DataConfig(targets=tiny_targets, epochs=1, batch_size=8)
            queries = QueryConfig(width=16, heads=2, readout=readout)
            config = TrainConfig(data=data, student=VIT, queries=queries, head=head, task=task, objective=objective)
            train([(config, runs[key])], RuntimeConfig(device="cpu", track=()))
        return runs[key]

    return make


@pytest.mark.parametrize(("head", "readout"), [("queries", "class"), ("queries", "text"), ("linear", "auto")])
def test_a_run_as_a_whole_model(query_run: MadeRun, head: str, readout: str, tmp_path: Path) -> None:
    loaded = load_run(query_run(head, readout), device="cpu")
    model = whole_model(loaded)
    check = write_whole(tmp_path, model, [])
    assert check.images == 4
    assert (check.peaks == 1) == (head == "queries")
    again, images = load(tmp_path), pixels(model)
    torch.testing.assert_close(again(images).logits, loaded.student(images).logits, atol=1e-5, rtol=1e-5)
    assert again.config.head == head
    assert len(again.config.words) == (len(loaded.store.vocabulary.words) if readout == "text" else 0)
    assert (again.student.queries is None) == (head == "linear")


def test_words_are_asked_by_their_name(query_run: MadeRun, tmp_path: Path) -> None:
    loaded = load_run(query_run("queries", "text"), device="cpu")
    model = whole_model(loaded)
    word = next(w for w in model.config.words if w not in model.config.classes)
    name = model.config.classes[0]
    found = model.embeddings([word, name.upper()])
    place = list(loaded.store.vocabulary.words).index(word)
    torch.testing.assert_close(found[0], torch.from_numpy(loaded.store.vocabulary.embeddings[place]).float())
    with pytest.raises(ConfigError, match=r"does not know 'zyzzyva'.*tiny-coca"):
        model.embeddings(["zyzzyva", name])
    given = torch.ones(1, 32)
    assert torch.equal(model.embeddings(["zyzzyva"], lambda names: given[: len(names)])[0], given[0])
    for head, readout in (("queries", "class"), ("linear", "auto")):
        other = whole_model(load_run(query_run(head, readout), device="cpu"))
        with pytest.raises(ConfigError, match="its own classes alone"):
            other.embeddings([name])


def test_arguments_that_no_file_may_name_are_told_at_the_export(query_run: MadeRun) -> None:
    loaded = load_run(query_run("queries", "class"), device="cpu")
    config = replace(loaded.config, student=replace(loaded.config.student, kwargs={"weight_init": "skip"}))
    with pytest.raises(ConfigError, match="weight_init is no argument"):
        whole_model(replace(loaded, config=config))


def test_a_model_without_classes_is_asked_for_words(query_run: MadeRun, tmp_path: Path) -> None:
    """Unlabelled data: the words of the captions are the queries, and the presence term teaches their score."""
    loaded = load_run(query_run("queries", "auto", "none", "lfi+presence"), device="cpu")
    model = whole_model(loaded)
    assert (model.config.classes, model.config.head, model.config.readout) == ((), "queries", "text")
    check = write_whole(tmp_path, model, [])
    assert check.logits is not None
    again = load(tmp_path)
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    words = list(model.config.words[:3])
    assert {answer.name for answer in again.predict(picture, words).answers} == set(words)
    with pytest.raises(ConfigError, match="which words to ask"):
        again.predict(picture)


def test_what_the_query_head_costs_is_counted() -> None:
    model = made()
    student, classes = model.student, len(CLASSES)
    cost = head_cost(model)
    assert cost is not None
    assert student.queries is not None
    assert cost.parameters == sum(p.numel() for p in student.queries.parameters())
    assert cost.backbone_parameters == sum(p.numel() for p in student.backbone.parameters())
    expected = classes * 8 * 16  # the seeds; then per tap W_q and W_o, keys and values, scores and sums
    for tap in student.taps:
        cells = tap.grid[0] * tap.grid[1]
        expected += 2 * classes * 16 * 16 + 2 * cells * tap.width * 16 + 2 * classes * cells * 16
    assert cost.operations == 2 * expected
    assert cost.backbone_operations > cost.operations > 0
    assert cost.time > 0
    assert f"{cost.operations / cost.backbone_operations:.1%} of its operations" in cost.text


def test_a_linear_head_has_no_queries_to_pay_for() -> None:
    student = Student(VIT, classes=len(CLASSES), embedding_dim=8)
    assert head_cost(Model(student, described(VIT, student, head="linear"), None).eval()) is None
