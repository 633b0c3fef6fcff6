"""Runs that differ only in their seed, gathered under one label, and which group another one is compared with.

The label is the objective, plus the maps when they are not the teacher's, plus the state when it is reset.
Runs of one such label that differ in anything else that matters (learning rate, lambda, ...) are *not* seeds
of one another: the differing settings join the label and split the group.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.core.options import command_line, declared
from lfi_pipeline.evaluation.metrics import PROTOCOLS
from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.report.runs import Run, RunConfig
from lfi_pipeline.report.statistics import mean_curve
from lfi_pipeline.training.config import TrainConfig
from lfi_pipeline.training.run_dir import canonical_settings

SLOTS = {
    "none": 0,
    "embedding": 1,
    "logits": 2,
    "lfi": 3,
    "lfi · shuffled maps": 4,
    "lfi · uniform maps": 5,
    "lfi · reset": 6,
    "lfi+presence": 7,
}
"""Colour of a label, the same on every page; a label split by its settings takes a free one."""
SLOT_COUNT = 10

_SETTINGS: dict[str, Callable[[RunConfig], object]] = {
    "student": lambda c: c.student,
    "λ": lambda c: c.lambda_int,
    "lr": lambda c: c.learning_rate,
    "epochs": lambda c: c.epochs,
    "batch": lambda c: c.batch_size,
    "px": lambda c: c.image_size,
    "maps kind": lambda c: c.kind,
    "hold out": lambda c: "+".join(c.hold_out) or "nothing",
    "data": lambda c: c.dataset,
    "train samples": lambda c: c.train_samples,
    "targets": lambda c: c.fingerprint[:8],
}
_NAMED_OTHERWISE = frozenset(
    [
        "seed",
        "objective",
        "maps",
        "state",
        "student",
        "weight",
        "lr",
        "epochs",
        "batch_size",
        "image_size",
        "hold_out",
        "targets",
        "data_root",
    ]
)
"""Settings of a run (training/config.py) that the label or `_SETTINGS` names already, or that do not matter."""


def _setting(name: str) -> Callable[[RunConfig], object]:
    def read(config: RunConfig) -> object:
        settings = config.raw.get("settings")
        if not isinstance(settings, Mapping):
            return None
        value = canonical_settings(settings, config.objective).get(name)
        return json.dumps(value) if isinstance(value, dict | list) else value

    return read


def _other_weights(config: RunConfig) -> str:
    text = _setting("weight")(config)
    weights = json.loads(text) if isinstance(text, str) else {}
    return " ".join(f"{term} {value}" for term, value in sorted(weights.items()) if term != "lfi") or "default"


_TUNED = ("λ", "lr", "weight")
"""Settings that are tuned for others: they join a label last, and where two runs differ in the head it is that which is told."""
_SETTINGS["weight"] = _other_weights
_SETTINGS |= {name.replace("_", " "): _setting(name) for name in declared(TrainConfig) if name not in _NAMED_OTHERWISE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs of one label, at most one for each seed, in the order of seeds."""

    label: str
    slot: int
    runs: tuple[Run, ...]

    @property
    def config(self) -> RunConfig:
        """The settings that all of its runs share (the seed aside)."""
        return self.runs[0].config

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that curves and means are of: the finished ones; all where none is, which no verdict judges."""
        return tuple(run for run in self.runs if run.summary is not None) or self.runs

    def curve(self, heldout: bool = False) -> list[tuple[float, float, float, float]]:
        """(step, mean, lowest, highest) of the validation mAP, at the steps that every seed has."""
        return mean_curve([curve for run in self.counted if (curve := validation_curve(run, heldout))])


def validation_curve(run: Run, heldout: bool = False) -> list[tuple[float, float]]:
    """(step, mAP) of one run, without the evaluations that have no such score."""
    points = ((p.step, p.map_heldout if heldout else p.map_seen) for p in run.validation)
    return [(float(step), value) for step, value in points if value is not None]


def learns_maps(config: RunConfig) -> bool:
    """Whether interaction maps, of whatever kind, are among what the run learns."""
    return "lfi" in config.objective.split("+")


def learns_from_teacher(config: RunConfig) -> bool:
    """Whether a run learns the teacher's interaction maps: it is what controls are held against."""
    return learns_maps(config) and config.maps == "teacher"


def is_control(config: RunConfig) -> bool:
    """Whether a run is what lfi must beat. True masks in place of maps are a ceiling: they are more than a teacher knows."""
    return not learns_maps(config) or config.maps not in ("teacher", "masks")


def base_label(config: RunConfig) -> str:
    """Objective, plus maps when not the teacher's, plus state when reset."""
    parts = [config.objective]
    if learns_maps(config) and config.maps != "teacher":
        parts.append(f"{config.maps} maps")
    if learns_maps(config) and config.state != "persistent":
        parts.append(config.state)
    return " · ".join(parts)


