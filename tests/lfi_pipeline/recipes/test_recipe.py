"""Recipes: what their files may say, and the runs and commands that come of them."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, DatasetError, LFIError, OutputExistsError, UnknownNameError
from lfi_pipeline.core.options import flatten
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.recipes import Place, load_recipe, recipe_names
from lfi_pipeline.recipes.commands import Prepared, planned_runs, prepare, sweep_table, write_files
from lfi_pipeline.training.sampler import ResumableBatchSampler
from tests.lfi_pipeline.data import layouts

NAMES = ("coco", "pacs", *layouts.RECIPES_OF_SCENES, "tiny-imagenet", "vlcs")
OF_OBJECTIVES = tuple(name for name in NAMES if name not in layouts.RECIPES_OF_SCENES)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "coco": lambda root: layouts.make_coco(root, train=4, val=2),
    "pacs": layouts.make_pacs,
    **dict.fromkeys(layouts.RECIPES_OF_SCENES, lambda root: layouts.make_scenes(root, train=4, val=2, test=2)),
    "tiny-imagenet": layouts.make_tiny_imagenet,
    "vlcs": lambda root: layouts.make_vlcs(root, official=True),
}
SEEDS = (0, 1, 2)


def prepared(name: str, tmp_path: Path, *, small: bool = False, **place: Any) -> Prepared:
    root = tmp_path / "data"
    if not root.exists():
        MAKERS[name](root)
    return prepare(load_recipe(name, small=small), Place(data_root=root, out=tmp_path / "out", **place))


def content(name: str = "pacs") -> str:
    return (resources.files("lfi_pipeline") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def test_every_recipe_of_the_package_is_found() -> None:
    assert recipe_names() == NAMES
    for name in NAMES:
        assert load_recipe(name).name == name
        assert load_recipe(name, small=True).teacher == "scenes-coca"


@pytest.mark.parametrize("name", OF_OBJECTIVES)
def test_full_scale_compares_every_objective_over_three_seeds(name: str, tmp_path: Path) -> None:
    found = prepared(name, tmp_path)
    kinds = Counter(
        (run.config.objective, run.config.data.maps, run.config.data.seed, run.config.data.hold_out)
        for run in found.runs
    )
    assert set(kinds.values()) == {1}
    domains: list[tuple[str, ...]] = {
        "pacs": [(domain,) for domain in layouts.PACS_DOMAINS],
        "vlcs": [(domain,) for domain in layouts.VLCS_DOMAINS],
    }.get(name, [()])
    wanted = [(each, "teacher") for each in ("none", "embedding", "logits", "lfi")] + [("lfi", "shuffled")]
    if name == "coco":
        wanted.append(("lfi+presence", "teacher"))
    assert set(kinds) == {(*each, seed, domain) for each in wanted for seed in SEEDS for domain in domains}
    assert not any(run.config.student.name == "vit_tiny_patch16_224" for run in found.runs)


STUDENTS = ("resnet10t", "xcit_nano_12_p8_224")
CONTROLS = ("linear", "linear-cutmix", "linear-embedding", "linear-logits", "queries", "queries-cutmix")


def test_the_evidence_has_every_control_over_five_seeds_for_two_families_of_students(tmp_path: Path) -> None:
    runs = prepared("scenes", tmp_path).runs
    maps = ("", "-shuffled", "-moved", "-uniform", "-masks")
    variants = (*CONTROLS, "queries-embedding", "queries-logits", *(f"queries-lfi{each}" for each in maps))
    assert {run.name for run in runs} == {
        f"{variant}-{student}-{seed}" for variant in variants for student in STUDENTS for seed in range(5)
    }
    assert len({repr(replace(run.config, data=replace(run.config.data, seed=0))) for run in runs}) == 2 * len(variants)
    for command in prepared("scenes", tmp_path).commands:
        if "classification" in command.words:
            assert command.words[command.words.index("--split") + 1] == "test"


def test_no_objective_has_more_trials_than_its_controls_and_none_shares_a_seed_with_the_evidence(
    tmp_path: Path,
) -> None:
    found = prepared("scenes-tune", tmp_path)
    runs, lines = found.runs, [each.line for each in found.commands]
    assert [line.partition("--choose ")[2][:9] for line in lines if line.startswith("lfi sweep")] == ["lr,weight"]
    assert not [line for line in lines if line.startswith("lfi compare")]  # nothing is scored yet
    trials = Counter(
        (r.config.student.name, r.config.head, r.config.objective, r.config.data.maps, r.config.data.mix.cutmix)
        for r in runs
    )
    of_lfi = {student: trials.pop((student, "queries", "lfi", "teacher", 0.0)) for student in STUDENTS}
    trials.pop(("resnet10t", "queries", "lfi", "uniform", 0.0))  # which were to find out whether they do more than none
    assert Counter(student for student, *_ in trials) == {"resnet10t": 9, "xcit_nano_12_p8_224": 5}
    rivals = {key: count for key, count in trials.items() if key[2] == "embedding" or key[3] == "shuffled"}
    assert {key for key, count in rivals.items() if count < of_lfi[key[0]]} == set()
    assert min(*trials.values(), *of_lfi.values()) == 8
    assert not {r.config.data.seed for r in runs} & set(load_recipe("scenes").grid["seed"])
    assert {r.config.data.epochs * 2 for r in runs} == {load_recipe("scenes").base["epochs"]}


def test_groups_are_scored_on_the_test_split_with_controls_of_the_maps(tmp_path: Path) -> None:
    found = prepared("scenes-groups", tmp_path)
    variants = {run.name.partition("-resnet10t")[0].partition("-xcit")[0] for run in found.runs}
    assert variants == {
        *CONTROLS,
        "queries-embedding",
        "queries-lfi",
        *(f"queries-lfi-mix{m}" for m in ("", "-shuffled", "-moved", "-masks")),
    }
    (line,) = (each.line for each in found.commands if each.line.startswith("lfi evaluate"))
    assert "--protocol worst-group" in line
    assert "--split test" in line


def test_ablations_change_one_thing_at_a_time(tmp_path: Path) -> None:
    plain, *others = {
        run.name: run for run in prepared("scenes-ablations", tmp_path).runs if run.name.endswith("-0")
    }.values()
    assert plain.name == "as-it-is-0"
    same = flatten(plain.config)
    for run in others:
        changed = {name for name, value in flatten(run.config).items() if value != same[name]}
        if run.config.head == "queries" and run.config.objective == "lfi":
            assert len(changed) == 1, run.name


def test_a_budget_of_steps_is_kept_whatever_is_left_out(tmp_path: Path) -> None:
    sizes = dict(zip(layouts.PACS_DOMAINS, (1840, 2107, 1499, 3531), strict=True))  # of the official train lists
    samples = [
        Sample(key=f"{domain}{i}", path="", captions=(), labels=(0,), domain=domain, height=0, width=0)
        for domain, count in sizes.items()
        for i in range(count)
    ]
    train = Dataset(name="pacs", root=tmp_path, split="train", classes=layouts.PACS_CLASSES, samples=samples)
    recipe, place = load_recipe("pacs"), Place(data_root=tmp_path, out=tmp_path / "out")
    epochs = {}
    for run in planned_runs(sweep_table(recipe, place, recipe.splits[0], train), place.out):
        (domain,) = run.config.data.hold_out
        steps = ResumableBatchSampler(np.arange(8977 - sizes[domain]), run.config.data).steps
        assert 0 <= steps - 5000 < steps / run.config.data.epochs  # the whole budget, and no epoch more than it takes
        epochs[domain] = run.config.data.epochs
    assert len(set(epochs.values())) == 4
    assert max(epochs, key=lambda name: epochs[name]) == "sketch"


def test_a_copy_without_lists_trains_on_all_and_keeps_the_last_weights(tmp_path: Path) -> None:
    layouts.make_pacs(tmp_path / "data", lists=None)
    found = prepared("pacs", tmp_path)
    assert (found.splits.train, found.splits.val, found.splits.weights) == ("all", "all", "last")
    assert "no lists" in found.splits.note
    assert {run.config.val_split for run in found.runs} == {"all"}
    lines = [each.line for each in found.commands]
    assert sum(line.startswith("lfi extract-teacher") for line in lines) == 1
    assert all("--weights last" in line for line in lines if line.startswith("lfi evaluate"))


def test_the_best_weights_are_scored_where_another_split_chose_them(tmp_path: Path) -> None:
    lines = [each.line for each in prepared("pacs", tmp_path).commands]
    assert all("--weights best" in line for line in lines if line.startswith("lfi evaluate"))


def test_zero_shot_scores_are_of_runs_with_presence_on_the_data_sets_given(tmp_path: Path) -> None:
    without = prepared("coco", tmp_path)
    assert "zero-shot" in without.left_out[0]
    assert not any("zero-shot" in each.line for each in without.commands)
    other = layouts.make_pacs(tmp_path / "other")
    found = prepared("coco", tmp_path, zero_shot={"pacs": other})
    assert found.left_out == ()
    (line,) = [each.words for each in found.commands if "zero-shot" in each.words]
    folders = [Path(word).name for word in line[1 : line.index("--protocol")]]
    assert folders == [run.name for run in found.runs if run.config.objective == "lfi+presence"]
    assert line[line.index("--targets") + 1] == str(tmp_path / "out/shards-pacs")
    assert any(each.words[:1] == ("extract-teacher",) and str(other) in each.words for each in found.commands)


def test_detection_is_a_command_for_each_run(tmp_path: Path) -> None:
    found = prepared("coco", tmp_path)
    lines = [each.words for each in found.commands if "detection" in each.words]
    assert [words[1] for words in lines] == [str(run.folder) for run in found.runs]
    assert all("--iterations" in words for words in lines)


def test_convergence_is_to_runs_without_a_term_that_left_out_the_same_domain(tmp_path: Path) -> None:
    found = prepared("pacs", tmp_path)
    lines = [each.words for each in found.commands if "convergence" in each.words]
    assert len(lines) == 4
    for words in lines:
        scored = [Path(word).name for word in words[1 : words.index("--protocol")]]
        against = [Path(words[i + 1]).name for i, word in enumerate(words) if word == "--reference"]
        assert (len(scored), len(against)) == (4 * 3, 3)
        assert all("-none-" in name for name in against)
        assert not any("-none-" in name for name in scored)
        assert len({name.split("-")[0] for name in (*scored, *against)}) == 1


def test_a_limit_of_images_is_whole_shards(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content().replace("steps = 5000", "steps = 5000\nmost_images = 20") + "")
    path.write_text(path.read_text().replace('views = ["full", "hflip"]', 'views = ["full"]\nsamples_per_shard = 8'))
    layouts.make_pacs(tmp_path / "data")
    found = prepare(load_recipe(str(path)), Place(data_root=tmp_path / "data", out=tmp_path / "out"))
    assert found.commands[0].line.count("--shards 0:3") == 1
    assert found.images == {"train": 20, "val": 20}


def test_what_is_written_is_a_recipe_that_gives_the_same_runs(tmp_path: Path) -> None:
    found = prepared("vlcs", tmp_path, small=True)
    write_files(found.place, found.recipe, found.sweep, found.commands)
    out = found.place.out
    assert sorted(path.name for path in out.iterdir()) == ["commands.sh", "recipe.toml", "sweep.toml"]
    again = load_recipe(str(out / "recipe.toml"))
    assert again == found.recipe
    assert prepare(again, found.place).runs == found.runs
    assert tomllib.loads((out / "sweep.toml").read_text())["grid"]["objective"] == ["none", "lfi"]
    script = (out / "commands.sh").read_text().splitlines()
    assert [line for line in script if line.startswith("lfi ")] == [each.line for each in found.commands]


def test_nothing_is_written_to_a_place_of_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"found other files"):
        prepared("pacs", tmp_path)
    (tmp_path / "out/thesis.txt").unlink()
    small = prepared("pacs", tmp_path, small=True)
    write_files(small.place, small.recipe, small.sweep, small.commands)
    assert prepared("pacs", tmp_path, small=True).runs == small.runs
    with pytest.raises(OutputExistsError, match=r"another recipe \(teacher: 'scenes-coca' there, None asked\)"):
        prepared("pacs", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_root_is_the_data_sets_own_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent"):
        prepare(load_recipe(name), Place(data_root=tmp_path / "absent", out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("old", "new", "kind", "told"),
    [
        ('name = "pacs"', 'nam = "pacs"', UnknownNameError, "'nam'"),
        ('dataset = "pacs"', 'dataset = "pax"', UnknownNameError, "'pax'"),
        ("steps = 5000", 'steps = "many"', ConfigError, "steps must be a whole number"),
        ("steps = 5000", "steps = -1", ConfigError, "0 or more"),
        ("words = 4", "wrds = 4", UnknownNameError, "'wrds'"),
        ("words = 4", "words = true", ConfigError, "whole number"),
        ("batch_size = 96", "batch = 96", UnknownNameError, "'batch'"),
        ("seed = [0, 1, 2]", "seed = 0", ConfigError, "a list"),
        ('protocol = "cross-domain"', 'protocol = "crossdomain"', UnknownNameError, "cross-domain"),
        ('protocol = "cross-domain"', 'objectives = ["lfi"]', ConfigError, "protocol"),
        ('weights = "last"', 'weights = "first"', UnknownNameError, "'first'"),
        ('title = "', 'titel = "', UnknownNameError, "'titel'"),
        ('primary = ["cross-domain:top1"]', 'primary = ["cross-domain:top2"]', UnknownNameError, "'top2'.*'top1'"),
        ('primary = ["cross-domain:top1"]', 'primary = "cross-domain:top1"', ConfigError, "primary must be a list"),
        ("steps = 1 #", 'steps = "few" #', ConfigError, "steps must be"),  # of [small], though it is not asked for
        ('student = "resnet50"', "student = 50", ConfigError, "student must be a text"),
    ],
)
def test_a_mistake_in_a_file_is_named(old: str, new: str, kind: type[LFIError], told: str, tmp_path: Path) -> None:
    assert old in content()
    path = tmp_path / "mine.toml"
    path.write_text(content().replace(old, new, 1))
    with pytest.raises(kind, match=told) as raised:
        load_recipe(str(path))
    assert str(path) in str(raised.value) or kind is UnknownNameError


def test_small_needs_its_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content().partition("[small]")[0])
    with pytest.raises(ConfigError, match=r"\[small\]"):
        load_recipe(str(path), small=True)
    with pytest.raises(UnknownNameError, match=r"Choices: coco, pacs, scenes, scenes-ablations, scenes-groups, "):
        load_recipe("cocoo")
