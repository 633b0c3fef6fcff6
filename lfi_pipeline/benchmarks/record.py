"""One CSV for all benchmarks: a row a measurement, keyed by commit, device and shape; no dates in it."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.benchmarks.outcome import Outcome
from lfi_pipeline.errors import ConfigError, LFIError

COLUMNS = (
    *("commit", "dirty", "device", "threads", "torch"),
    *("benchmark", "case", "shape", "metric", "value", "unit"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What a measurement was made with.

    Attributes:
        commit: of the checkout that the code lies in; empty where it is installed.
        dirty: whether that checkout has uncommitted changes.
        device: name of the processor or accelerator.
        threads: of torch within one operation.
        torch: version, and triton's where it is installed.
    """

    commit: str
    dirty: bool
    device: str
    threads: int
    torch: str

    @classmethod
    def here(cls, device: str = "cpu", threads: int | None = None) -> Environment:
        """Describe this process on a torch device; `threads` where it measured with another number than it has now."""
        import torch

        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
        commit = _git("rev-parse", "HEAD")
        return cls(
            commit=commit,
            dirty=bool(commit and _git("status", "--porcelain")),
            device=name,
            threads=threads or torch.get_num_threads(),
            torch=versions(),
        )


def append_csv(path: Path, environment: Environment, outcome: Outcome) -> None:
    """Append one row a measurement; the head is written where the file is new.

    Raises:
        ConfigError: the file has another head.
        LFIError: it cannot be written.
    """
    key = (
        environment.commit,
        str(environment.dirty).lower(),
        environment.device,
        environment.threads,
        environment.torch,
    )
    try:
        if path.exists() and path.stat().st_size:
            with path.open(newline="", encoding="utf-8") as file:
                head = next(csv.reader(file), [])
            if head != list(COLUMNS):
                raise ConfigError(f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(head)}.")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for each in outcome.measurements:
                writer.writerow(
                    (*key, outcome.benchmark, each.case, each.shape, each.metric, f"{each.value:.6g}", each.unit)
                )
    except OSError as error:
        raise LFIError(f"Cannot write {path}: {error.strerror or error}. Name another file with --csv.") from error


def cpu_name() -> str:
    """The processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines())
        name = next((value.strip() for field, _, value in lines if field.strip() == "model name"), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} x{cores}"


def versions() -> str:
    """torch's version, and triton's where it is installed."""
    import torch

    try:
        return f"{torch.__version__}, triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        return str(torch.__version__)


def _git(*words: str) -> str:
    """Output of git in this code's own checkout; empty where it does not lie in one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
