"""Which protocols there are, and how finished runs are scored by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.data import read_dataset
from lfi_pipeline.data.objects import count_masks
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS, EvaluationConfig
from lfi_pipeline.evaluation.results import ProtocolResult, write_result
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.run_dir import recorded_config

ProtocolFunction = Callable[[Path, EvaluationConfig, Any], ProtocolResult]


_PLACES: Mapping[str, str] = {
    "classification": "classification.classification",
    "cross-domain": "cross_domain.cross_domain",
    "zero-shot": "zero_shot.zero_shot",
    "grounding": "grounding_protocol.grounding",
    "detection": "detection.protocol.detection",
    "convergence": "convergence.convergence",
}
"""Protocol -> where its function is, below this package."""


def load_protocol(name: str) -> ProtocolFunction:
    """Import the function of a protocol.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PROTOCOL_CONFIGS:
        raise UnknownNameError("protocol", name, PROTOCOL_CONFIGS, argument="protocol")
    module, _, function = _PLACES[name].rpartition(".")
    protocol: ProtocolFunction = getattr(import_module(f"lfi_pipeline.evaluation.{module}"), function)
    return protocol


def evaluate_runs(
    runs: Sequence[Path], configs: Mapping[str, Any], common: EvaluationConfig | None = None
) -> dict[Path, dict[str, ProtocolResult]]:
    """Score each run by each protocol, and write every result into its run as soon as it is there.

    Args:
        runs: directories of runs.
        configs: protocol -> its config, such as `{"classification": ClassificationConfig()}`.
        common: what the protocols share.

    Returns:
        Run -> protocol -> result, in the order asked for.

    Raises:
        ConfigError: no run or no protocol.
        UnknownNameError: there is no such protocol.
        RunError: one of `runs` is not a run; nothing was scored.
        LFIError: as the protocol raises; what was finished is kept.
    """
    if not runs or not configs:
        raise ConfigError(f"There must be a run and a protocol, got {len(runs)} runs and {len(configs)} protocols.")
    functions = {name: load_protocol(name) for name in configs}
    for run in runs:
        recorded_config(run)
    results: dict[Path, dict[str, ProtocolResult]] = {run: {} for run in runs}
    work = [(run, name) for run in results for name in functions]
    with progress_bar(total=len(work), unit="result", leave=False, disable=len(work) == 1) as bar:
        for run, name in work:
            bar.set_description(f"{run.name}: {name}")
            results[run][name] = functions[name](run, common or EvaluationConfig(), configs[name])
            write_result(run, results[run][name])
            bar.update()
    return results


def default_protocols(targets: Path | None, data_root: Path | None = None) -> tuple[str, ...]:
    """Return the protocols that are run by default: `classification`, and `grounding` where targets have masks.

    Args:
        targets: a cache, whose data set may have masks.
        data_root: of that data set, if it has moved.

    Raises:
        TargetsError: `targets` is not a cache.
        DatasetError: its data set is not there.
    """
    if targets is None:
        return ("classification",)
    store = TargetStore.open(targets, data_root=data_root)
    dataset = read_dataset(store.source, store.source_root, store.spec.dataset.split)
    return ("classification", "grounding") if count_masks(dataset.instances) else ("classification",)
