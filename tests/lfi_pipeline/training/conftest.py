"""Settings of a run that takes a second, on the caches of the root conftest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.options import build
from lfi_pipeline.data.config import Augmentation
from lfi_pipeline.students import StudentConfig
from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.training.config import TrainConfig

STUDENT = StudentConfig(
    name="vit_tiny_patch16_224",
    image_size=64,
    patch_size=16,
    kwargs={"depth": 3, "embed_dim": 32, "num_heads": 2},
)


@pytest.fixture
def make_config(tiny_targets: Path) -> Callable[..., TrainConfig]:
    """Return settings of two epochs of three steps; keywords replace settings by their flat names ,
    `student_config` and `augmentation` whole groups."""

    def make(
        *, student_config: StudentConfig = STUDENT, augmentation: Augmentation | None = None, **changes: Any
    ) -> TrainConfig:
        flat: dict[str, Any] = {
            "targets": tiny_targets,
            "query_width": 16,
            "query_heads": 2,
            "epochs": 2,
            "batch_size": 8,
        }
        flat |= changes
        config = build(
            TrainConfig, {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}
        )
        data = config.data if augmentation is None else replace(config.data, augmentation=augmentation)
        return replace(config, student=student_config, data=data)

    return make


@pytest.fixture(scope="session")
def full_only_targets(scenes_root: Path, tiny_teacher: CocaTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train cache without its `hflip` view; read only."""
    out = tmp_path_factory.mktemp("full-only") / "train"
    config = extraction.ExtractConfig(dataset="scenes", data_root=scenes_root, words=6, views=("full",), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "load_teacher", lambda name, **_: tiny_teacher)
        extraction.extract(config, out)
    return out
