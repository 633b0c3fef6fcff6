"""Kinds of map compared on a data set before it is extracted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfi_pipeline.core.errors import ConfigError, DatasetError, UnknownNameError
from lfi_pipeline.core.io import unseal
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.teachers import CocaTeacher, choice, load_teacher
from lfi_pipeline.teachers import extract as extraction
from lfi_pipeline.teachers.choice import choice_text, choose_kind, resolve_kind
from lfi_pipeline.teachers.text import TextSource

SOURCE = TextSource("captions", "first")
KINDS = ("contrastive", "attention", "gradcam_pooler")


@pytest.fixture(scope="module")
def val(scenes_root: Path) -> Dataset:
    return read_dataset("scenes", scenes_root, "val")


def test_with_masks_the_cheapest_near_the_best_is_taken(val: Dataset) -> None:
    found = choose_kind(load_teacher("scenes-coca"), val, SOURCE, kinds=KINDS, batch_size=8)
    assert (found.by, found.images, found.kind) == ("masks", len(val), "contrastive")
    assert {each.kind for each in found.scores} == set(KINDS)
    costs = [each.cost for each in found.scores]
    assert costs == sorted(costs)
    assert costs[0] > 1  # it looks at the image too
    best = max(found.scores, key=lambda each: each.score)
    assert (best.behind, best.error) == (0, 0)
    for each in found.scores:
        assert each.pointing is not None
        assert each.mass_in_mask is not None
        assert each.score == pytest.approx((each.pointing + each.mass_in_mask) / 2)
        assert each.behind == pytest.approx(best.score - each.score)
    assert found == choose_kind(load_teacher("scenes-coca"), val, SOURCE, kinds=KINDS, batch_size=8)
    assert all(kind in choice_text(found) for kind in KINDS)


def test_without_masks_what_is_pointed_at_is_painted_over(val: Dataset) -> None:
    found = choose_kind(load_teacher("scenes-coca"), replace(val, instances={}), SOURCE, kinds=KINDS[:2])
    assert (found.by, found.kind) == ("deletion", "contrastive")
    assert found.words >= found.images
    drop = {each.kind: each.score for each in found.scores}
    assert drop["contrastive"] > drop["attention"] > 0
    assert found.scores[0].pointing is None
    assert "fall of the score" in choice_text(found)


def test_capitals_of_a_class_do_not_hide_its_masks(val: Dataset) -> None:
    written = replace(val, classes=tuple(name.title() for name in val.classes))
    assert choose_kind(load_teacher("scenes-coca"), written, SOURCE, kinds=KINDS[:1], batch_size=8).by == "masks"


def test_images_are_drawn_with_all_their_words() -> None:
    """Ten words of one image are one observation: the error is that of the two images."""
    owners = np.array([0.0] * 10 + [1.0] * 10)
    alike, mixed = np.array([1.0] * 10 + [0.0] * 10), np.array([1.0, 0.0] * 10)
    assert choice._error(alike, owners, 0) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    assert choice._error(mixed, owners, 0) == 0
    assert choice._same_peak(np.array([3.0, 3, 4, 7]), np.array([0.0, 0, 0, 1])) == pytest.approx(1 / 3)
    assert choice._same_peak(np.array([3.0, 3]), np.array([0.0, 1])) is None


def test_what_cannot_be_compared_is_refused(val: Dataset, tiny_teacher: CocaTeacher) -> None:
    with pytest.raises(UnknownNameError, match="relevence"):
        choose_kind(tiny_teacher, val, SOURCE, kinds=("relevence",))
    with pytest.raises(ConfigError, match="images"):
        choose_kind(tiny_teacher, val, SOURCE, images=0)
    wordless = replace(val, samples=[replace(val.samples[0], captions=("of the",))])
    with pytest.raises(DatasetError, match="must have words"):
        choose_kind(tiny_teacher, wordless, SOURCE, kinds=KINDS[:1])


def test_auto_chooses_once_for_a_cache(
    scenes_root: Path, val: Dataset, tiny_teacher: CocaTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "load_teacher", lambda name, **_: tiny_teacher)
    asked: list[int] = []
    scores = tuple(
        choice.KindScore(
            kind=kind, cost=2.0, score=0.5, behind=0.0, error=0.0, pointing=None, mass_in_mask=None, same_peak=None
        )
        for kind in ("contrastive", "relevance")
    )

    def choose(*_args: object) -> choice.KindChoice:
        asked.append(1)
        return choice.KindChoice(kind="relevance", by="masks", images=1, words=1, scores=scores)

    monkeypatch.setattr(choice, "choose_kind", choose)
    config = extraction.ExtractConfig(
        dataset="scenes", data_root=scenes_root, split="val", teacher="t", kind="auto", words=6, device="cpu"
    )
    for _ in range(2):
        extraction.extract(config, tmp_path / "targets")
    store = TargetStore.open(tmp_path / "targets")
    assert store.spec.kind == "relevance"
    assert asked == [1]
    assert store.manifest.choice == choose()  # why it is this kind stays with the cache
    asked.clear()
    extraction.extract(replace(config, words=7), tmp_path / "targets", extend=True)
    assert TargetStore.open(tmp_path / "targets").manifest.choice == store.manifest.choice
    assert asked == []
    folder = tmp_path / "targets.kinds"
    assert [each["kind"] for each in unseal((folder / "table.json").read_bytes(), folder)["scores"]] == [
        "contrastive",
        "relevance",
    ]
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 6
    with Image.open(pictures[0]) as picture:
        assert min(picture.size) > 200
    assert resolve_kind("", tiny_teacher, val, SOURCE, tmp_path / "none") == ("contrastive", None)


def test_a_dear_kind_says_what_it_costs(val: Dataset) -> None:
    teacher = load_teacher("scenes-coca")
    assert choice.cost_beside_default(teacher, val, SOURCE, "contrastive") == []
    (line,) = choice.cost_beside_default(teacher, val, SOURCE, "agreement")
    found = re.fullmatch(r"Kind agreement takes (\S+) vision forwards .* contrastive, .* takes (\S+)\.", line)
    assert found is not None
    assert 1 < float(found[2]) < 1.2 < 3 < float(found[1])
    broken = replace(val, root=Path("nowhere"))
    assert choice.cost_beside_default(teacher, broken, SOURCE, "agreement") == []
