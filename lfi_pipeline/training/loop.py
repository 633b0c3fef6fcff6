"""Stage two: train one student against a cache. The teacher is never loaded."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfi_pipeline.data import read_dataset
from lfi_pipeline.device import resolve_device
from lfi_pipeline.errors import ConfigError, LFIError
from lfi_pipeline.students import Student, pair_layers
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.data import Batch, ErrorsAsValues, TargetImages, Tickets, training_positions
from lfi_pipeline.training.objectives import embedding_loss, interaction_loss, task_loss
from lfi_pipeline.training.run_dir import (
    CONFIG,
    SUMMARY,
    MetricsLog,
    prepare,
    read_json,
    save_checkpoint,
    settings_of,
    write_json,
)
from lfi_pipeline.training.validate import predict, score_domains

_LOGS_PER_EPOCH = 4
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Losses of one step, scalars on the training device; `term` is None for objective `none`."""

    total: Tensor
    task: Tensor
    term: Tensor | None


def build_student(config: TrainConfig, store: TargetStore) -> Student:
    """Return the student that `config` asks for, initialised from its seed."""
    torch.manual_seed(config.seed)
    return Student(
        config.student,
        classes=len(store.spec.dataset.classes),
        embedding_dim=store.spec.embedding_dim,
        queries=config.queries if config.objective == "lfi" else None,
        image_embedding=config.objective == "embedding",
    )


