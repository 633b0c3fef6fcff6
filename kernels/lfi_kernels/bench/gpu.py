"""All that one wants to know of the kernels on a GPU, in some minutes, with torch and triton alone.

    python -m lfi_kernels.bench.gpu [--minutes 8] [--csv gpu.csv]

In this order, a short line each as it is known, so that a run that is cut off has told the most important: whether the
kernels are right in all dtypes, and how long that check takes; whether the compiler's race shows; what the GPU can do
at most; the block against the usual ways to compute it on ViT-S; the tiles of every kernel there, right and timed; then
the rest of the table, shape after shape (see `lfi_kernels.bench`). Wrong results have no speed: nothing of them is
timed. Rows go to the CSV as soon as they are known, with commit, GPU and versions.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from lfi_kernels.bench.cases import FUSED, folded, make
from lfi_kernels.bench.compare import (
    Row,
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
from lfi_kernels.interaction_attention.tiles import Problem, Tile, has_triton, triton_version

CASES = ("fused", "projected", "sdpa", "compiled-projected", "compiled-flex")
ROUNDS = 10
SECONDS_OF_A_SHAPE = 45.0
"""What a shape is thought to take before one was timed: compiling takes most of it."""

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
        self._longest = SECONDS_OF_A_SHAPE
        self._around = environment(device, commit)

    def run(self) -> int:
        """Do all steps that there is time for. Returns 1 where something was wrong."""
        line = f"{self._around['device']}; torch {self._around['torch']}; commit {self._around['commit'] or 'unknown'}"
        self.say(line + " with changes" * bool(self._around["dirty"]))
        with settled(self.device):
            is_right = self.check()
            self.race()
            ceilings = measure_ceilings(self.device)
            rows = ceiling_rows(ceilings)
            self.keep(rows)
            self.say("; ".join(f"{row.case} {row.value:.4g} {row.unit}" for row in rows))
            if not is_right:
                self.say("the kernels are wrong on this GPU: nothing is timed")
                return 1
            steps = self.table(ceilings, TABLE[:1]), self.tiles(), self.table(ceilings, TABLE[1:])
            return int(not all(steps))

    def check(self) -> bool:
        """Compare the kernels with float64 in all dtypes, and tell how long a first step waits for that."""
        rows, is_right = [], True
        for name, dtype in DTYPES.items():
            seconds, error = [], math.nan
            try:
                for _ in range(2):
                    before = time.monotonic()
                    error = largest_error(torch.device(self.device), dtype)
                    seconds.append(time.monotonic() - before)
            except Exception as failure:  # whatever the compiler or the driver says
                self.say(f"check {name}: {type(failure).__name__}: {str(failure).splitlines()[0][:200]}, WRONG")
                is_right = False
                continue
            fits = error <= TOLERANCES[dtype]  # NaN does not
            is_right &= fits
            self.say(
                f"check {name}: error {error:.2g}, allowed {TOLERANCES[dtype]:g}{'' if fits else ', WRONG'}; "
                f"{seconds[0]:.1f} s, compiled {seconds[1]:.2f} s"
            )
            rows.append(Row(case="check", shape=name, metric="largest RMS error", value=error, unit=""))
            rows.append(Row(case="check", shape=name, metric="first", value=seconds[0], unit="s"))
            rows.append(Row(case="check", shape=name, metric="again", value=seconds[1], unit="s"))
        self.keep(rows)
        return is_right

    def race(self) -> None:
        """Tell whether the compiler's fault shows here: see `triton_race`."""
        from lfi_kernels.bench.triton_race import probe

        rows = []
        for tile, twice, error in probe(self.device):
            loads = "loaded twice" if twice else "loaded once"
            self.say(f"race {tile}, {loads}: error {error:.2g}")
            rows.append(Row(case=f"race, {loads}", shape=tile, metric="error", value=error, unit=""))
        self.keep(rows)

    def tiles(self) -> bool:
        """Run every tile of every kernel on ViT-S, compare it with the usual one, and time it."""
        is_right = True
        for label, words, maps in (("M16", 16, None), ("M80, three maps", 80, 3)):
            if not self.has(60.0):
                self.say(f"tiles {label}: no time")
                continue
            calls = self._launches(_shape(self.device, "ViT-S/16", 196, words, maps))
            for problem, run in calls:
                if maps is not None and problem.kernel not in ("forward", "backward"):
                    continue
                is_right &= self._time_tiles(f"{problem.kernel} {label}", problem, run)
        return is_right

    def _launches(self, shape: Shape) -> list[tuple[Problem, Callable[[Tile], tuple[Tensor, ...]]]]:
        """Return each launch of both passes on a shape: its problem, and a function that repeats it with a tile."""
        from lfi_kernels.interaction_attention import triton_fused, triton_project

        calls = []

        def launch(problem: Problem, _: torch.device, run: Callable[[Tile], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            calls.append((problem, run))
            return run(problem.usual())

        block, inputs = make(shape, self.device)
        leaves = (inputs.queries, inputs.features, *block.parameters())
        with (
            patch.object(triton_fused, "launch", launch),
            patch.object(triton_project, "launch", launch),
            variable(ENVIRONMENT_VARIABLE, FUSED),
        ):
            outputs = folded(block, inputs)
            torch.autograd.grad(outputs, leaves, upstream_of(outputs))
        return calls

    def _time_tiles(self, label: str, problem: Problem, run: Callable[[Tile], tuple[Tensor, ...]]) -> bool:
        truth = [each.double() for each in run(problem.usual())]
        rows, best, is_right = [], (float("inf"), ""), True
        for tile in problem.candidates():
            try:
                results = run(tile)
                errors = [_distance(a, b) for a, b in zip(results, truth, strict=True)]
                milliseconds = 1e3 * _median_seconds(lambda tile=tile: run(tile))  # type: ignore[misc]
            except Exception as error:  # a tile that does not fit, or that the compiler cannot make
                self.say(f"  {label} {tile}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
                continue
            wrong = not max(errors) <= problem.tolerance()
            is_right &= not wrong
            best = min(best, (milliseconds, str(tile))) if not wrong else best
            outcome = f"{1e3 * milliseconds:.0f} us, off by {max(errors):.1g}{', WRONG' if wrong else ''}"
            self.say(f"  {label} {tile}: {outcome}")
            rows.append(Row(case=f"tile of {label}", shape=str(tile), metric="time", value=milliseconds, unit="ms"))
            rows.append(Row(case=f"tile of {label}", shape=str(tile), metric="off by", value=max(errors), unit=""))
        self.say(f"{label}: best {best[1]}, {1e3 * best[0]:.0f} us")
        self.keep(rows)
        return is_right

    def table(self, ceilings: Ceilings, sizes: Sequence[tuple[str, int, int, int | None]]) -> bool:
        """Compare the cases on shape after shape, while there is time."""
        is_right = True
        for done, (model, patches, words, maps) in enumerate(sizes):
            if not self.has(self._longest):
                self.say(f"table: no time for {len(sizes) - done} shapes more")
                break
            before = time.monotonic()
            is_right &= self._compare(_shape(self.device, model, patches, words, maps), ceilings)
            torch.cuda.empty_cache()
            # Each compiles for sizes of its own: the next may take as long as the longest did.
            taken = time.monotonic() - before
            self._longest = taken if self._longest == SECONDS_OF_A_SHAPE else max(self._longest, taken)
        return is_right

    def _compare(self, shape: Shape, ceilings: Ceilings) -> bool:
        names = list(CASES)
        while names:
            try:
                rows = compare(shape, self.device, ROUNDS, names, ceilings, only_its_dtype=True)
            except ValueError as error:
                self.say(f"{shape}: {error}")
                return False
            except Exception as error:  # a compiled case that the compiler cannot make must not cost the others
                self.say(f"{shape}: {type(error).__name__}: {str(error).splitlines()[0][:100]}; without {names[-1]}")
                names.pop()
                continue
            self.keep(rows)
            self.say(in_short(rows))
            return True
        return False

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return time.monotonic() - self._start + seconds <= self._seconds

    def say(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._start:.0f}s] {text}")

    def keep(self, rows: Sequence[Row]) -> None:
        if self._csv is not None:
            append_csv(self._csv, records(self._around, rows))


def _shape(device: str, model: str, patches: int, words: int, maps: int | None) -> Shape:
    sizes = Sizes(models=(model,), patches=(str(patches),), words=(str(words),), query_dims=("128",), maps=maps)
    return shapes(device, sizes)[0]


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
