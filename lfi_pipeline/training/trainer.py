"""One student in training: its weights, its optimizer, its directory, and what one step does to them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, RunError
from lfi_pipeline.objectives import StepContext
from lfi_pipeline.students import Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.checkpoint import Retention, load_state, save_state
from lfi_pipeline.training.config import OptimizerConfig, TrainConfig
from lfi_pipeline.training.data import Batch
from lfi_pipeline.training.learner import SQUARE, TOTAL, Learner
from lfi_pipeline.training.maps import MapResampler
from lfi_pipeline.training.monitor import BACKWARD, FORWARD, OPTIMIZER, EpochClock, LossGuard, StepTimes
from lfi_pipeline.training.run_dir import CHECKPOINTS, STATE

_WARMUP_START = 0.01  # of the peak


def make_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int
) -> Scheduler:
    """Return timm's scheduler for `config`; call its `step_update(step)` before step 0, 1, ... `steps` - 1."""
    common: dict[str, Any] = {
        "warmup_t": min(config.warmup_epochs * steps_per_epoch, steps - 1),
        "warmup_lr_init": config.lr * _WARMUP_START,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    match config.schedule:
        case "cosine":
            return CosineLRScheduler(optimizer, t_initial=steps, **common)
        case "linear":
            return PolyLRScheduler(optimizer, t_initial=steps, power=1.0, **common)
    return StepLRScheduler(optimizer, decay_t=steps + 1, **common)


READ_EVERY = 50
"""Steps after which the losses of a device are read, where they are not wanted before."""
AT_ONCE = ("cpu",)
"""Kinds of devices whose numbers are read in every step, since that costs nothing there."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a step's batch, on the device, with its target maps where a student reads maps."""

    batch: Batch
    cut: MapResampler | None
    share: float


@dataclass(frozen=True, slots=True)
class TakenStep:
    """Losses of a step, left on the device until they are read.

    Attributes:
        number: of the step, from 0.
        names: of the values.
        values: [names], fp32.
        positions: of its images in the cache, part by part.
    """

    number: int
    names: tuple[str, ...]
    values: Tensor
    positions: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run cannot go on, and the step that shows it (from 0)."""

    reason: str
    step: int
    losses: Mapping[str, float]
    positions: tuple[Tensor, ...]


class Trainer:
    """A training run in memory: student, optimizer, schedule and the state for a resume.

    On a CPU the losses of a step are looked at before it moves the weights. On other devices that would make every step
    wait: they are read every `READ_EVERY` steps, and before anything is logged, scored or kept. What a run that failed
    did after the step at fault is lost with it; no checkpoint holds any of it.

    Args:
        config: its settings.
        out: its directory, prepared.
        store: the cache.
        task: as `validate.resolve_task` says.
        accelerator: the processes that share it.
        device: where it computes.
        steps: of the whole run.
        steps_per_epoch: for the warm-up.
        keep_every: as of `RuntimeConfig`.
        log_every: steps after which `train_step` must give numbers.

    Raises:
        LFIError: a student that cannot be built, a term that the cache cannot serve, a checkpoint that cannot be read.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        store: TargetStore,
        task: str,
        accelerator: Accelerator,
        device: torch.device,
        steps: int,
        steps_per_epoch: int,
        keep_every: int,
        log_every: int = 1,
    ) -> None:
        self.config, self.out, self.task, self.device = config, out, task, device
        self.accelerator, self.total_steps = accelerator, steps
        self.learner = Learner(config, store, task).to(device).train()
        self.optimizer = _make_optimizer(config, self.learner)
        self.schedule = make_schedule(config.optimizer, self.optimizer, steps, steps_per_epoch)
        decay = config.optimizer.ema
        self.ema = ModelEmaV3(self.learner.student, decay=decay, use_warmup=True) if decay is not None else None
        self.step = self.epochs_ended = 0
        self._steps_per_epoch = steps_per_epoch
        self.retention = Retention(out / CHECKPOINTS, every=keep_every or None)
        self.scores: dict[str, Any] = {}
        self._began = time.monotonic()  # as if it had been trained without a break
        self.step_ms: list[float] = []
        self._guard = LossGuard()
        self._autocasts = config.precision == "bf16"
        self.failure: Failure | None = None
        self.outputs: dict[str, Tensor] = {}
        self._unread: list[TakenStep] = []
        self._times = StepTimes(device)
        self._reads_at = (log_every, steps_per_epoch, READ_EVERY)
        self._resume(store.spec.fingerprint)
        self.shared = accelerator.prepare_model(self.learner) if accelerator.num_processes > 1 else self.learner
        self._fingerprint = store.spec.fingerprint

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.monotonic() - self._began

    @property
    def scored(self) -> Student:
        """The student that is scored and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.learner.student

    def train_step(self, pieces: Sequence[MicroBatch], clock: EpochClock) -> dict[str, float]:
        """Take one step; check `failure` afterwards.

        Everything random in it depends on (seed, step, process) alone, so a resumed run needs no generator's state.

        Returns:
            Its losses, and `rate` and `gradient_norm`, where they are read in this step; else nothing. `outputs` holds
            the losses on the device in any case.
        """
        self._times.start()
        torch.manual_seed(self._seed_of_step())
        self.schedule.step_update(self.step)
        weights, measure = self.learner.weights(self.step / self.total_steps), self.learner.balance.due(self.step)
        with clock.lap(FORWARD):
            supervisions = [self.learner.supervise(piece.cut) for piece in pieces]
            mass = self._mass([each.weights for each, _ in supervisions if each is not None and each.weights])
        sums: dict[str, Tensor] = {}
        for number, (piece, (supervision, present)) in enumerate(zip(pieces, supervisions, strict=True)):
            context = StepContext(batch=piece.batch, share=piece.share, mass=mass, present=present, cut=piece.cut)
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.shared):
                with clock.lap(FORWARD), torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocasts):
                    losses = self.shared(context, supervision, weights, **({"measure": True} if measure else {}))
                with clock.lap(BACKWARD):
                    losses[TOTAL].backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        with clock.lap(OPTIMIZER):
            norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.optimizer.clip_grad)
            step = self._taken(sums | {"gradient_norm": norm}, pieces)
            by_name = zip(step.names, step.values.unbind(), strict=True)
            self.outputs = {name: value for name, value in by_name if not name.startswith(SQUARE)}
            self._unread.append(step)
            at_once = self.device.type in AT_ONCE or measure  # ratios hold from the next step on
            values = self.read() if at_once else {}
            squares = {name: values.pop(name) for name in list(values) if name.startswith(SQUARE)}
            if measure and self.failure is None:
                self.learner.balance.update({name.removeprefix(SQUARE): value for name, value in squares.items()})
            if self.failure is None:
                self.optimizer.step()
                self.step += 1
                if self.ema is not None:
                    self.ema.update(self.learner.student, step=self.step)
            self.optimizer.zero_grad(set_to_none=True)
        self._times.stop()
        if self.device.type in AT_ONCE:
            self.step_ms += self._times.read()
        elif not values and (self.step == self.total_steps or any(self.step % every == 0 for every in self._reads_at)):
            values = self.read()
        group = self.optimizer.param_groups[0]
        term_weights = {f"weight of {term}": weight for term, weight in weights.items()}
        return values | term_weights | {"rate": group["lr"] / group.get("lr_scale", 1.0)} if values else {}

    @property
    def owes_epoch(self) -> bool:
        """Whether the last step ended an epoch that is not scored and kept yet."""
        return self.step == (self.epochs_ended + 1) * self._steps_per_epoch

    @property
    def all_read(self) -> bool:
        """Whether every step that was taken has been looked at."""
        return not self._unread

    def read(self) -> dict[str, float]:
        """Read and check the losses of the steps since the last reading; waits for the device.

        Sets `failure` at the first one that should not have been taken. Of several processes, all see the same.

        Returns:
            The numbers of the last of them; nothing where there are none.
        """
        if not self._unread or self.failure is not None:
            return {}
        steps, self._unread = self._unread, []
        values: dict[str, float] = {}
        rows = torch.cat([step.values for step in steps]).tolist()  # one wait for all; steps may hold different numbers
        for step in steps:
            row, rows = rows[: len(step.names)], rows[len(step.names) :]
            values = dict(zip(step.names, row, strict=True))
            reason = self._guard.check(values[TOTAL], values["gradient_norm"])
            if reason is not None:
                self.failure = Failure(reason, step.number, values, step.positions)
                break
        if self.device.type not in AT_ONCE:
            self.step_ms += self._times.read()
        return values

    def save(self) -> None:
        """Replace the state that a resume starts from, unless the run has failed."""
        self.read()
        if self.failure is not None:
            return
        state = {
            "step": self.step,
            "epochs_ended": self.epochs_ended,
            "recent_losses": list(self._guard.recent),
            "retention": self.retention.state_dict(),
            "scores": self.scores,
            "seconds": self.seconds,
            "step_ms": self.median_step_ms,
            "balance": self.learner.balance.state_dict(),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
        }
        save_state(self.out / STATE, state, fingerprint=self._fingerprint)

    @property
    def median_step_ms(self) -> float | None:
        """Median time of a step in milliseconds, of those taken since the run was started or resumed."""
        return statistics.median(self.step_ms) if self.step_ms else self._earlier_step_ms

    _earlier_step_ms: float | None = None

    def _resume(self, fingerprint: str) -> None:
        path = self.out / STATE
        if not path.is_file():
            return
        state = load_state(path, fingerprint=fingerprint)
        try:
            self._take_up(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise RunError(
                f"{path} does not fit the run ({str(error).partition(chr(10))[0][:200]}). Delete the file to start the "
                "run again from its beginning."
            ) from error

    def _take_up(self, state: Mapping[str, Any]) -> None:
        step = state["step"]
        if type(step) is not int or not 0 <= step <= self.total_steps:
            raise ValueError(f"step {step!r} of {self.total_steps}")
        self.step, self.scores = step, dict(state["scores"])
        self.epochs_ended = int(state.get("epochs_ended", step // self._steps_per_epoch))
        self._began -= float(state["seconds"])
        self._guard = LossGuard(state["recent_losses"])
        self.retention.load_state_dict(state["retention"])
        self._earlier_step_ms = state["step_ms"]
        self.learner.balance.load_state_dict(state.get("balance", {}))
        self.learner.load_state_dict(state["learner"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])

    def _seed_of_step(self) -> int:
        seeds = [self.config.data.seed, self.step, self.accelerator.process_index]
        return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _mass(self, weights: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Weight of all words of the step at each tap, per process (see `StepContext.mass`)."""
        if not weights:
            return None
        mass = torch.stack([torch.stack([tap.sum() for tap in taps]) for taps in weights]).sum(0)
        if self.accelerator.num_processes > 1:
            mass = self.accelerator.reduce(mass, reduction="mean")
        return mass

    def _taken(self, sums: Mapping[str, Tensor], pieces: Sequence[MicroBatch]) -> TakenStep:
        """Return the step's losses, a mean over processes: each has its part times the number of processes."""
        values = torch.stack([value.detach().float().to(self.device) for value in sums.values()])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="mean")
        return TakenStep(self.step, tuple(sums), values, tuple(piece.batch.positions for piece in pieces))