def _matters(name: str, config: RunConfig) -> bool:
    """Whether a setting touches this objective at all: a lambda means nothing to a run without the term."""
    if name in ("λ", "maps kind"):
        return learns_maps(config)
    if name.startswith("query ") or name == "readout":
        return _setting("head")(config) == "queries" or bool({*config.objective.split("+")} & {"lfi", "presence"})
    if name == "weight":
        return bool({*config.objective.split("+")} - {"none", "lfi"})
    return name != "targets" or config.objective != "none"


def unequal_settings(first: RunConfig, second: RunConfig) -> list[str]:
    """Names of the settings that matter to both and differ, objective, maps and seed aside."""
    both = (first, second)
    return [n for n, read in _SETTINGS.items() if all(_matters(n, c) for c in both) and read(first) != read(second)]


def _in_label(name: str, config: RunConfig) -> str:
    """A setting as a label shows it; empty where it means nothing to the run, which no value of it sets apart then."""
    return _plain(_SETTINGS[name](config)) if _matters(name, config) else ""


def label_runs(runs: Sequence[Run], across: Collection[str] = ()) -> dict[str, list[Run]]:
    """Return label -> its runs.

    A setting named in `across` may differ within a label, and so may what follows from it where it is necessary: from
    the domain left out, the epochs that come to one number of steps. An ablation of epochs does not follow from it.
    """
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(base_label(run.config), []).append(run)
    labelled: dict[str, list[Run]] = {}
    for base, family in families.items():
        differing = [
            name
            for name, read in _SETTINGS.items()
            if len({read(run.config) for run in family if _matters(name, run.config)}) > 1
        ]
        differing.sort(key=lambda name: (name not in _NECESSARY, name in across, name in _TUNED))
        rows = [{name: _in_label(name, run.config) for name in differing} for run in family]
        in_label = [name for name in telling(rows) if name not in across]
        for run, row in zip(family, rows, strict=True):
            suffix = [f"{name} {row[name]}" for name in in_label if row[name]]
            labelled.setdefault(" · ".join([base, *suffix]), []).append(run)
    order = {name: place for place, name in enumerate(SLOTS)}
    names = sorted(labelled, key=lambda label: (order.get(base_label(labelled[label][0].config), 99), label))
    return {name: labelled[name] for name in names}


