"""lfi demo, lfi distil, lfi datasets, lfi make-scenes"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer.main

from lfi_cli.generate import command
from lfi_cli.main import app_for
from lfi_cli.output import Result, Shown, facts, percent, say, show_tree, stderr
from lfi_pipeline.core.errors import ConfigError, DatasetError
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.data.config import ScenesConfig
from lfi_pipeline.recipes.distil import FILES as DISTILLED
from lfi_pipeline.recipes.distil import DistilConfig, steps, summary

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.data import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Datasets:
    """Options of `lfi datasets`."""

    name: Annotated[
        str,
        Option(
            "A folder of images, a data set, or the path of your own .toml manifest; empty lists all.", positional=True
        ),
    ] = ""
    data_root: Annotated[Path | None, Option("Read the data set's files there and count.")] = None

    def __post_init__(self) -> None:
        check(self)


@command(Datasets)
def datasets(config: Datasets) -> Shown:
    """Say what a folder of images is, or list the data sets: what each needs on disk and how to obtain it.

    Nothing is downloaded.

    Example: lfi datasets ~/photos

    Example: lfi datasets pacs --data-root data/PACS
    """
    from lfi_pipeline.data import load_manifest, manifest_names

    if config.name and config.name not in manifest_names() and Path(config.name).is_dir():
        return _folder(Path(config.name), config.data_root)
    if config.name:
        return _sheet(load_manifest(config.name, config.data_root), config.name, config.data_root)
    if config.data_root is not None:
        raise ConfigError("data_root needs the name of a data set: lfi datasets NAME.", argument="data_root")
    described = [_described(load_manifest(each)) for each in manifest_names()]

    def render(console: Console) -> None:
        for each in described:
            rows = [(field, ", ".join(each[field])) for field in ("splits", "needs")]
            facts(console, f"{each['name']} – {each['title']}", [*rows, *((f, each[f]) for f in ("license", "obtain"))])
        say(console, "One sheet, and a check of your files: lfi datasets NAME --data-root DIR")

    return Shown({"datasets": described}, render)


def _folder(path: Path, data_root: Path | None) -> Shown:
    from lfi_pipeline.data import describe

    if data_root is not None:
        raise ConfigError(
            f"{path} is a folder and so the data root itself, got data_root {data_root} beside it. Leave one out.",
            argument="data_root",
        )
    text, result = describe(path)

    def render(console: Console) -> None:
        say(console, text)
        name = shlex.quote(str(path))
        say(console, "", f"All of it, to a student and its answers: lfi distil {name} --out distilled")
        say(console, f"The teacher's maps alone: lfi extract-teacher --dataset {name} --out shards")

    return Shown(result, render)


def _sheet(manifest: Manifest, name: str, data_root: Path | None) -> Shown:
    result: Result = _described(manifest)
    if data_root is not None:
        result["data_root"] = str(data_root)
        result["found"] = {split: _counted(name, data_root, split) for split in manifest.splits}
        if not any("samples" in counts for counts in result["found"].values()):
            first = next(iter(result["found"].values()))
            raise DatasetError(str(first["error"]))

    def render(console: Console) -> None:
        rows = [(field, result[field]) for field in ("title", "license", "homepage", "obtain", "teacher", "layout")]
        rows += [("prompt", prompt) for prompt in result["prompts"]]
        rows += [("needs", line) for line in result["needs"]]
        rows += [("split", split) for split in result["splits"] if data_root is None]
        for split, counts in result.get("found", {}).items():
            totals = ", ".join(f"{value} {what}" for what, value in counts.items() if what not in ("domains", "error"))
            domains = ", ".join(f"{domain} {count}" for domain, count in counts.get("domains", {}).items())
            rows.append((f"split {split}", counts.get("error") or f"{totals}{f' ({domains})' if domains else ''}"))
        facts(console, manifest.name, rows)

    return Shown(result, render)


def _described(manifest: Manifest) -> Result:
    from lfi_pipeline.data import expected_tree

    return {
        "name": manifest.name,
        "title": manifest.title,
        "license": manifest.license,
        "homepage": manifest.homepage,
        "obtain": manifest.obtain,
        "teacher": manifest.teacher,
        "layout": manifest.layout,
        "prompts": list(manifest.prompts),
        "splits": list(manifest.splits),
        "needs": list(expected_tree(manifest)),
    }


def _counted(name: str, data_root: Path, split: str) -> Result:
    """Count what one split holds, or say why it cannot be read."""
    from lfi_pipeline.data import read_dataset, summarize

    try:
        return summarize(read_dataset(name, data_root, split))
    except DatasetError as error:
        return {"error": str(error)}


SCENES = {
    "train": "pictures of the train split",
    "val": "pictures of the val split",
    "annotations": "captions and exact masks, in COCO's layout",
    "scenes.json": "the settings, so that a rerun can finish the work",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeScenes:
    """Options of `lfi make-scenes`."""

    out: Annotated[Path, Option("Directory to write; a rerun with the same options finishes the work.")] = Path(
        "data/scenes"
    )
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def __post_init__(self) -> None:
        check(self)


@command(MakeScenes, file=SettingsFile(ScenesConfig))
def make_scenes(config: MakeScenes) -> Shown:
    """Render the embedded data set: captioned emoji scenes with exact masks, in COCO's layout.

    Pictures are drawn from the OpenMoji font (all emojis designed by OpenMoji, CC BY-SA 4.0), those of the domains icon and
    emblem from three sets of icons. `emblem`, and any font of your own, is drawn as the embedded teacher has never seen.

    Example: lfi make-scenes --out data/scenes --train 2000 --val 400

    Example: lfi make-scenes --out data/noto --font NotoColorEmoji.ttf --held-out font
    """
    from lfi_pipeline.data.scenes import write_scenes

    scenes = config.scenes
    write_scenes(config.out, scenes)
    result: Result = {"out": str(config.out)} | asdict(scenes)
    rows: list[tuple[str, object]] = [
        ("train", scenes.train),
        ("val", scenes.val),
        *([("test", scenes.test)] if scenes.test is not None else []),
        ("domains", ",".join(scenes.domains)),
        ("held out", ",".join(scenes.held_out) or "none"),
        ("in", config.out),
    ]
    if scenes.spurious is not None:
        spurious = f"{percent(scenes.spurious)} of the training scenes stand before their category's background"
        rows = [
            ("spurious", spurious) if name == "domains" else (name, value) for name, value in rows if name != "held out"
        ]

    def render(console: Console) -> None:
        facts(console, "Scenes", rows)
        show_tree(console, config.out, SCENES)

    return Shown(result, render)


STUDENT = shlex.split(  # of half the usual width, so that two of them take two minutes on a laptop
    "--student resnet10t --student-arg channels=[32,64,128,256] --image-size 64 --batch-size 32 --lr 3e-3 --scale 1 1 "
    "--hflip 0"
)
STUDENTS = {
    "linear": ("--head", "linear", "--objective", "none"),
    "queries": ("--head", "queries", "--objective", "lfi"),
}
PICTURES = 12  # validation images whose answers are drawn
FILES = {
    "report.html": "scores, curves and maps: open it in a browser",
    "answers/index.html": "what the student with the query head says of new images, and where it looked",
    "exported": "that student: a plain timm backbone, and the whole model for lfi predict and lfi_pipeline.load",
    "scenes": "the rendered data set, in COCO's layout",
    "shards": "the teacher's maps of the training split",
    "shards-val": "the teacher's maps of the validation split",
    "runs/*": "the two students",
}


def run_command(*words: object) -> Result:
    """Print a public command, run it, and return its result. Its own output goes to stderr, as the caller's is stdout.

    Raises:
        typer.Exit: the command failed and has said so; its cause is the error.
    """
    line = [str(word) for word in words]
    stderr().print(f"\n$ {shlex.join(['lfi', *line])}", style="bold", soft_wrap=True, highlight=False)
    group = typer.main.get_command(app_for(line))
    arguments, sys.argv = sys.argv, ["lfi", *line]  # runs record the command that made them
    try:
        # not `group(line, standalone_mode=False)`, which returns an exit code where a command fails
        with contextlib.redirect_stdout(sys.stderr), group.make_context("lfi", line) as context:
            result: Result = group.invoke(context)
    finally:
        sys.argv = arguments
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Options of `lfi demo`."""

    out: Annotated[Path, Option("Where everything goes; a rerun goes on where it stopped.")] = Path("lfi-demo")
    train: Annotated[int, Option("Training scenes.", ge=1)] = 1300
    val: Annotated[int, Option("Validation scenes.", ge=1)] = 300
    epochs: Annotated[int, Option("Epochs of each student.", ge=1)] = 6
    seed: Annotated[int, Option("Of scenes and students.", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


@command(Demo)
def demo(config: Demo) -> Shown:
    """The whole pipeline in minutes on a laptop: scenes, teacher, cache, two students, scores, report.

    It only chains the public commands and prints each one before it runs, for you to copy and change.

    Example: lfi demo --out lfi-demo
    """
    out, seed = config.out, config.seed
    began = time.monotonic()
    scenes, shards, shards_val = out / "scenes", out / "shards", out / "shards-val"
    run_command("make-scenes", "--out", scenes, "--train", config.train, "--val", config.val, "--seed", seed)
    extract = ["extract-teacher", "--dataset", "scenes", "--data-root", scenes, "--words", 6, "--views", "full"]
    run_command(*extract, "--out", shards)
    run_command(*extract, "--split", "val", "--out", shards_val)
    inspected = run_command("inspect", shards_val, "--pointing")
    runs = {name: out / "runs" / f"{name}-{seed}" for name in STUDENTS}
    scores: dict[str, Any] = {}
    for name, run in runs.items():
        run_command(
            *("train", "--targets", shards, *STUDENT, *STUDENTS[name]),
            *("--epochs", config.epochs, "--seed", seed, "--out", run),
        )
        scores[name] = run_command("evaluate", run, "--targets", shards_val, "--no-probes")["runs"][str(run)]
    page = run_command("report", *runs.values(), "--out", out / "report.html", "--title", "LFI demo")["report"]
    exported, answers = out / "exported", out / "answers"
    if not exported.exists():
        run_command("export", runs["queries"], "--out", exported)
    pictures = sorted((scenes / "val").iterdir())[:PICTURES]
    run_command("predict", *pictures, "--model", exported, "--top", 3, "--save", answers)

    grounding = inspected["pointing"][-1]
    result: Result = {
        "seconds": time.monotonic() - began,
        "report": page,
        "answers": str(answers / "index.html"),
        "teacher": {"pointing": grounding["pointing"], "mass_in_mask": grounding["mass_in_mask"]},
        "scores": scores,
    }
    rows = [
        ("teacher, peak in the named object", percent(grounding["pointing"])),
        *(
            (
                f"{name} head, mAP",
                f"{percent(s['map_seen'])} seen domains, {percent(s['map_heldout'])} held-out domain",
            )
            for name, s in ((name, results["classification"]["scores"]) for name, results in scores.items())
        ),
        (
            "query head, peak of a word's map in its object",
            percent(scores["queries"]["grounding"]["scores"]["pointing"]),
        ),
        ("seconds", f"{result['seconds']:.0f}"),
        ("report", Path(page).resolve()),
    ]

    def render(console: Console) -> None:
        facts(console, "Done", rows)
        show_tree(console, out, FILES)

    return Shown(result, render)


@command(DistilConfig)
def distil(config: DistilConfig) -> Shown:
    """From a folder of your own images to an exported student: looks at it, extracts, trains, scores, draws.

    It only chains the public commands and prints each one before it runs, for you to copy and change.

    Example: lfi distil ~/photos --student resnet18 --out distilled
    """
    results: dict[str, Result] = {}
    for step in steps(config, lambda text: say(stderr(), text)):
        results[step.name] = run_command(*step.words)
    scored = results.get("evaluate", {}).get("runs", {})
    result: Result = summary(config, next(iter(scored.values()), {}))
    made = ("exported", "report", "answers")
    rows = [(name, Path(result[name]).resolve()) for name in made if result[name] is not None]

    def render(console: Console) -> None:
        facts(console, "Done", rows)
        show_tree(console, config.out, DISTILLED)

    return Shown(result, render)
