"""All that one wants to know of the kernels on a GPU, in some minutes, with torch and triton alone.

    python -m lfi_kernels.bench.gpu [--minutes 8] [--csv gpu.csv]

In this order, a short line each as it is known, so that a run that is cut off has told the most important: whether the
kernels are right in all dtypes, and how long that check takes; whether the compiler's race shows; what the GPU can do
at most; the block against the usual ways to compute it on ViT-S; the tiles of every kernel there, right and timed; then
the rest of the table, shape after shape (see `lfi_kernels.bench`). Wrong results have no speed: nothing of them is
timed. What fails is a line and a row of its own, and costs nothing else. Rows go to the CSV as soon as they are known,
with commit, GPU and versions.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from lfi_kernels.bench.cases import FUSED, OURS, folded, make
from lfi_kernels.bench.compare import (
    Row,
    WrongResultError,
    append_csv,
    ceiling_rows,
    compare,
    environment,
    in_short,
    records,
    settled,
    start_csv,
)
from lfi_kernels.bench.shapes import DTYPES, Ceilings, Shape, Sizes, shapes
from lfi_kernels.bench.timing import between, mark, measure_ceilings, upstream_of, variable
from lfi_kernels.interaction_attention.dispatch import ENVIRONMENT_VARIABLE, TOLERANCES, largest_error
from lfi_kernels.interaction_attention.tiles import Problem, Tile, has_triton, launch, triton_version

T = TypeVar("T")

CASES = ("fused", "fused-nchw", "projected", "sdpa", "compiled-projected", "compiled-flex")
ROUNDS = 10
SECONDS_OF_A_SHAPE = 45.0
SECONDS_OF_A_TILE = 5.0
"""What a shape and a tile are thought to take before one was timed: compiling takes most of it."""

TIMED = "bf16"
"""The dtype of the table and of the tiles."""

# model, patches, words, maps of an image (None: of every word; 0: inference), the most important first.
TABLE: tuple[tuple[str, int, int, int | None], ...] = (
    ("ViT-S/16", 196, 16, None),
    ("ViT-S/16", 1024, 16, None),
    ("ViT-S/16", 196, 80, 3),
    ("ViT-B/16", 196, 16, None),
    ("ViT-S/16", 196, 32, None),
    ("ViT-S/16", 196, 1000, 0),
    ("ViT-T/16", 196, 16, None),
    ("ViT-L/16", 196, 16, None),
    ("ViT-S/16", 196, 200, 3),
    *((model, 1024, 16, None) for model in ("ViT-B/16", "ViT-T/16", "ViT-L/16")),
    *((model, 196, 32, None) for model in ("ViT-B/16", "ViT-T/16", "ViT-L/16")),
    *((model, 1024, 32, None) for model in ("ViT-S/16", "ViT-B/16", "ViT-T/16", "ViT-L/16")),
    *((model, 256, words, None) for words in (16, 32) for model in ("ViT-S/16", "ViT-B/16", "ViT-T/16", "ViT-L/16")),
)


class Session:
    """All steps of the module, in order, within a number of minutes.

    Args:
        device: of torch.
        minutes: after which no step is begun; one that was begun ends.
        csv: the file that rows are appended to.
        commit: to record where the code does not lie in a checkout.
        say: is called with each line of the report.
    """

    def __init__(
        self, device: str, minutes: float, csv: Path | None, commit: str, say: Callable[[str], object]
    ) -> None:
        self.device, self._csv, self._say = device, csv, say
        self._start, self._seconds = time.monotonic(), 60 * minutes
        self._longest, self._longest_tile = SECONDS_OF_A_SHAPE, SECONDS_OF_A_TILE
        self._around = environment(device, commit)

    def run(self) -> int:
        """Do all steps that there is time for. Returns 1 where something was wrong."""
        line = f"{self._around['device']}; torch {self._around['torch']}; commit {self._around['commit'] or 'unknown'}"
        self.say(line + " with changes" * bool(self._around["dirty"]))
        with settled(self.device):
            right = self.check()
            self.attempt("race", "", self.race)
            ceilings = self.attempt("ceilings", "", self.ceilings)
            if TIMED not in right:
                self.say("the kernels are wrong on this GPU: nothing is timed")
                return 1
            steps = self.table(ceilings, TABLE[:1]), self.tiles(), self.table(ceilings, TABLE[1:])
            return int(not all(steps) or right != set(DTYPES))

    def check(self) -> set[str]:
        """Compare the kernels with float64, and tell how long a first step waits for that. Returns the right dtypes."""
        right = set()
        for name, dtype in DTYPES.items():
            seconds, error = [], math.nan
            try:
                for _ in range(2):
                    before = time.monotonic()
                    error = largest_error(torch.device(self.device), dtype)
                    seconds.append(time.monotonic() - before)
            except Exception as failure:  # whatever the compiler or the driver says
                self.failed("check", name, failure, ", WRONG")
                continue
            fits = error <= TOLERANCES[dtype]  # NaN does not
            if fits:
                right.add(name)
            self.say(
                f"check {name}: error {error:.2g}, allowed {TOLERANCES[dtype]:g}{'' if fits else ', WRONG'}; "
                f"{seconds[0]:.1f} s, compiled {seconds[1]:.2f} s"
            )
            measured = ("largest RMS error", error, ""), ("first", seconds[0], "s"), ("again", seconds[1], "s")
            self.keep([Row(case="check", shape=name, metric=m, value=value, unit=unit) for m, value, unit in measured])
        return right

    def race(self) -> None:
        """Tell whether the compiler's fault shows here: see `triton_race`."""
        from lfi_kernels.bench.triton_race import TILES, probe

        for numbers in TILES:
            tile = str(Tile(**dict(zip(Tile.__slots__, numbers, strict=True))))
            for twice in (False, True):
                case = f"race, loaded {'twice' if twice else 'once'}"
                error = self.attempt(case, tile, partial(probe, self.device, numbers, twice))
                if error is not None:
                    self.say(f"{case}, {tile}: error {error:.2g}")
                    self.keep([Row(case=case, shape=tile, metric="error", value=error, unit="")])

    def ceilings(self) -> Ceilings:
        """Measure what the GPU can do at most."""
        ceilings = measure_ceilings(self.device)
        rows = ceiling_rows(ceilings)
        self.keep(rows)
        self.say("; ".join(f"{row.case} {row.value:.4g} {row.unit}" for row in rows))
        return ceilings

    def tiles(self) -> bool:
        """Run every tile of every kernel on ViT-S, compare it with the one that a launch takes, and time it."""
        is_right = True
        for label, words, maps in (("M16", 16, None), ("M80, three maps", 80, 3)):
            if not self.has(2 * self._longest_tile):
                self.say(f"tiles {label}: no time")
                continue
            shape = _shape(self.device, "ViT-S/16", 196, words, maps)
            calls = self.attempt(f"tiles {label}", str(shape), partial(self._launches, shape))
            for problem, run in calls or ():
                if maps is not None and problem.kernel not in ("forward", "backward"):
                    continue
                case = f"{problem.kernel} {label}"
                result = self.attempt(case, str(shape), partial(self._time_tiles, case, problem, run))
                is_right &= result is not False
        return is_right

    def _launches(self, shape: Shape) -> list[tuple[Problem, Callable[[Tile], tuple[Tensor, ...]]]]:
        """Return each launch of both passes on a shape: its problem, and a function that repeats it with a tile."""
        from lfi_kernels.interaction_attention import triton_fused, triton_project

        calls = []

        def recorded(
            problem: Problem, device: torch.device, run: Callable[[Tile], tuple[Tensor, ...]]
        ) -> tuple[Tensor, ...]:
            calls.append((problem, run))
            return launch(problem, device, run)

        block, inputs = make(shape, self.device)
        leaves = (inputs.queries, inputs.features, *block.parameters())
        with (
            patch.object(triton_fused, "launch", recorded),
            patch.object(triton_project, "launch", recorded),
            variable(ENVIRONMENT_VARIABLE, FUSED),
        ):
            outputs = folded(block, inputs)
            torch.autograd.grad(outputs, leaves, upstream_of(outputs))
        return calls

    def _time_tiles(self, label: str, problem: Problem, run: Callable[[Tile], tuple[Tensor, ...]]) -> bool:
        truth = [each.double() for each in launch(problem, torch.device(self.device), run)]
        best, is_right, candidates = (float("inf"), ""), True, problem.candidates()
        for place, tile in enumerate(candidates):
            if not self.has(self._longest_tile):
                self.say(f"{label}: no time for {len(candidates) - place} tiles more")
                break
            before = time.monotonic()
            try:
                results = run(tile)
                errors = [_distance(a, b) for a, b in zip(results, truth, strict=True)]
                milliseconds = 1e3 * _median_seconds(partial(run, tile))
            except Exception as error:  # a tile that does not fit, or that the compiler cannot make
                self.failed(f"tile of {label}", str(tile), error)
                continue
            finally:
                self._longest_tile = max(self._longest_tile, time.monotonic() - before)
            wrong = not max(errors) <= problem.tolerance()
            is_right &= not wrong
            best = min(best, (milliseconds, str(tile))) if not wrong else best
            outcome = f"{1e3 * milliseconds:.0f} us, off by {max(errors):.1g}{', WRONG' if wrong else ''}"
            self.say(f"  {label} {tile}: {outcome}")
            measured = ("time", milliseconds, "ms"), ("off by", max(errors), "")
            case = f"tile of {label}"
            self.keep(
                [Row(case=case, shape=str(tile), metric=m, value=value, unit=unit) for m, value, unit in measured]
            )
        self.say(f"{label}: best {best[1]}, {1e3 * best[0]:.0f} us" if best[1] else f"{label}: no tile was timed")
        return is_right

    def table(self, ceilings: Ceilings | None, sizes: Sequence[tuple[str, int, int, int | None]]) -> bool:
        """Compare the cases on shape after shape, while there is time. Returns whether ours were right."""
        is_right = True
        for done, (model, patches, words, maps) in enumerate(sizes):
            if not self.has(self._longest):
                self.say(f"table: no time for {len(sizes) - done} shapes more")
                break
            before = time.monotonic()
            shape = _shape(self.device, model, patches, words, maps)
            is_right &= self.attempt("table", str(shape), partial(self._compare, shape, ceilings)) is not False
            # Each compiles for sizes of its own: the next may take as long as the longest did.
            taken = time.monotonic() - before
            self._longest = taken if self._longest == SECONDS_OF_A_SHAPE else max(self._longest, taken)
        return is_right

    def _compare(self, shape: Shape, ceilings: Ceilings | None) -> bool:
        """Compare the cases on a shape, without those that fail. Returns False where one of ours did."""
        is_right = True

        def left_out(name: str, error: Exception) -> None:
            nonlocal is_right
            self.failed(name, str(shape), error, ", left out")
            # Ours must be right and compile for every shape; a batch may be too large for the memory there is.
            is_right &= name not in OURS or isinstance(error, torch.OutOfMemoryError)

        torch.cuda.empty_cache()
        rows = compare(shape, self.device, ROUNDS, CASES, ceilings, only_its_dtype=True, left_out=left_out)
        self.keep(rows)
        if rows:
            self.say(in_short(rows))
        return is_right

    def attempt(self, case: str, shape: str, step: Callable[[], T]) -> T | None:
        """Do a step, and return its result; None where it fails, which a line and a row say: the next goes on."""
        try:
            return step()
        except Exception as error:  # whatever the compiler or the driver says
            self.failed(case, shape, error)
            return None

    def failed(self, case: str, shape: str, error: Exception, verdict: str = "") -> None:
        """Say and keep that something failed, and how."""
        self.say(f"{case}{', ' * bool(shape)}{shape}: {reason(error)}{verdict}")
        metric = "wrong" if isinstance(error, WrongResultError) else "failed"
        self.keep([Row(case=case, shape=shape, metric=metric, value=1.0, unit="")])

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return time.monotonic() - self._start + seconds <= self._seconds

    def say(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._start:.0f}s] {text}")

    def keep(self, rows: Sequence[Row]) -> None:
        try:
            if self._csv is not None:
                append_csv(self._csv, records(self._around, rows))
        except OSError as error:
            self.say(f"{self._csv} cannot be written: {error.strerror or error}")


