"""lfi inspect, lfi verify, lfi pack"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, percent, say
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.teachers.config import PointingConfig, RecomputeConfig, layouts

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.targets.verify import Check

MOVED = "Where the images lie, if they moved."


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspect:
    """Options of `lfi inspect`."""

    targets: Annotated[Path, Option("A cache made by lfi extract-teacher.", positional=True)]
    sample: Annotated[tuple[str, ...], Option("Draw this sample's maps over its image as a PNG.", metavar="KEY")] = ()
    out: Annotated[Path | None, Option("The PNG, all samples below each other. Left out: KEY.png for each.")] = None
    pointing: Annotated[bool, Option("Score the maps against the data set's instance masks.")] = False
    kinds: PointingConfig = field(default_factory=lambda: PointingConfig(kinds=()))
    artefacts: Annotated[
        int, Option("Run the teacher on so many images and count the patches that it uses as a store.", ge=0)
    ] = 0
    data_root: Annotated[Path | None, Option(MOVED)] = None

    def __post_init__(self) -> None:
        check(self)


@command(Inspect)
def inspect(config: Inspect) -> Shown:
    """Show what a cache holds: teacher, kind of map, counts, bytes, quarantined images; or draw samples.

    Example: lfi inspect shards/ --pointing --kinds all

    Example: lfi inspect shards/ --sample 000000000009 --out maps.png
    """
    if config.kinds.kinds and not config.pointing:
        raise ConfigError("kinds scores kinds of map and needs `pointing`; give both.", argument="kinds")
    if config.out is not None and not config.sample:
        raise ConfigError("out names the picture of a sample and needs `sample=KEY`; give both.", argument="out")
    from lfi_pipeline.targets import TargetStore

    store = TargetStore.open(config.targets, data_root=config.data_root)
    result = _contents(store)
    if config.sample:
        result["pictures"] = _draw(store, config.sample, config.out)
    if config.pointing:
        result["pointing"] = _pointing(store, config)
    if config.artefacts:
        from lfi_pipeline.teachers.pointing import artefacts_of_cache

        result["artefacts"] = [asdict(each) for each in artefacts_of_cache(store, config.artefacts, config.kinds)]
    return Shown(result, lambda console: _render(console, store, config.targets, result))


def _contents(store: TargetStore) -> Result:
    from lfi_pipeline.targets.verify import bytes_by_part, quarantine_groups, word_facts

    index = store.index
    return {
        "spec": store.spec.to_plain(),
        "fingerprint": store.spec.fingerprint,
        "choice": None if store.manifest.choice is None else asdict(store.manifest.choice),
        "summary": asdict(store.summary()),
        "vocabulary": len(store.vocabulary.words),
        "zero_shot": _zero_shot(store),
        "bytes": bytes_by_part(store),
        "words": asdict(word_facts(store)),
        "quarantined": {index.keys[i]: index.reasons[i] for i in index.quarantined.nonzero()[0].tolist()},
        "quarantine": [asdict(group) for group in quarantine_groups(store)],
    }


def _zero_shot(store: TargetStore) -> Result | None:
    """Return the classes, prompts and logit scale of a cache, and the teacher's own score; None without classes."""
    zero_shot = store.zero_shot
    if zero_shot is None:
        return None
    from lfi_pipeline.evaluation import teacher_zero_shot

    score = teacher_zero_shot(store)
    return {
        "classes": len(zero_shot.names),
        "templates": list(zero_shot.templates),
        "logit_scale": zero_shot.logit_scale,
        "score": None if score is None else asdict(score),
    }


def _zero_shot_text(store: TargetStore, zero_shot: Result | None) -> str:
    if zero_shot is None:
        return "none: " + ("extracted by an earlier release" if store.spec.dataset.classes else "no classes")
    text = f"{zero_shot['classes']} classes, {len(zero_shot['templates'])} prompt(s), "
    text += f"logit scale {zero_shot['logit_scale']:.4g}"
    if score := zero_shot["score"]:
        own = f"{score['metric']} {percent(score['value'])} on {score['images']:,} images"
        text += f"; the teacher's own {own} (chance {percent(score['chance'])})"
    return text


