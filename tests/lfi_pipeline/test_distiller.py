"""A training loop of one's own: the loss, any backbone, exact resume, and a student that is loaded as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, OutputExistsError, UnknownNameError
from lfi_pipeline.distiller import Distiller
from lfi_pipeline.exporting.model import load
from lfi_pipeline.training.data import Batch
from lfi_pipeline.training.dataset import TargetDataset

SMALL = {"query_width": 16, "query_heads": 2}


@pytest.fixture
def targets(tiny_targets: Path) -> TargetDataset:
    return TargetDataset(tiny_targets, image_size=64, seed=1)


@pytest.fixture
def batches(targets: TargetDataset) -> list[Batch]:
    return list(targets.loader(8))


class TwoStages(nn.Module):
    """Somebody's own network."""

    tap_channels, tap_reductions, num_features = (12, 24), (8, 16), 24

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 8, 8), nn.Conv2d(12, 24, 2, 2)
        self.image_size = 64

    def forward_taps(self, images: Tensor, /) -> list[Tensor]:
        shallow = self.first(images).relu()
        return [shallow, self.second(shallow).relu()]


def make(targets: TargetDataset, *, head: str = "queries") -> Distiller:
    torch.manual_seed(0)
    return Distiller(TwoStages(), targets, head=head, **SMALL)


def step(distiller: Distiller, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    loss = distiller(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("head", ["queries", "linear"])
def test_a_loop_of_ones_own_learns(targets: TargetDataset, batches: list[Batch], head: str) -> None:
    distiller = make(targets, head=head)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-3)
    first = step(distiller, optimizer, batches[0])
    assert set(distiller.losses) == {"task", "lfi", "total"}
    assert not distiller.losses["lfi"].requires_grad
    last = [step(distiller, optimizer, batches[0]) for _ in range(25)][-1]
    assert last < 0.8 * first


def test_a_timm_model_by_name_and_as_it_is(targets: TargetDataset, batches: list[Batch]) -> None:
    by_name = Distiller("resnet10t", targets, **SMALL)
    module = timm.create_model("resnet10t")
    given = Distiller(module, targets, image_size=64, **SMALL)
    assert type(by_name.backbone) is type(module)
    assert given.backbone is module
    assert torch.isfinite(by_name(batches[0]))
    assert torch.isfinite(given(batches[0]))
    assert by_name.student.size == (64, 64)


def test_scoring_takes_no_step(targets: TargetDataset, batches: list[Batch]) -> None:
    distiller = make(targets)
    before = distiller.get_extra_state()
    distiller.eval()
    distiller(batches[0])
    with torch.no_grad():
        distiller.train()(batches[0])
    torch.testing.assert_close(distiller.get_extra_state(), before, rtol=0, atol=0, equal_nan=True)


def test_a_loop_goes_on_exactly(targets: TargetDataset, batches: list[Batch]) -> None:
    whole, cut = make(targets), make(targets)
    for distiller in (whole, cut):
        torch.manual_seed(1)
        for block in distiller.student.queries.blocks:  # as if trained: else the task has no gradient to compare with
            torch.nn.init.normal_(block.w_o, std=0.1)
    assert torch.equal(whole(batches[0]), cut(batches[0]))
    for _ in range(21):  # over a measurement of the ratios
        whole(batches[1])
        cut(batches[1])
    resumed = make(targets)
    resumed.load_state_dict(cut.state_dict())
    for batch in batches:
        assert torch.equal(whole(batch), resumed(batch))
    assert torch.equal(whole.get_extra_state(), resumed.get_extra_state())
    assert whole.get_extra_state().isfinite().all()
    state, terms = whole.get_extra_state(), len(whole.learner.balance.terms)
    resumed.set_extra_state(state[: 1 + terms])  # of an earlier release, which had no first ratios
    assert torch.equal(resumed.get_extra_state(), torch.cat([state[: 1 + terms], state[1 : 1 + terms]]))


def test_the_saved_student_is_the_student(targets: TargetDataset, batches: list[Batch], tmp_path: Path) -> None:
    distiller = make(targets)
    distiller(batches[0])
    assert distiller.save(tmp_path / "student") == tmp_path / "student"
    model = load(tmp_path / "student", backbone=TwoStages())
    images = next(iter(batches[0].images.values()))
    with torch.no_grad():
        expected = distiller.eval().student(images).logits
        answer = model(images)
    assert expected is not None
    torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-5)
    assert answer.maps is not None
    torch.testing.assert_close(answer.maps.sum((-2, -1)), torch.ones(answer.maps.shape[:2]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    with pytest.raises(OutputExistsError, match="absent or an empty directory"):
        distiller.save(tmp_path / "student")


def test_what_does_not_fit_is_refused(targets: TargetDataset, tiny_targets: Path) -> None:
    with pytest.raises(UnknownNameError, match="resnet10"):
        Distiller("resnet10x", targets)
    with pytest.raises(ConfigError, match="student's size"):
        Distiller(TwoStages(), TargetDataset(tiny_targets, image_size=96))
    with pytest.raises(ConfigError, match="TapModel"):
        Distiller(nn.Linear(2, 2), targets)
    with pytest.raises(UnknownNameError):
        Distiller("resnet10t", targets, objective="everything")
