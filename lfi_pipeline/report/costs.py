"""What training cost: parameters, those that stay, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.statistics import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One group's.

    Attributes:
        seeds: how many runs the times are means of.
        control: label of the group that `ratio` refers to, None for a control.
        backbone, head, kept: parameters of the student and of queries that stay after training.
        added: parameters that training needs and that are dropped after it.
        step_ms: median milliseconds of a step.
        ratio: mean step time over the control's.
        seconds: of the whole training.
    """

    label: str
    slot: int
    seeds: int
    control: str | None
    backbone: int | None
    head: int | None
    kept: int | None
    added: int | None
    step_ms: Estimate | None
    ratio: float | None
    seconds: Estimate | None


def costs_of(groups: Sequence[Group], controls: Mapping[str, str]) -> list[Cost]:
    """Return the costs of the groups, in their order; `controls` is label -> label of the control."""
    times = {group.label: group.estimate(lambda run: run.step_ms) for group in groups}
    costs = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        control = controls.get(group.label)
        own, other = times[group.label], times.get(control or "")
        costs.append(
            Cost(
                label=group.label,
                slot=group.slot,
                seeds=len(group.runs),
                control=control,
                backbone=summary.backbone if summary else None,
                head=summary.head if summary else None,
                kept=summary.kept_queries if summary else None,
                added=summary.queries - summary.kept_queries + summary.terms if summary else None,
                step_ms=own,
                ratio=own.mean / other.mean if own and other else None,
                seconds=group.estimate(lambda run: run.summary.seconds if run.summary else None),
            )
        )
    return costs
