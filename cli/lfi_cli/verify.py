"""lfi verify"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lfi_cli.output import DeviceOption, JsonFlag, Result, command, finish

if TYPE_CHECKING:
    from lfi_pipeline.targets.verify import Check


@command
def verify(
    targets: Annotated[Path, typer.Argument(help="A cache made by lfi extract-teacher, a run, or an export.")],
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Read the images too and compare them with the index.")
    ] = True,
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    recompute: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Let the teacher make this share of the samples anew (0.01: 1 %) and compare; 0: none.",
        ),
    ] = 0.0,
    teacher: Annotated[
        str, typer.Option(help="With --recompute: NAME:PATH of the teacher's weights. Default: as the cache names it.")
    ] = "",
    device: DeviceOption = "auto",
    seed: Annotated[
        int | None, typer.Option(help="With --recompute: choose the same samples each time. Default: others each time.")
    ] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Check every byte of a cache and its images against their recorded checksums; exit with 1 on any fault.

    Of a run or an export, every file is compared with the checksum that was recorded when it was written.

    With --recompute SHARE a sound cache is also compared with what the teacher says about a random share of its images.

    Example: lfi verify shards/ --recompute 0.01
    """
    from lfi_pipeline.core.checksums import verify_run
    from lfi_pipeline.targets.verify import verify as find_faults

    further: list[Check] = []
    if recompute:
        from lfi_pipeline.teachers.recompute import Recomputation, RecomputeConfig

        config = RecomputeConfig(share=recompute, teacher=teacher, device=device, seed=seed, progress=True)
        further.append(Recomputation(config))
    if (targets / "checksums.json").is_file() or (targets / "config.json").is_file():
        faults = verify_run(targets)
    else:
        faults = find_faults(targets, images=images, data_root=data_root, progress=True, further=further)
    result: Result = {"ok": not faults, "faults": [asdict(fault) for fault in faults]}

    def render(console: Console) -> None:
        verdict = "every checksum holds" if not faults else f"{len(faults)} fault(s)"
        if recompute and not faults:
            verdict += f", and the teacher gives the same maps again ({100 * recompute:g} % of the samples)"
        console.print(f"{targets}: {verdict}", markup=False, soft_wrap=True)
        for fault in faults:
            where = [f"shard {fault.shard}"] if fault.shard is not None else []
            where += [f"sample {fault.sample}"] if fault.sample is not None else []
            place = f" ({', '.join(where)})" if where else ""
            console.print(f"  {fault.file}{place}: {fault.message}", markup=False, soft_wrap=True)

    finish(result, as_json, render)
    if faults:
        raise typer.Exit(1)
    return result
