"""What one step does: a bad one is not taken, a batch in parts is the batch, an average follows the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import TrainConfig, train
from lfi_pipeline.training.learner import Learner
from lfi_pipeline.training.monitor import EpochClock
from lfi_pipeline.training.trainer import MicroBatch, Trainer, _make_optimizer
from tests.lfi_pipeline.training.running import MACHINE, assert_same_run, train_lines, train_one, untimed, weights

MakeConfig = Callable[..., TrainConfig]


def poison(monkeypatch: pytest.MonkeyPatch, run: str, step: int, factor: float) -> list[dict[str, Tensor]]:
    """Multiply the losses of one step of the run in the directory of that name; returns its weights before and after
    that step, once it is taken."""
    seen: list[dict[str, Tensor]] = []
    take, forward = Trainer.train_step, Learner.forward
    poisoned: list[Learner] = []

    def watched(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        bad = self.out.name == run and self.step == step
        if not bad:
            return take(self, pieces, clock)
        poisoned.append(self.learner)
        seen.append({name: value.clone() for name, value in self.learner.state_dict().items()})
        losses = take(self, pieces, clock)
        seen.append({name: value.clone() for name, value in self.learner.state_dict().items()})
        return losses

    def multiplied(self: Learner, *args: Any, **options: Any) -> dict[str, Tensor]:
        losses = forward(self, *args, **options)
        return {name: value * factor for name, value in losses.items()} if self in poisoned else losses

    monkeypatch.setattr(Trainer, "train_step", watched)
    monkeypatch.setattr(Learner, "forward", multiplied)
    return seen


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_ruined_step_is_not_taken_and_the_other_student_ends(
    make_config: MakeConfig, tmp_path: Path, tiny_targets: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_config(objective="none")
    train_one(other, tmp_path / "alone")
    seen = poison(monkeypatch, "bad", 4, factor)
    runs = [(make_config(), tmp_path / "bad"), (other, tmp_path / "other")]
    with pytest.raises(RunError, match=r"bad: training stopped at step 5.*loss is (nan|inf).*8 images.*Lower `lr`"):
        train(runs, MACHINE)
    before, after = seen
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert_same_run(tmp_path / "alone", tmp_path / "other")
    assert not (tmp_path / "bad" / "summary.json").exists()
    assert (tmp_path / "bad" / "checkpoints" / "state.safetensors").is_file()  # of the epoch before

    failure = json.loads((tmp_path / "bad" / "failure.json").read_text())
    assert failure["step"] == 5
    assert failure["reason"].startswith("the loss is")
    assert failure["losses"]["total"] in ("nan", "inf")
    assert len(set(failure["keys"])) == 8
    assert set(failure["keys"]) <= set(TargetStore.open(tiny_targets).index.keys)


def test_a_learning_rate_that_ruins_a_run_is_noticed(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"training stopped at step \d.*It has no checkpoint yet"):
        train_one(make_config(lr=1e30, warmup_epochs=0, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "failure.json").is_file()


def test_an_exploding_loss_is_noticed(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = poison(monkeypatch, "run", 22, 1e4)
    with pytest.raises(RunError, match=r"stopped at step 23.*where the last 22 had a median of"):
        train_one(make_config(objective="none", epochs=8), tmp_path / "run")
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


def test_the_images_of_the_failed_step_are_those_it_was_made_of(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    take = Trainer.train_step

    def noted(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        read.append([position for piece in pieces for position in piece.batch.positions.tolist()])
        return take(self, pieces, clock)

    monkeypatch.setattr(Trainer, "train_step", noted)
    poison(monkeypatch, "run", 1, math.nan)
    config = make_config(grad_accum_steps=2)
    with pytest.raises(RunError):
        train_one(config, tmp_path / "run")
    keys = TargetStore.open(config.data.targets).index.keys
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["keys"] == [keys[i] for i in read[1]]


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "lfi+embedding+logits"},
        {"objective": "lfi", "mixup": 0.5, "cutmix": 1.0, "task": "none"},
        {"objective": "lfi+embedding", "head": "queries", "mix": "maps", "cutmix": 1.0, "epochs": 11},
        {
            "objective": "lfi+presence",
            "head": "queries",
            "readout": "text",
            "task": "none",
            "weight": {"presence": 0.0},
        },
    ],
)
def test_a_batch_in_parts_is_the_batch(make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    sets = {"epochs": 5, "batch_size": 12, "scale": [0.2, 1.0], **changes}
    for parts in (1, 2, 3):
        train_one(make_config(grad_accum_steps=parts, **sets), tmp_path / str(parts))
    whole = untimed(tmp_path / "1")
    for parts in ("2", "3"):
        for line, other in zip(whole, untimed(tmp_path / parts), strict=True):
            names = [name for name in line if name.endswith("loss") or name == "gradient_norm"]
            assert {n: line[n] for n in names} == pytest.approx({n: other[n] for n in names}, abs=1e-5, rel=1e-5)


def test_an_average_follows_the_weights_and_is_what_is_scored_and_kept(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay = 0.6
    config = make_config(objective="none", ema=decay, lr=1e-2, epochs=4)
    plain = train_one(replace(config, optimizer=replace(config.optimizer, ema=None)), tmp_path / "plain")
    kept: list[dict[str, Tensor]] = [{}]
    average: dict[str, Tensor] = {}
    take = Trainer.train_step

    def followed(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        if not average:
            average.update({name: value.clone() for name, value in self.learner.student.state_dict().items()})
        losses = take(self, pieces, clock)
        assert self.ema is not None
        now = self.ema.get_decay(self.step)
        assert 0 <= now <= decay
        for name, value in self.learner.student.state_dict().items():
            average[name] = now * average[name] + (1 - now) * value
        kept[0] = {name: value.clone() for name, value in self.learner.student.state_dict().items()}
        return losses

    monkeypatch.setattr(Trainer, "train_step", followed)
    summary = train_one(config, tmp_path / "run")
    found = weights(tmp_path / "run")
    for name, value in found.items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(found["head.weight"], kept[0]["head.weight"])
    assert summary["map_seen"] != plain["map_seen"]
    ours, theirs = ([line["loss"] for line in train_lines(tmp_path / name)] for name in ("run", "plain"))
    assert ours == theirs  # the average is only watching


def test_the_gradient_is_clipped(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        objective="none", opt="sgd", schedule="constant", warmup_epochs=0, weight_decay=0.0, epochs=1,
        lr=1.0, clip_grad=0.01, batch_size=24,
    )  # fmt: skip
    start = Learner(config, TargetStore.open(config.data.targets), "multi-label").student.state_dict()
    train_one(config, tmp_path / "run")
    moved = sum(float((value - start[name]).square().sum()) for name, value in weights(tmp_path / "run").items())
    (line,) = train_lines(tmp_path / "run")
    assert line["gradient_norm"] > 0.01
    assert math.sqrt(moved) == pytest.approx(1.9 * 0.01, rel=0.01)  # timm's sgd has Nesterov's momentum of 0.9


def test_an_optimizer_that_is_none_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer must be one of timm's.*'adamx'"):
        train_one(make_config(opt="adamx"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_layer_has_its_own_rate_where_asked(make_config: MakeConfig, tmp_path: Path) -> None:
    """The first step of Lion is the rate itself, up to its sign: what moved shows the rate of each parameter."""
    config = make_config(
        opt="lion", layer_decay=0.5, schedule="constant", warmup_epochs=0, weight_decay=0.0, epochs=1,
        lr=1e-3, batch_size=24, objective="lfi+embedding", weight={"lfi": 0.05, "embedding": 0.3},
    )  # fmt: skip
    start = Learner(config, TargetStore.open(config.data.targets), "multi-label").student.state_dict()
    train_one(config, tmp_path / "run")
    end = weights(tmp_path / "run")
    rates = {
        "backbone.patch_embed.proj.weight": 1 / 32,  # two blocks and the rest lie between it and the last
        "backbone.blocks.0.mlp.fc1.weight": 1 / 16,
        "backbone.blocks.2.mlp.fc1.weight": 1 / 4,
        "head.weight": 1,
        "queries.seed.weight": 1,
    }
    largest = {name: float((end[name] - start[name]).abs().max()) for name in rates}
    unit = largest["head.weight"]
    assert unit == pytest.approx(1e-3, rel=1e-3)
    (line,) = train_lines(tmp_path / "run")
    assert line["learning_rate"] == pytest.approx(1e-3)
    ratios = {name: value / unit for name, value in largest.items()}
    assert ratios["queries.seed.weight"] == pytest.approx(1, rel=1e-3)
    first, second, fourth = (ratios[name] for name in list(rates)[:3])
    assert second == pytest.approx(2 * first, rel=0.01)
    assert fourth == pytest.approx(4 * second, rel=0.01)
    assert fourth < 1


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_queries_have_a_rate_of_their_own(make_config: MakeConfig, layer_decay: float | None) -> None:
    config = make_config(head="queries", objective="lfi", query_lr=0.25, layer_decay=layer_decay)
    learner = Learner(config, TargetStore.open(config.data.targets), "multi-label")
    groups = _make_optimizer(config, learner).param_groups
    scales = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(learner.named_parameters())
    assert scales.keys() == {id(p) for p in named.values()}
    assert {scales[id(p)] for name, p in named.items() if "queries" in name} == {0.25}
    assert {scales[id(p)] for name, p in named.items() if "blocks.2" in name and "queries" not in name} == {
        1.0 if layer_decay is None else 0.5
    }
    assert decays[id(named["student.queries.blocks.0.w_k"])] == 0.05
    assert decays[id(named["student.queries.readout.bias"])] == 0


def test_a_share_of_the_gradient_is_logged_and_in_force_from_the_next_step_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Twice the share is twice the weight; without a task the first term weighs 1."""
    found = {}
    for share in ("50%", "100%"):
        config = make_config(objective="lfi", weight={"lfi": share}, epochs=1, learning_rate=1e-9)
        train_one(config, tmp_path / share)
        found[share] = [line["lfi_weight"] for line in train_lines(tmp_path / share)]
    assert [weights[0] for weights in found.values()] == [0, 0]
    assert all(weight > 0 for weight in found["50%"][1:])
    assert found["100%"] == pytest.approx([2 * weight for weight in found["50%"]], rel=1e-3)
    train_one(make_config(objective="lfi+embedding", task="none", epochs=1), tmp_path / "none")
    lines = train_lines(tmp_path / "none")
    assert [line["lfi_weight"] for line in lines] == [1, 1, 1]
    assert lines[0]["embedding_weight"] == 0 < lines[1]["embedding_weight"]


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_biases_norms_and_positions_do_not_decay(make_config: MakeConfig, layer_decay: float | None) -> None:
    config = make_config(layer_decay=layer_decay, weight_decay=0.1)
    learner = Learner(config, TargetStore.open(config.data.targets), "multi-label")
    groups = _make_optimizer(config, learner).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in learner.named_parameters()}
    assert found["student.backbone.pos_embed"] == 0
    assert found["student.backbone.blocks.0.attn.qkv.weight"] == 0.1
    assert {found[name] for name, p in learner.named_parameters() if p.ndim <= 1} == {0}
    assert found["student.queries.seed.weight"] == 0.1