def _shape(device: str, model: str, patches: int, words: int, maps: int | None) -> Shape:
    sizes = Sizes(models=(model,), patches=(str(patches),), words=(str(words),), query_dims=("128",), maps=maps)
    return shapes(device, sizes)[0]


def reason(error: Exception) -> str:
    """The kind of an error and its first line, which may be long, or none."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _distance(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def _median_seconds(run: Callable[[], object]) -> float:
    """Return the median seconds of one call, of 7 that are queued behind each other."""
    run()
    marks = [mark(True)]
    for _ in range(7):
        run()
        marks.append(mark(True))
    return statistics.median(between(*pair) for pair in pairwise(marks))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the session. Returns 1 if something was wrong; argparse ends with 2."""
    parser = argparse.ArgumentParser(prog="python -m lfi_kernels.bench.gpu", description="Check and time the kernels.")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no step is begun; default 8")
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"), help="rows are appended here; default gpu.csv")
    parser.add_argument("--commit", default="", help="to record where the code does not lie in a checkout")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if not torch.cuda.is_available():
        parser.error("it needs a GPU that torch can use, found none. On the CPU: python -m lfi_kernels.bench")
    if not has_triton():
        parser.error(f"it needs triton 3.5 or newer, found {triton_version() or 'none'}")
    try:
        start_csv(options.csv)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    return Session("cuda", options.minutes, options.csv, options.commit, say).run()


if __name__ == "__main__":
    sys.exit(main())
