"""The fine-tuning of a detector on one fixed schedule, which goes on where it was interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lfi_pipeline.core.errors import ConfigError, DatasetError, RunError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.evaluation.detection.coco_data import CocoSplit, DetectionImages, Target
from lfi_pipeline.training.checkpoint import load_state, save_state

_WARMUP = 0.1  # of the iterations
_WARMUP_START = 0.01  # of the learning rate
_WEIGHT_DECAY = 0.05
_CLIP = 1.0  # largest norm of the gradient
_SHOWN = 20  # iterations that the loss beside the progress bar is the mean of


def training_draws(split: CocoSplit, count: int, seed: int) -> list[tuple[int, bool]]:
    """Return `count` draws from the images that have objects: permutation after permutation, half of them mirrored.

    Raises:
        DatasetError: no image has objects.
    """
    positions = [number for number, record in enumerate(split.images) if record["id"] in split.usable]
    if not positions:
        left_out = f" Left out: {'; '.join(split.notes)}." if split.notes else ""
        raise DatasetError(f"{split.file} must have objects with boxes and masks to train on; it has none.{left_out}")
    generator = np.random.default_rng(seed)
    rounds = -(-count // len(positions))
    order: npt.NDArray[np.int64] = np.concatenate([generator.permutation(positions) for _ in range(rounds)])[:count]
    return list(zip(order.tolist(), (generator.random(count) < 0.5).tolist(), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """AdamW, warmed up over the first tenth, then falling to zero as a cosine.

    Attributes:
        iterations: steps of the optimiser.
        batch_size: images a step.
        learning_rate: at the end of the warm-up, of every part of the detector.
        seed: of the regions that are sampled; images are drawn before.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Checkpoint file of a fine-tuning, from which it resumes after an interruption.

    Attributes:
        path: of the file; its folder is made.
        fingerprint: digest of everything that the result depends on.
        seconds: between two writings.
    """

    path: Path
    fingerprint: str
    seconds: float = 600.0


def finetune(
    detector: Any,
    images: DetectionImages,
    schedule: Schedule,
    *,
    workers: int = 0,
    tell: Callable[[str], None] = lambda line: None,
    kept: Kept | None = None,
) -> tuple[list[float], float | None]:
    """Train `detector` on `images`, which holds `iterations` times `batch_size` draws.

    The same seed gives the same detector on the same machine with the same number of threads, interrupted or not. On
    CUDA the forward pass runs in bf16 where the device has it.

    Args:
        detector: of torchvision.
        images: as above.
        schedule: how it is trained.
        workers: processes that load images.
        tell: takes a line for the user.
        kept: the checkpoint to resume from and to write; None writes none.

    Returns:
        The losses, and the seconds that the iterations before a resume took; None where their checkpoint lacks them.

    Raises:
        ConfigError: the loss is not a number.
        RunError: what was kept is damaged, or of another fine-tuning.
        ImageReadError, DatasetError: as `DetectionImages`.
        KeyboardInterrupt: `tell` first gets a line that says whether a checkpoint was kept.
    """
    device, began = next(detector.parameters()).device, time.monotonic()
    optimizer = make_optimizer(detector, schedule.learning_rate)
    pace = CosineLRScheduler(
        optimizer,
        t_initial=schedule.iterations,
        warmup_t=round(_WARMUP * schedule.iterations),
        warmup_lr_init=_WARMUP_START * schedule.learning_rate,
        t_in_epochs=False,
    )
    losses: list[float] = []
    detector.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(schedule.seed)
        generators, before = _take_up(kept, detector, optimizer, losses)
        rest = Subset(images, range(len(losses) * schedule.batch_size, len(images)))
        loader = DataLoader(rest, batch_size=schedule.batch_size, num_workers=workers, collate_fn=list)
        batches = iter(loader)  # takes a number from the generator
        if generators:
            _set_generators(generators, device)
        saved_at = time.monotonic()
        try:
            with progress_bar(
                total=schedule.iterations, initial=len(losses), desc="fine-tuning", unit="step", leave=False
            ) as steps:
                for number, batch in enumerate(batches, start=len(losses)):
                    pace.step_update(number)
                    parts = losses_of(detector, *_on(device, batch))
                    loss: Tensor = sum(parts.values())  # type: ignore[assignment]
                    value = _finite(loss, parts, number, schedule)
                    descend(detector, optimizer, loss)
                    losses.append(value)
                    steps.update()
                    steps.set_postfix_str(f"loss {sum(losses[-_SHOWN:]) / len(losses[-_SHOWN:]):.3f}", refresh=False)
                    if kept is not None and time.monotonic() - saved_at >= kept.seconds:
                        saved_at = time.monotonic()
                        spent = None if before is None else before + saved_at - began
                        _keep_state(kept, detector, optimizer, losses, spent, device)
        except KeyboardInterrupt:
            after = f"{len(losses)} of {schedule.iterations} iterations"
            tell(
                f"The fine-tuning was stopped after about {after}; the same command goes on at those that are kept."
                if kept is not None and kept.path.is_file()
                else "The fine-tuning is lost; the run itself was only read. The same command starts it again."
            )
            raise
    return losses, before


def make_optimizer(detector: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW over the parameters of `detector`, whose biases, norms and position embeddings do not decay."""
    return torch.optim.AdamW(_groups(detector), lr=learning_rate)


