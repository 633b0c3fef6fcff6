"""What the numbers say, in sentences: better, worse, or not told apart. Computed, never chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lfi_pipeline.core.options import command_line
from lfi_pipeline.evaluation.metrics import steps_to_reach
from lfi_pipeline.report.groups import Group, is_control, learns_maps, validation_curve
from lfi_pipeline.report.runs import Run
from lfi_pipeline.report.statistics import Estimate, difference


def points(value: float, signed: bool = False) -> str:
    """A share as points with one decimal and a true minus sign: 0.557 -> "55.7"."""
    return f"{value * 100:{'+' if signed else ''}.1f}".replace("-", "−")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Where lfi first reaches the final score of a control, mean over seeds; the learning curve marks it."""

    score: float
    step: float
    label: str
    control: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A short headline, the sentences under it, and the crossing to mark, if there is one."""

    headline: str
    sentences: tuple[str, ...]
    crossing: Crossing | None


def _seen(run: Run) -> float | None:
    return run.map_seen


def _heldout(run: Run) -> float | None:
    return run.map_heldout


def _best(groups: Sequence[Group]) -> Group | None:
    scored = [(score.mean, group) for group in groups if (score := group.estimate(_seen))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def conclude(groups: Sequence[Group]) -> Verdict:
    """Compare lfi (the teacher's maps) with the best control, and say how sure the seeds make it."""
    own = [g for g in groups if not is_control(g.config)]
    persistent = [g for g in own if g.config.state == "persistent"]
    control_groups = [g for g in groups if is_control(g.config)]
    lfi, control = _best(persistent or own), _best(control_groups)
    if lfi is None:
        return Verdict(headline="No lfi run to judge", sentences=(_no_lfi(own),), crossing=None)
    if control is None:
        return Verdict(headline="Nothing to compare lfi with", sentences=(_no_control(lfi),), crossing=None)
    seen = difference(lfi.by_seed(_seen), control.by_seed(_seen))
    assert seen is not None  # _best only returns groups with a score
    rank = "the best of the controls" if len(control_groups) > 1 else "the control"
    sentences = [f"On seen domains, {_gap(lfi, control, _seen, seen, rank)}"]
    heldout = difference(lfi.by_seed(_heldout), control.by_seed(_heldout))
    if heldout is not None:
        sentences.append(f"On held-out domains, {_gap(lfi, control, _heldout, heldout, 'the same control')}")
    speed, crossing = _speed(lfi, control)
    sentences += speed + _shuffled(lfi, groups) + _pointing(lfi)
    if len(persistent or own) > 1:
        count = len(persistent or own)
        sentences.append(f"{lfi.label} is the best of {count} lfi settings, picked by this same score.")
    return Verdict(headline=_headline(lfi, control, seen), sentences=tuple(sentences), crossing=crossing)


def _no_lfi(own: Sequence[Group]) -> str:
    if own:
        return "The lfi runs hold no validation score yet. `lfi evaluate RUN` makes one."
    return f"None of these runs learned from the teacher's maps. `{command_line('train', objective='lfi')}` makes one."


def _no_control(lfi: Group) -> str:
    score = lfi.estimate(_seen)
    assert score is not None
    return (
        f"{lfi.label} scores {points(score.mean)} mAP on seen domains, which says nothing by itself: there "
        f"is no control among these runs. `{command_line('train', objective='none')}` makes one."
    )


def _headline(lfi: Group, control: Group, gap: Estimate) -> str:
    size = points(abs(gap.mean))
    if gap.half is None:
        word = "ahead of" if gap.mean > 0 else "behind" if gap.mean < 0 else "level with"
        return f"{lfi.label} is {size} mAP {word} {control.label}, with too few seeds to be sure"
    if gap.sign == 0:
        return f"{lfi.label} and {control.label} are not told apart"
    verb = "beats" if gap.sign > 0 else "is worse than"
    return f"{lfi.label} {verb} {control.label} by {size} mAP"


def _gap(lfi: Group, control: Group, pick: Callable[[Run], float | None], gap: Estimate, role: str) -> str:
    left, right = lfi.by_seed(pick), control.by_seed(pick)
    means = sum(left.values()) / len(left), sum(right.values()) / len(right)
    head = (
        f"{lfi.label} scores {points(means[0])} mAP and {control.label}, {role}, {points(means[1])}: "
        f"{points(gap.mean, signed=True)} points"
    )
    if gap.half is None:
        if len(left) == len(right) == 1:
            return f"{head}. One seed each, so there is no interval: the difference may be chance."
        return f"{head}. One side has a single seed, so there is no interval: the difference may be chance."
    assert gap.low is not None
    assert gap.high is not None
    interval = f"(95\u00a0% interval {points(gap.low, signed=True)} to {points(gap.high, signed=True)}, "
    paired = f"{len(left)} seeds, paired)"
    unpaired = f"{len(left)} and {len(right)} seeds)"
    tail = f"{head} {interval}{paired if left.keys() == right.keys() else unpaired}."
    if gap.sign < 0:
        return f"{tail} lfi is worse here."
    return tail if gap.sign > 0 else f"{tail} The interval includes zero: these seeds do not tell the two apart."


def _speed(lfi: Group, control: Group) -> tuple[list[str], Crossing | None]:
    """Steps of lfi to the control's final validation score, against the control's own first step at it."""
    curves, own = [c for r in lfi.runs if (c := validation_curve(r))], control.curve()
    if not curves or not own:
        return [], None
    score, end = own[-1][1], own[-1][0]
    reached = [step for curve in curves if (step := steps_to_reach(curve, score)) is not None]
    goal = f"{control.label}'s final {points(score)} mAP"
    if not reached:
        return [f"{lfi.label} never reached {goal} in training."], None
    mean_step = sum(reached) / len(reached)
    if len(reached) < len(curves):
        told = f"{len(reached)} of {len(curves)} seeds of {lfi.label} reached {goal}"
        return [f"{told}, those at step {mean_step:,.0f} on average; the others never did."], None
    crossing = Crossing(score=score, step=mean_step, label=lfi.label, control=control.label)
    first = steps_to_reach([(step, value) for step, value, _, _ in own], score)
    assert first is not None  # the last point of the curve is the score
    text = f"{lfi.label} reached {goal} at step {mean_step:,.0f} of {end:,.0f}"
    if mean_step < first:
        return [f"{text}, {first / mean_step:.1f}× sooner than {control.label} itself (step {first:,.0f})."], crossing
    return [f"{text}, no sooner than {control.label} itself (step {first:,.0f})."], crossing


def _shuffled(lfi: Group, groups: Sequence[Group]) -> list[str]:
    shuffled = [g for g in groups if learns_maps(g.config) and g.config.maps == "shuffled"]
    other = _best(shuffled)
    gap = difference(lfi.by_seed(_seen), other.by_seed(_seen)) if other else None
    score = other.estimate(_seen) if other else None
    if gap is None or score is None:
        return []
    text = f"With the maps shuffled between images it scores {points(score.mean)}"
    if gap.half is None:
        side = "less" if gap.mean > 0 else "more"
        return [f"{text}, {points(abs(gap.mean))} {side} (too few seeds to be sure)."]
    if gap.sign > 0:
        return [f"{text}, so it matters where the maps point."]
    verdict = "more, so" if gap.sign < 0 else "not told apart from the true maps, so"
    return [f"{text}, {verdict} these runs do not show that it matters where the maps point."]


def _pointing(lfi: Group) -> list[str]:
    mine = lfi.estimate(lambda run: run.pointing)
    scores = next((run.scores for run in lfi.runs if run.scores is not None), None)
    if mine is None or scores is None or scores.teacher_pointing is None:
        return []
    chance = f", and chance at {points(scores.area)}\u00a0%" if scores.area is not None else ""
    return [
        f"Its last tap points into the right object for {points(mine.mean)}\u00a0% of words; "
        f"the teacher does for {points(scores.teacher_pointing)}\u00a0%{chance}."
    ]
