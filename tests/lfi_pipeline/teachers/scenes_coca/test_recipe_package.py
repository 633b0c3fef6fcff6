"""The teacher that ships in the wheel: its files belong together, it loads, and its maps point."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

import pytest
import torch

from lfi_pipeline.data import load_manifest
from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.data.scenes import NAMES
from lfi_pipeline.data.scenes.write import render_scene
from lfi_pipeline.evaluation.grounding import peaks_in_mask
from lfi_pipeline.targets import teacher_logits
from lfi_pipeline.teachers import CocaTeacher, InteractionMaps, load_teacher
from lfi_pipeline.teachers.scenes_coca.recipe import TAUGHT
from lfi_pipeline.teachers.teacher import class_embeddings
from lfi_pipeline.teachers.text import EncodedText, Word

SCENES = 100
KIND = "contrastive"


@pytest.fixture(scope="module")
def folder() -> Traversable:
    return resources.files("lfi_pipeline.teachers.scenes_coca")


@pytest.fixture(scope="module")
def teacher() -> CocaTeacher:
    return load_teacher("scenes-coca")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Scenes of several objects that the teacher never saw: another seed and another split than its own."""

    images: torch.Tensor
    texts: list[EncodedText]
    words: list[list[Word | None]]
    masks: list[torch.Tensor]  # bool [words of the scene, H, W]

    def maps(self, teacher: CocaTeacher, kind: str, scenes: slice) -> InteractionMaps:
        return teacher.interaction_maps(
            self.images[scenes],
            self.texts[scenes],
            self.words[scenes],
            kind=kind,
            layers=teacher.layers(kind, 1),
            settings=teacher.map_settings(kind, centre=NAMES),
        )


DRAWN = ("colour", "outline", "grey", "photo")


@pytest.fixture(scope="module")
def held_out(teacher: CocaTeacher) -> HeldOut:
    return scenes_of(teacher, DRAWN)


def scenes_of(teacher: CocaTeacher, domains: Sequence[str]) -> HeldOut:
    """Scenes of these domains, which take turns."""
    scale = ScenesConfig().object_scale
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (teacher.mean, teacher.std))
    images, texts, words, masks, index = [], [], [], [], 0
    while len(images) < SCENES:
        domain = domains[index % len(domains)]
        scene = render_scene(seed=5, split="test", index=index, size=64, domain=domain, object_scale=scale)
        index += 1
        if len(scene.objects) < 2:
            continue
        text = teacher.encode_text(scene.captions[0])
        mask_of = {NAMES[each.label]: torch.from_numpy(each.mask) for each in scene.objects}
        named = [word for word in text.words if word.text in mask_of]
        assert len(named) == len(mask_of)
        images.append((torch.from_numpy(scene.image).permute(2, 0, 1).float() - mean) / std)
        texts.append(text)
        words.append(list(named))
        masks.append(torch.stack([mask_of[word.text] for word in named]))
    return HeldOut(torch.stack(images), texts, words, masks)


def test_it_is_small_enough_for_the_wheel(folder: Traversable) -> None:
    names = ("config.json", "bpe.txt.gz", "model.safetensors", "recipe.json")
    assert sum(len((folder / name).read_bytes()) for name in names) <= 6_000_000


def test_the_weights_are_those_of_the_recipe(folder: Traversable, teacher: CocaTeacher) -> None:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == recipe["sha256"]
    assert sum(parameter.numel() for parameter in teacher.model.parameters()) == recipe["parameters"]
    assert recipe["domains"] == sorted(set(TAUGHT))
    assert recipe["phases"]


def test_it_never_saw_a_scene_of_a_demo_data_set(folder: Traversable) -> None:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    assert ScenesConfig().seed not in {phase["recipe"]["seed"] for phase in recipe["phases"]}


def test_it_is_the_teacher_of_scenes_and_says_who_it_is(teacher: CocaTeacher) -> None:
    assert load_manifest("scenes").teacher == "scenes-coca"
    assert (teacher.identity.name, teacher.identity.tag, teacher.identity.family) == ("scenes-coca", "v2", "coca")
    assert load_teacher("scenes-coca:v2").identity == teacher.identity
    assert teacher.grid == (8, 8)


def test_every_category_is_one_word_it_knows(teacher: CocaTeacher) -> None:
    for name in NAMES:
        assert [word.text for word in teacher.encode_text(f"a {name} and").words] == [name]
    embeddings = teacher.embed_words(NAMES)
    alike = embeddings @ embeddings.T - 2 * torch.eye(len(NAMES))
    assert alike.max() < 0.99


def test_zero_shot_it_ranks_a_class_of_the_image_first(teacher: CocaTeacher, held_out: HeldOut) -> None:
    """Image and class embeddings share one space, by its own contrastive training."""
    zero_shot = class_embeddings(teacher, NAMES, ("a picture of a {}.",))
    found = held_out.maps(teacher, "attention", slice(None)).image_embedding
    first = [NAMES[winner] for winner in teacher_logits(found, zero_shot).argmax(1).tolist()]
    hits = [name in {word.text for word in words if word} for name, words in zip(first, held_out.words, strict=True)]
    # Measured 0.77 on these 100 scenes; 0.04 by chance.
    assert sum(hits) / len(hits) > 0.6


def test_the_default_maps_point_at_the_named_object(teacher: CocaTeacher, held_out: HeldOut) -> None:
    # Measured 0.848 on these 100 scenes.
    assert pointing(teacher, held_out) > 0.8


@pytest.mark.parametrize(("domain", "least"), [("varied", 0.75), ("icon", 0.55)])
def test_the_default_maps_point_in_the_other_styles_it_was_taught(
    teacher: CocaTeacher, domain: str, least: float
) -> None:
    # Measured 0.83 and 0.65 on 200 other scenes of each; 0.11 by chance.
    assert pointing(teacher, scenes_of(teacher, [domain])) > least


def pointing(teacher: CocaTeacher, scenes: HeldOut) -> float:
    """Share of the words whose map has its peak in the named object."""
    hits = []
    for first in range(0, SCENES, 25):
        part = slice(first, first + 25)
        found = scenes.maps(teacher, KIND, part)
        for maps, masks in zip(found.maps, scenes.masks[part], strict=True):
            hits.append(peaks_in_mask(maps[0, : len(masks)], masks))
    return float(torch.cat(hits).float().mean())


def test_maps_do_not_depend_on_what_else_is_in_the_batch(teacher: CocaTeacher, held_out: HeldOut) -> None:
    """Trained weights show rounding that random ones hide."""
    for kind in teacher.kinds:
        together = held_out.maps(teacher, kind, slice(0, 8))
        for b in range(8):
            alone = held_out.maps(teacher, kind, slice(b, b + 1)).maps[0]
            torch.testing.assert_close(together.maps[b, :, : alone.shape[1]], alone, atol=1e-4, rtol=1e-3)
