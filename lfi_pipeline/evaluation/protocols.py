"""Which protocols there are, and how finished runs are scored by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.progress import progress_bar
from lfi_pipeline.data import read_dataset
from lfi_pipeline.evaluation.results import EvaluationConfig, ProtocolResult, write_result
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.run_dir import recorded_config

ProtocolFunction = Callable[[Path, EvaluationConfig, Any], ProtocolResult]


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol.

    Attributes:
        run: scores a run.
        config: dataclass of its options, which the command line offers by the names of the fields.
    """

    run: ProtocolFunction
    config: type[Any]


def _classification() -> Protocol:
    from lfi_pipeline.evaluation.classification import ClassificationConfig, classification

    return Protocol(classification, ClassificationConfig)


def _grounding() -> Protocol:
    from lfi_pipeline.evaluation.grounding_protocol import GroundingConfig, grounding

    return Protocol(grounding, GroundingConfig)


def _detection() -> Protocol:
    from lfi_pipeline.evaluation.detection import DetectionConfig, detection

    return Protocol(detection, DetectionConfig)


def _cross_domain() -> Protocol:
    from lfi_pipeline.evaluation.cross_domain import CrossDomainConfig, cross_domain

    return Protocol(cross_domain, CrossDomainConfig)


def _zero_shot() -> Protocol:
    from lfi_pipeline.evaluation.zero_shot import ZeroShotConfig, zero_shot

    return Protocol(zero_shot, ZeroShotConfig)


def _convergence() -> Protocol:
    from lfi_pipeline.evaluation.convergence import ConvergenceConfig, convergence

    return Protocol(convergence, ConvergenceConfig)


_LOADERS: Mapping[str, Callable[[], Protocol]] = {
    "classification": _classification,
    "cross-domain": _cross_domain,
    "zero-shot": _zero_shot,
    "grounding": _grounding,
    "detection": _detection,
    "convergence": _convergence,
}
RUNNABLE = tuple(_LOADERS)
"""Names of the protocols, in the order in which they are told."""


def load_protocol(name: str) -> Protocol:
    """Import a protocol.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in _LOADERS:
        raise UnknownNameError("protocol", name, RUNNABLE)
    return _LOADERS[name]()


def option_names(name: str) -> tuple[str, ...]:
    """Names of a protocol's options. Raises as `load_protocol`."""
    return tuple(field.name for field in dataclasses.fields(load_protocol(name).config))


def config_of(name: str, options: Mapping[str, Any]) -> Any:
    """Return a protocol's config of those `options` that it has.

    Raises:
        UnknownNameError: there is no such protocol.
        ConfigError: an option that it needs is missing, or has a value that cannot work.
    """
    config = load_protocol(name).config
    fields = dataclasses.fields(config)
    needed = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
    for option in needed:
        if option not in options:
            raise ConfigError(f"Protocol {name} needs --{option.replace('_', '-')}.")
    return config(**{field.name: options[field.name] for field in fields if field.name in options})


def default_options() -> dict[str, Any]:
    """Return the options of every protocol, and those that they share, with their values where none is given."""
    configs: tuple[type[Any], ...] = (EvaluationConfig, *(load_protocol(name).config for name in RUNNABLE))
    fields = (field for config in configs for field in dataclasses.fields(config))
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


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
    functions = {name: load_protocol(name).run for name in configs}
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
    """Return what is scored where nothing is named: `classification`, and `grounding` where targets have masks.

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
    dataset = read_dataset(store.spec.dataset.name, store.source_root, store.spec.dataset.split)
    return ("classification", "grounding") if dataset.instances else ("classification",)
