"""lfi teachers, lfi extract-teacher: which teachers there are, and the cache that one of them makes"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, percent, say, show_tree, stderr, whole_table
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.core.settings_file import SettingsFile
from lfi_pipeline.teachers.config import ExtractConfig

if TYPE_CHECKING:
    from rich.console import Console

CACHE = {
    "manifest.json": "what the cache is: teacher, data set, kind of map",
    "source.json": "where the images lie",
    "views": "the maps as zarr arrays, a folder for each view of the image",
    "shards": "tar shards: images with their targets",
    "index": "samples as Parquet: keys, words, labels, captions, checksums",
    "vocabulary.*": "every word that has maps, with the teacher's embedding of it",
    "classes.*": "the classes, with the teacher's embedding of their prompts",
    "commits": "what is finished, shard by shard, with its checksums",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractTeacher:
    """Options of `lfi extract-teacher`."""

    extract: ExtractConfig
    out: Annotated[Path, Option("The cache to write; the same command finishes an interrupted one.")] = Path("shards")
    shards: Annotated[
        str,
        Option("A:B makes shards A to B-1 only, for an array of jobs. Under torchrun ranks share.", metavar="A:B"),
    ] = ""
    engine: Annotated[
        str,
        Option("ray: shards as tasks on a Ray cluster (pip install 'lfi-pipeline[ray]').", choices=("local", "ray")),
    ] = "local"
    extend: Annotated[
        bool,
        Option("The cache may hold fewer images, layers, views or words; the teacher makes what is missing."),
    ] = False
    overwrite: Annotated[
        bool, Option("Whatever cache is there is replaced; it stands until the new one is complete.")
    ] = False
    retry_quarantined: Annotated[
        bool, Option("Make the shards of a cache anew in which an unreadable image can be read by now.")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.overwrite and self.engine == "ray":
            raise ConfigError(
                "overwrite replaces a whole cache by one process: leave out engine.", argument="overwrite"
            )


QUARANTINED = "lfi inspect says why, --retry-quarantined tries them again"
MANY_QUARANTINED = 0.05
"""Share of the images above which a warning tells of it."""


@command(ExtractTeacher, file=SettingsFile(ExtractConfig))
def extract_teacher(config: ExtractTeacher) -> Shown:
    """Stage one: run the teacher once and cache its interaction maps.

    Killed at any moment, the same command goes on at the first shard that is not committed; any number of processes may
    work on one cache.

    Example: lfi extract-teacher --dataset scenes --data-root data/scenes --out shards/

    On eight GPUs: torchrun --nproc-per-node 8 -m lfi_cli extract-teacher --dataset coco --out shards/
    """
    from lfi_pipeline.evaluation import teacher_zero_shot
    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.teachers.config import assign_shards
    from lfi_pipeline.teachers.extract import extract

    share = assign_shards(config.shards)
    options: dict[str, Any] = {"extend": config.extend, "retry_quarantined": config.retry_quarantined}
    if config.engine == "ray":
        from lfi_pipeline.teachers.ray_engine import extract_on_ray

        summary, seconds = extract_on_ray(config.extract, config.out, share=share, **options)
    else:
        summary, seconds = extract(config.extract, config.out, share=share, overwrite=config.overwrite, **options)
    if share.rank:
        return Shown({}, silent=True)  # the first rank speaks for all
    result: Result = {
        "samples": summary.samples,
        "quarantined": summary.quarantined,
        "bytes_per_sample": summary.bytes_per_sample,
        "raw_bytes_per_sample": summary.raw_bytes_per_sample,
        "codec_kl": summary.codec_kl,
        "seconds": seconds,
        "out": str(config.out),
    }
    store = TargetStore.open(config.out, require_complete=False)
    spec, score = store.spec, teacher_zero_shot(store)
    rows: list[tuple[str, object]] = [
        ("teacher", f"{spec.teacher.name}:{spec.teacher.tag}, maps of kind {spec.kind}"),
        ("images", summary.samples),
        ("quarantined", f"{summary.quarantined} ({QUARANTINED})" if summary.quarantined else 0),
        (
            "bytes an image",
            f"{summary.bytes_per_sample:,.0f} (maps as raw fp16: {summary.raw_bytes_per_sample:,.0f})",
        ),
        ("codec, mean KL", f"{summary.codec_kl:.2e} nats"),
        ("seconds", f"{seconds:.1f}"),
        ("in", config.out),
    ]
    if score is not None:
        own = f"{score.metric} {percent(score.value)} on {score.images} images, chance {percent(score.chance)}"
        rows.insert(1, ("its own answers", own))
        result["teacher_zero_shot"] = asdict(score)
        if score.near_chance:
            text = f"the teacher's own answers are near chance ({own})"
            _warn(text, ": check class names and prompts, or choose another teacher.")

    if summary.quarantined > MANY_QUARANTINED * summary.samples:
        part = f"{summary.quarantined} of {summary.samples} images ({summary.quarantined / summary.samples:.0%})"
        _warn(f"{part} could not be read", f" and have no targets; {QUARANTINED}.")

    def render(console: Console) -> None:
        facts(console, "Targets", rows)
        show_tree(console, config.out, CACHE)

    return Shown(result, render)


def _warn(what: str, then: str) -> None:
    from rich.text import Text

    stderr().print(Text.assemble((f"warning: {what}", "bold red"), then))


@dataclass(frozen=True, kw_only=True, slots=True)
class Teachers:
    """Options of `lfi teachers`."""

    name: Annotated[str, Option("One teacher; empty lists all.", positional=True)] = ""
    family: Annotated[str, Option("coca (reads captions) or dual (compares words with patches).")] = ""

    def __post_init__(self) -> None:
        check(self)


@command(Teachers)
def teachers(config: Teachers) -> Shown:
    """List the teachers: image size, grid of a map, kinds of map (the default first), weights. Nothing is loaded.

    Example: lfi teachers coca_ViT-B-32
    """
    from lfi_pipeline.teachers.catalog import describe, parameters, teacher_names

    if config.name:
        result: Result = asdict(describe(config.name)) | {"parameters": parameters(config.name)}
        return Shown(result, lambda console: _sheet(console, result))
    listed = [describe(each) for each in teacher_names(config.family)]

    def render(console: Console) -> None:
        from rich.table import Table

        table = Table("name", "family", "pixels", "grid", "kinds of map", "weights", box=None, pad_edge=False)
        for each in listed:
            sizes = _by(each.image_size), _by(each.grid)
            table.add_row(each.name, each.family, *sizes, _first(each.kinds), str(len(each.tags)))
        whole_table(console, table)
        say(
            console,
            "Every kind and tag: lfi teachers NAME. CoCas write captions too. A checkpoint of your own: --teacher "
            "NAME:PATH, hf-hub:ORG/REPO or local-dir:PATH",
        )

    return Shown({"teachers": [asdict(each) for each in listed]}, render)


def _first(kinds: tuple[str, ...]) -> str:
    return f"{kinds[0]} (of {len(kinds)})"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sheet(console: Console, sheet: Result) -> None:
    count = sheet["parameters"]
    facts(
        console,
        sheet["name"],
        [
            ("family", sheet["family"]),
            ("image", f"{_by(sheet['image_size'])} pixels, maps of {_by(sheet['grid'])}"),
            ("parameters", "with its text tower on the hub" if count is None else f"{count:,}"),
            ("kinds of map", f"{', '.join(sheet['kinds'])} (the first is the default)"),
            ("writes captions", "yes" if sheet["generates"] else "no"),
            ("weights", ", ".join(sheet["tags"]) or "none listed: give NAME:PATH"),
            *(("needs", f"the tokenizer of {each} from the hub, and transformers") for each in sheet["repositories"]),
        ],
    )
