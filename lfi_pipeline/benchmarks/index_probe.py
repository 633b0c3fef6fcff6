"""`python -m lfi_pipeline.benchmarks.index_probe TARGETS`: open a cache, print seconds and memory as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from lfi_pipeline.benchmarks.memory import peak_rss, reset_peak, rss
from lfi_pipeline.targets import TargetStore


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
