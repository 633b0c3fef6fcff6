"""Class embeddings are those of CLIP's zero-shot practice, in the space of the cached image embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import PlannedSample, ShardPayload, TargetStore, TargetWriter, teacher_logits
from lfi_pipeline.targets.encode import ViewArrays
from lfi_pipeline.targets.verify import verify
from lfi_pipeline.teachers import CocaTeacher, extract, recompute
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers import teacher as module
from lfi_pipeline.teachers.config import ExtractConfig, RecomputeConfig
from lfi_pipeline.teachers.dual import DualTeacher
from lfi_pipeline.teachers.recompute import Recomputation
from lfi_pipeline.teachers.teacher import class_embeddings

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "{}")


def _expected(teacher: Any, name: str, templates: Sequence[str]) -> Tensor:
    """From open_clip's own text tower, one text at a time."""
    with torch.no_grad():
        texts = [template.format(name) for template in templates]
        each = torch.stack([teacher.model.encode_text(teacher.tokenizer([text]), normalize=True)[0] for text in texts])
        mean: Tensor = each.sum(0) / len(texts)
        return mean / mean.norm()


def test_a_class_is_the_unit_mean_of_the_unit_embeddings(
    tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 7)  # two classes at a time
    names = ("hot_dog", "cat", "apple", "owl", "tree")
    found = class_embeddings(tiny_teacher, names, TEMPLATES)
    assert found.names == names
    assert found.templates == TEMPLATES
    assert found.embeddings.dtype == np.float16
    assert found.logit_scale == pytest.approx(float(tiny_teacher.model.logit_scale.exp()))
    for name, row in zip(("hot dog", *names[1:]), found.embeddings, strict=True):
        np.testing.assert_allclose(row, _expected(tiny_teacher, name, TEMPLATES).numpy(), atol=1e-3)


