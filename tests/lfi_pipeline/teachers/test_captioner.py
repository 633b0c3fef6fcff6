"""Beam search against the greatest of all sentences, and against the model's own logits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lfi_pipeline.teachers import CocaTeacher, captioner, load_teacher


def _mean_log_probability(teacher: CocaTeacher, image: torch.Tensor, ids: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = teacher.model(image[None], torch.tensor([ids]))["logits"][0]
    found = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return float(found.sum()) / len(ids)


def test_with_beams_enough_the_sentence_is_the_best_of_all(
    random_coca: Callable[[str], CocaTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = random_coca("pooler")
    model, size = teacher.model, 5  # tokens of which sentences are made: the vocabulary is cut to its first and last
    start, end = size - 2, size - 1
    monkeypatch.setattr(model.text_decoder.text_projection, "data", model.text_decoder.text_projection.data[:, :size])
    for name, value in (("BEAMS", 60), ("SHORTEST", 3), ("LONGEST", 5)):
        monkeypatch.setattr(captioner, name, value)
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tokens = model.visual.transformer(model.visual._embeds(image[None]))
        seen = model.visual._pool(tokens)[1]
        found, again = captioner._search(model, start, end, torch.cat([seen, seen]))
    every = [(start, *middle, end) for length in (1, 2, 3) for middle in itertools.product(range(start), repeat=length)]
    best = max(every, key=lambda ids: _mean_log_probability(teacher, image, ids))
    assert tuple(found) == tuple(again) == best[:-1]


@pytest.mark.parametrize("form", ["pooler", "cascade", "no pooler"])
def test_a_caption_does_not_depend_on_the_batch_or_the_run(
    random_coca: Callable[[str], CocaTeacher], form: str
) -> None:
    teacher = random_coca(form)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    together = teacher.generate(images)
    assert teacher.can_generate
    assert together == teacher.generate(images)
    assert together == [teacher.generate(image[None])[0] for image in images]
    assert len(set(together)) > 1
    for text in together:
        assert "<start_of_text>" not in text
        assert "<end_of_text>" not in text
        assert text == text.strip()


def test_a_trained_teacher_names_what_is_there(scenes_root: Path) -> None:
    teacher = load_teacher("scenes-coca")
    listed = json.loads((scenes_root / "annotations/captions_train.json").read_text(encoding="utf-8"))
    truth = {each["image_id"]: each["caption"] for each in listed["annotations"]}
    files = {each["id"]: each["file_name"] for each in listed["images"]}
    chosen = sorted(truth)[:8]
    paths = [next(scenes_root.rglob(Path(files[key]).name)) for key in chosen]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in paths])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.mean, teacher.std))
    written = teacher.generate((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    named = [
        {word.text for word in teacher.encode_text(caption).words}
        & {word.text for word in teacher.encode_text(truth[key]).words}
        for key, caption in zip(chosen, written, strict=True)
    ]
    assert sum(map(bool, named)) >= 6, list(zip(written, named, strict=True))


def test_tokenizers_of_transformers_are_read_by_their_own_ends() -> None:
    inner = SimpleNamespace(bos_token_id=0, eos_token_id=2, decode=lambda ids, skip_special_tokens: f" {ids} ")
    assert captioner._ends(SimpleNamespace(tokenizer=inner)) == (0, 2)
    assert captioner._decode(SimpleNamespace(tokenizer=inner), [0, 5]) == "[0, 5]"
