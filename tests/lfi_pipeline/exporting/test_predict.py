"""Predictions: which answers, read from what, and what is drawn and written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfi_pipeline.core.errors import ConfigError, ImageReadError
from lfi_pipeline.exporting.predict import INDEX, find_images, predict_images, save_predictions
from tests.lfi_pipeline.exporting.conftest import CLASSES
from tests.lfi_pipeline.exporting.test_whole import made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a <b>.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_the_best_answers_come_first_with_their_maps(picture: Path) -> None:
    model = made()
    found = model.predict(picture, top=3)
    assert [len(found.answers), found.source, found.image and found.image.size] == [3, str(picture), (60, 40)]
    scores = [answer.score for answer in found.answers]
    assert scores == sorted(scores, reverse=True)
    image = Image.open(picture).convert("RGB")
    again = model.predict(image, top=len(CLASSES))
    pixels = torch.from_numpy(np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy())
    logits, maps = model(pixels[None])
    assert maps is not None
    for answer in again.answers:
        place = CLASSES.index(answer.name)
        assert answer.score == pytest.approx(float(logits[0, place].sigmoid().detach()), abs=1e-6)
        assert answer.map is not None
        assert answer.map == pytest.approx(maps[0, place].detach().numpy(), abs=1e-6)
        assert answer.peak is not None
        assert all(0 <= side <= 1 for side in answer.peak)
    assert model.predict(np.asarray(image)).to_plain()["answers"] == model.predict(image).to_plain()["answers"]


def test_scores_of_one_label_data_are_shares(picture: Path) -> None:
    from dataclasses import replace

    model = made()
    model.config = replace(model.config, task="classification")
    assert sum(answer.score for answer in model.predict(picture, top=9).answers) == pytest.approx(1)


def test_words_are_all_answered(picture: Path) -> None:
    model = made(readout="text", words=3)
    found = model.predict(picture, ["word1", "class 3", "word1"], top=1)
    assert {answer.name for answer in found.answers} == {"word1", "class 3"}
    every = {answer.name: answer.score for answer in model.predict(picture, top=9).answers}
    asked = {answer.name: answer.score for answer in found.answers}
    assert asked["class 3"] == pytest.approx(every["class 3"], abs=1e-5)
    given = model.predict(picture, ["new"], encode=lambda names: model.student.queries.classes[[2]])  # type: ignore
    assert given.answers[0].score == pytest.approx(every["class 2"], abs=1e-5)
    with pytest.raises(ConfigError, match="does not know 'zebra'"):
        model.predict(picture, ["zebra"])
    with pytest.raises(ConfigError, match="one or more"):
        model.predict(picture, [])


def test_a_class_readout_answers_for_chosen_classes(picture: Path) -> None:
    model = made()
    found = model.predict(picture, ["class 4", "CLASS_1"])
    assert {answer.name for answer in found.answers} == {"class 4", "CLASS_1"}
    every = {answer.name: answer.score for answer in model.predict(picture, top=9).answers}
    asked = {answer.name: answer.score for answer in found.answers}
    assert asked == pytest.approx({"class 4": every["class 4"], "CLASS_1": every["class 1"]})
    with pytest.raises(ConfigError, match="its own classes alone"):
        model.predict(picture, ["zebra"])


def test_what_is_drawn_and_written(picture: Path, tmp_path: Path) -> None:
    (picture.parent / "sub").mkdir()
    Image.open(picture).save(picture.parent / "sub" / "A <b>.jpg")
    broken = picture.parent / "broken.png"
    broken.write_bytes(b"no image")
    (picture.parent / "notes.txt").write_text("not looked at")
    paths = find_images([picture.parent])
    assert [path.name for path in paths] == ["a <b>.png", "broken.png", "A <b>.jpg"]
    out = tmp_path / "out"
    found = list(save_predictions(predict_images(made(), paths, skip_unreadable=True), out))
    assert sorted(path.name for path in out.iterdir()) == ["A <b>-2.png", "a <b>.png", INDEX]
    page = (out / INDEX).read_text()
    assert "<b>.png" not in page
    assert "a%20%3Cb%3E.png" in page
    assert "broken.png" in page
    rows: list[dict[str, Any]] = json.loads(json.dumps([each.to_plain() for each in found]))
    assert [set(row) for row in rows].count({"image", "error"}) == 1
    assert rows[0]["width"] == 60
    assert np.asarray(rows[0]["answers"][0]["map"]).sum() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ImageReadError):
        list(predict_images(made(), paths))
    with pytest.raises(ImageReadError, match=r"broken\.png"):  # an OSError that is none of the folder's
        list(save_predictions(predict_images(made(), paths), tmp_path / "again"))


def test_no_images_and_no_pixels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image to look at"):
        find_images([tmp_path])
    with pytest.raises(ConfigError, match="there is no"):
        find_images([tmp_path / "gone.png"])
    with pytest.raises(ConfigError, match=r"uint8 \[H, W, 3\]"):
        made().predict(np.zeros((3, 4, 5), np.float32))  # type: ignore[arg-type]
