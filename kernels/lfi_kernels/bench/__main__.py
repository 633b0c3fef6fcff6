"""python -m lfi_kernels.bench: one JSON object a line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lfi_kernels.bench import (
    ON_CPU,
    ON_GPU,
    WIDTHS,
    Sizes,
    case_names,
    ceiling_rows,
    compare,
    in_short,
    measure_ceilings,
    settled,
    shapes,
)
from lfi_kernels.bench.compare import append_csv, environment, records, start_csv


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 if a case was refused, after all other shapes were timed; argparse ends with 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    is_cuda = options.device.startswith("cuda")
    try:
        names = case_names(options.device, options.cases)
        sizes = Sizes(
            models=options.models,
            patches=options.patches,
            words=options.words,
            query_dims=options.query_dims,
            maps=options.maps,
        )
        todo = shapes(options.device, sizes, quick=options.quick)
        if options.tune and not is_cuda:
            raise ValueError(f"--tune needs a GPU, got --device {options.device}")
        if options.csv:
            start_csv(options.csv)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.tune:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    with settled(options.device):
        around = environment(options.device, options.commit)
        ceilings = measure_ceilings(options.device) if is_cuda else None
    refused = 0
    pending = ceiling_rows(ceilings) if ceilings else []
    for shape in todo:
        try:
            rows = compare(
                shape, options.device, 1 if options.quick else options.rounds, names, ceilings, tune=options.tune
            )
            sys.stderr.write(in_short(rows) + "\n")
            pending += rows
        except ValueError as error:
            refused = 1
            sys.stderr.write(f"{shape}: {error}\n")
        lines = records(around, pending)
        sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
        sys.stdout.flush()
        if options.csv:
            append_csv(options.csv, lines)
        pending = []
    return refused


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lfi_kernels.bench", description="Check and time the interaction-query block."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=_positive, default=20, help="in which the cases take turns; default 20")
    cases = f"of {', '.join(ON_GPU)}; on the CPU of {', '.join(ON_CPU)}"
    parser.add_argument("--cases", type=_names, default=(), help=cases)
    parser.add_argument("--models", type=_names, default=(), help=f"of {', '.join(WIDTHS)}")
    parser.add_argument("--patches", type=_names, default=(), help="numbers of patches, such as 196,1024")
    parser.add_argument("--words", type=_names, default=(), help="numbers of words, such as 16,32")
    parser.add_argument("--maps", type=int, help="words of an image that have a map; 0: inference; default: all")
    parser.add_argument("--query-dims", type=_names, default=(), help="channels of a query, such as 128,D (a patch's)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file as well")
    parser.add_argument("--commit", default="", help="to record where the code does not lie in a checkout")
    parser.add_argument("--tune", action="store_true", help="first measure the kernels' tiles, and keep the fastest")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
