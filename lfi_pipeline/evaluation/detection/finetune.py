"""Fine-tune a detector by a fixed, short schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.evaluation.detection.coco_data import DetectionImages, Target

_WARMUP = 0.1  # of the iterations
_WARMUP_START = 0.01  # of the learning rate
_WEIGHT_DECAY = 0.05
_CLIP = 1.0  # largest norm of the gradient
_SHOWN = 20  # iterations that the loss beside the progress bar is the mean of


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


def finetune(
    detector: Any,
    images: DetectionImages,
    schedule: Schedule,
    *,
    workers: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train `detector` on `images`, which holds `iterations` times `batch_size` draws, and return the losses.

    The same seed gives the same detector on the same machine with the same number of threads. On CUDA the forward pass
    runs in bf16 where the device has it.

    Raises:
        ConfigError: the loss is not a number.
        ImageReadError, DatasetError: as `DetectionImages`.
        KeyboardInterrupt: nothing is kept; says so through `tell`.
    """
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(_groups(detector), lr=schedule.learning_rate)
    pace = CosineLRScheduler(
        optimizer,
        t_initial=schedule.iterations,
        warmup_t=round(_WARMUP * schedule.iterations),
        warmup_lr_init=_WARMUP_START * schedule.learning_rate,
        t_in_epochs=False,
    )
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    loader = DataLoader(images, batch_size=schedule.batch_size, num_workers=workers, collate_fn=list)
    losses: list[float] = []
    detector.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(schedule.seed)
        try:
            with tqdm(loader, desc="fine-tuning", unit="step", leave=False) as steps:
                for number, batch in enumerate(steps):
                    pace.step_update(number)
                    with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
                        parts = detector(*_on(device, batch))
                        loss: Tensor = sum(parts.values())
                    losses.append(_finite(loss, parts, number, schedule))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(detector.parameters(), _CLIP)
                    optimizer.step()
                    steps.set_postfix_str(f"loss {sum(losses[-_SHOWN:]) / len(losses[-_SHOWN:]):.3f}", refresh=False)
        except KeyboardInterrupt:
            tell("The fine-tuning is lost; the run itself was only read. The same command starts it again.")
            raise
    return losses


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
