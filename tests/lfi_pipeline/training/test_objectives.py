"""Losses against a second computation in float64, one image, word, tap and head at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lfi_pipeline.data.replay import Augmentation
from lfi_pipeline.students import Features, QueryConfig, Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training import TrainConfig
from lfi_pipeline.training.data import Batch, TargetImages
from lfi_pipeline.training.objectives import embedding_loss, interaction_loss, task_loss

MakeConfig = Callable[..., TrainConfig]
CELLS, WORDS, WIDTH, HEADS, DIM = 4, 3, 8, 2, 6


def decoded(codes: np.ndarray, scale: float) -> np.ndarray:
    """A stored row as a distribution, from the codec's formula."""
    return scale * (codes.astype(np.float64) / 255) ** 2


def cut(density: np.ndarray, window: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
    """Mass of a map in each cell of a grid over the window, by overlaps of intervals."""
    gh, gw = density.shape
    left, top, right, bottom = window
    result = np.zeros((rows, columns))
    for r in range(rows):
        y0, y1 = top + (bottom - top) * r / rows, top + (bottom - top) * (r + 1) / rows
        for c in range(columns):
            x0, x1 = left + (right - left) * c / columns, left + (right - left) * (c + 1) / columns
            for i in range(gh):
                for j in range(gw):
                    down = max(0.0, min(y1, (i + 1) / gh) - max(y0, i / gh)) * gh
                    across = max(0.0, min(x1, (j + 1) / gw) - max(x0, j / gw)) * gw
                    result[r, c] += density[i, j] * down * across
    return result


@pytest.fixture
def student(make_config: MakeConfig) -> Student:
    torch.manual_seed(0)
    config = make_config()
    made = Student(
        config.student,
        classes=5,
        embedding_dim=DIM,
        queries=QueryConfig(width=WIDTH, heads=HEADS),
        image_embedding=True,
    ).eval()
    assert made.queries is not None
    for block in made.queries.blocks:
        torch.nn.init.normal_(block.w_o, std=0.5)
        torch.nn.init.normal_(block.w_q, std=2)  # maps far from uniform
    return made


def make_batch(layers: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(1, 256, (2, layers, WORDS, CELLS, CELLS), generator=generator, dtype=torch.uint8)
    codes[:, 1:] //= 16  # the deeper layer is peaked, so that the layers cannot be mistaken for each other
    codes[:, 1:] += 1
    for word in range(WORDS):
        codes[:, 1:, :, word, 3 - word] = 255
    scale = 1 / (codes.double() / 255).square().sum((-2, -1))
    words = torch.tensor([[2, 0, -1], [1, 3, 4]])
    scale[0, :, 2] = 0
    codes[0, :, 2] = 0
    return Batch(
        images=torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
        labels=torch.zeros(2, 5),
        windows=torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.3, 0.75, 0.9]]),
        maps=codes,
        scale=scale.half(),
        words=words,
    )


def by_loops(
    student: Student, features: Features, batch: Batch, vocabulary: Tensor, layers: tuple[int, ...], uniform: bool
) -> float:
    """The interaction loss of DESIGN section 5."""
    assert batch.maps is not None
    assert batch.scale is not None
    assert batch.words is not None
    assert student.queries is not None
    per_tap = []
    with torch.no_grad():
        state = student.queries.seed(vocabulary[batch.words.clamp_min(0)])
        for tap, (block, x, grid) in enumerate(zip(student.queries.blocks, features.taps, features.grids, strict=True)):
            attention = block.attention(state, x).double().numpy()  # [B, H, M, N]
            state = block(state, x)[0]
            total = weights = 0.0
            for b in range(2):
                for m in range(WORDS):
                    if batch.words[b, m] < 0:
                        continue
                    row = decoded(batch.maps[b, layers[tap], m].numpy(), float(batch.scale[b, layers[tap], m]))
                    if uniform:
                        row = np.full((CELLS, CELLS), 1 / CELLS**2)
                    mass = cut(row, tuple(batch.windows[b].tolist()), *grid).ravel()
                    weight = mass.sum()
                    target = mass / weight
                    kl = [float((target * np.log(target / attention[b, h, m])).sum()) for h in range(HEADS)]
                    total += weight * sum(kl) / HEADS
                    weights += weight
            per_tap.append(total / weights)
    return sum(per_tap) / len(per_tap)


