"""Tiles of the fused kernels: the lists, what suits a problem, and what was measured to be fastest on a GPU.

The lists were chosen by the compiler's report for sm_90 (registers, spills, shared memory: `triton_report`) and by
counting bytes; the first of a list is the usual one. Nothing is measured unless LFI_KERNELS_TUNE=1 asks for it: then
the first call with a new problem times every tile, in turns, on its own arguments, and keeps the fastest in a small
file for all later processes. One that gives something else than the usual tile is never kept. Where the usual tile does
not fit the GPU, the first that fits runs.

The bits of a result depend on the tiles, so a run that is to be repeated exactly needs the same file, or none. Plain
Python: importing it loads no triton.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

TUNE_VARIABLE = "LFI_KERNELS_TUNE"
"""1: measure problems that the file does not hold."""

FILE_VARIABLE = "LFI_KERNELS_TILES"
"""The file of measured tiles, if not `tiles_file`'s own choice."""

OLDEST_TRITON = (3, 5)
"""The first whose loops can be told to hold nothing in registers that is cheap to compute again. torch 2.9 has it."""

ROUNDS = 9
FORMAT = 2

Kernel = Literal["project", "forward", "backward", "features", "weights"]
Results = tuple[Tensor, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """What a program takes at once, and how it is run.

    Attributes:
        rows: of the result of a product; of the attention kernels the most rows, queries times heads.
        columns: of the result of a product; of the attention kernels the most columns of q, heads times d.
        depth: of a product, what is summed in one step; of the attention kernels the patches of a tile.
        warps: of a program.
        stages: depth of the software pipeline.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} x {self.depth}, {self.warps} warps, {self.stages} stages"


# rows, columns, depth, warps, stages, the usual first; the last of each list fits into little shared memory.
OF_16_BITS: dict[Kernel, tuple[tuple[int, int, int, int, int], ...]] = {
    "project": (
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 2),
        (64, 256, 64, 4, 2),
        (128, 128, 64, 8, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 32, 4, 2),
    ),
    "forward": (
        (64, 128, 64, 4, 2),
        (64, 128, 64, 4, 1),
        (64, 128, 64, 8, 2),
        (64, 128, 128, 8, 2),
        (64, 64, 64, 4, 2),
        (64, 64, 32, 4, 1),
    ),
    "backward": (
        (64, 64, 64, 4, 2),
        (64, 64, 64, 8, 2),
        (64, 64, 64, 4, 1),
        (64, 64, 128, 8, 1),
        (32, 64, 64, 4, 1),
        (32, 32, 32, 4, 1),
    ),
    "features": (
        (128, 128, 64, 8, 3),
        (128, 64, 64, 4, 3),
        (128, 128, 64, 8, 2),
        (256, 128, 64, 8, 3),
        (64, 64, 32, 4, 2),
    ),
    "weights": (
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 256, 32, 8, 4),
        (64, 64, 32, 4, 2),
    ),
}
OF_32_BITS: dict[Kernel, tuple[tuple[int, int, int, int, int], ...]] = {
    "project": ((64, 64, 32, 4, 2), (32, 32, 32, 4, 1)),
    "forward": ((64, 128, 32, 4, 1), (64, 64, 32, 4, 1), (16, 32, 16, 4, 1)),
    "backward": ((64, 64, 16, 8, 1), (64, 64, 16, 4, 1), (32, 32, 16, 4, 1), (16, 32, 16, 4, 1)),
    "features": ((64, 64, 32, 4, 2), (32, 32, 32, 4, 1)),
    "weights": ((64, 64, 32, 4, 2), (32, 32, 32, 4, 1)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What the best tile depends on.

    Attributes:
        kernel: which of them.
        dtype: of the features, as torch names it.
        rows: of the product; of the attention kernels the queries M.
        columns: of the product; of the attention kernels the channels d of a head.
        depth: what the product sums over; of the attention kernels the patches N.
        note: what else matters.
    """

    kernel: Kernel
    dtype: str
    rows: int
    columns: int
    depth: int
    note: str = ""

    @classmethod
    def of(cls, kernel: Kernel, like: Tensor, sizes: Mapping[str, int], note: str = "") -> Problem:
        """The problem of a call on tensors of `like`'s dtype."""
        return cls(kernel=kernel, dtype=str(like.dtype).removeprefix("torch."), note=note, **sizes)

    def __str__(self) -> str:
        rough = [each if each <= 4096 else power_of_two(each) for each in (self.rows, self.columns, self.depth)]
        return f"{self.kernel}; {self.dtype}; {' x '.join(map(str, rough))}{'; ' if self.note else ''}{self.note}"

    def usual(self) -> Tile:
        """The tile that runs where nothing was measured."""
        return self.candidates()[0]

    def candidates(self) -> list[Tile]:
        """The tiles worth measuring, no larger than the problem, each once, the usual first."""
        narrow = self.dtype != "float32"
        attends = self.kernel in ("forward", "backward")
        tiles = []
        for rows, columns, depth, warps, stages in (OF_16_BITS if narrow else OF_32_BITS)[self.kernel]:
            if not attends:
                # The matrix units of sm_90 take no fewer than 64 rows of 16 bits.
                rows = clamp(self.rows, 64 if narrow else 16, rows)
                columns = _columns(self.columns, columns)
            depth = clamp(self.depth, 16, depth)
            if attends and depth < 64:
                stages = 1  # the same for a product of fewer than 64 patches: it reads registers, see `triton_report`
            tiles.append(Tile(rows=rows, columns=columns, depth=depth, warps=warps, stages=stages))
        if self.kernel == "backward" and (self.rows > 16 or self.columns > 64):
            tiles.sort(key=lambda tile: tile.warps < 8)  # more rows and wide heads take the registers of more warps
        return list(dict.fromkeys(tiles))

    def tolerance(self) -> float:
        """How far two right results of different tiles may lie apart, as a share of their norm."""
        return {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}[self.dtype]


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()


def clamp(size: int, least: int, most: int) -> int:
    """The power of two that holds `size`, within the bounds, which are powers of two as well."""
    return min(max(power_of_two(size), least), most)


def _columns(size: int, most: int) -> int:
    """Columns that divide `size` where enough of them do, else that cover it."""
    dividing = math.gcd(size, most)
    return dividing if dividing >= 32 else clamp(size, 16, most)


@functools.cache
def triton_version() -> str | None:
    """Which triton is installed, such as `3.6.0`; `unknown` where a package without a record holds it; None: none."""
    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown" if find_spec("triton") else None


def has_triton() -> bool:
    """Whether the fused kernels can be compiled: there is a triton, and it is not known to be too old."""
    installed = triton_version()
    if installed is None:
        return False
    numbers = installed.split(".")[:2]
    return not all(each.isdecimal() for each in numbers) or tuple(map(int, numbers)) >= OLDEST_TRITON


def cache_folder() -> Path:
    """lfi_kernels in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfi_kernels"


def tiles_file() -> Path:
    """Return the file of measured tiles: LFI_KERNELS_TILES, or tiles.json in the cache folder."""
    path = os.environ.get(FILE_VARIABLE)
    return Path(path) if path else cache_folder() / "tiles.json"


def launch(problem: Problem, device: torch.device, run: Callable[[Tile], Results]) -> Results:
    """Run a kernel with the tile for its problem on a device.

    Args:
        run: launches the kernel with a given tile.

    Raises:
        RuntimeError: the GPU has too little shared memory for any of them.
    """
    if device.type != "cuda":
        return run(problem.usual())
    key = _key(problem, device)
    known = _known(os.environ.get(FILE_VARIABLE), os.environ.get("XDG_CACHE_HOME"))
    if key not in known:
        if os.environ.get(TUNE_VARIABLE) == "1" and not torch.cuda.is_current_stream_capturing():
            tile, milliseconds = fastest(problem.candidates(), run, _seconds_on_gpu, problem.tolerance())
            log.info("tile of %s: %s, %.3g ms a call", problem, tile, milliseconds)
            _keep(tiles_file(), key, asdict(tile) | {"milliseconds": milliseconds})
            known[key] = tile
        else:
            known[key] = next(_able(problem.candidates(), run))[0]
    return run(known[key])


def fastest(
    candidates: Sequence[Tile],
    run: Callable[[Tile], Results],
    seconds: Callable[[Callable[[], object]], float],
    tolerance: float,
) -> tuple[Tile, float]:
    """Time the candidates that run in turns, and return the one of the least median, with its milliseconds.

    One whose results differ from those of the first by more than `tolerance`, as a share of their norm, is left out.

    Raises:
        RuntimeError: none runs.
    """
    each_able = _able(candidates, run)
    first, results = next(each_able)
    truth = [each.double() for each in results]  # copies: the next run may write into the same memory
    able = [first]
    for tile, results in each_able:
        apart = max(_distance(a, b) for a, b in zip(results, truth, strict=True))
        if apart <= tolerance:
            able.append(tile)
        else:
            warnings.warn(
                f"tile {tile} is left out: its results differ from those of {first} by {apart:g}.", stacklevel=2
            )
    taken: dict[Tile, list[float]] = {tile: [] for tile in able}
    for _ in range(ROUNDS):
        for tile in able:
            taken[tile].append(seconds(functools.partial(run, tile)))
    medians = {tile: statistics.median(times) for tile, times in taken.items()}
    best = min(able, key=lambda tile: medians[tile])
    return best, 1e3 * medians[best]


def _able(candidates: Sequence[Tile], run: Callable[[Tile], Results]) -> Iterator[tuple[Tile, Results]]:
    """Yield the candidates that the GPU has room for, each with its results."""
    from triton.runtime.errors import OutOfResources

    is_any = False
    for tile in candidates:
        try:
            results = run(tile)
        except OutOfResources as error:
            log.info("tile %s does not fit: %s", tile, error)
            continue
        is_any = True
        yield tile, results
    if not is_any:
        raise RuntimeError("This GPU has too little shared memory for the fused kernels. Set LFI_KERNELS=reference.")


def _distance(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def _seconds_on_gpu(run: Callable[[], object]) -> float:
    """Return the seconds of one call, behind another that keeps the GPU busy until this one is queued."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@functools.cache
def code() -> str:
    """Return a text of what else results and times depend on: triton's version, and a hash of the kernels' source."""
    names = ("triton_*.py", "tiles.py")
    source = b"".join(path.read_bytes() for name in names for path in sorted(Path(__file__).parent.glob(name)))
    return f"triton {triton_version()}; kernels {hashlib.sha256(source).hexdigest()[:12]}"


@functools.cache
def _key(problem: Problem, device: torch.device) -> str:
    """Return what a tile is kept under: a step launches a dozen kernels, and should not make this text for each."""
    return f"{torch.cuda.get_device_name(device)}; {code()}; {problem}"


@functools.cache
def _known(*_: str | None) -> dict[str, Tile]:
    """Return the tiles of `tiles_file` by key, read once for the variables that name it; later ones are added."""
    read = _read(tiles_file())
    return {key: Tile(**{name: entry[name] for name in Tile.__slots__}) for key, entry in read.items()}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            return {}  # tiles of kernels that are gone
        for entry in plain["tiles"].values():
            if not all(type(entry[name]) is int and entry[name] > 0 for name in Tile.__slots__):
                raise ValueError(f"a tile must name {', '.join(Tile.__slots__)}, got {entry}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"The measured tiles in {path} cannot be read ({error}): the usual ones are taken. Delete the file, and "
            f"measure again with {TUNE_VARIABLE}=1.",
            stacklevel=2,
        )
        return {}
    return dict(plain["tiles"])


def _keep(path: Path, key: str, entry: dict[str, object]) -> None:
    """Add an entry to the file, as it is now: other processes measure too, and the last one's choice stays."""
    error = write_json(path, {"format": FORMAT, "tiles": _read(path) | {key: entry}})
    if error:
        warnings.warn(f"The measured tiles cannot be kept in {path}: {error}.", stacklevel=2)


def write_json(path: Path, plain: object) -> str:
    """Write a file whole or not at all. Returns why it could not, or nothing."""
    written = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            written = Path(file.name)
            json.dump(plain, file, indent=1, sort_keys=True)
        written.replace(path)
    except OSError as error:
        if written is not None:
            written.unlink(missing_ok=True)
        return error.strerror or str(error)
    return ""
