"""Ctrl-C ends the command within seconds, with one line instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lfi_pipeline.targets.writer import claimed

SLOW = """
import sys, time
from lfi_pipeline.teachers import shards
make = shards.ShardMaker._make
def slow(*args):
    time.sleep(0.4)
    return make(*args)
shards.ShardMaker._make = slow
from lfi_cli.main import main
sys.argv[0] = "lfi"
main()
"""


def test_ctrl_c_ends_within_seconds_and_the_same_command_goes_on(scenes_root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    words = ["extract-teacher", "--dataset", "scenes", "--data-root", str(scenes_root), "--out", str(out)]
    words += ["--samples-per-shard", "2", "--batch-size", "2", "--kind", "relevance", "--layers", "2"]
    words += ["--device", "cpu", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("commits/*.json")):
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert time.monotonic() - began < 5, told[-2000:]
    assert process.returncode == 130
    assert "Traceback" not in told
    assert told.count("run the same command again") == 1
    assert printed.count("\n") == 1
    assert '"type": "KeyboardInterrupt"' in printed
    assert 0 < len(list(out.glob("commits/*.json"))) < 12
    for shard in range(12):
        with claimed(out, f"{shard:06d}") as ours:
            assert ours, f"shard {shard} is still claimed"
