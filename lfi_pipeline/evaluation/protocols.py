"""Which protocols there are, how runs are scored by them, and the result that each leaves in the run.

Two results are comparable where their protocol and settings are equal. The digest in the name is of the settings, so an
evaluation repeated replaces its own result, and a quick try with other settings never replaces a long one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfi_pipeline.core.errors import ConfigError, RunError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar, tell
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.dataset import counterpart, relabelled
from lfi_pipeline.evaluation.config import PROTOCOL_CONFIGS, EvaluationConfig
from lfi_pipeline.evaluation.metrics import MEASURES, PROTOCOLS
from lfi_pipeline.targets import DatasetSpec, TargetStore
from lfi_pipeline.training.config import NO_SPLIT
from lfi_pipeline.training.run_dir import read_json, recorded_config, write_run_json

if TYPE_CHECKING:
    from lfi_pipeline.training.learner import LoadedRun


def load(run: Path, common: EvaluationConfig) -> LoadedRun:
    """Load a run as `common` says. Raises as `training.learner.load_run`."""
    from lfi_pipeline.training.learner import load_run  # and so timm, which takes seconds

    return load_run(run, device=common.device, weights=common.weights, data_root=common.data_root)


def validation_split(loaded: LoadedRun) -> Dataset:
    """Return the split that the run was validated on. Raises as `read_split`, and ConfigError where there is none."""
    split = loaded.config.val_split
    if split == NO_SPLIT:
        raise ConfigError(
            f"{loaded.path} must have a split to be scored on, and was trained with val_split {NO_SPLIT!r}. Of a data set "
            "without one, extract split 'train-0.1', a part of its images, and train on that: the others are then 'val'."
        )
    return read_split(loaded, counterpart(split, loaded.store.spec.dataset.split))


def scored_split(loaded: LoadedRun, split: str | None) -> Dataset:
    """Return the split that is named, `val` of a part as in training; of None `validation_split`, and raises as it."""
    if split is None:
        return validation_split(loaded)
    return read_split(loaded, counterpart(split, loaded.store.spec.dataset.split))


def read_split(loaded: LoadedRun, split: str) -> Dataset:
    """Return a split of the run's data set, with labels that index the classes of its cache.

    Raises:
        DatasetError: it is not there, or has a class that the cache has not.
    """
    spec = loaded.store.spec.dataset
    dataset = read_dataset(loaded.store.source, loaded.store.source_root, split)
    return relabelled(dataset, spec.classes, f"the cache {loaded.store.path}")


def settings_of(dataset: Dataset | DatasetSpec, common: EvaluationConfig, **own: Any) -> dict[str, Any]:
    """Return the settings of a result on a split: those that every such protocol has, then the protocol's own."""
    return {"dataset": dataset.name, "split": dataset.split, "weights": common.weights, **own}


EVALUATION = "evaluation"
"""Directory below a run."""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON knows no largest integer
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolResult:
    """One protocol's outcome for one run.

    Attributes:
        protocol: one of `PROTOCOLS`.
        settings: JSON values that must be equal for two results to be comparable (data set, split, iterations, ...).
        scores: measure -> value in the measure's unit; None or left out where there is none.
        details: JSON values for the protocol's own use: per tap, per domain, chosen hyperparameters, ...
        seconds: that the evaluation took.
    """

    protocol: str
    settings: Mapping[str, Any]
    scores: Mapping[str, float | None]
    details: Mapping[str, Any]
    seconds: float

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", self.protocol, PROTOCOLS)
        for name, value in self.scores.items():
            if name not in {measure.name for measure in MEASURES[self.protocol]}:
                raise UnknownNameError(f"measure of {self.protocol}", name, [m.name for m in MEASURES[self.protocol]])
            if value is not None and (isinstance(value, bool) or not _is_finite(value)):
                raise ValueError(f"{self.protocol}: {name} must be a finite number or None, got {value!r}.")

    @property
    def file_name(self) -> str:
        """Name of its file below `EVALUATION`."""
        settings = json.dumps(self.settings, sort_keys=True)
        return f"{self.protocol}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}.json"


def write_result(run: Path, result: ProtocolResult) -> Path:
    """Write `result` into `run`, in place of one of the same protocol and settings, and return the file."""
    name = f"{EVALUATION}/{result.file_name}"
    write_run_json(run, name, asdict(result))
    return run / name


def read_results(run: Path, protocol: str | None = None) -> list[ProtocolResult]:
    """Return the results of `run`, of one protocol or of all, the latest written last.

    Raises:
        UnknownNameError: there is no such protocol.
        RunError: a file that is not a result; names it.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    paths = sorted((run / EVALUATION).glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    results = [_parse(path) for path in paths]
    return [result for result in results if protocol in (None, result.protocol)]


def latest_results(
    run: Path, counts: Callable[[ProtocolResult], bool] = lambda result: True
) -> dict[str, ProtocolResult]:
    """Return, of each protocol that has any that counts, the result that was written last. Raises as `read_results`."""
    return {result.protocol: result for result in read_results(run) if counts(result)}


def is_of_validation(result: ProtocolResult, record: Mapping[str, Any]) -> bool:
    """Whether a result is of the split that a run was validated on, by its `config.json`; one that names none is."""
    dataset, settings = (record[part] if isinstance(record.get(part), dict) else {} for part in ("dataset", "settings"))
    trained, named, scored = dataset.get("split"), settings.get("val_split"), result.settings.get("split")
    return None in (trained, named, scored) or scored == counterpart(str(named), str(trained))


def _parse(path: Path) -> ProtocolResult:
    try:
        return ProtocolResult(**read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} must be a result that lfi evaluate wrote: {error}") from error


ProtocolFunction = Callable[[Path, EvaluationConfig, Any], ProtocolResult]


_PLACES: Mapping[str, str] = {
    "classification": "classification.classification",
    "worst-group": "domains.worst_group",
    "cross-domain": "domains.cross_domain",
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
    """Return the protocols that are run by default: `classification`, and `grounding` where words have masks.

    A line says why there is no grounding of `targets`.

    Args:
        targets: a cache, of whose words some may name classes with masks.
        data_root: of its data set, if that has moved.

    Raises:
        TargetsError: `targets` is not a cache.
        DatasetError: its data set is not there, or is not the one that it was made from.
    """
    from lfi_pipeline.evaluation.grounding import why_not_grounded

    if targets is None:
        return ("classification",)
    store = TargetStore.open(targets, data_root=data_root)
    dataset = read_dataset(store.source, store.source_root, store.spec.dataset.split)
    if (reason := why_not_grounded(store, dataset)) is None:
        return ("classification", "grounding")
    tell(f"Grounding is not scored. {reason}")
    return ("classification",)
