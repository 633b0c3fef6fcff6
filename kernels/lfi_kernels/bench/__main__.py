"""python -m lfi_kernels.bench [--quick]: one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from lfi_kernels.bench import compare, shapes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lfi_kernels.bench", description="Time the interaction-query block."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    asked = parser.parse_args(arguments)
    for shape in shapes(asked.device, asked.quick):
        for row in compare(shape, asked.device, 1 if asked.quick else asked.rounds):
            sys.stdout.write(json.dumps(asdict(row)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