def _draw(store: TargetStore, keys: tuple[str, ...], out: Path | None) -> list[str]:
    from lfi_pipeline.core.errors import LFIError, OutputExistsError
    from lfi_pipeline.report.overlay import safe_file_name, sample_sheet, stacked

    files = [Path(f"{safe_file_name(key)}.png") for key in keys] if out is None else [out]
    for file in files if out is None else []:
        if file.exists():
            raise OutputExistsError(f"{file} is there already; move it away, or name the picture with `out`.")
    sheets = [sample_sheet(store, key) for key in keys]
    pictures = sheets if out is None else [stacked(sheets)]
    for file, picture in zip(files, pictures, strict=True):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, format="PNG")
        except OSError as error:
            raise LFIError(f"Cannot write {file}: {error.strerror or error}. Name another file with `out`.") from error
    return [str(file) for file in files]


def _pointing(store: TargetStore, inspected: Inspect) -> list[dict[str, object]]:
    from lfi_pipeline.data import read_dataset

    spec = store.spec
    dataset = read_dataset(store.source, store.source_root, spec.dataset.split)
    if inspected.kinds.kinds:
        from lfi_pipeline.teachers.pointing import pointing_by_kind

        return [
            {"source": row.source, "kind": row.kind, "row": row.row, "layer": row.layer} | asdict(row.grounding)
            for row in pointing_by_kind(store, dataset, inspected.kinds)
        ]
    from lfi_pipeline.evaluation import grounded_words, teacher_grounding

    scores = teacher_grounding(store, grounded_words(store, dataset))
    return [
        {"source": "cache", "kind": spec.kind, "row": spec.row, "layer": layer.name} | asdict(score)
        for layer, score in zip(spec.layers, scores, strict=True)
    ]