@pytest.mark.parametrize("uniform", [False, True])
def test_interaction_loss_equals_loops_in_double_precision(student: Student, uniform: bool) -> None:
    batch = make_batch()
    vocabulary = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    layers = (0, 1, 1)
    with torch.no_grad():
        features = student(batch.images)
        loss = interaction_loss(
            student, features, batch, vocabulary=vocabulary, layers=layers, codec="uint8_sqrt", uniform=uniform
        )
    expected = by_loops(student, features, batch, vocabulary, layers, uniform)
    assert expected > 0.01
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_each_tap_reads_its_own_layer(student: Student) -> None:
    batch, vocabulary = make_batch(), torch.eye(5, DIM)
    batch = replace(batch, windows=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))  # every word keeps its mass: weights agree
    with torch.no_grad():
        features = student(batch.images)
        losses = {
            layers: interaction_loss(
                student, features, batch, vocabulary=vocabulary, layers=layers, codec="uint8_sqrt"
            ).item()
            for layers in ((0, 0, 0), (0, 0, 1), (1, 0, 0))
        }
    shallow, last, first = losses.values()
    assert abs(last - shallow) > 0.05
    assert abs(first - shallow) > 0.05
    assert abs(first - last) > 0.01


def weights_given(student: Student, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """The targets and weights that the queries are handed."""
    seen: dict[str, list[Tensor]] = {}

    def spy(words: Tensor, features: list[Tensor], targets: list[Tensor], weights: list[Tensor]) -> Tensor:
        seen.update(targets=targets, weights=weights)
        return torch.zeros(())

    monkeypatch.setattr(student.queries, "forward", spy)
    interaction_loss(
        student,
        student(batch.images),
        batch,
        vocabulary=torch.zeros(5, DIM),
        layers=(0, 0, 0),
        codec="uint8_sqrt",
    )
    return seen["targets"], seen["weights"]


def test_weights_are_the_mass_that_the_crop_keeps(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    codes = torch.zeros(2, 1, WORDS, CELLS, CELLS, dtype=torch.uint8)
    codes[:, :, :, 0, 0] = codes[:, :, :, 0, 3] = 255  # half the mass in each upper corner
    windows = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])  # the left half; the lower right quarter
    scale = torch.full((2, 1, WORDS), 0.5, dtype=torch.float16)
    batch = replace(batch, maps=codes, scale=scale, windows=windows, words=torch.tensor([[0, 1, -1], [0, 1, 2]]))
    targets, weights = weights_given(student, batch, monkeypatch)
    for target, weight in zip(targets, weights, strict=True):
        assert weight[0].tolist() == [0.5, 0.5, 0]
        assert weight[1].tolist() == [0, 0, 0]
        torch.testing.assert_close(target[0].sum(-1), torch.ones(WORDS))
        assert target[1].abs().max() == 0


def test_a_row_without_a_map_has_no_weight(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    assert batch.scale is not None
    assert batch.maps is not None
    scale, codes = batch.scale.clone(), batch.maps.clone()
    scale[1, :, 0], codes[1, :, 0] = 0, 0
    _, weights = weights_given(student, replace(batch, scale=scale, maps=codes), monkeypatch)
    assert all(weight[1, 0] == 0 and weight[1, 1] > 0.1 for weight in weights)


def test_real_crops_keep_between_nothing_and_everything(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(augmentation=Augmentation(least_area=0.2))
    store = TargetStore.open(config.targets)
    torch.manual_seed(0)
    real = Student(config.student, classes=64, embedding_dim=store.spec.embedding_dim, queries=config.queries)
    batch = TargetImages(store, config, (64, 64)).__getitems__([(0, i) for i in range(8)])
    seen: dict[str, list[Tensor]] = {}
    monkeypatch.setattr(
        real.queries, "forward", lambda words, taps, targets, weights: seen.update(w=weights) or torch.zeros(())
    )
    interaction_loss(
        real,
        real(batch.images),
        batch,
        vocabulary=torch.from_numpy(store.vocabulary.embeddings).float(),
        layers=(0, 0, 0),
        codec=store.spec.codec.name,
    )
    assert batch.words is not None
    for weight in seen["w"]:
        assert weight.min() >= 0
        assert weight.max() <= 1 + 1e-3
        assert not weight[batch.words < 0].any()
        assert (weight[batch.words >= 0] < 0.99).any()


def test_embedding_loss_is_zero_when_aligned_and_two_when_opposed(student: Student) -> None:
    batch = make_batch()
    features = student(batch.images)
    assert student.to_embedding is not None
    own = student.to_embedding(features.pooled).detach()
    assert embedding_loss(student, features, replace(batch, image_embedding=3 * own)).item() == pytest.approx(
        0, abs=1e-6
    )
    assert embedding_loss(student, features, replace(batch, image_embedding=-own)).item() == pytest.approx(2, abs=1e-6)


def test_task_loss_is_the_mean_over_images_and_classes() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]])  # probabilities 1/2, 3/4, 1/4, 1/2
    batch = replace(make_batch(), labels=torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    expected = (math.log(2) + 2 * math.log(4 / 3) + math.log(2)) / 4
    assert task_loss(Features(logits, logits, [], []), batch).item() == pytest.approx(expected)