def require_norms_fit(learner: Learner, images: int) -> None:
    """Check that every batch norm of a student gets two values a channel or more: one value has no variance.

    Args:
        learner: holds the student.
        images: number of images in the smallest part of a batch.

    Raises:
        ConfigError: names the layer.
    """
    student, counts = learner.student, dict[str, int]()
    if images > 1:
        return
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in student.named_modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                hooks.callback(
                    module.register_forward_pre_hook(
                        lambda _, inputs, name=name: counts.update({name: inputs[0].numel() // inputs[0].shape[1]})
                    ).remove
                )
        student.eval()
        device = next(student.parameters()).device
        student(torch.zeros(1, 3, *student.size, dtype=torch.uint8, device=device), with_taps=True)
        student.train()
    bare = [name for name, values in counts.items() if values == 1]
    if bare:
        raise ConfigError(
            f"A batch norm needs two values a channel or more, but {bare[0]} gets one from one image of "
            f"{student.size[0]} by {student.size[1]} pixels. Take larger batches or images, or accumulate less."
        )


_FUSED = frozenset(
    {"adam", "adamw", "sgd", "momentum", "nesterov"}
)  # torch's own, which take a step in one pass over the parameters


def _make_optimizer(config: TrainConfig, learner: Learner) -> torch.optim.Optimizer:
    settings = config.optimizer
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            learner,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            **({"fused": True} if settings.name in _FUSED else {}),
        )
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"optimizer must be one of timm's that takes these settings, got {settings.name!r} with layer_decay "
            f"{settings.layer_decay} ({error}). timm.optim.list_optimizers() names them."
        ) from error
    if settings.query_lr != 1 and learner.student.queries is not None:
        _scale_rate(optimizer, {id(p) for p in learner.student.queries.parameters()}, settings.query_lr)
    return optimizer


def _scale_rate(optimizer: torch.optim.Optimizer, chosen: set[int], factor: float) -> None:
    """Give the parameters whose ids are `chosen` a rate of their own, `factor` times what they have."""
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in chosen]
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        if own:
            scaled = {**group, "params": own, "lr_scale": group.get("lr_scale", 1.0) * factor}
            optimizer.param_groups.append(scaled)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
