"""From a recipe to its sweep, its commands and its files, on recipes small enough to do by hand."""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, DatasetError, OutputExistsError, OutputWriteError
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.recipes import Command, Evaluation, Place, Recipe, Splits, commands, commands_of
from lfi_pipeline.recipes.commands import Prepared, planned_runs, read_splits, require_place, sweep_table, write_files

SPLITS = Splits(train="train", val="val")


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "mine",
        "title": "A trial",
        "dataset": "scenes",
        "splits": (SPLITS,),
        "base": {"student": "vit_tiny_patch16_224", "epochs": 2},
        "grid": {"objective": ["none", "lfi"]},
    }
    return Recipe(**{**fields, **changes})


def dataset(domains: Mapping[str, int], split: str = "train") -> Dataset:
    samples = [
        Sample(key=f"{domain}{i}", path="", captions=(), labels=(0,), domain=domain, height=0, width=0)
        for domain, count in domains.items()
        for i in range(count)
    ]
    return Dataset(name="scenes", root=Path(), split=split, classes=("cat",), samples=samples)


def lines(made: Recipe, place: Place, splits: Splits = SPLITS, **sizes: int) -> list[list[str]]:
    """Words of every command, paths as they are below the place."""
    train = dataset({"": 10})
    runs = planned_runs(sweep_table(made, place, splits, train), place.out)
    found = commands_of(made, place, splits, runs, {"train": 10, "val": 4, **sizes})
    return [[word.replace(f"{place.out}/", "OUT/") for word in each.words] for each in found]


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_the_words_of_a_command_survive_a_shell() -> None:
    words = ("report", "runs/it's", "--title", "a $HOME; b")
    line = Command(title="the page", words=words).line
    assert line.startswith("lfi report ")
    assert tuple(shlex.split(line)) == ("lfi", *words)


def test_a_sweep_has_the_epochs_that_come_to_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place, train = Place(data_root=Path("data"), out=Path("out")), dataset({"art": 65, "photo": 30, "tv": 5})
    plain = sweep_table(recipe(where=({"match": {"objective": ["none"]}, "set": {"lr": 0.1}},)), place, SPLITS, train)
    assert plain == {
        "out": str(tmp_path / "out/runs"),  # absolute: the file may be read from anywhere
        "base": {
            "targets": str(tmp_path / "out/shards"),
            "val_split": "val",
            "student": "vit_tiny_patch16_224",
            "epochs": 2,
        },
        "grid": {"objective": ["none", "lfi"]},
        "where": [{"match": {"objective": ["none"]}, "set": {"lr": 0.1}}],
    }
    base = {"batch_size": 10, "val_split": "all"}
    grid = {"hold_out": [["art"], ["photo", "tv"], []]}
    made = sweep_table(recipe(base=base, grid=grid, steps=20), place, SPLITS, train)
    assert made["base"]["val_split"] == "all"  # what the recipe says counts
    assert made["where"] == [
        {"match": {"hold_out": ["art"]}, "set": {"epochs": 7}},  # 35 images: 3 steps an epoch, and 5 images over
        {"match": {"hold_out": ["photo", "tv"]}, "set": {"epochs": 4}},  # 65 images: 6 steps, 3.33 epochs
        {"match": {"hold_out": []}, "set": {"epochs": 2}},
    ]
    once = sweep_table(recipe(base={**base, "hold_out": ["tv"]}, steps=1), place, SPLITS, train)
    assert once["where"] == [{"match": {"hold_out": ["tv"]}, "set": {"epochs": 1}}]  # never less than one epoch
    with pytest.raises(
        ConfigError,
        match=r"Without art, photo, tv there must be images left .*, found none among the domains art, photo, tv\.",
    ):
        sweep_table(recipe(grid={"hold_out": [["art", "photo", "tv"]]}, steps=20), place, SPLITS, train)


def test_the_commands_of_a_recipe_in_order(tmp_path: Path) -> None:
    grounding = Evaluation(
        protocol="grounding", targets="val", objectives=("lfi",), options={"per-word": True, "gallery": 3, "x": False}
    )
    place = Place(data_root=tmp_path / "data", out=tmp_path / "out", zero_shot={"pacs": Path("/pacs")}, workers=2)
    made = recipe(evaluate=(grounding, Evaluation(protocol="zero-shot", targets="zero-shot")))
    found = lines(made, place, pacs=7)
    assert [words[0] for words in found] == [
        *("extract-teacher", "extract-teacher", "extract-teacher", "inspect", "sweep"),
        *("evaluate", "evaluate", "compare", "report"),
    ]
    extracted = [[value(words, f"--{name}") for name in ("dataset", "split", "out", "views")] for words in found[:3]]
    assert extracted == [
        ["scenes", "train", "OUT/shards", None],
        ["scenes", "val", "OUT/shards-val", "full"],  # one view is enough to score on
        ["pacs", "all", "OUT/shards-pacs", "full"],
    ]
    assert value(found[2], "--data-root") == "/pacs"
    assert found[3] == ["inspect", "OUT/shards-val", "--pointing"]
    assert found[4] == ["sweep", "OUT/sweep.toml", "--together", "1", "--workers", "2", "--device", "auto"]
    (folder,) = [word for word in found[5] if word.startswith("OUT/runs/")]
    assert "lfi" in Path(folder).name
    assert found[5] == [
        *("evaluate", folder, "--protocol", "grounding", "--weights", "best", "--targets", "OUT/shards-val"),
        *("--per-word", "--gallery", "3", "--no-x", "--workers", "2", "--device", "auto"),
    ]
    assert value(found[6], "--targets") == "OUT/shards-pacs"
    assert len([word for word in found[7] if word.startswith("OUT/runs/")]) == 2