def telling(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names that tell rows apart further than the names before do; all rows have the same ones.

    A setting that follows from earlier ones, as the patch size follows from the student, tells nothing new.
    """
    names: list[str] = []
    for name in rows[0] if rows else ():
        apart = {tuple(row[each] for each in (*names, name)) for row in rows}
        if len(apart) > len({values[:-1] for values in apart}):
            names.append(name)
    return names


def gather(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group runs by label.

    Returns:
        The groups, controls first, in the order in which the page shows them; and notes on what was odd.
    """
    notes: list[str] = []
    labelled = label_runs(runs)
    names = list(labelled)
    free = [slot for slot in range(SLOT_COUNT) if slot not in {SLOTS[n] for n in names if n in SLOTS}]
    free.sort(key=lambda slot: slot < len(SLOTS))
    groups: list[Group] = []
    for name in names:
        seeds: dict[int, Run] = {}
        for run in labelled[name]:
            if run.config.seed in seeds:
                notes.append(
                    f"{name}: seed {run.config.seed} is there twice; only {run.path.name} counts, because a "
                    "repeated seed is not another sample."
                )
            seeds[run.config.seed] = run
        own = SLOTS.get(base_label(labelled[name][0].config))
        slot = own if name in SLOTS or own in free else free[0] if free else len(groups) % SLOT_COUNT
        assert slot is not None  # `own` is in `free` or the label is listed
        if slot in free:
            free.remove(slot)
        groups.append(Group(label=name, slot=slot, runs=tuple(seeds[seed] for seed in sorted(seeds))))
    return groups, notes + _unequal(groups)


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Return a note for each setting that differs between labels."""
    notes = []
    for name, read in _SETTINGS.items():
        if name == "weight":  # of a term that others do not have
            continue
        values: dict[str, list[str]] = {}
        for group in groups:
            if _matters(name, group.config):
                values.setdefault(_plain(read(group.config)), []).append(group.label)
        if len(values) > 1:
            listed = "; ".join(f"{value or 'none'} for {', '.join(labels)}" for value, labels in values.items())
            notes.append(f"The labels do not share one setting of “{name}”: {listed}.")
    return notes


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_NECESSARY = frozenset(["student", "student arg", "px", "patch size", "pretrained", "data", "hold out", "task"])
"""Settings without which two runs do not answer the same question; the learning rate, say, may well be tuned apart."""


def comparable(first: RunConfig, second: RunConfig, across: Collection[str] = ()) -> bool:
    """Whether both train the same student for the same task on the same data; settings named in `across` may differ."""
    return _NECESSARY.isdisjoint({*unequal_settings(first, second)} - {*across})


def choose_controls(
    configs: Mapping[str, RunConfig], control: str | None = None, across: Collection[str] = ()
) -> dict[str, str]:
    """Return label -> label of its control, for the labels that have one.

    The control is the group of objective `none` that is comparable, has the same head if one has, and differs in the
    fewest settings, the first of several; groups of objective `none` have none themselves. A `control` that is named is
    that of every other label.

    Args:
        configs: label -> its configuration.
        control: a label, or None for the default.
        across: settings that may differ, as those do in which runs of one label differ.

    Raises:
        UnknownNameError: there is no label `control`.
    """
    if control is not None:
        if control not in configs:
            raise UnknownNameError("control", control, configs)
        return {label: control for label in configs if label != control}
    plain = {label: config for label, config in configs.items() if config.objective == "none"}
    chosen = {}
    for label, config in configs.items():
        fitting = [name for name, other in plain.items() if label not in plain and comparable(config, other, across)]
        if fitting:
            unequal = {name: {*unequal_settings(config, plain[name])} - {*across} for name in fitting}
            chosen[label] = min(fitting, key=lambda name: ("head" in unequal[name], len(unequal[name])))
    return chosen


def rivals(label: str, configs: Mapping[str, RunConfig], across: Collection[str] = ()) -> list[str]:
    """Return the labels that one that learns the teacher's maps must beat; none for any other label."""
    config = configs[label]
    if not learns_from_teacher(config):
        return []
    return [name for name, other in configs.items() if is_control(other) and comparable(config, other, across)]


def shown(value: Any) -> str:
    """A setting as people read it; a digest by its first characters."""
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return value[:8]
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A result that a comparison could have and has not, and the command that makes it."""

    what: str
    command: str


_NEEDS = {
    "grounding": {"targets": "TARGETS"},
    "zero-shot": {"targets": "TARGETS"},
    "convergence": {"reference": "RUN"},
}
"""Options without which the protocol does not run."""


def missing_results(
    groups: Sequence[Group], results: Mapping[Path, Sequence[ProtocolResult]], only: Sequence[str] = ()
) -> list[Missing]:
    """Return what is missing: a protocol that other runs have, and, where no run has any result, classification.

    Args:
        groups: of runs.
        results: path of a run -> its results.
        only: protocols to look at; empty: all.
    """
    there = {result.protocol for of_run in results.values() for result in of_run}
    wanted = [protocol for protocol in PROTOCOLS if protocol in (only or there or ("classification",))]
    missing = []
    for protocol in wanted:
        lacking = [
            (group, run)
            for group in groups
            for run in group.runs
            if applies(protocol, run.config) and all(result.protocol != protocol for result in results[run.path])
        ]
        if not lacking:
            continue
        needed = _NEEDS.get(protocol, {})
        command = command_line("evaluate", *(run.path for _, run in lacking), protocol=protocol, **needed)
        missing.append(Missing(what=f"{protocol}: no result of {listed(lacking)}.", command=command))
    return missing


def listed(runs: Sequence[tuple[Group, Run]]) -> str:
    """Return runs with their groups as people read them: none (seed 0, 1); lfi (seed 2)."""
    seeds: dict[str, list[str]] = {}
    for group, run in runs:
        seeds.setdefault(group.label, []).append(str(run.config.seed))
    return "; ".join(f"{label} (seed {', '.join(of)})" for label, of in seeds.items())


def commands_for_missing(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """(what is missing, the command that makes it) for everything optional that a run does not have."""
    lines = []
    runs = [(f"{group.label}, seed {run.config.seed}", run) for group in groups for run in group.runs]
    for name, run in runs:
        if run.summary is None:
            again = run.config.command or command_line("train", out=run.path.name)
            lines.append((f"{name} was stopped before its end; the same command starts it again.", again))
        if run.classified is None:
            text = f"{name} was not evaluated: its mAP here is the last validation in training."
            lines.append((text, f"lfi evaluate {run.path.name}"))
    for group in groups:
        if group.config.objective == "lfi" and not any(run.gallery for run in group.runs):
            lines.append(
                (f"{group.label} has no gallery.", command_line("evaluate", group.runs[0].path.name, targets="SHARDS"))
            )
    return lines


def applies(protocol: str, config: RunConfig) -> bool:
    """Whether the protocol can score such a run at all; in doubt, it can."""
    if protocol == "zero-shot":
        return "presence" in config.objective.split("+")
    if protocol == "convergence":  # its reference is the control
        return config.objective != "none"
    return True
