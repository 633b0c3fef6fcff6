"""Rows with what they were measured with, as JSON lines and in a CSV.

The columns are those that `lfi bench NAME --csv` writes, so that one file can hold both; this package cannot import
that writer, for it runs with torch alone.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from lfi_kernels.bench.compare import Row

COLUMNS = (
    *("commit", "dirty", "device", "threads", "torch"),
    *("benchmark", "case", "shape", "metric", "value", "unit"),
)
Record = dict[str, str | int | float]


def environment(device: str, commit: str = "") -> Record:
    """What is measured with: the first columns.

    Args:
        device: of torch.
        commit: is recorded where the code does not lie in a checkout of its own.
    """
    found = _git("rev-parse", "HEAD")
    return {
        "commit": found or commit,
        "dirty": str(bool(found and _git("status", "--porcelain"))).lower(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": versions(),
    }


def versions() -> str:
    """torch's version, and triton's where it is installed."""
    try:
        return f"{torch.__version__}, triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        return torch.__version__


def records(around: Record, rows: Sequence[Row]) -> list[Record]:
    """One dict a row, its keys the columns."""
    return [around | {"benchmark": "kernel"} | asdict(row) for row in rows]


def start_csv(path: Path) -> None:
    """Write the head where the file is new.

    Raises:
        ValueError: the file has another head.
        OSError: it cannot be written.
    """
    if path.exists() and path.stat().st_size:
        with path.open(newline="", encoding="utf-8") as file:
            head = next(csv.reader(file), [])
        if head != list(COLUMNS):
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(head)}.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")


def append_csv(path: Path, found: Sequence[Record]) -> None:
    """Append to a file that `start_csv` accepted."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for each in found:
            writer.writerow(each | {"value": f"{each['value']:.6g}"})


def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines())
        name = next((value.strip() for field, _, value in lines if field.strip() == "model name"), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} x{cores}"


def _git(*words: str) -> str:
    """Output of git in this code's own checkout; empty where it does not lie in one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
