"""Opening a large index: seconds and memory, measured in a process of its own.

On Linux from /proc, since `getrusage` there hands a process the peak of the one that started it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lfi_pipeline.benchmarks.config import IndexConfig
from lfi_pipeline.benchmarks.inputs import labels_of, maps_spec, payload_of, planned_samples, write_targets
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.core.errors import BenchmarkError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.targets import ShardPayload, TargetStore


def peak_rss() -> int:
    """Bytes of the largest resident set so far, or since `reset_peak`."""
    return _status("VmHWM") or _ru_maxrss()


def rss() -> int:
    """Bytes of the resident set now, where the system tells (Linux); else the peak so far."""
    return _status("VmRSS") or _ru_maxrss()


def reset_peak() -> None:
    """Let the peak start from the resident set of now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _ru_maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


PROBE = "lfi_pipeline.benchmarks.index"


def bench_index(config: IndexConfig) -> Outcome:
    """Open a cache whose maps are one cell each, so that the index is all there is, and touch what training touches.

    Raises:
        BenchmarkError: a row of the index is not what was written.
    """
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        root = Path(scratch) / "targets"
        _write(root, config)
        found = [_probe(root) for _ in progress_bar(range(config.rounds), desc="open", unit="process", leave=False)]
    _check(found[0], config.samples)
    shape = f"{config.samples} samples, {config.samples_per_shard} a shard"
    measured = []
    for step in ("open", "open and columns"):
        for metric, key, unit, scale in (("time", "seconds", "s", 1.0), ("added RSS", "bytes", "MB", 1e-6)):
            value = statistics.median(probe[step][key] * scale for probe in found)
            measured.append(Measurement(case=step, shape=shape, metric=metric, value=value, unit=unit))
    seconds, memory = measured[-2].value, measured[-1].value
    return Outcome(
        benchmark="index",
        checked="first, middle and last rows are what was written",
        measurements=tuple(measured),
        asked=(
            Asked(what=f"seconds to open {config.samples:,} samples with columns", value=seconds, most=2.0),
            Asked(what=f"MB added by {config.samples:,} samples with columns", value=memory, most=300.0),
        ),
        notes=(
            "TargetStore.open; then the columns that training reads: keys, paths, labels, image checksums. Each round "
            "is a fresh process in which the packages are imported already; memory is the peak after minus the "
            "resident set before. Files are in the page cache.",
        ),
    )


def _write(root: Path, config: IndexConfig) -> None:
    spec = maps_spec(
        samples=config.samples, maps_shape=(1, 1, 1, 1), samples_per_shard=config.samples_per_shard, embedding_dim=1
    )

    def payload(positions: range) -> ShardPayload:
        checksums = np.arange(positions.start, positions.stop, dtype=np.uint32) + 1
        return payload_of(spec, np.ones((len(positions), 1, 1, 1, 1), np.float32), checksums)

    write_targets(root, spec, payload, plan=planned_samples(config.samples))


def _probe(root: Path) -> dict[str, Any]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", PROBE, str(root)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"The process that opens {root} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _check(found: dict[str, Any], samples: int) -> None:
    expected = {
        str(i): [f"{i:012d}", f"train2017/{i:012d}.jpg", list(labels_of(i)), i + 1]
        for i in (0, samples // 2, samples - 1)
    }
    require(found["rows"] == expected, f"Rows of the index must be {expected}, got {found['rows']}.")


def probe(root: Path) -> dict[str, object]:
    """Open `root` and read the columns that training reads; bytes are added to the resident set from the start."""
    reset_peak()
    before, began = rss(), time.perf_counter()
    store = TargetStore.open(root)
    opened = {"seconds": time.perf_counter() - began, "bytes": max(0, peak_rss() - before)}
    index = store.index
    keys, paths, labels, checksums = index.keys, index.paths, index.labels, index.image_crc32c
    columns = {"seconds": time.perf_counter() - began, "bytes": max(0, peak_rss() - before)}
    places = (0, len(store) // 2, len(store) - 1)
    rows = {i: [str(keys[i]), str(paths[i]), [int(label) for label in labels[i]], int(checksums[i])] for i in places}
    return {"open": opened, "open and columns": columns, "rows": rows}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