def losses_of(detector: Any, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the losses of a detector in training, scalars by name; on CUDA in bf16 where the device has it."""
    half = images[0].is_cuda and torch.cuda.is_bf16_supported()
    with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
        losses: dict[str, Tensor] = detector(images, targets)
    return losses


def descend(detector: Any, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step down a scalar loss, the gradient clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(detector.parameters(), _CLIP)
    optimizer.step()


def _take_up(
    kept: Kept | None, detector: Any, optimizer: torch.optim.Optimizer, losses: list[float]
) -> tuple[list[Tensor], float | None]:
    """Load the checkpoint; return states of the random generators, none without a checkpoint, and the seconds so far."""
    if kept is None or not kept.path.is_file():
        return [], 0.0
    state = load_state(kept.path, fingerprint=kept.fingerprint)
    try:
        detector.load_state_dict(state["detector"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        losses.extend(map(float, state["losses"]))
        seconds = state.get("seconds")  # which earlier releases did not keep
        return list(state["generators"]), None if seconds is None else float(seconds)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{kept.path} is not of this fine-tuning ({error}). Delete it to start again.") from error


def _keep_state(
    kept: Kept,
    detector: Any,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    seconds: float | None,
    device: torch.device,
) -> None:
    generators = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    state = {
        "detector": detector.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "losses": losses,
        "seconds": seconds,
        "generators": generators,
    }
    kept.path.parent.mkdir(exist_ok=True)
    save_state(kept.path, state, fingerprint=kept.fingerprint)


def _set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _on(device: torch.device, batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    images = [pixels.to(device) for pixels, _ in batch]
    return images, [{name: value.to(device) for name, value in target.items()} for _, target in batch]


def _finite(loss: Tensor, parts: dict[str, Tensor], number: int, schedule: Schedule) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        terms = ", ".join(f"{name} {float(part.detach()):.3g}" for name, part in parts.items())
        raise ConfigError(
            f"The loss of the detector must stay a number; at iteration {number} of {schedule.iterations} it is "
            f"{value} ({terms}). Try a learning rate below {schedule.learning_rate:g}."
        )
    return value


def _groups(detector: Any) -> list[dict[str, Any]]:
    """Return the parameters with weight decay, and those without: biases, norms, position embeddings."""
    without = {"pos_embed", "cls_token", "reg_token"}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        plain = parameter.ndim < 2 or name.rpartition(".")[2] in without
        (others if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
