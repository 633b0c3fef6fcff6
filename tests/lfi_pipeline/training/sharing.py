"""Train with several processes that share every batch, over gloo on this machine.

Run as a script by test_processes.py: python sharing.py PLAN, a JSON file of turns, one after another: [{"processes": n,
"workers": n, "stop": step or null, "runs": [[settings, out], ...]}, ...]. Libraries are imported once; every process is
a fork of this one, made before any of them was used.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lfi_pipeline.core.options import build
from lfi_pipeline.training import RuntimeConfig, train
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.monitor import EpochClock
from lfi_pipeline.training.trainer import MicroBatch, Trainer


def stop_before(step: int) -> None:
    """Ask this process for a stop while the step before `step` is taken."""
    take = Trainer.train_step

    def until(self: Trainer, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, pieces, clock)

    Trainer.train_step = until  # type: ignore[method-assign]


def take_part(turn: dict[str, Any], rank: int, port: int) -> None:
    world, stop = turn["processes"], turn["stop"]
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    if stop is not None and rank == world - 1:  # one alone is asked, all must agree
        stop_before(stop)
    interrupted = False
    try:
        machine = RuntimeConfig(device="cpu", track=(), workers=turn["workers"])
        train([(build(TrainConfig, settings), Path(out)) for settings, out in turn["runs"]], machine)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted == (stop is not None)
    if world > 1:
        torch.distributed.destroy_process_group()


def fork(turn: dict[str, Any], rank: int, port: int) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            take_part(turn, rank, port)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return process


def main() -> None:
    for turn in json.loads(Path(sys.argv[1]).read_text()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [fork(turn, rank, port) for rank in range(turn["processes"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        if any(codes):
            sys.exit(f"processes ended with {codes} in {turn}")


if __name__ == "__main__":
    main()
