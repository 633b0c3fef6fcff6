"""BLIP's captioner as transformers saves it: its cross-attention as maps, against a second way to compute them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, LFIError, TeacherError, UnknownNameError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import load_teacher
from lfi_pipeline.teachers.blip import BlipTeacher
from lfi_pipeline.teachers.choice import choose_kind
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.contrastive import artefacts_by_block
from lfi_pipeline.teachers.extract import extract
from lfi_pipeline.teachers.text import TextSource
from tests.lfi_pipeline.teachers.conftest import CAPTIONS

transformers = pytest.importorskip("transformers")
SIDES = {"intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, roberta_folder: Path) -> Path:
    path = tmp_path_factory.mktemp("blip") / "tiny-blip"
    shutil.copytree(roberta_folder, path)
    text = {"hidden_size": 24, "vocab_size": 400, "max_position_embeddings": 64, "encoder_hidden_size": 36}
    ends = {"bos_token_id": 399, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    config = transformers.BlipConfig(
        text_config={**SIDES, **text, **ends},
        vision_config={**SIDES, "hidden_size": 36, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def teacher(folder: Path) -> BlipTeacher:
    loaded = load_teacher(f"local-dir:{folder}")
    assert isinstance(loaded, BlipTeacher)
    return loaded


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_its_blocks_may_be_compiled(teacher: BlipTeacher, images: torch.Tensor) -> None:
    text = teacher.encode_text(CAPTIONS[0])
    arguments = (images, [text, text], [text.words, text.words])
    options = {"kind": "gradcam", "layers": teacher.layers("gradcam", 2)}
    plain = teacher.interaction_maps(*arguments, **options)
    linear: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        linear.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    with teacher.compiled(2, 4, backend=backend):
        made = teacher.interaction_maps(*arguments, **options)
    assert sum(linear) > 0
    torch.testing.assert_close(made.maps, plain.maps, atol=1e-5, rtol=1e-4)


def test_it_is_what_transformers_loads(folder: Path, teacher: BlipTeacher, images: torch.Tensor) -> None:
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    ids = torch.tensor([[399, 5, 6, 7], [399, 9, 8, 2]])
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids).logits
        made = teacher._decode(ids, torch.ones_like(ids), teacher._look(images)[0]).logits
    torch.testing.assert_close(made, expected)
    assert (teacher.grid, teacher.identity.family, teacher.kinds) == ((4, 4), "blip", ("gradcam", "attention"))


@pytest.mark.parametrize(
    ("kind", "row"), [("gradcam", "emitting"), ("attention", "emitting"), ("attention", "reading")]
)
def test_maps_are_those_of_the_definition(teacher: BlipTeacher, images: torch.Tensor, kind: str, row: str) -> None:
    texts = [teacher.encode_text(caption) for caption in CAPTIONS[:2]]
    words = [[text.words[0], None, text.words[-1]] for text in texts]
    layers = teacher.layers(kind, [0, 2])
    settings = teacher.map_settings(kind, artefacts="keep")
    made = teacher.interaction_maps(images, texts, words, kind=kind, layers=layers, row=row, settings=settings)
    tokens = teacher._look(images)[0]
    for c, text in enumerate(texts):  # one text at a time, without padding, one word and layer at a time
        ids = torch.tensor([text.ids])
        assert ids[0, 0] == 399
        for slot, word in enumerate(words[c]):
            if word is None:
                assert not made.maps[c, :, slot].any()
                continue
            for number, layer in enumerate((0, 2)):
                with torch.enable_grad(), teacher._probed([layer]) as seen:
                    logits = teacher._decode(ids, torch.ones_like(ids), tokens[c : c + 1]).logits
                score = sum(logits[0, p - 1].log_softmax(-1)[ids[0, p]] for p in word.positions)
                mass = seen[layer].detach()
                if kind == "gradcam":
                    mass = mass * torch.autograd.grad(score, seen[layer])[0].relu()
                back = 0 if row == "reading" else 1
                total = sum(mass[0, :, p - back].mean(0) for p in word.positions)
                patches = total[1:] / total[1:].sum()
                torch.testing.assert_close(made.maps[c, number, slot].flatten(), patches, rtol=1e-3, atol=1e-5)
                kept = total[1:].sum() / total.sum()
                torch.testing.assert_close(made.kept[c, number, slot], kept, rtol=1e-3, atol=1e-5)


def test_images_and_words_have_embeddings_and_captions(teacher: BlipTeacher, images: torch.Tensor) -> None:
    table = teacher.model.get_input_embeddings().weight
    inside = teacher.tokenizer.tokenizer
    rows = inside("strawberry", add_special_tokens=False)["input_ids"]
    expected = F.normalize(table[torch.tensor(rows)].mean(0), dim=0)
    torch.testing.assert_close(teacher.embed_words(["strawberry"])[0], expected)
    text = teacher.encode_text(CAPTIONS[0])
    both = [text, text, text]
    made = teacher.interaction_maps(
        images, both, [text.words] * 3, kind="attention", layers=teacher.layers("attention", 1), image_of=[1, 0, 1]
    )
    torch.testing.assert_close(made.maps[0], made.maps[2])
    torch.testing.assert_close(made.image_embedding, F.normalize(teacher.encode_image(images), dim=-1))
    assert not torch.allclose(made.image_embedding[0], made.image_embedding[1])
    assert len(teacher.generate(images)) == 2
    assert teacher.generate(images) == teacher.generate(images)
    assert [count.images for count in artefacts_by_block(teacher, images)] == [2, 2, 2]
    with pytest.raises(UnknownNameError, match=r"contrastive.*gradcam"):
        teacher.layers("contrastive", 1)


def test_a_cache_of_it_has_maps_and_no_classifier(folder: Path, scenes_root: Path, tmp_path: Path) -> None:
    config = ExtractConfig(
        dataset="scenes", data_root=scenes_root, split="val", teacher=f"local-dir:{folder}", layers=2, device="cpu"
    )
    summary, _ = extract(config, tmp_path / "shards")
    assert summary.quarantined == 0
    store = TargetStore.open(tmp_path / "shards")
    assert (store.spec.kind, store.spec.teacher.family, store.zero_shot) == ("gradcam", "blip", None)
    assert [layer.name for layer in store.spec.layers] == [f"text_decoder.bert.encoder.layer.{i}" for i in (1, 2)]
    assert (store.read_many(range(len(store))).scale > 0).any()
    assert set(store.vocabulary.words) >= set(store.spec.dataset.classes)  # by which a student's classes are seeded
    with pytest.raises(ConfigError, match="vocabulary needs a teacher that compares"):
        extract(
            ExtractConfig(
                dataset="scenes",
                data_root=scenes_root,
                teacher=f"local-dir:{folder}",
                vocabulary=("dog",),
                device="cpu",
            ),
            tmp_path / "other",
        )


def test_kinds_are_compared_by_masks_alone(teacher: BlipTeacher, scenes_root: Path) -> None:
    val = read_dataset("scenes", scenes_root, "val")
    choice = choose_kind(teacher, val, TextSource("captions", "first"), images=4)
    assert (choice.by, {each.kind for each in choice.scores}) == ("masks", {"gradcam", "attention"})
    with pytest.raises(ConfigError, match=r"compares no images with texts\. Name one: gradcam, attention"):
        choose_kind(teacher, replace(val, instances={}), TextSource("captions", "first"), images=4)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("text_config", "vocab_size", 10**9, r"config\.json must be .*vocab_size"),
        ("vision_config", "hidden_act", "os.system", r"hidden_act"),
        ("vision_config", "patch_size", 16, r"weights do not fit config\.json"),
        ("text_config", "num_hidden_layers", 4, r"26 are missing|are missing and 0 are too many"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    part: str, name: str, value: Any, message: str, folder: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    config[part][name] = value
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(LFIError, match=message) as caught:
        load_teacher(f"local-dir:{changed}")
    assert isinstance(caught.value, TeacherError)
