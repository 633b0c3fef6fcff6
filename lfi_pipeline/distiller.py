"""The student with its loss as one module, for a training loop of one's own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputExistsError, OutputWriteError
from lfi_pipeline.core.options import build
from lfi_pipeline.students import Student
from lfi_pipeline.students.backbone import TapBackbone
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.data import Batch
from lfi_pipeline.training.dataset import TargetDataset
from lfi_pipeline.training.learner import TOTAL, Learner, LoadedRun
from lfi_pipeline.training.validate import resolve_task


class Distiller(nn.Module):
    """A student that learns from a cache: `loss = distiller(batch)`, with batches of `TargetDataset.loader`.

    The loss is that of `lfi train`: the task's on the labels, and each term of `objective` with its weight. Weights
    that are relative to the task's gradient are measured in the first step and every 20 steps after it; the counter is
    part of `state_dict`, so a loop that saves and loads it goes on exactly.

    Example:
        >>> import torch, lfi_pipeline as lfi
        >>> targets = lfi.TargetDataset("shards", image_size=64)      # doctest: +SKIP
        >>> distiller = lfi.Distiller("resnet10t", targets)            # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)  # doctest: +SKIP
        >>> for batch in targets.loader(64):                            # doctest: +SKIP
        ...     loss = distiller(batch)
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
        >>> distiller.save("exported")                                  # doctest: +SKIP

    Args:
        backbone: name of a timm model; a timm model; or an `nn.Module` with the few members of
            `lfi_pipeline.students.TapModel` (features at taps). It is trained in place.
        targets: what is learned from. Its `image_size` is the size at which a timm model is built.
        head: `queries`: an interaction query for every class gives its logit, and a map of where it looked; `linear`:
            one layer on the pooled features, the queries serve training alone.
        objective: `none` (the task alone), or terms joined by `+`: `lfi`, `embedding`, `logits`, `presence`.
        settings: others of a run, by the names of the options of `lfi train`, such as `query_width=128`,
            `weight={"lfi": 0.1}`, `pretrained=True` or `task="multi-label"`.

    Raises:
        UnknownNameError: a model, head, term or setting that does not exist; lists the choices.
        ConfigError: settings, model and cache do not fit each other.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        targets: TargetDataset,
        *,
        head: str = "queries",
        objective: str = "lfi",
        **settings: Any,
    ) -> None:
        super().__init__()
        module = None if isinstance(backbone, str) else backbone
        height, width = targets.image_size
        flat: dict[str, Any] = {
            "head": head,
            "objective": objective,
            **({"student": name} if (name := _timm_name(backbone)) else {}),
            **({"image_size": height} if module is None and height == width else {}),
            **settings,
        }
        config = build(TrainConfig, {"targets": targets.data.targets, **flat})
        self.config: TrainConfig = replace(config, data=targets.data)
        store = targets.store
        labels = store.index.labels
        self.task = resolve_task(
            self.config.task, [labels[int(position)] for position in targets.positions], len(targets.classes)
        )
        self.learner = Learner(self.config, store, self.task, module)
        if self.student.size != targets.image_size:
            raise ConfigError(
                f"The targets must give images of the student's size {self.student.size}, got {targets.image_size}. "
                f"Open them with image_size={self.student.size}, or build the model for {targets.image_size}."
            )
        self._store = store
        self._step = 0
        self.losses: dict[str, Tensor] = {}
        self.progress = 0.0

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar to call `backward` on; `losses` holds its parts, detached.

        In training mode a call counts as a step. With a scheduled weight (`"0.3:cosine"`) set `progress`, from 0 to 1,
        before it.

        Args:
            batch: of `TargetDataset.loader`; it is moved to the device of the parameters.
        """
        device = next(self.parameters()).device
        counts = self.training and torch.is_grad_enabled()
        step = self._step if counts else 1  # no measurement of gradients is due at step 1
        losses = self.learner.loss(batch.to(device), step=step, progress=self.progress)
        self._step += counts
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return losses[TOTAL]

    @property
    def student(self) -> Student:
        """Backbone, head and interaction queries: `student(images)` gives features and logits of uint8 [B, 3, H, W]."""
        return self.learner.student

    @property
    def backbone(self) -> nn.Module:
        """The plain model: timm's, or the module that was given."""
        module: nn.Module = self.student.backbone
        return module.model if isinstance(module, TapBackbone) else module

    def save(self, folder: str | Path) -> Path:
        """Write the whole student, head included, so that `lfi_pipeline.load(folder)` gives it back without the cache.

        Args:
            folder: to make; it must be absent or empty.

        Returns:
            `folder`.

        Raises:
            OutputExistsError: something is there already.
            ExportError: what is loaded from there is not this student.
        """
        from lfi_pipeline.exporting.whole import whole_model, write_whole

        out = Path(folder)
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise OutputExistsError(f"{out} must be absent or an empty directory, and is not.")
        training = self.student.training
        self.student.eval()
        model = whole_model(LoadedRun(out, {"name": out.name}, self.config, self.student, self._store, self.task))
        self.student.train(training)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
                written = Path(scratch) / "model"
                written.mkdir()
                write_whole(written, model, [])
                written.rename(out)
        except LFIError:
            raise
        except OSError as error:
            raise OutputWriteError(f"Cannot write the student to {out}: {error.strerror or error}.") from error
        return out

    def get_extra_state(self) -> Tensor:
        """Return what `state_dict` holds beside weights: the number of steps taken, and the measured ratios and their first."""
        balance = self.learner.balance
        measured = balance.state_dict()
        ratios = [measured[part].get(term, torch.nan) for part in ("ratios", "first") for term in balance.terms]
        return torch.tensor([float(self._step), *ratios], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned; states of earlier releases lack the first ratios."""
        balance = self.learner.balance
        step, *values = state.tolist()
        ratios, first = values[: len(balance.terms)], values[len(balance.terms) :] or values

        def measured(of_terms: list[float]) -> dict[str, float]:
            return {term: value for term, value in zip(balance.terms, of_terms, strict=True) if value == value}

        self._step = int(step)
        balance.load_state_dict({"ratios": measured(ratios), "first": measured(first)})


def _timm_name(backbone: str | nn.Module) -> str | None:
    """Name of the architecture of a timm model; None of another module."""
    if isinstance(backbone, str):
        return backbone
    name = getattr(backbone, "pretrained_cfg", {}).get("architecture")
    return str(name) if name else None
