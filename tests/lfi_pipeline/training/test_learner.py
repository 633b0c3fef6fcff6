"""A learner by itself, what it tells its queries, and loading a trained student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfi_pipeline.core.errors import RunError, UnknownNameError
from lfi_pipeline.core.parse import unseal_folder, write_recorded
from lfi_pipeline.objectives.interaction import task_loss
from lfi_pipeline.students import StudentConfig, Supervision
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import DataConfig, TrainConfig
from lfi_pipeline.training import learner as module
from lfi_pipeline.training.data import TargetImages
from lfi_pipeline.training.learner import TASK, TOTAL, Learner, load_run
from lfi_pipeline.training.maps import MapResampler
from tests.lfi_pipeline.training.running import train_one

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def run(tiny_targets: Path, tmp_path: Path) -> Path:
    student = StudentConfig(image_size=32, kwargs={"depth": 2, "embed_dim": 16, "num_heads": 2})
    data = DataConfig(targets=tiny_targets, epochs=1, batch_size=8)
    train_one(TrainConfig(data=data, student=student, head="linear", objective="none"), tmp_path / "run")
    return tmp_path / "run"


def test_the_last_or_the_best_weights(run: Path) -> None:
    last = load_file(run / "checkpoints/last.safetensors")
    (run / "checkpoints/best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors must be a checkpoint"):
        load_run(run, device="cpu", weights="best")
    unseal_folder(run)  # else other weights are damage
    save_file({name: tensor + 1 for name, tensor in last.items()}, run / "checkpoints/best.safetensors")
    for weights, added in (("last", 0), ("best", 1)):
        student = load_run(run, device="cpu", weights=weights).student
        assert not student.training
        assert torch.equal(student.head.weight, last["head.weight"] + added)
    with pytest.raises(UnknownNameError, match="first"):
        load_run(run, device="cpu", weights="first")


def test_a_run_that_began_from_timms_weights_is_loaded_without_them(run: Path) -> None:
    path = run / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["pretrained"] = True  # this depth has none to fetch: asking would fail
    write_recorded(run, "config.json", json.dumps(record).encode())
    load_run(run, device="cpu")


@pytest.mark.parametrize(("head", "readout"), [("queries", "class"), ("queries", "text"), ("linear", "auto")])
@pytest.mark.parametrize("task", ["multi-label", "classification", "asl"])
def test_a_share_of_the_gradient_is_the_same_for_every_task(
    make_config: MakeConfig, task: str, head: str, readout: str
) -> None:
    """In a loop of one's own: after the measurement, lfi pulls on the first tap's features with half of the task's
    force, whether that is a mean over 64 classes, a sum over them or a cross-entropy."""
    config = make_config(
        head=head, readout=readout, batch_size=8, **({"multi_label_loss": "asl"} if task == "asl" else {})
    )
    task = "multi-label" if task == "asl" else task
    store = TargetStore.open(config.data.targets)
    learner = Learner(config, store, task)
    if head == "queries":
        for block in learner.student.queries.blocks:  # as if trained: at the very start no answer depends on the image
            torch.nn.init.normal_(block.w_o, std=0.1)
    batch = TargetImages(store, config.data, [learner.student.size], learner.reads).__getitems__(
        [(0, position) for position in range(8)]
    )
    assert learner.weights(0.0) == {"lfi": 0}
    losses = learner.loss(batch, step=0)
    assert set(losses) == {TASK, "lfi", TOTAL}
    weight = learner.weights(0.5)["lfi"]
    assert weight > 0
    kept: list[torch.Tensor] = []
    block = learner.student.backbone.blocks[learner.student.taps[0].index]
    block.register_forward_hook(lambda _, args, output: kept.append(output))
    losses = learner.loss(batch, step=1, progress=0.5)
    torch.testing.assert_close(losses[TOTAL], losses[TASK] + weight * losses["lfi"])
    norms = {}
    for name in (TASK, "lfi"):
        (gradient,) = torch.autograd.grad(losses[name], kept[0], retain_graph=True)
        norms[name] = float(gradient.norm())
    assert weight * norms["lfi"] / norms[TASK] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("objective", "settings", "power"),
    [
        ("none", {}, -1.0),
        ("embedding", {}, -1.0),
        ("lfi", {}, -0.5),
        ("lfi+embedding", {}, -0.5),
        ("lfi", {"query_scale": "1/d"}, -1.0),
        ("none", {"query_scale": "1/sqrt(d)"}, -0.5),
    ],
)
def test_maps_choose_the_scale_of_the_scores(
    make_config: MakeConfig, objective: str, settings: dict[str, str], power: float
) -> None:
    config = make_config(objective=objective, head="queries", **settings)
    student = Learner(config, TargetStore.open(config.data.targets), "multi-label").student
    width = config.queries.width // config.queries.heads
    assert {block.scale for block in student.queries.blocks} == {width**power}  # type: ignore[union-attr, union-attr]


def supervised(config: TrainConfig, task: str) -> tuple[Learner, MapResampler, Supervision]:
    store = TargetStore.open(config.data.targets)
    learner = Learner(config, store, task)
    images = TargetImages(store, config.data, [learner.student.size], learner.reads)
    cut = MapResampler(images.__getitems__([(0, position) for position in range(8)]), store.spec.codec.name)
    supervision, present = learner.supervise(cut)
    assert supervision is not None
    assert supervision.weights is not None
    assert present is None
    return learner, cut, supervision


def test_words_that_name_no_class_do_not_teach_a_query_head(make_config: MakeConfig) -> None:
    learner, cut, taught = supervised(make_config(head="queries"), "multi-label")
    every = supervised(make_config(head="linear"), "multi-label")[2]
    words = cut.on(learner.student.taps[0].grid).words
    classes = torch.where(words >= 0, learner.class_of_word[words.clamp_min(0)], -1)
    assert (every.weights[0][classes < 0] > 0).any()
    assert taught.words is None
    rows = list(zip(taught.row_batch.tolist(), taught.row_query.tolist(), strict=True))
    assert len(rows) == len(set(rows)) == words.numel()  # whatever the words are; no pair of image and class twice
    for tap in range(len(taught.targets)):
        weights = dict(zip(rows, taught.weights[tap].tolist(), strict=True))
        target = dict(zip(rows, taught.targets[tap], strict=True))
        for image, places in enumerate(classes.tolist()):
            for place, named in enumerate(places):
                if named >= 0:
                    assert weights.pop((image, named)) == every.weights[tap][image, place]
                    assert torch.equal(target[image, named], every.targets[tap][image, place])
        assert not any(weights.values())
    alone = supervised(make_config(head="queries"), "none")[2]  # without labels there are no classes to teach
    assert torch.equal(alone.weights[0], every.weights[0])


@pytest.mark.parametrize("readout", ["class", "text"])
def test_one_pass_answers_and_teaches_as_two_do(
    make_config: MakeConfig, readout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes and words were run one after the other; the query of a word is that of the class which it names."""
    config = make_config(head="queries", readout=readout, batch_size=8, weight={"lfi": "0.5"})
    results = []
    for limit in (1024, 0):
        monkeypatch.setattr(module, "CLASSES_AT_ONCE", limit)
        store = TargetStore.open(config.data.targets)
        learner = Learner(config, store, "multi-label")
        for number, block in enumerate(learner.student.queries.blocks):  # as if trained
            torch.nn.init.normal_(block.w_o, std=0.1, generator=torch.Generator().manual_seed(number))
        images = TargetImages(store, config.data, [learner.student.size], learner.reads)
        losses = learner.loss(images.__getitems__([(0, position) for position in range(8)]), step=1)
        parameters = dict(learner.named_parameters())
        gradients = torch.autograd.grad(losses[TOTAL], list(parameters.values()), allow_unused=True)
        results.append((losses, dict(zip(parameters, gradients, strict=True))))
    (losses, gradients), (losses_of_two, gradients_of_two) = results
    assert float(losses["lfi"].detach()) > 0
    for name, loss in losses.items():
        torch.testing.assert_close(loss, losses_of_two[name], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_of_two[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by the tracer itself
@pytest.mark.parametrize(
    ("student", "head"), [(None, "queries"), (StudentConfig(name="resnet10t", image_size=64), "linear")]
)
def test_a_compiled_student_is_measured_as_it_is(
    make_config: MakeConfig, student: StudentConfig | None, head: str
) -> None:
    """Compiled, a backbone is one node of the graph, whose first tap knows nothing of the gradient through the others."""
    config = make_config(head=head, batch_size=8, **({} if student is None else {"student_config": student}))
    store = TargetStore.open(config.data.targets)
    ratios = []
    for compiled in (False, True):
        learner = Learner(config, store, "multi-label")
        for block in learner.student.queries.blocks:
            torch.nn.init.constant_(block.w_o, 0.1)
        images = TargetImages(store, config.data, [learner.student.size], learner.reads)
        batch = images.__getitems__([(0, position) for position in range(8)])
        if compiled:
            learner.student.compile_parts(backend="aot_eager")
        learner.loss(batch, step=1)[TOTAL].backward()  # a resumed run may measure after a plain step
        learner.zero_grad(set_to_none=True)
        learner.loss(batch, step=20)[TOTAL].backward()
        ratios.append(learner.balance.ratio("lfi"))
    assert ratios[0] > 0
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-3)


def test_images_without_labels_teach_by_their_maps_alone(make_config: MakeConfig) -> None:
    """The task's loss is the mean over the labelled images, scaled by how many of a batch they are; lfi is untouched."""
    every = [(0, position) for position in range(8)]
    plain, part = (make_config(head="queries", batch_size=8, label_share=share) for share in (1.0, 0.5))
    store = TargetStore.open(plain.data.targets)
    learner = Learner(plain, store, "multi-label").eval()
    images = {
        share: TargetImages(store, config.data, [learner.student.size], learner.reads)
        for share, config in (("all", plain), ("half", part))
    }
    batches = {share: each.__getitems__(every) for share, each in images.items()}
    weight = batches["half"].label_weight
    assert weight is not None
    assert 0 < (weight > 0).sum() < 8
    losses = {share: learner.loss(batch, step=1) for share, batch in batches.items()}
    torch.testing.assert_close(losses["half"]["lfi"], losses["all"]["lfi"])
    logits = learner.student(batches["all"].images[learner.student.size]).logits
    each = task_loss("multi-label", logits, batches["all"].labels)
    torch.testing.assert_close(losses["half"][TASK], (each * weight).mean())
    assert not torch.isclose(losses["half"][TASK], losses["all"][TASK])
