"""What each protocol measures: names, headings and units of scores, and when a learning curve reaches one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lfi_pipeline.core.errors import UnknownNameError

_DOMAINS = {"seen": "seen domains", "heldout": "held-out domains"}


def over_domains(name: str, heading: str) -> dict[str, str]:
    """Return the names of a score on seen and on held-out domains -> their headings."""
    return {f"{name}_{part}": f"{heading}, {domains}" for part, domains in _DOMAINS.items()}


HEAD_SCORES: Mapping[str, str] = {
    **over_domains("top1", "top-1"),
    **over_domains("top5", "top-5"),
    **over_domains("map", "mAP"),
}
"""Scores that a run's summary and its evaluation may hold, shares in [0, 1] -> their headings."""
TEACHER = "teacher_"
"""Measures of this prefix are of the teacher alone, whatever the run; the rest of the name is the student's measure."""
TEACHER_SCORES = {f"{TEACHER}{name}": f"teacher's zero-shot {heading}" for name, heading in HEAD_SCORES.items()}


Curve = Sequence[tuple[float, float]]
"""(step, score) pairs in the order of steps."""


def steps_to_reach(curve: Curve, score: float) -> float | None:
    """The step at which the curve first reaches `score`, linear between evaluations; None if it never does.

    A curve that starts at or above the score reaches it at its first evaluation: nothing earlier is known.
    """
    before: tuple[float, float] | None = None
    for step, value in curve:
        if value >= score:
            if before is None or not math.isfinite(before[1]):
                return float(step)
            return before[0] + (step - before[0]) * (score - before[1]) / (value - before[1])
        before = (step, value)
    return None


def smoothed(curve: Curve, window: int) -> Curve:
    """Return the curve with each score averaged with its neighbours, `window` of them in all, fewer at its ends."""
    reach, values = window // 2, [value for _, value in curve]
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [(step, math.fsum(part) / len(part)) for (step, _), part in zip(curve, parts, strict=True)]


def score_at(curve: Curve, step: float) -> float | None:
    """The score at `step`, linear between evaluations; None before the first and after the last."""
    for (first, low), (second, high) in itertools.pairwise(curve):
        if first <= step <= second:
            return low + (high - low) * (step - first) / (second - first)
    return float(curve[0][1]) if len(curve) == 1 and curve[0][0] == step else None