class Trainer:
    """One run, from a cache to a directory.

    Args:
        config: everything that determines the run.
        out: its directory.
        command: the command line, recorded for whoever reads the run later.

    Raises:
        LFIError: a cache that cannot serve, an unknown student, settings that contradict each other, an output that
            holds something else.
    """

    def __init__(self, config: TrainConfig, out: Path, *, command: str = "") -> None:
        self.config, self.out = config, out
        self.device = resolve_device(config.device)
        self.store = TargetStore.open(config.targets, data_root=config.data_root)
        self.positions = training_positions(self.store, config.hold_out)
        self._require_usable()
        spec = self.store.spec
        self.validation = read_dataset(spec.dataset.name, self.store.source_root, config.val_split)
        self.seen = frozenset(self.store.index.domains[position] for position in self.positions.tolist())
        self.student = build_student(config, self.store)
        self.layers = pair_layers(self.student.taps, [layer.depth for layer in spec.layers])
        self.finished = prepare(out, config)
        if not self.finished:
            write_json(out / CONFIG, self._record(command))

    def run(self) -> dict[str, Any]:
        """Train to the end and return the run's summary; a run that is already finished is returned as it is."""
        if self.finished:
            return read_json(self.out / SUMMARY)
        began = time.monotonic()
        device = self.device
        self.student.to(device).train()
        self.vocabulary = torch.from_numpy(self.store.vocabulary.embeddings).float().to(device)
        tickets = Tickets(self.positions, self.config)
        optimizer = create_optimizer_v2(
            self.student, opt="adamw", lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        per_epoch = tickets.steps_per_epoch
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=len(tickets),
            warmup_t=min(self.config.warmup_epochs * per_epoch, len(tickets) - 1),
            warmup_lr_init=self.config.learning_rate / 100,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        loader = DataLoader(
            ErrorsAsValues(TargetImages(self.store, self.config, self.student.size)),
            batch_sampler=tickets,
            collate_fn=_already_batched,
            num_workers=self.config.workers,
        )
        log, step_ms, scores = MetricsLog(self.out), [], {}
        waiting_since = time.monotonic()
        with tqdm(loader, desc=self.out.name, unit="step") as bar:
            for step, batch in enumerate(bar, start=1):
                started = time.monotonic()
                schedule.step_update(step - 1)  # at `len(tickets)` the rate is zero
                if isinstance(batch, LFIError):
                    raise batch
                losses = self._step(batch.to(device), optimizer)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                ended = time.monotonic()
                step_ms.append((ended - started) * 1e3)
                if step % max(1, per_epoch // _LOGS_PER_EPOCH) == 0:
                    self._log_step(log, step, per_epoch, losses, len(batch.images) / (ended - waiting_since), step_ms)
                    bar.set_postfix(loss=f"{losses.total.item():.3f}", refresh=False)
                if step % per_epoch == 0:
                    scores = self._validate(device)
                    log.write(event="val", step=step, epoch=step // per_epoch, **scores)
                    save_checkpoint(self.out, self.student, step=step)
                waiting_since = time.monotonic()
        summary = {
            "steps": len(tickets),
            "seconds": time.monotonic() - began,
            "step_ms": statistics.median(step_ms),
            "parameters": self.student.parameter_counts(),
            **scores,
        }
        write_json(self.out / SUMMARY, summary)
        return summary

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> StepLosses:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self._losses(batch)
        if not math.isfinite(losses.total.item()):
            raise ConfigError(
                f"The loss is {losses.total.item()} (task {losses.task.item()}). The last checkpoint is kept in "
                f"{self.out}. Lower --learning-rate or --lambda-int."
            )
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), _GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses

    def _losses(self, batch: Batch) -> StepLosses:
        objective = self.config.objective
        features = self.student(batch.images, with_taps=objective == "lfi")
        task = task_loss(features, batch)
        if objective == "none":
            return StepLosses(task, task, None)
        if objective == "embedding":
            term = embedding_loss(self.student, features, batch)
        else:
            term = interaction_loss(
                self.student,
                features,
                batch,
                vocabulary=self.vocabulary,
                layers=self.layers,
                codec=self.store.spec.codec.name,
                uniform=self.config.maps == "uniform",
            )
        return StepLosses(task + self.config.lambda_int * term, task, term)

    def _validate(self, device: torch.device) -> dict[str, float | None]:
        scores, labels = predict(self.student, self.validation, self.student.size, device)
        domains = [sample.domain for sample in self.validation.samples]
        by_domain = score_domains(scores, labels, domains, self.seen)
        return {name: by_domain[name] for name in ("map_seen", "map_heldout")}  # type: ignore[misc]

    def _log_step(
        self,
        log: MetricsLog,
        step: int,
        per_epoch: int,
        losses: StepLosses,
        rate: float,
        step_ms: list[float],
    ) -> None:
        log.write(
            event="train",
            step=step,
            epoch=(step - 1) // per_epoch + 1,
            loss=losses.total.item(),
            task_loss=losses.task.item(),
            interaction_loss=None if losses.term is None else losses.term.item(),
            images_per_second=rate,
            step_ms=step_ms[-1],
        )

    def _require_usable(self) -> None:
        spec, config = self.store.spec, self.config
        known = set(self.store.index.domains)
        unknown = [domain for domain in config.hold_out if domain not in known]
        if unknown:
            raise ConfigError(f"hold_out must name domains of the cache ({sorted(known)}), got {unknown}.")
        if not len(self.positions):
            raise ConfigError(f"{config.targets} has no usable sample left to train on.")
        if (
            config.objective == "lfi"
            and config.augmentation.flip > 0
            and "hflip" not in spec.views
            and not config.mirror_maps
        ):
            raise ConfigError(
                f"{config.targets} has no 'hflip' view, and a mirrored map is not the map of the mirrored image. "
                "Extract with --views full,hflip, or train with --flip 0, or accept mirrored maps with --mirror-maps."
            )

    def _record(self, command: str) -> dict[str, Any]:
        """What config.json holds: the resolved settings, and beside them what a reader wants to know at a glance."""
        config, spec = self.config, self.store.spec
        taps = zip(self.student.taps, self.layers, strict=True)
        return {
            "name": self.out.name,
            "student": config.student.name,
            "objective": config.objective,
            "maps": config.maps,
            "state": config.queries.state,
            "seed": config.seed,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "lambda_int": config.lambda_int,
            "image_size": self.student.size[0],
            "patch_size": config.student.patch_size,
            "hold_out": list(config.hold_out),
            "targets": str(config.targets),
            "targets_fingerprint": spec.fingerprint,
            "teacher": {"name": spec.teacher.name, "tag": spec.teacher.tag},
            "kind": spec.kind,
            "taps": [{"index": tap.index, "depth": tap.depth, "teacher_layer": layer} for tap, layer in taps],
            "dataset": {
                "name": spec.dataset.name,
                "split": spec.dataset.split,
                "train_samples": len(self.positions),
                "val_samples": len(self.validation),
            },
            "seen_domains": sorted(self.seen),
            "command": command,
            "settings": settings_of(config),
        }


def _already_batched(batch: Any) -> Batch | LFIError:
    """The data set gives whole batches, where a loader expects a list of examples."""
    assert isinstance(batch, Batch | LFIError)
    return batch
