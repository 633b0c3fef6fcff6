"""Which tiles a kernel runs with: those that were fastest on this GPU, where that was measured, else the usual ones.

Nothing is measured unless LFI_KERNELS_TUNE=1 asks for it: then the first call with a new problem times every candidate,
in turns, on its own arguments, and keeps the fastest in a small file for all later processes. A candidate that gives
something else than the usual tiles is never kept. Where the usual ones do not fit the GPU, the first that fit run.

The bits of a result depend on the tiles, so a run that is to be repeated exactly needs the same file, or none.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfi_kernels.interaction_attention.blocks import Blocks, Problem
from lfi_kernels.interaction_attention.compiler import triton_version

TUNE_VARIABLE = "LFI_KERNELS_TUNE"
"""1: measure problems that the file does not hold."""

FILE_VARIABLE = "LFI_KERNELS_TILES"
"""The file of measured tiles, if not `tiles_file`'s own choice."""

ROUNDS = 9
FORMAT = 1

Results = tuple[Tensor, Tensor]
Run = Callable[[Blocks], Results]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Tiles, and the median time of a call with them."""

    blocks: Blocks
    milliseconds: float


def tiles_file() -> Path:
    """LFI_KERNELS_TILES, or lfi_kernels/tiles.json in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    asked = os.environ.get(FILE_VARIABLE)
    if asked:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfi_kernels" / "tiles.json"


def launch(problem: Problem, device: torch.device, run: Run) -> Results:
    """Run a kernel with the tiles for its problem on a device.

    Args:
        run: launches the kernel with given tiles.

    Raises:
        RuntimeError: the GPU has too little shared memory for any of them.
    """
    if device.type != "cuda":
        return run(problem.usual())
    key = f"{torch.cuda.get_device_name(device)}; {_code()}; {problem}"
    known = _known(tiles_file())
    if key not in known:
        if os.environ.get(TUNE_VARIABLE) == "1" and not torch.cuda.is_current_stream_capturing():
            found = fastest(problem.candidates(), run, _seconds_on_gpu, problem.tolerance())
            log.info("tiles of %s: %s, %.3g ms a call", problem, found.blocks, found.milliseconds)
            _keep(tiles_file(), key, found)
            known[key] = found.blocks
        else:
            known[key] = next(_able(problem.candidates(), run))[0]
    return run(known[key])


def fastest(
    candidates: Sequence[Blocks], run: Run, seconds: Callable[[Callable[[], object]], float], tolerance: float
) -> Timed:
    """Time the candidates that run in turns, and return the one of the least median.

    One whose results differ from those of the first by more than `tolerance`, as a share of their norm, is left out.

    Raises:
        RuntimeError: none runs.
    """
    each_able = _able(candidates, run)
    first, results = next(each_able)
    truth = [each.double() for each in results]  # copies: the next run writes into the same memory
    able = [first]
    for blocks, results in each_able:
        apart = max(_distance(a, b) for a, b in zip(results, truth, strict=True))
        if apart <= tolerance:
            able.append(blocks)
        else:
            warnings.warn(
                f"tiles {blocks} are left out: their results differ from those of {first} by {apart:g}.", stacklevel=2
            )
    taken: dict[Blocks, list[float]] = {blocks: [] for blocks in able}
    for _ in range(ROUNDS):
        for blocks in able:
            taken[blocks].append(seconds(lambda blocks=blocks: run(blocks)))  # type: ignore[misc]
    medians = {blocks: statistics.median(times) for blocks, times in taken.items()}
    best = min(able, key=lambda blocks: medians[blocks])
    return Timed(blocks=best, milliseconds=1e3 * medians[best])


def _able(candidates: Sequence[Blocks], run: Run) -> Iterator[tuple[Blocks, Results]]:
    """The candidates that the GPU has room for, and what they give."""
    from triton.runtime.errors import OutOfResources

    is_any = False
    for blocks in candidates:
        try:
            results = run(blocks)
        except OutOfResources as error:
            log.info("tiles %s do not fit: %s", blocks, error)
            continue
        is_any = True
        yield blocks, results
    if not is_any:
        raise RuntimeError("This GPU has too little shared memory for the fused kernels. Set LFI_KERNELS=reference.")


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def _seconds_on_gpu(run: Callable[[], object]) -> float:
    """Of one call, behind another that keeps the GPU busy until this one is queued."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@functools.cache
def _code() -> str:
    """What else the times depend on: the compiler, and the kernels' own source."""
    source = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("triton_*.py")))
    return f"triton {triton_version()}; kernels {hashlib.sha256(source).hexdigest()[:12]}"


@functools.cache
def _known(path: Path) -> dict[str, Blocks]:
    """What the file holds, read once; problems that are measured later are added."""
    return {key: Blocks(**{name: entry[name] for name in Blocks.__slots__}) for key, entry in _read(path).items()}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {plain['format']!r}")
        tiles = plain["tiles"]
        for entry in tiles.values():
            if not all(isinstance(entry[name], int) and entry[name] > 0 for name in Blocks.__slots__):
                raise ValueError(f"a tile must name {', '.join(Blocks.__slots__)}, got {entry}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"The measured tiles in {path} cannot be read ({error}): the usual ones are taken. Delete the file, and "
            f"measure again with {TUNE_VARIABLE}=1.",
            stacklevel=2,
        )
        return {}
    return dict(tiles)


def _keep(path: Path, key: str, found: Timed) -> None:
    """Add an entry to the file, as it is now: other processes measure too, and the last one's choice stays."""
    plain = {
        "format": FORMAT,
        "tiles": _read(path) | {key: asdict(found.blocks) | {"milliseconds": found.milliseconds}},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            json.dump(plain, file, indent=1, sort_keys=True)
        Path(file.name).replace(path)
    except OSError as error:
        warnings.warn(f"The measured tiles cannot be kept in {path}: {error.strerror or error}.", stacklevel=2)
