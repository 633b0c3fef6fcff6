"""Tiny real things that many tests share: rendered scenes, a random CoCa that reads them, caches of its maps."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.data.scenes import write_scenes
from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.registry import state_sha256
from lfi_pipeline.teachers.scenes_coca.recipe import learn_merges, write_merges

TRAIN, VAL = 24, 16
CONTEXT = 32
MERGES = 60  # few, so that most words are several tokens


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, but for the one that every `pycocotools.mask.decode` raises under numpy 2.

    One thread here and in every process that a test starts: sums round by the number of threads; tests compare bytes.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LFI_CACHE_DIR"] = tempfile.mkdtemp(prefix="lfi-tests-")  # for processes that tests start as well
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    )


SLOWEST = (
    "test_dispatch_op", "test_triton_report", "test_extract_processes", "test_surroundings_processes", "test_kinds",
    "test_plan_reproduce", "test_loop_resume", "test_demo", "test_package",
)  # fmt: skip
"""Files of few tests that take longest. Begun last, one of them would be waited for by all other processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files; processes take them in this order (`--no-loadscope-reorder`)."""
    items.sort(key=lambda item: item.path.stem not in SLOWEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws without a seed of its own is the same in every run and order; fixtures of its are made after."""
    del item
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train and 16 val scenes of 64 pixels (domain `photo` in val only); read only."""
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(root, ScenesConfig(train=TRAIN, val=VAL, seed=3), workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_teacher(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocaTeacher:
    """A CoCa with random weights: 64 pixels, patches of 8, two decoder layers, 32 dimensions."""
    captions = json.loads((scenes_root / "annotations/captions_train.json").read_text(encoding="utf-8"))
    bpe = tmp_path_factory.mktemp("vocabulary") / "bpe.txt.gz"
    write_merges(learn_merges((each["caption"] for each in captions["annotations"]), MERGES), bpe)
    tokenizer = open_clip.SimpleTokenizer(str(bpe), context_length=CONTEXT)
    text = {"context_length": CONTEXT, "vocab_size": tokenizer.vocab_size, "width": 32, "heads": 4, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CoCa(
            embed_dim=32,
            vision_cfg={
                "image_size": 64,
                "patch_size": 8,
                "width": 32,
                "head_width": 8,
                "layers": 2,
                "attentional_pool": True,
                "attn_pooler_queries": 6,
                "attn_pooler_heads": 4,
                "output_tokens": True,
            },
            text_cfg={**text, "embed_cls": True, "output_tokens": True},
            multimodal_cfg={**text, "attn_pooler_heads": 4},
        )
        # open_clip allocates the decoder's output projection and leaves it to the checkpoint
        torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)
    identity = TeacherSpec(name="tiny-coca", tag="test", weights_sha256=state_sha256(model.state_dict()), family="coca")
    return CocaTeacher(model, tokenizer, identity)


def _extracted(root: Path, teacher: CocaTeacher, split: str, out: Path) -> Path:
    config = extraction.ExtractConfig(
        dataset="scenes", data_root=root, split=split, words=6, samples_per_shard=8, batch_size=8, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: teacher)
        extraction.extract(config, out)
    return out


@pytest.fixture(scope="session")
def tiny_targets(scenes_root: Path, tiny_teacher: CocaTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the 24 train scenes, views full and hflip, three shards; read only."""
    return _extracted(scenes_root, tiny_teacher, "train", tmp_path_factory.mktemp("targets") / "train")


@pytest.fixture(scope="session")
def tiny_val_targets(scenes_root: Path, tiny_teacher: CocaTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the 16 val scenes, views full and hflip, two shards; read only."""
    return _extracted(scenes_root, tiny_teacher, "val", tmp_path_factory.mktemp("targets") / "val")
