"""What the numbers say: better, worse, or no difference shown, in sentences; and which trial of some settings did best."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from lfi_pipeline.core.options import command_line
from lfi_pipeline.evaluation.metrics import steps_to_reach
from lfi_pipeline.report.charts import Crossing
from lfi_pipeline.report.groups import Group, is_control, learns_from_teacher, learns_maps, telling, validation_curve
from lfi_pipeline.report.statistics import Difference, Estimate, difference
from lfi_pipeline.report.table import Table, aggregate
from lfi_pipeline.report.text import points, value_text
from lfi_pipeline.report.views import Standing, exact
from lfi_pipeline.training.config import DEFAULT_WEIGHT, Weight

SEEN, HELD_OUT = "map_seen", "map_heldout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A short headline, the sentences under it, and the crossing to mark, if there is one."""

    headline: str
    sentences: tuple[str, ...]
    crossing: Crossing | None


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of groups by measure, out of `training_table`."""

    table: Table

    def by_seed(self, group: Group, measure: str) -> dict[int, float]:
        return self.table.where(label=group.label, measure=measure).by_seed()

    def mean(self, group: Group, measure: str) -> Estimate | None:
        return aggregate(self.table.where(label=group.label, measure=measure), "label").get((group.label,))

    def difference(self, left: Group, right: Group, measure: str) -> Difference | None:
        return difference(self.by_seed(left, measure), self.by_seed(right, measure))

    def best(self, groups: Sequence[Group]) -> Group | None:
        scored = [(score.mean, group) for group in groups if (score := self.mean(group, SEEN))]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    @property
    def where(self) -> str:
        """The images that `SEEN` is of, in words; without held-out domains, the whole validation split."""
        held_out = any(row.value is not None for row in self.table.where(measure=HELD_OUT).rows)
        return "seen domains" if held_out else "the validation split"


def conclude(groups: Sequence[Group], table: Table) -> Verdict:
    """Compare lfi (the teacher's maps) with the best control, and say how sure the seeds make it.

    Args:
        groups: of runs.
        table: `training_table(groups)`.
    """
    scores = _Scores(table)
    own = [g for g in groups if learns_from_teacher(g.config)]
    settings = [g for g in own if g.config.state == "persistent"] or own
    controls = [g for g in groups if is_control(g.config)]
    lfi, control = scores.best(settings), scores.best(controls)
    if lfi is None:
        return Verdict(headline="No lfi run to judge", sentences=(_no_lfi(own),), crossing=None)
    if control is None:
        return Verdict(headline="Nothing to compare lfi with", sentences=(_no_control(lfi, scores),), crossing=None)
    seen = scores.difference(lfi, control, SEEN)
    assert seen is not None  # `best` only returns groups with a score
    rank = "the best of the controls" if len(controls) > 1 else "the control"
    sentences = [f"On {scores.where}, {_gap(lfi, control, SEEN, scores, rank)}"]
    if scores.difference(lfi, control, HELD_OUT) is not None:
        sentences.append(f"On held-out domains, {_gap(lfi, control, HELD_OUT, scores, 'the same control')}")
    speed, crossing = _speed(lfi, control)
    sentences += speed + _shuffled(lfi, groups, scores) + _pointing(lfi, scores)
    if len(settings) > 1:
        sentences.append(f"{lfi.label} is the best of {len(settings)} lfi settings, picked by this same score.")
    return Verdict(headline=_headline(lfi, control, seen), sentences=tuple(sentences), crossing=crossing)


def _no_lfi(own: Sequence[Group]) -> str:
    if own:
        return "The lfi runs hold no validation score yet. `lfi evaluate RUN` makes one."
    return f"None of these runs learned from the teacher's maps. `{command_line('train', objective='lfi')}` makes one."


def _no_control(lfi: Group, scores: _Scores) -> str:
    score = scores.mean(lfi, SEEN)
    assert score is not None
    return (
        f"{lfi.label} scores {points(score.mean)} mAP on {scores.where}, which says nothing by itself: there "
        f"is no control among these runs. `{command_line('train', objective='none')}` makes one."
    )


def _headline(lfi: Group, control: Group, gap: Estimate) -> str:
    size = points(abs(gap.mean))
    if gap.half is None:
        ahead = f"{size} mAP {'ahead of' if gap.mean > 0 else 'behind'}" if size != points(0) else "level with"
        return f"{lfi.label} is {ahead} {control.label}, with too few seeds to be sure"
    if gap.sign == 0:
        return f"{lfi.label} and {control.label} are not told apart"
    verb = "beats" if gap.sign > 0 else "is worse than"
    return f"{lfi.label} {verb} {control.label} by {size} mAP"


def _gap(lfi: Group, control: Group, measure: str, scores: _Scores, role: str) -> str:
    gap, own, other = (
        scores.difference(lfi, control, measure),
        scores.mean(lfi, measure),
        scores.mean(control, measure),
    )
    assert gap is not None
    assert own is not None
    assert other is not None
    head = (
        f"{lfi.label} scores {points(own.mean)} mAP and {control.label}, {role}, {points(other.mean)}: "
        f"{points(gap.mean, signed=True)} points"
    )
    if gap.low is None or gap.high is None:
        if own.count == other.count == 1:
            return f"{head}. One seed each, so there is no interval: the difference may be chance."
        return f"{head}. One side has a single seed, so there is no interval: the difference may be chance."
    seeds = f"{own.count} seeds, paired" if gap.paired else f"{own.count} and {other.count} seeds"
    interval = f"{points(gap.low, signed=True)} to {points(gap.high, signed=True)}"
    text = f"{head} (95\u00a0% interval {interval}, {seeds})."
    if gap.sign < 0:
        return f"{text} lfi is worse here."
    return text if gap.sign > 0 else f"{text} The interval includes zero: these seeds do not tell the two apart."


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
        some = f"{len(reached)} of {len(curves)} seeds of {lfi.label} reached {goal}"
        return [f"{some}, those at step {mean_step:,.0f} on average; the others never did."], None
    crossing = Crossing(score=score, step=mean_step, label=lfi.label, control=control.label)
    first = steps_to_reach([(step, value) for step, value, _, _ in own], score)
    assert first is not None  # the last point of the curve is the score
    text = f"{lfi.label} reached {goal} at step {mean_step:,.0f} of {end:,.0f}"
    if mean_step < first:
        return [f"{text}, {first / mean_step:.1f}× sooner than {control.label} itself (step {first:,.0f})."], crossing
    return [f"{text}, no sooner than {control.label} itself (step {first:,.0f})."], crossing


def _shuffled(lfi: Group, groups: Sequence[Group], scores: _Scores) -> list[str]:
    other = scores.best([g for g in groups if learns_maps(g.config) and g.config.maps == "shuffled"])
    gap = scores.difference(lfi, other, SEEN) if other else None
    score = scores.mean(other, SEEN) if other else None
    if gap is None or score is None:
        return []
    text = f"With the maps shuffled between images it scores {points(score.mean)}"
    if gap.half is None:
        size = points(abs(gap.mean))
        side = f"{size} {'less' if gap.mean > 0 else 'more'}" if size != points(0) else "the same"
        return [f"{text}, {side} (too few seeds to be sure)."]
    if gap.sign > 0:
        return [f"{text}, so it matters where the maps point."]
    verdict = "more, so" if gap.sign < 0 else "not told apart from the true maps, so"
    return [f"{text}, {verdict} these runs do not show that it matters where the maps point."]


def _pointing(lfi: Group, scores: _Scores) -> list[str]:
    mine = scores.mean(lfi, "pointing")
    evaluation = next((run.scores for run in lfi.runs if run.scores is not None), None)
    if mine is None or evaluation is None or evaluation.teacher_pointing is None:
        return []
    chance = f", and chance at {points(evaluation.area)}\u00a0%" if evaluation.area is not None else ""
    return [
        f"Its last tap points into the right object for {points(mine.mean)}\u00a0% of words; "
        f"the teacher does for {points(evaluation.teacher_pointing)}\u00a0%{chance}."
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The best of the trials that differ in the settings tried alone: its row, and how many trials there were.

    `match` are the settings that tell these trials from all others, `set` those tried, as the best has them; `edges`
    are those of them that are the least or the largest of several values, so that a better one may lie beyond.
    """

    trial: Standing
    trials: int
    match: Mapping[str, Any]
    set: Mapping[str, Any]
    edges: tuple[str, ...]


def choices(rows: Sequence[Standing], tried: Collection[str]) -> list[Choice]:
    """Return the best row for every combination of the settings that are not in `tried`; `rows` have the best first."""
    names = list(rows[0].settings) if rows else []
    matched = telling([{n: exact(value) for n, value in row.settings.items() if n not in tried} for row in rows])
    alike: dict[str, list[Standing]] = {}
    for row in rows:
        alike.setdefault(exact([row.settings[name] for name in matched]), []).append(row)
    made = []
    for best, *others in alike.values():
        match, chosen = {n: best.settings[n] for n in matched}, {n: best.settings[n] for n in names if n in tried}
        ordered = [name for name, value in chosen.items() if not isinstance(value, str)]  # else nothing lies beyond
        sizes = {name: sorted({_size(row.settings[name]) for row in (best, *others)}) for name in ordered}
        edges = [n for n, of in sizes.items() if len(of) > 1 and _size(chosen[n]) in (of[0], of[-1])]
        made.append(Choice(trial=best, trials=1 + len(others), match=match, set=chosen, edges=tuple(edges)))
    return made


def _size(value: Any) -> float:
    weights = [Weight.parse(each) for each in value.values()] if isinstance(value, Mapping) else []
    return float(value) if isinstance(value, int | float) else next(iter(weights), DEFAULT_WEIGHT).value


def choices_toml(chosen: Sequence[Choice]) -> str:
    """Return the best trials as `[[where]]` of a sweep, each with its scores, and whether a better may lie beyond."""
    text = ""
    for each in chosen:
        scores = [f"{name} {value_text(score, 'share')}" for name, score in each.trial.scores.items()]
        beyond = f", {' and '.join(each.edges)} at the edge" if each.edges else ""
        chosen_of = {name: value for name, value in each.set.items() if value != {}}
        text += f"# best of {each.trials} trials{beyond}: {', '.join(scores)}\n"
        text += f"[[where]]\nmatch = {_inline(each.match)}\nset = {_inline(chosen_of)}\n\n"
    return text


def _inline(table: Mapping[str, Any]) -> str:
    """A table on one line."""
    pairs = [
        f"{n} = {_inline(v)}" if isinstance(v, Mapping) else tomli_w.dumps({n: v}).strip() for n, v in table.items()
    ]
    return f"{{ {', '.join(pairs)} }}"
