"""Results that a comparison could have and has not, each with the command that makes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lfi_pipeline.evaluation.measures import PROTOCOLS
from lfi_pipeline.evaluation.results import ProtocolResult
from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.runs import RunConfig

_NEEDS = {
    "grounding": "--targets TARGETS",
    "zero-shot": "--targets TARGETS",
    "convergence": "--reference RUN",
}
"""Options without which the protocol does not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What is missing, and the command that makes it."""

    what: str
    command: str


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
    found = []
    for protocol in wanted:
        lacking = [
            (group, run)
            for group in groups
            for run in group.runs
            if applies(protocol, run.config) and all(result.protocol != protocol for result in results[run.path])
        ]
        if not lacking:
            continue
        seeds: dict[str, list[str]] = {}
        for group, run in lacking:
            seeds.setdefault(group.label, []).append(str(run.config.seed))
        told = "; ".join(f"{label} (seed {', '.join(of)})" for label, of in seeds.items())
        words = ["lfi", "evaluate", *(shlex.quote(str(run.path)) for _, run in lacking), "--protocol", protocol]
        words += [_NEEDS[protocol]] if protocol in _NEEDS else []
        found.append(Missing(what=f"{protocol}: no result of {told}.", command=" ".join(words)))
    return found


def applies(protocol: str, config: RunConfig) -> bool:
    """Whether the protocol can score such a run at all; in doubt, it can."""
    if protocol == "zero-shot":
        return "presence" in config.objective.split("+") and config.mode == "text"
    if protocol == "convergence":  # its reference is the control
        return config.objective != "none"
    return True