def test_primary_measures_go_to_the_table_and_the_page(tmp_path: Path) -> None:
    place = Place(data_root=tmp_path / "data", out=tmp_path / "out")
    named = lines(recipe(primary=("map_seen", "grounding:pointing")), place)
    assert [value(words, "--primary") for words in named[-2:]] == ["map_seen,grounding:pointing"] * 2
    assert [value(words, "--primary") for words in lines(recipe(), place)[-2:]] == [None, None]


def test_only_evaluations_are_noted_as_done_once(tmp_path: Path) -> None:
    place = Place(data_root=tmp_path / "data", out=tmp_path / "out")
    made = recipe(evaluate=(Evaluation(protocol="classification", one_by_one=True),))
    runs = planned_runs(sweep_table(made, place, SPLITS, dataset({"": 10})), place.out)
    found = commands_of(made, place, SPLITS, iter(runs), {"train": 10, "val": 4})
    assert [each.title for each in found if each.once] == [f"classification of {run.name}" for run in runs]
    assert {each.words[0] for each in found if not each.once} == {
        *("extract-teacher", "inspect", "sweep", "compare", "report")
    }
    assert [each.title for each in found if each.words[0] == "sweep"] == ["2 students"]


def test_a_split_that_is_trained_and_scored_on_is_extracted_once_and_a_limit_is_in_shards(tmp_path: Path) -> None:
    place = Place(data_root=tmp_path / "data", out=tmp_path / "out")
    found = lines(recipe(), place, Splits(train="all", val="all", weights="last"), all=10)
    assert [words[0] for words in found] == ["extract-teacher", "inspect", "sweep", "compare", "report"]
    assert found[1] == ["inspect", "OUT/shards"]
    limited = recipe(most_images=9, extract={"samples_per_shard": 4})
    assert [value(words, "--shards") for words in lines(limited, place, train=10, val=9)[:2]] == ["0:3", None]
    default = recipe(most_images=1025)
    assert value(lines(default, place, train=5000)[0], "--shards") == "0:2"  # shards of 1024


def test_the_first_splits_that_have_images_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"train": dataset({"": 3}), "val": dataset({}), "all": dataset({"": 5})}
    asked: list[str] = []

    def read(name: str, root: Path, split: str) -> Dataset:
        asked.append(split)
        if split not in there:
            raise DatasetError(f"{root} has no split {split}.")
        return there[split]

    monkeypatch.setattr(commands, "read_dataset", read)
    official, copy = Splits(train="train", val="test"), Splits(train="all", val="all")
    assert read_splits(recipe(splits=(official, copy)), Path("data")) == (copy, there["all"], there["all"])
    assert asked == ["train", "test", "all"]  # one split is read once
    with pytest.raises(DatasetError, match=r"data has no split test\."):  # not the last that was tried
        read_splits(recipe(splits=(official, Splits(train="none", val="none"))), Path("data"))
    with pytest.raises(DatasetError, match=r"data must hold images of train and val, found none\."):
        read_splits(recipe(splits=(SPLITS, official)), Path("data"))


def test_files_are_written_where_nothing_else_lies(tmp_path: Path) -> None:
    made, place = recipe(), Place(data_root=tmp_path / "data", out=tmp_path / "new" / "out")
    require_place(place, made)
    sweep = {"out": "runs", "base": {"epochs": 2}}
    write_files(place, made, sweep, [Command(title="a page", words=("report", "a b"))])
    script = (place.out / "commands.sh").read_text(encoding="utf-8")
    assert script == "#!/bin/sh\n# Recipe mine, command by command.\nset -e\n\n# a page\nlfi report 'a b'\n"
    assert tomllib.loads((place.out / "sweep.toml").read_text(encoding="utf-8")) == sweep
    require_place(place, dataclasses.replace(made, title="Another title"))
    with pytest.raises(OutputExistsError, match=r"holds another recipe \(most_images: .* there, 5 asked\)"):
        require_place(place, dataclasses.replace(made, most_images=5))
    file = dataclasses.replace(place, out=place.out / "commands.sh")
    with pytest.raises(OutputExistsError, match=r"commands\.sh must be a directory, found a file\."):
        require_place(file, made)
    with pytest.raises(OutputWriteError, match=r"commands\.sh/below cannot be written: Not a directory\."):
        write_files(dataclasses.replace(place, out=file.out / "below"), made, sweep, [])


def test_images_of_one_view_count_for_their_share_of_the_views() -> None:
    prepared = Prepared(
        recipe=recipe(extract={"views": ["full", "hflip", "crop", "zoom"]}),
        place=Place(data_root=Path("data"), out=Path("out")),
        splits=SPLITS,
        train=dataset({"": 1}),
        val=dataset({"": 1}),
        images={"train": 100, "val": 40, "pacs": 8},
        sweep={},
        runs=(),
        commands=(),
        left_out=(),
    )
    assert prepared.extracted == 100 + 40 / 4 + 8 / 4
