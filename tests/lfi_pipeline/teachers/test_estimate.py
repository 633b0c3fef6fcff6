"""The plan of a run: bounded, without traces, and of the same numbers as the run itself."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.data import read_dataset
from lfi_pipeline.teachers import CocaTeacher, extract, shards
from lfi_pipeline.teachers import estimate as planning
from lfi_pipeline.teachers import extract as job
from lfi_pipeline.teachers.config import ExtractConfig, PlanConfig
from lfi_pipeline.teachers.estimate import Estimate, Trial, estimate, extrapolated, run_trial
from lfi_pipeline.teachers.text import TextSource

TRIAL = Trial(
    teacher_name="t:1",
    kind="relevance",
    precision="fp32",
    device="cpu",
    images=30,
    quarantined=0,
    words=9,
    bytes_per_image=1000.0,
    waiting=0.2,
    teacher=3.0,
    writing=0.3,
    captioning=0.0,
    other=0.1,
)


@pytest.fixture(autouse=True)
def scratch(tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary directories go; the tiny teacher is every teacher."""
    monkeypatch.setattr(job, "load_teacher", lambda name, **options: tiny_teacher)
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def options(scenes_root: Path) -> dict[str, Any]:
    """Of an extraction of the 24 train scenes."""
    return {
        "dataset": "scenes",
        "data_root": scenes_root,
        "words": 6,
        "samples_per_shard": 8,
        "batch_size": 4,
        "device": "cpu",
    }


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the images that are read from now on."""
    paths: list[str] = []
    read_bytes = shards.read_bytes
    monkeypatch.setattr(shards, "read_bytes", lambda root, path: paths.append(path) or read_bytes(root, path))
    return paths


@pytest.mark.parametrize("layout", ["zarr", "webdataset"])
def test_the_plan_is_that_of_the_run_and_leaves_nothing_behind(
    options: dict[str, Any], tmp_path: Path, scratch: Path, layout: str
) -> None:
    config = ExtractConfig(**options, layout=layout)
    found = estimate(PlanConfig(extract=config, out=tmp_path / "no" / "such" / "place", batches=2, processes=4))
    assert not list(scratch.iterdir())
    assert not (tmp_path / "no").exists()
    assert (found.images, found.shards, found.trial.images, found.trial.quarantined) == (24, 3, 8, 0)
    tried = found.trial
    assert (tried.teacher_name, tried.kind, tried.device) == ("tiny-coca:test", "contrastive", "cpu")
    assert found.disk == tmp_path
    assert found.bytes_free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert found.fits
    assert found.hours == pytest.approx(24 * found.trial.seconds / 3600)
    assert found.hours_shared == found.hours / 4
    assert found.images_per_second == pytest.approx(1 / found.trial.seconds)
    summary, _ = extract.extract(config, tmp_path / "real")
    assert found.bytes_total == pytest.approx(24 * summary.bytes_per_sample, rel=0.15)


def test_only_the_trials_images_are_read_each_once_and_all_over_the_split(
    options: dict[str, Any], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    texts = TextSource.__call__
    monkeypatch.setattr(TextSource, "__call__", lambda self, sample: asked.append(sample.path) or texts(self, sample))
    found = estimate(PlanConfig(extract=ExtractConfig(**options), batches=2))
    paths = [sample.path for sample in read_dataset("scenes", options["data_root"], "train").samples]
    assert len(read) == len(set(read)) == 12
    assert set(asked) == set(read)  # no vocabulary of the whole split
    positions = sorted(paths.index(path) for path in read)
    assert positions == list(range(0, 24, 2))
    timed = sorted(paths.index(path) for path in read[4:])  # the first batch warms up
    assert len(timed) == found.trial.images == 8
    assert timed[0] < 6
    assert timed[-1] > 18


@pytest.mark.parametrize(
    ("images", "timed", "everything"), [(1, 1, 1), (2, 2, 2), (5, 4, 5), (11, 8, 11), (24, 12, 16)]
)
def test_a_split_smaller_than_the_trial_is_tried_whole(
    options: dict[str, Any], read: list[str], images: int, timed: int, everything: int
) -> None:
    dataset = read_dataset("scenes", options["data_root"], "train")
    trial = run_trial(ExtractConfig(**options), replace(dataset, samples=dataset.samples[:images]), 3)
    assert (trial.images, len(set(read))) == (timed if images != 11 else 9, everything)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 9))
def test_positions_are_distinct_and_spread(images: int, batch: int, batches: int) -> None:
    total = min(images, (batches + 1) * batch)
    timed = total - min(batch, total // (batches + 1))
    positions = planning._spread(images, total, timed)
    assert len(set(positions)) == len(positions) == total
    assert 0 <= min(positions) <= max(positions) < images
    step = -(-images // total)
    in_order = sorted(positions)
    assert all(b - a <= step for a, b in pairwise(in_order))
    assert max(positions[:timed]) >= images - 3 * step


def _slow(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    return run


@pytest.mark.parametrize("part", ["teacher", "waiting", "writing", "captioning"])
def test_time_is_put_down_to_what_takes_it(
    options: dict[str, Any], tiny_teacher: CocaTeacher, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    pause = 0.3
    if part == "teacher":
        monkeypatch.setattr(tiny_teacher, "interaction_maps", _slow(pause, tiny_teacher.interaction_maps))
    elif part == "waiting":
        monkeypatch.setattr(shards, "read_bytes", _slow(pause, shards.read_bytes))
    elif part == "writing":
        monkeypatch.setattr(job.TargetWriter, "commit", _slow(pause, job.TargetWriter.commit))
    else:
        captions = _slow(pause, lambda teacher, dataset, *_, **__: {each.key: "a cat" for each in dataset.samples})
        monkeypatch.setattr(job, "generated_captions", captions)
        options["text"] = "generate"
    dataset = read_dataset("scenes", options["data_root"], "train")
    trial = run_trial(ExtractConfig(**options, views=("full",), workers=4), dataset, 1)
    parts = {name: getattr(trial, name) for name in ("waiting", "teacher", "writing", "captioning", "other")}
    assert max(parts, key=parts.__getitem__) == part
    images = 8 if part == "captioning" else 4
    early = 0.5 if part == "waiting" else 1  # images are read ahead: some of the pause is over before it is waited for
    assert parts[part] >= early * pause / images
    assert trial.seconds == pytest.approx(sum(parts.values()))
    assert (parts["captioning"] > 0) == (part == "captioning")


def test_unreadable_images_are_counted_and_none_readable_is_an_error(
    options: dict[str, Any], scenes_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(scenes_root, tmp_path / "root"))
    options["data_root"] = root
    images = sorted((root / "train").iterdir())
    images[6].write_bytes(b"no image")
    assert estimate(PlanConfig(extract=ExtractConfig(**options), batches=5)).trial.quarantined == 1
    for image in images:
        image.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"must be readable, got none; the first: .*not an image file"):
        estimate(PlanConfig(extract=ExtractConfig(**options)))


def test_a_data_set_of_classes_is_read_with_prompts(options: dict[str, Any], tmp_path: Path, scenes_root: Path) -> None:
    images = sorted((scenes_root / "train").iterdir())
    for i, name in enumerate(("cat", "cat", "dog", "dog", "dog")):
        (tmp_path / "data" / "train" / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images[i], tmp_path / "data" / "train" / name / f"{i}.png")
    options |= {"dataset": "imagefolder", "data_root": tmp_path / "data"}
    found = estimate(PlanConfig(extract=ExtractConfig(**options), batches=1))
    assert found.trial.words == 2
    assert found.images == 5


def _extrapolated(images: int = 3600, free: int = 10**9, views: int = 2, **changes: int) -> Estimate:
    extraction = ExtractConfig(
        dataset="d", data_root=Path("d"), views=("full", "hflip")[:views], samples_per_shard=1000
    )
    config = PlanConfig(extract=extraction, **changes)  # type: ignore[arg-type]
    return extrapolated(TRIAL, config, images=images, disk=Path("/"), free=free)


def test_the_arithmetic_of_the_plan() -> None:
    found = _extrapolated(epochs=4, students=3, processes=2)
    assert found.shards == 4
    assert found.bytes_total == 3_600_000
    assert found.hours == pytest.approx(3.6)  # 3600 images at 3.6 s
    assert found.hours_shared == pytest.approx(1.8)
    assert found.online_hours_per_epoch == pytest.approx(1.5)  # one of two views
    assert found.break_even_epochs == pytest.approx(2.4)
    assert found.break_even_students == pytest.approx(0.6)
    assert found.hours_saved == pytest.approx(3 * 4 * 1.5 - 3.6)
    assert _extrapolated(views=1).online_hours_per_epoch == pytest.approx(3.0)
    assert _extrapolated(epochs=1, students=1).hours_saved == pytest.approx(-2.1)


@pytest.mark.parametrize(("free", "fits"), [(3_961_000, True), (3_959_000, False), (0, False)])
def test_a_margin_must_be_free_beyond_the_cache(free: int, fits: bool) -> None:
    assert _extrapolated(free=free).fits is fits


@pytest.mark.parametrize("name", ["batches", "processes", "epochs", "students"])
def test_counts_must_be_positive(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be 1 or more, got 0"):
        PlanConfig(extract=ExtractConfig(**options), **{name: 0})
