"""lfi reproduce: each recipe end to end on a small copy of its data set's layout, with the embedded teacher."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lfi_cli.main import app_for
from tests.lfi_pipeline.data import layouts

RECIPES = ("coco", "pacs", *layouts.RECIPES_OF_SCENES, "tiny-imagenet", "vlcs")
PROTOCOLS = {
    "coco": {"grounding", "detection"},
    "pacs": {"cross-domain"},
    "scenes": {"grounding"},
    **{name: {"grounding"} for name in ("scenes-ablations", "scenes-single", "scenes-teacher")},
    "vlcs": {"cross-domain"},
}
"""Beside classification, which all others have."""
ALONE = {"scenes-groups": {"worst-group"}, "scenes-tune": set[str]()}


def data_of(name: str, root: Path) -> Path:
    """A copy of the layout, of the fewest images that a recipe can train on."""
    match name:
        case "coco":
            return layouts.make_coco(root, train=12, val=6)
        case "pacs":
            return layouts.make_pacs(root, per_class=2)
        case "scenes-groups":
            return layouts.make_scenes(root, train=12, val=6, test=6, spurious=0.95)
        case _ if name in layouts.RECIPES_OF_SCENES:
            return layouts.make_scenes(root, train=12, val=6, test=6)
        case "vlcs":
            return layouts.make_vlcs(root, official=True)
    return layouts.make_tiny_imagenet(root, per_class=4)


def test_without_a_name_the_recipes_are_listed(lfi: Callable[..., Any]) -> None:
    shown = lfi("reproduce")
    assert shown.code == 0
    for name in RECIPES:
        assert f"\n{name} " in shown.out
    assert set(lfi("reproduce", "--json").json["recipes"]) == set(RECIPES)


def test_a_dry_run_only_writes_the_files_and_tells_the_plan(lfi: Callable[..., Any], tmp_path: Path) -> None:
    data, out = data_of("pacs", tmp_path / "data"), tmp_path / "out"
    words = ("reproduce", "pacs", "--data-root", data, "--out", out, "--small", "--dry-run", "--device", "cpu")
    found = lfi(*words, "--no-measure", "--json").json
    assert sorted(path.name for path in out.iterdir()) == ["commands.sh", "recipe.toml", "sweep.toml"]
    assert len(found["runs"]) == 8
    assert found["plan"] is None
    shown = lfi(*words)
    assert shown.code == 0
    assert "hours of this CPU" in shown.out
    assert re.search("\nnot counted +the protocols cross-domain, classification, convergence\n", shown.out)
    assert "detectors" not in shown.out
    assert "scenes-coca" in shown.out
    assert "not the paper's settings" in shown.out
    assert "NVIDIA" not in shown.out  # nothing is estimated of a trial
    for line in found["commands"]:
        assert f"\n{line}\n" in shown.out


def test_the_plan_tells_what_detection_takes(lfi: Callable[..., Any], tmp_path: Path) -> None:
    data, out = data_of("coco", tmp_path / "data"), tmp_path / "out"
    shown = lfi("reproduce", "coco", "--data-root", data, "--out", out, "--small", "--dry-run", "--device", "cpu").out
    assert "3 x 2 steps of 2 images, Mask R-CNN on vit_tiny_patch16_224 at 64x64" in shown
    assert " + detectors " in shown
    assert "the protocols classification, grounding, zero-shot, convergence; the scoring of detectors" in shown


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", [(), ("--small",)])
def test_every_command_of_a_plan_is_one_that_there_is(
    name: str, scale: tuple[str, ...], lfi: Callable[..., Any], tmp_path: Path
) -> None:
    zero_shot = ("--zero-shot", f"pacs={layouts.make_pacs(tmp_path / 'other')}") if name == "coco" else ()
    words = ("--data-root", data_of(name, tmp_path / "data"), "--out", tmp_path / "out", *zero_shot, *scale)
    found = lfi("reproduce", name, *words, "--dry-run", "--no-measure", "--json").json
    for line in found["commands"]:
        program, *words_of = shlex.split(line)
        assert program == "lfi"
        group = typer.main.get_command(app_for(words_of))
        assert isinstance(group, typer.core.TyperGroup)
        group.commands[words_of[0]].make_context(words_of[0], words_of[1:])  # raises for an option that there is not


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_from_images_to_the_page(name: str, lfi: Callable[..., Any], tmp_path: Path) -> None:
    data, out = data_of(name, tmp_path / "data"), tmp_path / "out"
    zero_shot = ("--zero-shot", f"pacs={layouts.make_pacs(tmp_path / 'other', per_class=1)}") if name == "coco" else ()
    words = ("reproduce", name, "--data-root", data, "--out", out, "--small", "--no-measure", *zero_shot)
    ended = lfi(*words, "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert [each["command"] for each in found["results"]] == found["commands"]
    assert f"Recipe {name}" in (out / "report.html").read_text(encoding="utf-8")
    protocols = PROTOCOLS.get(name, set())
    for run in found["runs"]:
        assert (Path(run) / "summary.json").is_file()
        scored = {json.loads(path.read_text())["protocol"] for path in (Path(run) / "evaluation").glob("*.json")}
        wanted = {"classification"} | protocols | ({"zero-shot"} if run.endswith("presence") else set())
        converges = ("none" not in run and name not in layouts.RECIPES_OF_SCENES) or (
            name == "scenes" and "queries-lfi" in run
        )
        assert scored == ALONE.get(name, wanted | ({"convergence"} if converges else set()))

    if name != "tiny-imagenet":  # once is enough
        return
    again = lfi(*words, "--device", "cpu", "--json")
    assert again.code == 0
    assert "step/s" not in again.err  # nothing is trained twice
    assert [each.get("finished_before", False) for each in again.json["results"]] == [
        line.startswith("lfi evaluate") for line in found["commands"]
    ]


def test_a_root_that_is_not_there_is_told_before_anything_is_written(fails: Callable[..., str], tmp_path: Path) -> None:
    words = ("reproduce", "coco", "--data-root", tmp_path / "absent", "--out", tmp_path / "out")
    assert "absent" in fails("DatasetError", *words)
    (tmp_path / "absent/train2017").mkdir(parents=True)
    assert "annotations" in fails("DatasetError", *words)
    assert not (tmp_path / "out").exists()


def test_a_zero_shot_data_set_needs_name_and_root(fails: Callable[..., str], tmp_path: Path) -> None:
    message = fails("ConfigError", "reproduce", "coco", "--data-root", tmp_path, "--zero-shot", "pacs")
    assert "NAME=DIR" in message


def test_a_command_that_fails_ends_the_recipe_with_its_error(fails: Callable[..., str], tmp_path: Path) -> None:
    data = data_of("tiny-imagenet", tmp_path / "data")
    words = ("reproduce", "tiny-imagenet", "--data-root", data, "--out", tmp_path / "out", "--small", "--no-measure")
    message = fails("UnknownNameError", *words, "--teacher", "scenes-cocoa")
    assert "scenes-coca" in message
    assert not (tmp_path / "out/runs").exists()
