"""One CSV for all benchmarks: a row a measurement, keyed by commit, device and shape; no dates in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from lfi_kernels.bench import record
from lfi_kernels.bench.record import COLUMNS
from lfi_pipeline.benchmarks.outcome import Outcome
from lfi_pipeline.errors import ConfigError, LFIError

__all__ = ["COLUMNS", "Environment", "append_csv"]


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
        found = record.environment(device)
        return cls(
            commit=str(found["commit"]),
            dirty=bool(found["dirty"]),
            device=str(found["device"]),
            threads=threads or int(found["threads"]),
            torch=str(found["torch"]),
        )


def append_csv(path: Path, environment: Environment, outcome: Outcome) -> None:
    """Append one row a measurement; the head is written where the file is new.

    Raises:
        ConfigError: the file has another head.
        LFIError: it cannot be written.
    """
    around = asdict(environment) | {"benchmark": outcome.benchmark}
    try:
        record.start_csv(path)
        record.append_csv(path, [around | asdict(each) for each in outcome.measurements])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise LFIError(f"Cannot write {path}: {error.strerror or error}. Name another file with --csv.") from error
