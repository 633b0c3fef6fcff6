"""Writes the files of a run: settings, metrics, weights and summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import LFIError, OutputWriteError
from lfi_pipeline.core.options import flatten
from lfi_pipeline.core.parse import seal_folder, unseal_folder
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.checkpoint import save_weights
from lfi_pipeline.training.config import RuntimeConfig, write_config
from lfi_pipeline.training.learner import TASK, TOTAL
from lfi_pipeline.training.run_dir import (
    COMES_AND_GOES,
    CONFIG,
    CONFIG_TOML,
    STATE,
    SUMMARY,
    MetricsLog,
    json_bytes,
    make_place,
    write_json,
)
from lfi_pipeline.training.surroundings import Trackers
from lfi_pipeline.training.trainer import Trainer
from lfi_pipeline.training.validate import main_score


@contextmanager
def output_errors_of(run: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into `run` into one clear error, OutputWriteError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LFIError):
            raise
        raise OutputWriteError(
            f"{run} cannot be written: {error.strerror or error}. Its last checkpoint stands; free space or mend the "
            "permissions, then run the same command again."
        ) from error


class RunRecord:
    """Writes a run's files; of several processes, the main one alone does.

    Args:
        run: the run in training.
        store: its cache.
        machine: where it runs.
        train_samples, val_samples: how many images.
        seen: domains trained on.
        command: the command line.
        writes: whether this process writes.
    """

    def __init__(
        self,
        run: Trainer,
        store: TargetStore,
        machine: RuntimeConfig,
        *,
        train_samples: int,
        val_samples: int,
        seen: frozenset[str],
        command: str,
        writes: bool,
    ) -> None:
        self._run, self._writes = run, writes
        self._last_log = time.monotonic()
        if not writes:
            return
        make_place(run.out)
        with output_errors_of(run.out):
            unseal_folder(run.out)
        content = _record(run, store, train_samples, val_samples, seen, command)
        write_json(run.out / CONFIG, content)
        write_config(run.out / CONFIG_TOML, content["settings"])
        self._metrics = MetricsLog(run.out, resume_step=run.step, owes_epoch=run.owes_epoch)
        self._trackers = Trackers(run.out, machine.track, content["settings"], resume_step=run.step)

    def log_step(self, losses: Mapping[str, float], *, images: int, per_epoch: int) -> None:
        """Log the losses of the step just taken; `images` is its number of images over all processes."""
        run, now = self._run, time.monotonic()
        if not self._writes:
            return
        terms = {f"{name}_loss": losses[name] for name in (TASK, *run.config.terms) if name in losses}
        weights = {f"{term}_weight": losses[f"weight of {term}"] for term in run.config.terms}
        steps = max(1, len(run.step_ms) - self._logged_steps)
        values = {
            "epoch": (run.step - 1) // per_epoch + 1,
            "loss": losses[TOTAL],
            **terms,
            **weights,
            "learning_rate": losses["rate"],
            "gradient_norm": losses["gradient_norm"],
            "images_per_second": steps * images / max(now - self._last_log, 1e-9),
            "step_ms": run.step_ms[-1],
        }
        self._last_log, self._logged_steps = now, len(run.step_ms)
        self._log("train", values)

    _logged_steps = 0

    def end_epoch(self, epoch: int, scores: Mapping[str, Any]) -> None:
        """Log the scores of an epoch and keep its weights."""
        run = self._run
        run.scores, run.epochs_ended = dict(scores), epoch
        name = main_score(run.task)
        score = scores.get(name) if name is not None else None
        if not self._writes:
            return
        if scores:
            flat = {key: value for key, value in scores.items() if not isinstance(value, Mapping)}
            self._log("val", {"epoch": epoch, **flat})
        metadata = {"step": run.step, "epoch": epoch}
        run.retention.after_epoch(epoch, score, lambda path: save_weights(path, run.scored.state_dict(), metadata))

    def log_time(self, epoch: int, seconds: Mapping[str, float]) -> None:
        """Log where an epoch's time went."""
        if self._writes:
            self._log("time", {"epoch": epoch, **{f"{name}_s": value for name, value in seconds.items()}})

    def finish(self) -> None:
        """Write checksums, then the summary, which is what makes a run finished, and drop the state of the resume."""
        run = self._run
        if not self._writes:
            return
        self._trackers.close()
        summary = {
            "steps": run.step,
            "seconds": run.seconds,
            "step_ms": run.median_step_ms,
            "parameters": run.learner.parameter_counts(),
            **run.scores,
        }
        with output_errors_of(run.out):
            seal_folder(run.out, {SUMMARY: json_bytes(summary)}, leave_out=COMES_AND_GOES)
        write_json(run.out / SUMMARY, summary)
        (run.out / STATE).unlink(missing_ok=True)

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        self._metrics.write(event=event, step=self._run.step, **values)
        self._trackers.log({f"{event}/{name}": value for name, value in values.items()}, self._run.step)

    def close(self) -> None:
        """Flush the trackers."""
        if self._writes:
            self._trackers.close()


def _record(
    run: Trainer, store: TargetStore, train_samples: int, val_samples: int, seen: frozenset[str], command: str
) -> dict[str, Any]:
    """Return the content of config.json: the resolved settings, and the main facts of run and cache on their own."""
    config, spec, student = run.config, store.spec, run.learner.student
    taps = zip(student.taps, run.learner.layers, strict=True)
    located = replace(config, data=replace(config.data, targets=store.path))
    return {
        "name": run.out.name,
        "student": config.student.name,
        "objective": config.objective,
        "maps": config.data.maps,
        "head": config.head,
        "state": config.queries.state,
        "seed": config.data.seed,
        "epochs": config.data.epochs,
        "batch_size": config.data.batch_size,
        "learning_rate": config.optimizer.lr,
        "lambda_int": config.weight("lfi").value,
        "image_size": student.size[0],
        "patch_size": config.student.patch_size,
        "hold_out": list(config.data.hold_out),
        "task": run.task,
        "targets": str(store.path),
        "targets_fingerprint": spec.fingerprint,
        "teacher": {"name": spec.teacher.name, "tag": spec.teacher.tag},
        "kind": spec.kind,
        "taps": [{"index": tap.index, "depth": tap.depth, "teacher_layer": layer} for tap, layer in taps],
        "dataset": {
            "name": spec.dataset.name,
            "split": spec.dataset.split,
            "train_samples": train_samples,
            "val_samples": val_samples,
        },
        "seen_domains": sorted(seen),
        "command": command,
        "settings": flatten(located),
    }
