"""The gallery that evaluation writes is the gallery that the report reads, and its verdicts are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.evaluation import EvaluationConfig, grounded_words
from lfi_pipeline.evaluation.config import GroundingConfig
from lfi_pipeline.evaluation.grounding import peaks_in_mask
from lfi_pipeline.evaluation.grounding_protocol import _on_grid, grounding
from lfi_pipeline.evaluation.maps import class_maps
from lfi_pipeline.report import load_run as load_reported
from lfi_pipeline.targets import TargetStore, decode_maps
from lfi_pipeline.training.data import PlainImages
from lfi_pipeline.training.learner import load_run
from lfi_pipeline.training.run_dir import read_json


def write_gallery(run: Path, targets: Path, count: int) -> None:
    grounding(run, EvaluationConfig(device="cpu"), GroundingConfig(targets=targets, gallery=count))


@pytest.mark.parametrize("objective", ["none", "lfi"])
def test_the_report_reads_what_was_written(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path, objective: str
) -> None:
    run = run_of[objective]
    write_gallery(run, tiny_val_targets, 5)
    gallery = load_reported(run).gallery
    assert len({sample.key for sample in gallery}) == 5

    dataset, store = read_dataset("scenes", scenes_root, "val"), TargetStore.open(tiny_val_targets)
    mask_of = {(word.position, word.row): word.mask for word in grounded_words(store, dataset)}
    for sample in gallery:
        position = store.index.keys.index(sample.key)
        source = dataset.samples[position]
        assert sample.caption == source.captions[0]
        assert sample.domain == source.domain
        assert np.array_equal(sample.image, np.asarray(read_image(scenes_root, source.path)[0]))

        stored = store.read(position)
        rows = [row for row, word in enumerate(stored.words.tolist()) if word >= 0]
        assert list(sample.words) == [store.vocabulary.words[stored.words[row]] for row in rows]
        maps = decode_maps(stored.maps, stored.scale, store.spec.codec.name)[-1][rows]
        np.testing.assert_allclose(sample.teacher, maps, atol=1e-3)

        masks = [mask_of.get((position, row)) for row in rows]
        assert any(mask is not None for mask in masks)
        assert any(mask is None for mask in masks) or len(rows) == len(source.labels)
        for row, (mask, verdict) in enumerate(zip(masks, sample.teacher_correct, strict=True)):
            assert (verdict is None) == (mask is None)
            if mask is not None:
                assert verdict == bool(peaks_in_mask(torch.from_numpy(maps[row])[None], mask[None]))

        if objective == "none":
            assert sample.student is None
            assert sample.student_correct == ()
            continue
        assert sample.student is not None
        assert sample.student.shape == (3, len(rows), 4, 4)
        np.testing.assert_allclose(sample.student.sum((-2, -1)), 1, atol=5e-3)
        for tap, verdicts in enumerate(sample.student_correct):
            for row, (mask, verdict) in enumerate(zip(masks, verdicts, strict=True)):
                assert (verdict is None) == (mask is None)
                own = torch.from_numpy(sample.student[tap, row])
                if mask is not None and own.flatten().topk(2).values.diff().abs() > 2e-3:  # stored as fp16
                    assert verdict == bool(peaks_in_mask(own[None], mask[None]))


@pytest.mark.parametrize("objective", ["none", "lfi"])
def test_class_maps_of_the_words_that_name_classes_are_kept(
    run_of: dict[str, Path], tiny_val_targets: Path, scenes_root: Path, objective: str
) -> None:
    run = run_of[objective]
    write_gallery(run, tiny_val_targets, 5)
    dataset, store = read_dataset("scenes", scenes_root, "val"), TargetStore.open(tiny_val_targets)
    mask_of = {(word.position, word.row): word.mask for word in grounded_words(store, dataset)}
    student, images = load_run(run, device="cpu").student, PlainImages(dataset, [(64, 64)])
    tensors = load_file(run / "gallery.safetensors")
    for number, entry in enumerate(read_json(run / "gallery.json")["samples"]):
        labels = [dataset.classes.index(word) if word in dataset.classes else None for word in entry["words"]]
        assert entry["classes"] == labels
        position = store.index.keys.index(entry["key"])
        maps = tensors[f"cam_{number}"].float()
        assert maps.shape == (len(labels), 4, 4)
        for row, (label, own, verdict) in enumerate(zip(labels, maps, entry["cam_correct"], strict=True)):
            mask = mask_of.get((position, row))  # words fill the rows from the first
            assert (verdict is None) == (mask is None)
            if label is None:
                assert not own.any()
                continue
            image = images[position][0][(64, 64)]
            (again,) = class_maps(student, image[None], torch.tensor([0]), torch.tensor([label]))
            torch.testing.assert_close(own, again, rtol=0, atol=2e-3)
            if mask is not None and again.flatten().topk(2).values.diff().abs() > 2e-3:
                assert verdict == bool(peaks_in_mask(again[None], mask[None]))


def test_the_gallery_shows_failures_as_well(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    write_gallery(run_of["lfi"], tiny_val_targets, 16)
    shown = load_reported(run_of["lfi"]).gallery
    shares = [np.mean([hit for hit in sample.student_correct[-1] if hit is not None]) for sample in shown]
    assert shares == sorted(shares)  # from the worst to the best
    assert min(shares) < max(shares)


def test_more_samples_than_there_are_gives_all(run_of: dict[str, Path], tiny_val_targets: Path) -> None:
    write_gallery(run_of["lfi"], tiny_val_targets, 500)
    keys = [sample.key for sample in load_reported(run_of["lfi"]).gallery]
    assert len(keys) == len(set(keys)) <= 16


def test_a_coarser_tap_is_put_on_the_finest_grid_with_its_mass() -> None:
    coarse = torch.rand(2, 3, 3)
    coarse /= coarse.sum((1, 2), keepdim=True)
    fine = _on_grid(coarse, torch.Size((6, 6)))
    torch.testing.assert_close(fine.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(fine[:, ::2, 1::2] * 4, coarse)
    assert _on_grid(coarse, torch.Size((3, 3))) is coarse


def test_the_gallery_of_a_student_without_queries_goes_by_its_class_maps(
    run_of: dict[str, Path], tiny_val_targets: Path
) -> None:
    write_gallery(run_of["none"], tiny_val_targets, 16)
    entries = read_json(run_of["none"] / "gallery.json")["samples"]
    shares = [np.mean([hit for hit in entry["cam_correct"] if hit is not None]) for entry in entries]
    assert shares == sorted(shares)
    assert min(shares) < max(shares)
