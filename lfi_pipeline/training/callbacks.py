"""Your own code in the training loop, under the names and with the arguments that Lightning gives to its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lfi_pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from lfi_pipeline.students import Student
    from lfi_pipeline.training.trainer import ActiveRun, Piece

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

    def on_train_start(self, trainer: ActiveRun, student: Student) -> None:
        """The run is about to take its first step, or the first one after an interruption.

        Args:
            trainer: the run: its `step` (steps done), `total_steps`, `config`, `out`, `scores`, `optimizer`, `device`.
            student: the module in training.
        """

    def on_train_batch_end(
        self,
        trainer: ActiveRun,
        student: Student,
        outputs: Mapping[str, Tensor],
        batch: Sequence[Piece],
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

    def on_validation_end(self, trainer: ActiveRun, student: Student) -> None:
        """An epoch was scored; the scores are `trainer.scores`.

        Args:
            trainer: as above.
            student: the module that was scored: the moving average of the weights where there is one.
        """

    def on_train_end(self, trainer: ActiveRun, student: Student) -> None:
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
