"""lfi verify, lfi pack: check every byte of a cache, write it again in the other layout"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lfi_cli.generate import command
from lfi_cli.output import Result, Shown, facts, say
from lfi_pipeline.core.options import Option, check
from lfi_pipeline.teachers.config import RecomputeConfig, layouts

if TYPE_CHECKING:
    from rich.console import Console

    from lfi_pipeline.targets.verify import Check

MOVED = "Where the images lie, if they moved."


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
    from lfi_pipeline.core.checksums import verify_run
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
