"""What must hold before anything is built: of the runs of one read, and of the cache that they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import StreamConfig, TrainConfig
from lfi_pipeline.training.tickets import training_positions


def common_stream(configs: Sequence[TrainConfig]) -> StreamConfig:
    first = configs[0]
    for config in configs[1:]:
        if (config.stream, config.accumulate, config.val_split, config.task) != (
            first.stream, first.accumulate, first.val_split, first.task,
        ):  # fmt: skip
            raise ConfigError(
                "Runs that are fed from one read must agree on what is read (data, augmentation, epochs, batch size, "
                "seed), on the task, the validation split and on accumulate. Train the others in a command of their "
                "own."
            )
    return first.stream


def require_apart(outs: Sequence[Path]) -> None:
    if len({out.resolve() for out in outs}) < len(outs):
        raise ConfigError(f"Each run must have a directory of its own, got {', '.join(map(str, outs))}.")


def require_samples(store: TargetStore, stream: StreamConfig) -> npt.NDArray[np.int64]:
    """Return the positions that `stream` trains on, of which there is one at least."""
    known = set(store.index.domains)
    unknown = [domain for domain in stream.hold_out if domain not in known]
    if unknown:
        raise ConfigError(
            f"hold_out must name domains of the cache ({sorted(known)}), got {unknown}. A domain that the cache "
            "lacks is not trained on as it is."
        )
    positions = training_positions(store, stream.hold_out)
    if not len(positions):
        raise ConfigError(f"{stream.targets} has no usable sample left to train on.")
    return positions


def require_views(store: TargetStore, stream: StreamConfig, configs: Sequence[TrainConfig]) -> None:
    """Check that the cache holds what the teacher sees of the images as they are augmented."""
    reads_targets = any(config.terms for config in configs)
    if reads_targets and stream.augmentation.flip > 0 and "hflip" not in store.spec.views and not stream.mirror_maps:
        raise ConfigError(
            f"{stream.targets} has no 'hflip' view, and what the teacher saw is not what it would see of the mirrored "
            "image. Extract with --views full,hflip, or train with --flip 0, or accept mirrored maps with "
            "--mirror-maps."
        )
