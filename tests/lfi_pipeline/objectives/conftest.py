"""A learner on the tiny cache, and a piece of a batch for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.objectives import StepContext
from lfi_pipeline.students import Supervision
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.data import Batch, TargetImages
from lfi_pipeline.training.learner import Learner
from lfi_pipeline.training.maps import MapResampler
from tests.lfi_pipeline.training.conftest import make_config

__all__ = ["make_config"]  # the fixture

MakeConfig = Callable[..., TrainConfig]
Told = tuple[StepContext, Supervision | None]


class Bench:
    """One learner, in evaluation mode, its queries far from uniform, and batches of its cache."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.store = config, TargetStore.open(config.data.targets)
        self.learner = Learner(config, self.store, "multi-label").eval()
        torch.manual_seed(3)
        for name, weight in self.learner.named_parameters():
            if "queries.blocks" in name and weight.ndim > 1:
                nn.init.normal_(weight, std=0.7)
        self.images = TargetImages(self.store, config.data, [self.learner.student.size], self.learner.reads)

    def batch(self, positions: range, epoch: int = 0) -> Batch:
        return self.images.__getitems__([(epoch, position) for position in positions])

    def told(self, batch: Batch, whole: int | None = None, mass: Tensor | None = None) -> Told:
        """Context and supervision of a batch that is all, or of a piece of one of `whole` images and `mass`."""
        torch.manual_seed(7)
        cut = MapResampler(batch, self.store.spec.codec.name) if batch.maps is not None else None
        supervision, present = self.learner.supervise(cut)
        if mass is None and supervision is not None and supervision.weights is not None:
            mass = torch.stack([weights.sum() for weights in supervision.weights])
        share = len(batch) / (whole or len(batch))
        return StepContext(batch=batch, share=share, mass=mass, present=present, cut=cut), supervision

    def losses(self, told: Told) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.learner(*told, {})
        return found


@pytest.fixture
def bench(make_config: MakeConfig) -> Callable[..., Bench]:
    """Return a `Bench` of the settings given, of images cropped down to a fifth and flipped."""

    def make(**changes: Any) -> Bench:
        return Bench(make_config(**{"scale": [0.2, 1.0], "hflip": 0.5, **changes}))

    return make
