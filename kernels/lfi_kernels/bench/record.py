"""Rows with what they were measured with, as JSON lines and in a CSV.

`lfi bench NAME --csv` writes its rows with this as well, so that one file can hold them all.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from lfi_kernels.bench.compare import Row
from lfi_kernels.interaction_attention.tiles import triton_version

COLUMNS = (
    *("commit", "dirty", "device", "threads", "torch"),
    *("benchmark", "case", "shape", "metric", "value", "unit"),
)
Record = dict[str, str | bool | int | float]


def environment(device: str, commit: str = "") -> Record:
    """What is measured with: the first columns.

    Args:
        device: of torch.
        commit: is recorded where the code does not lie in a checkout of its own.
    """
    found = _git("rev-parse", "HEAD")
    return {
        "commit": found or commit,
        "dirty": bool(found and _git("status", "--porcelain")),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": f"{torch.__version__}, triton {triton}" if (triton := triton_version()) else str(torch.__version__),
    }


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


def append_csv(path: Path, found: Sequence[Mapping[str, object]]) -> None:
    """Append rows, whose keys are the columns, to a file that `start_csv` accepted."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for each in found:
            writer.writerow({**each, "dirty": str(each["dirty"]).lower(), "value": f"{each['value']:.6g}"})


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
