"""What maps and extraction cost on tiny sizes, and that wrong maps are found before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfi_pipeline.benchmarks import Outcome, extraction
from lfi_pipeline.benchmarks.config import CONTENT_WORDS, ExtractionConfig, MapsConfig
from lfi_pipeline.core.errors import BenchmarkError, ConfigError, UnknownNameError
from lfi_pipeline.teachers import CocaTeacher, InteractionMaps
from lfi_pipeline.teachers import extract as job

MAPS = MapsConfig(kinds=("all",), batch_size=2, words=3, layers=2, rounds=1, device="cpu")
EXTRACTION = ExtractionConfig(images=4, batch_size=2, rounds=1, device="cpu")


@pytest.fixture
def tiny(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> CocaTeacher:
    """The tiny random teacher in place of the one that is named."""
    for module in (extraction, job):
        monkeypatch.setattr(module, "load_teacher", lambda name, **_: tiny_teacher)
    return tiny_teacher


def cases(outcome: Outcome, metric: str) -> dict[str, float]:
    values = {each.case: each.value for each in outcome.measurements if each.metric == metric}
    assert all(np.isfinite(value) and value >= 0 for value in values.values())
    return values


def test_maps_times_each_kind_over_the_vision_forward(tiny: CocaTeacher) -> None:
    outcome = extraction.bench_maps(MAPS)
    ratio = cases(outcome, "over the vision forward")
    assert set(ratio) == {"vision forward", *tiny.kinds}
    assert ratio["vision forward"] == 1
    assert {(asked.most, asked.what) for asked in outcome.asked} == {
        (1.3, "contrastive over the vision forward, coca_ViT-B-32:random"),
        (3.0, "relevance over the vision forward, coca_ViT-B-32:random"),
    }
    with pytest.raises(UnknownNameError, match="relevence"):
        extraction.bench_maps(MapsConfig(kinds=("relevence",), device="cpu"))
    with pytest.raises(ConfigError, match="words must be from 1 to 20"):
        MapsConfig(words=21)


@pytest.mark.parametrize(("factor", "message"), [(0.5, "must sum to 1"), (0.0, "all rows are zero")])
def test_maps_finds_rows_that_are_none(
    tiny: CocaTeacher, factor: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CocaTeacher.interaction_maps

    def wrong(self: CocaTeacher, *args: Any, **options: Any) -> InteractionMaps:
        found = right(self, *args, **options)
        return InteractionMaps(factor * found.maps, found.kept, found.image_embedding)

    monkeypatch.setattr(CocaTeacher, "interaction_maps", wrong)
    with pytest.raises(BenchmarkError, match=message):
        extraction.bench_maps(MAPS)


def test_extraction_says_where_the_time_goes(tiny: CocaTeacher) -> None:
    outcome = extraction.bench_extraction(EXTRACTION)
    times = {each.case: each.value for each in outcome.measurements if each.metric == "time an image"}
    assert list(times) == [
        *("whole extraction", "maps in memory"),
        *("read and decode", "vision", "maps beyond vision", "encode", "write"),
    ]
    assert outcome.asked[0].most == 1.10
    (rate,) = cases(outcome, "images a second").values()
    assert rate == pytest.approx(1e3 / times["whole extraction"])
    (share,) = cases(outcome, "over the bare teacher").values()
    assert share == pytest.approx(times["vision"] / times["whole extraction"])
    with pytest.raises(ConfigError, match="multiple of batch_size"):
        ExtractionConfig(images=10, batch_size=4)


def test_extraction_may_be_compiled(tiny: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[int, int]] = []

    @contextmanager
    def compiled(self: CocaTeacher, batch_size: int, words: int) -> Iterator[None]:
        entered.append((batch_size, words))
        yield

    monkeypatch.setattr(CocaTeacher, "compiled", compiled)
    extraction.bench_extraction(EXTRACTION)
    assert entered == []
    outcome = extraction.bench_extraction(replace(EXTRACTION, compile=True))
    assert set(entered) == {(2, extraction.WORDS)}
    assert len(entered) == 5  # the check, two extractions, and the maps in memory twice
    assert {each.shape.rpartition(", ")[2] for each in outcome.measurements} == {"compiled"}


def test_extraction_finds_maps_that_differ(tiny: CocaTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    right = extraction.read
    monkeypatch.setattr(extraction, "read", lambda path, teacher: np.ascontiguousarray(right(path, teacher)[..., ::-1]))
    with pytest.raises(BenchmarkError, match="must be those of the teacher"):
        extraction.bench_extraction(EXTRACTION)


def test_the_vision_forward_is_the_image_embedding(tiny_teacher: CocaTeacher) -> None:
    images = torch.rand(2, 3, *tiny_teacher.image_size)
    found = torch.nn.functional.normalize(extraction.vision_forward(tiny_teacher, images), dim=-1)
    text = tiny_teacher.encode_text("a dog")
    own = tiny_teacher.interaction_maps(
        images, [text, text], [text.words] * 2, kind="relevance", layers=tiny_teacher.layers("relevance", 1)
    )
    torch.testing.assert_close(found, own.image_embedding, atol=1e-5, rtol=1e-4)


def test_captions_of_a_batch_begin_at_different_words(tiny_teacher: CocaTeacher) -> None:
    texts = extraction._texts(tiny_teacher, MapsConfig(batch_size=3, words=2, device="cpu"))
    words = [[word.text for word in text.words] for text in texts]
    assert words == [list(CONTENT_WORDS[b : b + 2]) for b in range(3)]


def test_what_the_teacher_sees_of_a_file_is_the_whole_picture_in_its_size(
    tiny_teacher: CocaTeacher, tmp_path: Path
) -> None:
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, :128] = (10, 20, 30)  # the left half
    pixels[:, 128:] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    found = extraction.read(tmp_path / "halves.png", tiny_teacher)
    assert found.dtype == np.uint8
    assert found.shape == (3, *tiny_teacher.image_size)
    assert (found[:, :, 2] == np.array([[10], [20], [30]])).all()
    assert (found[:, :, -3] == np.array([[200], [100], [50]])).all()
    assert (found[:, 1] == found[:, -1]).all()


def test_files_are_written_one_a_content(tmp_path: Path) -> None:
    extraction._write(tmp_path / "plain", [b"first", b"", b"third"])
    assert [(tmp_path / "plain" / str(i)).read_bytes() for i in range(3)] == [b"first", b"", b"third"]
    assert len(list((tmp_path / "plain").iterdir())) == 3