Unit = Literal["share", "nats", "steps", "seconds", "ratio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a protocol.

    Attributes:
        name: its key among the scores of a result.
        heading: what people read over a column.
        unit: `share` is in [0, 1] and shown in per cent; `ratio` is a plain factor.
        higher_is_better: False for steps, times and their ratios; None where neither end is good.
        part_of: name of the measure that this is a part of, as the mAP of one held-out domain; empty for the others.
    """

    name: str
    heading: str
    unit: Unit = "share"
    higher_is_better: bool | None = True
    part_of: str = ""


def _named(headings: Mapping[str, str]) -> tuple[Measure, ...]:
    return tuple(Measure(name=name, heading=heading) for name, heading in headings.items())


def without_domains(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures with headings that do not speak of seen domains where none is of held-out ones."""
    if any(measure.name.endswith("_heldout") for measure in measures):
        return tuple(measures)
    return tuple(replace(each, heading=each.heading.removesuffix(f", {_DOMAINS['seen']}")) for each in measures)


MEASURES: Mapping[str, tuple[Measure, ...]] = {
    "classification": (
        *_named(HEAD_SCORES),
        *_named(over_domains("knn_top1", "k-NN top-1")),
        *_named(over_domains("knn_map", "k-NN mAP")),
        *_named(over_domains("linear_top1", "linear probe top-1")),
        *_named(over_domains("linear_map", "linear probe mAP")),
        *_named(TEACHER_SCORES),
    ),
    "worst-group": (
        Measure(name="worst_group", heading="worst group, top-1"),
        Measure(name="mean", heading="all images, top-1"),
        Measure(name="adjusted", heading="groups as frequent as in training, top-1"),
    ),
    "cross-domain": (
        Measure(name="top1", heading="left-out domain, top-1"),
        Measure(name="map", heading="left-out domain, mAP"),
    ),
    "zero-shot": (
        Measure(name="top1", heading="zero-shot top-1"),
        Measure(name="top5", heading="zero-shot top-5"),
        Measure(name="map", heading="zero-shot mAP"),
        Measure(name="teacher_top1", heading="teacher's zero-shot top-1"),
        Measure(name="teacher_top5", heading="teacher's zero-shot top-5"),
        Measure(name="teacher_map", heading="teacher's zero-shot mAP"),
    ),
    "detection": (
        Measure(name="box_ap", heading="box AP"),
        Measure(name="box_ap50", heading="box AP50"),
        Measure(name="mask_ap", heading="mask AP"),
        Measure(name="mask_ap50", heading="mask AP50"),
    ),
    "grounding": (
        Measure(name="pointing", heading="peak in mask"),
        Measure(name="mass_in_mask", heading="mass in mask"),
        Measure(name="iou", heading="IoU at the best threshold"),
        Measure(name="tap_divergence", heading="divergence between taps", unit="nats", higher_is_better=None),
        Measure(name="cam_pointing", heading="peak of class map in mask"),
        Measure(name="cam_mass_in_mask", heading="mass of class map in mask"),
        Measure(name="teacher_pointing", heading="teacher's peak in mask"),
        Measure(name="teacher_mass_in_mask", heading="teacher's mass in mask"),
        Measure(name="teacher_iou", heading="teacher's IoU"),
    ),
    "convergence": (
        Measure(name="step_ratio", heading="steps to the reference's score", unit="ratio", higher_is_better=False),
        Measure(name="steps", heading="steps", unit="steps", higher_is_better=False),
        Measure(name="second_ratio", heading="time to the reference's score", unit="ratio", higher_is_better=False),
        Measure(name="seconds", heading="time", unit="seconds", higher_is_better=False),
    ),
}
"""Protocol -> its measures, main ones first. A score that a data set or a run does not have is missing."""
PROTOCOLS = tuple(MEASURES)
PARTS: Mapping[str, str] = {"map_heldout": "mAP, held-out domain", "top1_heldout": "top-1, held-out domain"}
"""Measure of `classification` that is also told of each held-out domain -> heading, which the domain's name follows."""
_OF_ONE_DOMAIN = {"classification": tuple(f"{name}_" for name in PARTS), "cross-domain": ("top1_", "map_")}


def check_primary(names: Iterable[str], at_hand: Mapping[str, Collection[str]] | None = None) -> None:
    """Check names of primary measures: `map_seen` of whatever protocol has it, `cross-domain:map` of that one alone.

    Args:
        names: of measures.
        at_hand: protocol -> further names that results have, of single domains; None: there are no results yet, and
            whatever may become the name of a domain is taken for one.

    Raises:
        UnknownNameError: there is no such protocol or measure.
    """
    for name in names:
        protocol, colon, measure = name.partition(":")
        if colon and protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS, argument="primary")
        measure, owners = (measure, (protocol,)) if colon else (name, PROTOCOLS)
        known = {each.name for owner in owners for each in MEASURES[owner] if not each.name.startswith(TEACHER)}
        known |= {each for owner in owners for each in (at_hand or {}).get(owner, ())}
        prefixes = _OF_ONE_DOMAIN.get(protocol if colon else "classification", ())
        if measure not in known and not (at_hand is None and measure.startswith(prefixes)):
            raise UnknownNameError("measure", measure, known, argument="primary")


def is_primary(measure: str, protocol: str, names: Collection[str]) -> bool:
    """Whether the measure of that protocol is among `names`, as `check_primary` takes them."""
    return measure in names or f"{protocol}:{measure}" in names
