"""Stage two: train one student, or several from one read, against a cache. The teacher is never loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from lfi_pipeline.core.errors import LFIError, RunError
from lfi_pipeline.core.runtime import cpu_threads, progress_bar, resolve_device, tell
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import RuntimeConfig, TrainConfig
from lfi_pipeline.training.data import MAPS, Batch, TargetImages, batch_loader, unwrapped
from lfi_pipeline.training.learner import TOTAL
from lfi_pipeline.training.maps import MapResampler
from lfi_pipeline.training.monitor import CHECKPOINT, FORWARD, VALIDATION, WAITING, EpochClock, advice
from lfi_pipeline.training.run_dir import STATE, RunLock, read_summary, require_place, write_json
from lfi_pipeline.training.run_writer import RunRecord
from lfi_pipeline.training.sampler import (
    ResumableBatchSampler,
    common_data,
    require_apart,
    require_samples,
    require_views,
)
from lfi_pipeline.training.surroundings import (
    Callback,
    LoaderDied,
    StopRequest,
    call,
    check_callbacks,
    from_loader,
    make_accelerator,
)
from lfi_pipeline.training.trainer import MicroBatch, Trainer, require_norms_fit
from lfi_pipeline.training.validate import NONE, main_score, predict, resolve_task, scorable, score_domains


def introduction(run: Trainer) -> Iterator[str]:
    """Yield the lines that are shown about a run before it starts."""
    if run.config.uses_queries:
        pairs = zip(run.learner.student.taps, run.learner.layers, strict=True)
        pairing = ", ".join(f"{tap.index} (depth {tap.depth:.2f}) <- teacher layer {layer}" for tap, layer in pairs)
        yield f"{run.out.name}: taps {pairing}"
    if run.step:
        yield f"{run.out.name}: goes on at step {run.step} of {run.total_steps}"


def epoch_line(epoch: int, epochs: int, runs: Sequence[Trainer], spent: Mapping[str, float]) -> str:
    """Return the line that is shown after an epoch: scores, and the share of its time by phase."""
    scored = [(run, main_score(run.task)) for run in runs]
    scores = [
        f"{run.out.name} {score} {run.scores[score]:.1%}"
        for run, score in scored
        if score is not None and run.scores.get(score) is not None
    ]
    total = sum(spent.values()) or 1.0
    shares = ", ".join(f"{phase} {seconds / total:.0%}" for phase, seconds in spent.items())
    return f"epoch {epoch}/{epochs}: {', '.join([*scores, f'{total:.1f} s'])} ({shares})"


_LOGS_PER_EPOCH = 4
_AGREE_EVERY = 10  # steps after which processes ask each other whether one is to stop; they ask at epochs' ends as well


def train(
    runs: Sequence[tuple[TrainConfig, Path]],
    machine: RuntimeConfig,
    *,
    command: str = "",
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Train each run to its end and return its summary; one that is finished is returned as it is.

    Runs of several students read and decode each image once. What a run becomes does not depend on the others.
    A run that was stopped goes on at its last checkpoint, with the weights that it would have had.

    Args:
        runs: settings and directory of each; their `stream` and `grad_accum_steps` must be equal.
        machine: where and how.
        command: the command line, recorded for whoever reads the runs later.
        callbacks: told of each run's start, steps, scores and end, see `Callback`. What they raise stops the training,
            after a checkpoint, and reaches the caller.

    Raises:
        LFIError: a cache that cannot serve, an unknown student, settings that contradict each other, an output that
            holds something else.
        RunLockedError: another process trains one of these runs.
        RunError: a loss became NaN or exploded (its run has written down the batch), after the other runs have ended;
            or the device ran out of memory. Where several processes train together, that ends all of them as it is.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    check_callbacks(callbacks)
    with cpu_threads(machine.threads), ExitStack() as locks:
        try:
            return _Loop(runs, machine, command, callbacks, locks).run()
        except torch.OutOfMemoryError as error:
            if PartialState().num_processes > 1:  # the others wait for this one, and would wait for ever
                raise
            raise RunError(_advice_on_memory([out for _, out in runs], error)) from error


def _advice_on_memory(outs: Sequence[Path], error: torch.OutOfMemoryError) -> str:
    names, reason = ", ".join(out.name for out in outs), str(error).strip().partition("\n")[0]
    fewer = "train fewer students together, " if len(outs) > 1 else ""
    return (
        f"The device's memory must hold a step of {names}, and ran out ({reason}). To need less, {fewer}raise "
        "`grad_accum_steps`, or lower `batch_size` or `image_size`; a run whose settings change needs another `out`."
    )


class _Loop:
    """The training loop: reads each batch once and trains all runs on it."""

    def __init__(
        self,
        runs: Sequence[tuple[TrainConfig, Path]],
        machine: RuntimeConfig,
        command: str,
        callbacks: Sequence[Callback],
        locks: ExitStack,
    ) -> None:
        self.outs = [out for _, out in runs]
        self.machine, self.callbacks = machine, callbacks
        configs = [config for config, _ in runs]
        require_apart(self.outs)
        self.data = common_data(configs)
        self.grad_accum_steps = configs[0].grad_accum_steps
        self.accelerator = make_accelerator(machine.device)
        self.device = resolve_device(machine.device, self.accelerator.local_process_index)
        self.store = TargetStore.open(self.data.targets, data_root=self.data.data_root)
        self.positions = require_samples(self.store, self.data)
        require_views(self.store, self.data, reads_targets=any(config.terms for config in configs))
        spec, index = self.store.spec, self.store.index
        labels = [index.labels[position] for position in self.positions.tolist()]
        self.seen = frozenset(index.domains[position] for position in self.positions.tolist())
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.sampler = ResumableBatchSampler(
            self.positions,
            self.data,
            pieces=world * self.grad_accum_steps,
            mine=range(rank * self.grad_accum_steps, (rank + 1) * self.grad_accum_steps),
        )
        self.log_every = max(1, self.sampler.steps_per_epoch // _LOGS_PER_EPOCH)
        self.active: list[Trainer] = []
        self.failed: list[str] = []
        self.records: dict[Path, RunRecord] = {}
        task = resolve_task(configs[0].task, labels, len(spec.dataset.classes))
        self.validation = None if task == NONE else scorable(configs[0].val_split, self.store)
        for config, out in runs:
            require_place(out, config, spec.fingerprint)
        self._lock([out for out in self.outs if read_summary(out) is None], locks)
        for config, out in runs:
            if read_summary(out) is not None:
                continue
            run = Trainer(
                config,
                out,
                store=self.store,
                task=task,
                accelerator=self.accelerator,
                device=self.device,
                steps=self.sampler.steps,
                steps_per_epoch=self.sampler.steps_per_epoch,
                keep_every=machine.keep_every,
                log_every=self.log_every,
            )
            require_norms_fit(run.learner, min(end - begin for begin, end in self.sampler.cuts))
            if machine.compile:  # after the moving average is made, which is a copy
                for student in dict.fromkeys((run.learner.student, run.scored)):
                    student.compile_parts()
            self.active.append(run)
        for run in self.active:
            if self.accelerator.is_main_process:
                tell(*introduction(run))
            self.records[run.out] = RunRecord(
                run, self.store, machine, train_samples=len(self.positions), val_samples=len(self.validation or ()),
                seen=self.seen, command=command, writes=self.accelerator.is_main_process,
            )  # fmt: skip

    def _lock(self, outs: Sequence[Path], locks: ExitStack) -> None:
        """Lock the runs' directories. The main process does; if it fails, all processes raise its error."""
        refusal: list[LFIError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                for out in outs:
                    locks.enter_context(RunLock(out))
            except LFIError as error:
                refusal = [error]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise refusal[0]

    def run(self) -> list[dict[str, Any]]:
        if self.active:
            with StopRequest() as stop:
                self._train(stop)
        if self.failed:
            raise RunError("\n".join(self.failed))
        return [read_summary(out) or {} for out in self.outs]

    def _train(self, stop: StopRequest) -> None:
        start, per_epoch = min(run.step for run in self.active), self.sampler.steps_per_epoch
        self.reads = frozenset[str]().union(*(run.learner.reads for run in self.active))
        clock, source = EpochClock(self.device), self._batches(start)
        saved_at = time.monotonic()
        bar = progress_bar(
            total=self.sampler.steps, initial=start, unit="step", disable=not self.accelerator.is_main_process,
            desc=" ".join(run.out.name for run in self.active),
        )  # fmt: skip
        try:
            for run in self.active:
                self._call(clock, "on_train_start", run, run.learner.student)
            for epoch in sorted({run.step // per_epoch for run in self.active if run.owes_epoch}):
                self._end_epoch(epoch, clock)
            for step in range(start, self.sampler.steps):
                with clock.lap(WAITING):
                    batches = self._next(source, stop, clock)
                with clock.lap(FORWARD):
                    pieces = [self._piece(batch) for batch in batches]
                for run in [run for run in self.active if run.step == step]:
                    losses = run.train_step(pieces, clock)
                    if run.failure is not None:
                        self._give_up(run)
                        continue
                    if (step + 1) % self.log_every == 0:
                        self.records[run.out].log_step(losses, images=self.sampler.size, per_epoch=per_epoch)
                        bar.set_postfix(loss=f"{losses[TOTAL]:.3f}", refresh=False)
                    student = run.learner.student
                    self._call(clock, "on_train_batch_end", run, student, run.outputs, pieces, step % per_epoch)
                bar.update()
                if not self.active:
                    break
                done = step + 1
                if done % per_epoch == 0:
                    self._end_epoch(done // per_epoch, clock)
                    saved_at = time.monotonic()
                if self._agreed(stop.asked, done):
                    self._settle()
                    self._checkpoint(clock)
                    raise KeyboardInterrupt
                late = time.monotonic() - saved_at > self.machine.checkpoint_minutes * 60
                if late and all(run.all_read for run in self.active):
                    self._checkpoint(clock)
                    saved_at = time.monotonic()
        finally:
            bar.close()
            for record in self.records.values():
                record.close()
        for run in self.active:
            self.records[run.out].finish()
        self.accelerator.wait_for_everyone()
        for run in self.active:
            self._call(None, "on_train_end", run, run.scored)

    def _call(self, clock: EpochClock | None, hook: str, *arguments: Any) -> None:
        """Call `hook` of all callbacks; before an exception goes on, a checkpoint is written unless `clock` is None."""
        if self.callbacks:
            call(self.callbacks, hook, *arguments, on_error=lambda: None if clock is None else self._checkpoint(clock))

    def _next(self, source: Iterator[Batch], stop: StopRequest, clock: EpochClock) -> list[Batch]:
        """Return the parts of the next step.

        Raises:
            KeyboardInterrupt: a loader's process died of the signal that asks this one to stop; after a checkpoint.
            RunError: it died of something else.
        """
        try:
            return [next(source) for _ in range(self.grad_accum_steps)]
        except LoaderDied as error:
            self._checkpoint(clock)
            if stop.asked:
                raise KeyboardInterrupt from error
            raise RunError(
                f"A loader process died ({error}), most often of too little memory or shared "
                "memory. A checkpoint was written: run the same command again with fewer `workers`."
            ) from error

    def _batches(self, start: int) -> Iterator[Batch]:
        """Yield the parts of every step's batch that this process computes, from step `start` on."""
        self.sampler.start = start
        sizes = [run.learner.student.size for run in self.active]
        images = TargetImages(self.store, self.data, sizes, self.reads)
        workers, pin_memory = self.machine.workers, self.device.type == "cuda"
        loader = batch_loader(images, self.sampler, workers=workers, pin_memory=pin_memory)
        yield from map(unwrapped, from_loader(iter(loader), workers=workers))

    def _piece(self, batch: Batch) -> MicroBatch:
        """Bring a part of a batch to the device, with maps that all students share."""
        batch, uniform = batch.to(self.device), self.data.maps == "uniform"
        cut = MapResampler(batch, self.store.spec.codec.name, uniform=uniform) if MAPS in self.reads else None
        return MicroBatch(batch, cut, len(batch) * self.accelerator.num_processes / self.sampler.size)

    def _end_epoch(self, epoch: int, clock: EpochClock) -> None:
        """Score, log and keep every run that is at the end of `epoch`."""
        self._settle()
        due = [run for run in self.active if run.owes_epoch and run.step == epoch * self.sampler.steps_per_epoch]
        self._checkpoint(clock)  # whatever scoring runs into, the epoch is not lost
        with clock.lap(VALIDATION):
            scores = self._validate(due)
        for run, run_scores in zip(due, scores, strict=True):
            self.records[run.out].end_epoch(epoch, run_scores)
        self._checkpoint(clock)
        spent = clock.report()
        for run in due:
            self.records[run.out].log_time(epoch, spent)
        if due and self.accelerator.is_main_process:
            tell(epoch_line(epoch, self.data.epochs, due, spent))
        hint = advice(spent, workers=self.machine.workers, cpu_count=os.cpu_count() or 1)
        if hint is not None and epoch == 1 and self.accelerator.is_main_process:
            tell(hint)
        for run in due:
            self._call(clock, "on_validation_end", run, run.scored)

    def _validate(self, runs: Sequence[Trainer]) -> list[dict[str, Any]]:
        if not runs or self.validation is None:
            return [{} for _ in runs]
        task = runs[0].task
        world = self.accelerator.num_processes
        predictions = predict(
            [run.scored for run in runs], self.validation, task, self.device,
            workers=self.machine.workers, rank=self.accelerator.process_index, processes=world,
        )  # fmt: skip
        if world > 1:  # each scored its own rows, and the others' are zero
            predictions = [
                replace(each, **{name: self._added(getattr(each, name)) for name in ("scores", "labels", "read")})
                for each in predictions
            ]
        domains = [sample.domain for sample in self.validation.samples]
        return [dict(score_domains(each, task, domains, self.seen)) for each in predictions]

    def _added(self, rows: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(rows.float().to(self.device), reduction="sum").cpu()
        return total.to(rows.dtype)

    def _checkpoint(self, clock: EpochClock) -> None:
        if self.accelerator.is_main_process:
            with clock.lap(CHECKPOINT):
                for run in self.active:
                    run.save()

    def _agreed(self, stop_requested: bool, done: int) -> bool:
        """Whether any process was asked to stop, after `done` steps; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return stop_requested
        if done % _AGREE_EVERY and done % self.sampler.steps_per_epoch:
            return False
        flag = torch.tensor(float(stop_requested), device=self.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _settle(self) -> None:
        """Check the losses of all steps taken so far, in all processes, and give up the runs that failed."""
        for run in list(self.active):
            run.read()
            if run.failure is not None:
                self._give_up(run)

    def _give_up(self, run: Trainer) -> None:
        """Write down which images made `run` fail, and what to tell the user; the others go on."""
        failure = run.failure
        assert failure is not None
        positions = [position for part in failure.positions for position in part.tolist()]
        if self.accelerator.num_processes > 1:
            positions = gather_object(positions)
        path = run.out / "failure.json"
        kept = f"Its last checkpoint ({STATE}) is kept." if (run.out / STATE).is_file() else "It has no checkpoint yet."
        if self.accelerator.is_main_process:
            keys = [self.store.index.keys[position] for position in positions]
            shown = {name: repr(value) for name, value in failure.losses.items()}  # JSON has no NaN
            write_json(path, {"step": failure.step + 1, "reason": failure.reason, "losses": shown, "keys": keys})
        self.active.remove(run)
        self.failed.append(
            f"{run.out}: training stopped at step {failure.step + 1}, and nothing of that step is kept: "
            f"{failure.reason}. The {len(positions)} images of that step are listed in {path}. {kept} "
            "Lower `lr` or `weight`, or look at those images, and train into another `out`."
        )
