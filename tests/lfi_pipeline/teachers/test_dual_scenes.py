"""Two small dual encoders that know the scenes, made in seconds of the embedded teacher, and where their maps point.

Both keep the embedded teacher's trunk and text tower. The one that averages its patches gets a projection alone, by
ridge regression to the text embeddings. The one with a class token learns its last block and projection, by the
contrastive loss of CLIP (Radford et al., ICML 2021, section 2.3). LFI_LONG_TESTS=1 takes more scenes and steps, and
asks for the numbers in the README of this package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import lfi_pipeline as lfi
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers import CocaTeacher, load_teacher
from lfi_pipeline.teachers.choice import KindScore, choose_kind
from lfi_pipeline.teachers.dual import DualTeacher
from lfi_pipeline.teachers.text import TextSource

LONG = os.environ.get("LFI_LONG_TESTS") == "1"
SCENES, FRESH, STEPS = (1600, 300, 400) if LONG else (500, 80, 150)
BATCH, RIDGE = 128, 0.02
SOURCE = TextSource("captions", "first")


class Towers(nn.Module):
    """A vision tower beside the embedded teacher's text tower."""

    def __init__(self, visual: VisionTransformer, coca: Any) -> None:
        super().__init__()
        self.visual, self.coca, self.logit_scale = visual, coca, coca.logit_scale

    def encode_image(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.visual(images)
        return embeddings

    def encode_text(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.coca.encode_text(ids, normalize=False)
        return embeddings


@pytest.fixture(scope="module")
def coca() -> CocaTeacher:
    teacher = load_teacher("scenes-coca")
    assert isinstance(teacher, CocaTeacher)
    return teacher


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lfi.make_scenes(tmp_path_factory.mktemp("dual") / "scenes", train=SCENES, val=FRESH, size=64, seed=77)


@pytest.fixture(scope="module")
def pairs(coca: CocaTeacher, root: Path) -> tuple[Tensor, Tensor]:
    """Images [S, 3, H, W] and text embeddings [S, E] to learn from."""
    samples = read_dataset("scenes", root, "train").samples
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (coca.mean, coca.std))
    views = [view_image(read_image(root, each.path)[0], WHOLE, coca.image_size, coca.interpolation) for each in samples]
    images = (torch.from_numpy(np.stack(views)).float() - mean) / std
    return images, coca.embed_texts([each.captions[0] for each in samples])


def trunk(coca: CocaTeacher, pool: str) -> VisionTransformer:
    tower = VisionTransformer(64, 8, width=128, layers=6, heads=4, mlp_ratio=4.0, output_dim=128, pool_type=pool)
    own = {name: value.shape for name, value in tower.state_dict().items()}
    weights = coca.model.visual.state_dict()
    kept = {name: value.clone() for name, value in weights.items() if own.get(name) == value.shape}
    assert kept.keys() == own.keys()
    tower.load_state_dict(kept)
    return tower.eval().requires_grad_(False)


def teacher_of(coca: CocaTeacher, tower: VisionTransformer) -> DualTeacher:
    identity = TeacherSpec(name="scenes-dual", tag=tower.pool_type, weights_sha256="0" * 64, family="dual")
    return DualTeacher(Towers(tower, coca.model), coca.tokenizer, identity)


@pytest.fixture(scope="module")
def average(coca: CocaTeacher, pairs: tuple[Tensor, Tensor]) -> DualTeacher:
    tower, (images, texts) = trunk(coca, "avg"), pairs
    tower.proj.data = torch.eye(128)
    with torch.no_grad():
        features = torch.cat([tower(part) for part in images.split(64)])
    centred = features - features.mean(0)
    penalty = RIDGE * centred.square().sum() / 128 * torch.eye(128)
    tower.ln_post.bias.data -= features.mean(0)
    tower.proj.data = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (texts - texts.mean(0)))
    return teacher_of(coca, tower)


@pytest.fixture(scope="module")
def class_token(coca: CocaTeacher, pairs: tuple[Tensor, Tensor]) -> DualTeacher:
    tower, (images, texts) = trunk(coca, "tok"), pairs
    *others, last = tower.transformer.resblocks
    with torch.no_grad():
        entering = torch.cat([nn.Sequential(*others)(tower._embeds(part)) for part in images.split(64)])
    learnt = [tower.proj, *tower.ln_post.parameters(), *last.parameters()]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator, answers = torch.Generator().manual_seed(0), torch.arange(BATCH)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        x = last.ln_1(entering[rows])
        state = entering[rows][:, :1] + last.attn(x[:, :1], x, x, need_weights=False)[0]  # of the class token alone
        state = (state + last.mlp(last.ln_2(state)))[:, 0]
        seen = F.normalize(tower.ln_post(state) @ tower.proj, dim=-1)
        logits = coca.logit_scale * seen @ texts[rows].T
        loss = (F.cross_entropy(logits, answers) + F.cross_entropy(logits.T, answers)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return teacher_of(coca, tower)


def scores(teacher: DualTeacher, fresh: Dataset, *kinds: str) -> dict[str, KindScore]:
    return {each.kind: each for each in choose_kind(teacher, fresh, SOURCE, kinds=kinds, images=FRESH).scores}


@pytest.fixture(scope="module")
def fresh(root: Path) -> Dataset:
    return read_dataset("scenes", root, "val")


def pointing(score: KindScore) -> float:
    assert score.pointing is not None
    return score.pointing


def test_averaged_patches_point_at_the_word(average: DualTeacher, fresh: Dataset) -> None:
    by_kind = scores(average, fresh)
    assert pointing(by_kind["contrastive"]) > (0.75 if LONG else 0.6)
    assert pointing(by_kind["contrastive"]) > pointing(by_kind["gradcam"])


def test_a_class_token_points_at_the_word(class_token: DualTeacher, fresh: Dataset) -> None:
    by_kind = scores(class_token, fresh)
    assert pointing(by_kind["contrastive"]) > (0.75 if LONG else 0.55)
    assert pointing(by_kind["contrastive"]) > pointing(by_kind["value"]) > pointing(by_kind["similarity"])


def test_a_word_that_is_not_centred_points_at_less(average: DualTeacher, fresh: Dataset) -> None:
    """Cosines of patches and bare words point at the background (CLIP Surgery, arXiv 2304.05653)."""
    centred = scores(average, fresh, "similarity")["similarity"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lfi_pipeline.teachers.choice.data_centre", lambda *_: ())
        bare = scores(average, fresh, "similarity")["similarity"]
    assert (
        pointing(centred) > pointing(bare) + 0.15
    )  # measured .746 and .502 of the trunk v2, which points better bare than v1