def _render(console: Console, store: TargetStore, targets: Path, result: Result) -> None:
    spec, summary, words = store.spec, store.summary(), result["words"]
    maps = f"{spec.kind}, {spec.row} rows, {len(spec.layers)} layer(s), grid {spec.grid}, views {spec.views}"
    vocabulary = f"{result['vocabulary']} in the vocabulary, at most {spec.words_per_sample} an image"
    many = f", in {words['looked_at']:,} samples" if words["looked_at"] < summary.samples else ""
    samples = max(1, summary.samples)
    rows: list[tuple[str, object]] = [
        ("data set", f"{spec.dataset.name}, {spec.dataset.split}"),
        ("teacher", f"{spec.teacher.name}:{spec.teacher.tag}"),
        ("maps", maps),
        ("samples", f"{summary.samples}, {summary.quarantined} quarantined"),
        ("words", f"{vocabulary}; {words['words']:.1f} on average, none in {percent(words['without_words'])}{many}"),
        ("zero-shot", _zero_shot_text(store, result["zero_shot"])),
        ("attention mass kept", percent(words["kept"])),
        ("bytes an image", f"{summary.bytes_per_sample:,.0f}"),
    ]
    rows += [(f"  {part}", f"{size / samples:,.0f} ({size:,} in all)") for part, size in result["bytes"].items()]
    rows += [("codec, mean KL", f"{summary.codec_kl:.2e} nats"), ("fingerprint", spec.fingerprint)]
    for group in result["quarantine"]:
        more = ", ..." if group["count"] > len(group["keys"]) else ""
        rows.append((f"quarantined, {group['count']}", f"{group['reason']}: {', '.join(group['keys'])}{more}"))
    rows += [("picture", picture) for picture in result.get("pictures", [])]
    facts(console, str(targets), rows)
    if choice := store.manifest.choice:
        title = f"why {choice.kind}: kinds compared by {choice.by} on {choice.images} images, {choice.words} words"
        facts(
            console,
            title,
            [
                (
                    each.kind,
                    f"{each.cost:.2f} vision forwards, score {each.score:.3f}, {each.behind:.3f} behind the best",
                )
                for each in choice.scores
            ],
        )
    if counts := result.get("artefacts"):
        handled = {"fill": "their mass is that of their neighbours", "keep": "they are kept"}[spec.maps.artefacts]
        title = f"artefacts on {counts[0]['images']} images: patches that the teacher uses as a store; in the maps {handled}"
        facts(
            console,
            title,
            [
                (
                    each["layer"],
                    f"{percent(each['share'])} of the patches, in {each['with_artefacts']} images; largest norm "
                    f"{each['largest_norm']:.1f} times the median",
                )
                for each in counts
            ],
        )
    if scores := result.get("pointing"):
        count, area = scores[0]["count"], percent(scores[0]["area"])
        table = [
            (
                f"{score['source']}: {score['kind']}, {score['row']}, {score['layer']}",
                f"peak in mask {percent(score['pointing']):>7}, mass in mask {percent(score['mass_in_mask']):>7}",
            )
            for score in scores
        ]
        title = f"pointing: {count} words of images with two or more classes; masks cover {area} (chance)"
        facts(console, title, table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """Options of `lfi verify`."""

    targets: Annotated[Path, Option("A cache made by lfi extract-teacher, a run, or an export.", positional=True)]
    images: Annotated[bool, Option("Read the images too and compare them with the index.")] = True
    data_root: Annotated[Path | None, Option(MOVED)] = None
    again: RecomputeConfig = field(default_factory=lambda: RecomputeConfig(share=None, progress=True))

    def __post_init__(self) -> None:
        check(self)


@command(Verify)
def verify(config: Verify) -> Shown:
    """Check every byte of a cache and its images against their recorded checksums; exit with 1 on any fault.

    Of a run or an export, every file is compared with the checksum that was recorded when it was written.

    With --recompute SHARE a sound cache is also compared with what the teacher says about a random share of its images.

    Example: lfi verify shards/ --recompute 0.01
    """
    from lfi_pipeline.core.parse import verify_run
    from lfi_pipeline.targets.verify import verify as find_faults

    further: list[Check] = []
    if config.again.share:
        from lfi_pipeline.teachers.recompute import Recomputation

        further.append(Recomputation(config.again))
    if (config.targets / "checksums.json").is_file() or (config.targets / "config.json").is_file():
        faults = verify_run(config.targets)
    else:
        faults = find_faults(
            config.targets, images=config.images, data_root=config.data_root, progress=True, further=further
        )
    result: Result = {"ok": not faults, "faults": [asdict(fault) for fault in faults]}

    def render(console: Console) -> None:
        verdict = "every checksum holds" if not faults else f"{len(faults)} fault(s)"
        if config.again.share and not faults:
            verdict += f", and the teacher gives the same maps again ({100 * config.again.share:g} % of the samples)"
        say(console, f"{config.targets}: {verdict}")
        for fault in faults:
            where = [f"shard {fault.shard}"] if fault.shard is not None else []
            where += [f"sample {fault.sample}"] if fault.sample is not None else []
            place = f" ({', '.join(where)})" if where else ""
            say(console, f"  {fault.file}{place}: {fault.message}")

    return Shown(result, render, code=int(bool(faults)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Options of `lfi pack`."""

    source: Annotated[Path, Option("A complete cache.", positional=True)]
    out: Annotated[Path, Option("Directory of the new cache; an interrupted one is finished.", positional=True)]
    layout: Annotated[
        str,
        Option("webdataset (tar shards that hold the images too) or zarr (arrays; images stay).", choices=layouts),
    ] = "webdataset"
    data_root: Annotated[Path | None, Option(MOVED)] = None

    def __post_init__(self) -> None:
        check(self)


@command(Pack)
def pack(config: Pack) -> Shown:
    """Write a cache again in the other layout: the same targets, every read checked.

    Example: lfi pack shards/ tars/ --layout webdataset
    """
    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.targets.pack import pack as write

    out = config.out
    began = time.monotonic()
    packed = write(config.source, out, layout=config.layout, data_root=config.data_root, progress=True)
    result: Result = {
        **asdict(packed.summary),
        "out": str(out),
        "layout": config.layout,
        "fingerprint": TargetStore.open(out).spec.fingerprint,
        "data_root": str(packed.data_root),
        "images_missing": packed.images_missing,
        "seconds": time.monotonic() - began,
    }

    def render(console: Console) -> None:
        facts(
            console,
            str(out),
            [
                ("layout", config.layout),
                ("samples", f"{packed.summary.samples}, {packed.summary.quarantined} quarantined"),
                ("bytes a sample", f"{packed.summary.bytes_per_sample:,.0f}"),
                ("images", str(packed.data_root)),
                ("fingerprint", result["fingerprint"]),
            ],
        )
        if packed.images_missing:
            say(
                console,
                f"{packed.images_missing} image(s) are not below {packed.data_root}: they stay in {config.source}. Say "
                "where they lie, by --data-root, when you use the new cache.",
            )

    return Shown(result, render)