@pytest.mark.parametrize("broken", ["cancel", "nan"])
def test_embeddings_without_a_direction_are_refused(
    tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def embed(texts: Sequence[str]) -> Tensor:
        rows = torch.eye(len(texts), 32)
        rows[2] = -rows[3] if broken == "cancel" else torch.nan
        return rows

    monkeypatch.setattr(tiny_teacher, "embed_texts", embed)
    with pytest.raises(TeacherError, match="those of 'dog' in 2"):
        class_embeddings(tiny_teacher, ("cat", "dog"), ("a {}", "{}"))


def test_logits_of_a_cache_are_those_of_the_model(
    tiny_targets: Path, tiny_teacher: CocaTeacher, scenes_root: Path
) -> None:
    """Of a CoCa: what its own towers and logit scale give, read without it."""
    store, dataset = TargetStore.open(tiny_targets), read_dataset("scenes", scenes_root, "train")
    zero_shot, model = store.zero_shot, tiny_teacher.model
    assert zero_shot is not None
    assert zero_shot.names == dataset.classes
    assert zero_shot.templates == dataset.prompts
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (tiny_teacher.mean, tiny_teacher.std))
    files = [read_image(scenes_root, sample.path)[0] for sample in dataset.samples]
    pixels = torch.stack([torch.from_numpy(view_image(image, WHOLE, (64, 64))) for image in files])
    texts = [dataset.prompts[0].format(name.replace("_", " ")) for name in dataset.classes]
    with torch.no_grad():
        image = model.encode_image((pixels.float() - mean) / std, normalize=True).reshape(len(files), -1)
        text = model.encode_text(tiny_teacher.tokenizer(texts), normalize=True)
        expected = model.logit_scale.exp() * image @ text.T
    stored = torch.from_numpy(store.read_many(range(len(store))).image_embedding)
    torch.testing.assert_close(teacher_logits(stored, zero_shot), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_dual_encoders_share_the_space_of_image_and_class(
    real_config: Callable[..., DualTeacher], sentencepiece_folder: Path, name: str
) -> None:
    """The logits of open_clip's own forward pass; SigLIP's bias is the same for every class."""
    changes: dict[str, Any] = {"text_cfg.layers": 1}
    if "SigLIP" in name:
        changes["text_cfg.hf_tokenizer_name"] = str(sentencepiece_folder)
    teacher = real_config(name, changes)
    classes, template = ("dog", "umbrella", "owl"), "a photo of a {}."
    zero_shot = class_embeddings(teacher, classes, (template,))
    images = torch.randn(2, 3, *teacher.image_size, generator=torch.Generator().manual_seed(0))
    text = teacher.encode_text("a dog")
    layers = teacher.layers("similarity", 1)
    made = teacher.interaction_maps(images, [text] * 2, [text.words] * 2, kind="similarity", layers=layers)
    with torch.no_grad():
        expected, _ = teacher.model.get_logits(images, teacher.tokenizer([template.format(each) for each in classes]))
    bias = getattr(teacher.model, "logit_bias", None)
    expected = expected - (0 if bias is None else bias)
    torch.testing.assert_close(teacher_logits(made.image_embedding, zero_shot), expected, atol=0.02, rtol=0)


# --- asked again by lfi verify --recompute ------------------------------------------------------------------


@pytest.fixture
def cache(scenes_root: Path, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the val scenes, with the tiny teacher, who is asked again too."""
    for where in (job, recompute):
        monkeypatch.setattr(where, "load_teacher", lambda name, **options: tiny_teacher)
    config = ExtractConfig(dataset="scenes", data_root=scenes_root, split="val", views=("full",), device="cpu")
    extract.extract(config, tmp_path / "cache")
    return tmp_path / "cache"


def _rewritten(cache: Path, out: Path, **changes: Any) -> Path:
    """An empty-handed copy (every sample quarantined) with another classifier; every checksum is true."""
    store = TargetStore.open(cache)
    spec, index = store.spec, store.index
    assert store.zero_shot is not None
    plan = [
        PlannedSample(
            key=index.keys[i],
            path=index.paths[i],
            labels=tuple(index.labels[i]),
            domain=index.domains[i],
            caption=index.captions[i],
        )
        for i in range(len(store))
    ]
    zero_shot = dataclasses.replace(store.zero_shot, **changes)
    writer = TargetWriter.open(out, spec, plan, store.vocabulary, store.data_root, zero_shot=zero_shot)
    for shard in writer.pending_shards():
        n = len(writer.shard_range(shard))
        rows = (n, len(spec.layers), spec.words_per_sample)
        arrays = ViewArrays(
            maps=np.zeros((*rows, *spec.grid), dtype=np.float32),
            words=np.full((n, spec.words_per_sample), -1, dtype=np.int32),
            image_embedding=np.zeros((n, spec.embedding_dim), dtype=np.float32),
            kept=np.zeros(rows, dtype=np.float32),
        )
        quarantined = dict.fromkeys(range(n), "not asked for")
        crc32c = np.zeros(n, dtype=np.uint32)
        writer.commit(shard, ShardPayload(views={"full": arrays}, image_crc32c=crc32c, quarantined=quarantined))
    return out


def test_a_wrong_class_embedding_or_scale_is_found(cache: Path, tmp_path: Path) -> None:
    check = Recomputation(RecomputeConfig(share=1.0, device="cpu", seed=0))
    assert verify(cache, further=(check,)) == []
    zero_shot = TargetStore.open(cache).zero_shot
    assert zero_shot is not None
    embeddings = zero_shot.embeddings.copy()
    embeddings[3] = -embeddings[3]
    wrong = _rewritten(cache, tmp_path / "wrong", embeddings=embeddings)
    assert verify(wrong) == []  # every checksum holds
    (fault,) = verify(wrong, further=(check,))
    assert fault.file == "classes.npy"
    assert f"class {zero_shot.names[3]} " in fault.message
    cold = _rewritten(cache, tmp_path / "cold", logit_scale=1.0)
    (fault,) = verify(cold, further=(check,))
    assert fault.file == "classes.json"
    assert "logit scale is 1" in fault.message
