"""What surrounds the loop: processes, trackers, callbacks, requests to stop, loaders that die."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from lfi_pipeline.students import Student
    from lfi_pipeline.training.trainer import MicroBatch, Trainer


def make_accelerator(device: str) -> Accelerator:
    """Return an Accelerator for processes and communication only; precision is left to the run's own setting."""
    return Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        device_placement=False,
        mixed_precision="no",
        # the last tap's value projection has no gradient where nothing reads the queries' final state
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "lfi"


class Trackers:
    """Sends metrics to every tracker that was asked for; `metrics.jsonl` is kept apart from them, always.

    Args:
        run: its directory; TensorBoard writes to `run`/tensorboard.
        names: of `TRACKERS`, or "none" alone.
        config: plain settings, shown by wandb and trackio.
        resume_step: steps already done; TensorBoard hides what an interrupted run logged after them: all of it where
            the run begins anew.

    Raises:
        ConfigError: a tracker is not installed.
        UnknownNameError: no such tracker.
    """

    def __init__(
        self, run: Path, names: Sequence[str], config: Mapping[str, Any], *, resume_step: int | None = None
    ) -> None:
        self._open: list[Any] = []
        for name in resolve(names):
            self._open.append(_start(name, run, dict(config), resume_step))

    def log(self, values: Mapping[str, float | int | str | None], step: int) -> None:
        """Send `values`; those that are None are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self._open:
            tracker.log(known, step=step)

    def close(self) -> None:
        """Finish every tracker; nothing can be logged after."""
        while self._open:
            self._open.pop().finish()


def resolve(names: Sequence[str]) -> list[str]:
    """Return the trackers to start, each once; raises as `Trackers` does, before anything is started."""
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise UnknownNameError("tracker", name, (*TRACKERS, "none"))
    if "none" in names:
        if len(set(names)) > 1:
            raise ConfigError(f"track 'none' must stand alone, got {','.join(names)}.")
        return []
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`track={name}` needs a package that is not installed. Run: pip install {name}")
    return list(dict.fromkeys(names))


def _start(name: str, run: Path, config: dict[str, Any], resume_step: int | None) -> Any:
    # the accelerate trackers drop every process but the first by themselves
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    tracker: Any
    if name == "tensorboard":
        purge = None if resume_step is None else resume_step + 1
        if purge is not None:
            _wait_to_sort_last(run / "tensorboard")
        tracker = TensorBoardTracker("tensorboard", run, purge_step=purge)
    elif name == "wandb":
        # without a key wandb would ask for one at the terminal, and a run must never wait for a person
        mode = None if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") else "offline"
        tracker = WandBTracker(PROJECT, name=run.name, dir=str(run), mode=mode, config=config)
    else:
        tracker = TrackioTracker(PROJECT, name=run.name, config=config)
    tracker.start()
    return tracker


def _wait_to_sort_last(folder: Path) -> None:
    """Wait, a second at most, until a new event file's name sorts after those in `folder`.

    TensorBoard reads event files in the order of their names, and what a resume purges is what it read before. A name
    begins with its second; within one second the process and a counter decide as text, where "10" comes before "9".
    """
    newest = max((path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")), default="")
    while f"{int(time.time()):010d}" == newest:
        time.sleep(0.01)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, the first Ctrl-C or SIGTERM sets `asked`; the second acts as it always did.

    Signals are left alone outside the main thread, where Python cannot handle them.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


class LoaderDied(Exception):
    """A process that loads data died without reporting an error; `__cause__` is what the loader then raised."""


def from_loader(batches: Iterator[Any], *, workers: int) -> Iterator[Any]:
    """Yield the items of a loader, and tell the death of one of its processes from other errors.

    The data set behind it returns its errors as values (`ErrorsAsValues`), so an exception of a loader with workers
    means that it lost contact with one of its processes.

    Raises:
        LoaderDied: a process of the loader ended.
    """
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not workers:
                raise
            forget_dead_loaders()
            raise LoaderDied(str(error)) from error
        yield item


def forget_dead_loaders() -> None:
    """Remove the signal handler by which torch reports that a loader's process died, once that is known.

    The handler raises in whatever code runs when the signal arrives, which may be the checkpoint that is being written
    because of that death.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


HOOKS = ("on_train_start", "on_train_batch_end", "on_validation_end", "on_train_end")


class Callback(Protocol):
    """What `train` calls. Inherit and override what is needed, or pass any object with the four methods.

    Of several processes, each calls its own; of several runs fed from one read, each run is told of. An exception stops
    the training after a checkpoint was written, and reaches the caller of `train`: the same call then goes on there.

    Example:
        class StopEarly(Callback):
            def on_validation_end(self, trainer, student):
                if trainer.scores["map_seen"] > 0.9:
                    raise KeyboardInterrupt

        train([(config, out)], machine, callbacks=[StopEarly()])
    """

    def on_train_start(self, trainer: Trainer, student: Student) -> None:
        """The run is about to take its first step, or the first one after an interruption.

        Args:
            trainer: the run: its `step` (steps done), `total_steps`, `config`, `out`, `scores`, `optimizer`, `device`.
            student: the module in training.
        """

    def on_train_batch_end(
        self,
        trainer: Trainer,
        student: Student,
        outputs: Mapping[str, Tensor],
        batch: Sequence[MicroBatch],
        batch_idx: int,
    ) -> None:
        """A step of the optimizer was taken.

        Args:
            trainer: as above.
            student: as above.
            outputs: the step's losses by name, `total` among them, and `gradient_norm`: scalars on the device. To read
                one is to wait for the device.
            batch: the parts of the step's batch that this process computed, on the device.
            batch_idx: number of the step in its epoch, from 0.
        """

    def on_validation_end(self, trainer: Trainer, student: Student) -> None:
        """An epoch was scored; the scores are `trainer.scores`.

        Args:
            trainer: as above.
            student: the module that was scored: the moving average of the weights where there is one.
        """

    def on_train_end(self, trainer: Trainer, student: Student) -> None:
        """The run is finished, and its directory complete.

        Args:
            trainer: as above.
            student: the module that was scored and kept.
        """


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise ConfigError unless every one has the four methods; names those that are missing."""
    for callback in callbacks:
        missing = [name for name in HOOKS if not callable(getattr(callback, name, None))]
        if missing:
            raise ConfigError(
                f"callbacks must have the methods {', '.join(HOOKS)}, but {type(callback).__name__} lacks "
                f"{', '.join(missing)}. Inherit from lfi_pipeline.training.Callback to override only some."
            )


def call(callbacks: Sequence[Callback], hook: str, *arguments: Any, on_error: Callable[[], None]) -> None:
    """Call `hook` of each, in their order.

    Args:
        callbacks: as `train` takes them.
        hook: one of `HOOKS`.
        arguments: of the hook.
        on_error: what to do before an exception of a callback goes on to the caller.
    """
    for callback in callbacks:
        try:
            getattr(callback, hook)(*arguments)
        except BaseException as error:
            on_error()
            error.add_note(
                f"Raised by {type(callback).__name__}.{hook}. What was trained is kept; the same call goes on there."
            )
            raise
