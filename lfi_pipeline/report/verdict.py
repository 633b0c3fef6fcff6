"""What the numbers say: better, worse, or no difference shown, in sentences; and which trial of some settings did best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lfi_pipeline.core.options import command_line, defaults
from lfi_pipeline.evaluation.config import ConvergenceConfig
from lfi_pipeline.evaluation.metrics import smoothed, steps_to_reach
from lfi_pipeline.report.charts import Crossing
from lfi_pipeline.report.groups import Group, is_control, learns_from_teacher, learns_maps, listed, validation_curve
from lfi_pipeline.report.runs import Run
from lfi_pipeline.report.statistics import Difference, Estimate, difference
from lfi_pipeline.report.table import Table, aggregate
from lfi_pipeline.report.text import points, value_text
from lfi_pipeline.report.views import Choice
from lfi_pipeline.training.sweep import settings_toml, shown

SEEN, HELD_OUT = "map_seen", "map_heldout"
_SMOOTH = int(defaults(ConvergenceConfig)["smooth"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A short headline, the sentences under it, the crossing to mark, if there is one, and what a reader should know."""

    headline: str
    sentences: tuple[str, ...]
    crossing: Crossing | None = None
    notes: tuple[str, ...] = ()


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

    Only finished runs are judged: what the others have reached is not what they will end with.

    Args:
        groups: of runs.
        table: `training_table(groups)`.
    """
    judged = [group for group in groups if any(run.summary is not None for run in group.runs)]
    return replace(_judge(judged, _Scores(table)), notes=_unfinished(groups) + _scored_otherwise(judged))


def _unfinished(groups: Sequence[Group]) -> tuple[str, ...]:
    """A note on the runs that are not finished, if there are any."""
    runs = [(group, run) for group in groups for run in group.runs if run.summary is None]
    which = "left out of the verdict, and of curves and means of a label that has finished ones"
    return (f"Not finished, and so {which}: {listed(runs)}.",) if runs else ()


def _scored_otherwise(groups: Sequence[Group]) -> tuple[str, ...]:
    """Notes on settings in which the scores that are compared differ: they may be of different checkpoints."""
    notes, runs = [], [(group, run) for group in groups for run in group.counted]
    for protocol, name in itertools.product(("classification", "grounding"), ("dataset", "weights")):
        values: dict[str, list[tuple[Group, Run]]] = {}
        validated = "last" if (protocol, name) == ("classification", "weights") else None  # where nothing was evaluated
        for group, run in runs:
            scored = run.scores.scored if run.scores is not None else {}
            if (value := scored.get(protocol, {}).get(name, validated)) is not None:
                values.setdefault(str(value), []).append((group, run))
        if len(values) > 1:
            which = "; ".join(f"{name} {value}: {listed(of)}" for value, of in values.items())
            notes.append(f"Scores of {protocol} are not of the same {name}. {which}. Evaluate all runs alike.")
    return tuple(notes)


def _judge(groups: Sequence[Group], scores: _Scores) -> Verdict:
    own = [g for g in groups if learns_from_teacher(g.config)]
    settings = [g for g in own if g.config.state == "persistent"] or own
    controls = [g for g in groups if is_control(g.config)]
    lfi, control = scores.best(settings), scores.best(controls)
    if lfi is None:
        return Verdict(headline="No lfi run to judge", sentences=(_no_lfi(own),))
    if control is None:
        return Verdict(headline="Nothing to compare lfi with", sentences=(_no_control(lfi, scores),))
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
    return f"None of these runs learned from the teacher's maps to its end. `{command_line('train', objective='lfi')}` makes one."


def _no_control(lfi: Group, scores: _Scores) -> str:
    score = scores.mean(lfi, SEEN)
    assert score is not None
    return (
        f"{lfi.label} scores {points(score.mean)} mAP on {scores.where}, which says nothing by itself: there "
        f"is no finished control among these runs. `{command_line('train', objective='none')}` makes one."
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
    gap = scores.difference(lfi, control, measure)
    own, other = scores.mean(lfi, measure), scores.mean(control, measure)
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
    """When the smoothed curves of either side's seeds first reach the control's final validation score.

    Both sides are treated alike: a seed that never does counts with the last step of all.
    """
    own, other = (
        {run.config.seed: smoothed(curve, _SMOOTH) for run in group.counted if (curve := validation_curve(run))}
        for group in (lfi, control)
    )
    if not own or not other:
        return [], None
    score = fmean(curve[-1][1] for curve in other.values())
    end = max(curve[-1][0] for curve in (*own.values(), *other.values()))
    reached, theirs = ({seed: steps_to_reach(c, score) for seed, c in of.items()} for of in (own, other))
    never, never_theirs = (sum(step is None for step in of.values()) for of in (reached, theirs))
    goal = f"{control.label}'s final {points(score)} mAP"
    if never == len(own):
        return [f"{lfi.label} never reached {goal} in training."], None
    steps, first = ({seed: end if s is None else s for seed, s in of.items()} for of in (reached, theirs))
    mean, gap = fmean(steps.values()), difference(first, steps)
    assert gap is not None
    who = f"{len(own) - never} of {len(own)} seeds of {lfi.label}" if never else lfi.label
    text = f"{who} reached {goal} at step {mean:,.0f} of {end:,.0f}, "
    ahead = f"{fmean(first.values()) / mean:.1f}× sooner than" if gap.mean > 0 else "no sooner than"
    text += "not told apart from" if gap.half is not None and gap.sign == 0 else ahead
    text += f" {control.label} itself (step {fmean(first.values()):,.0f})"
    text += ", with too few seeds to be sure." if gap.half is None else "."
    if never or never_theirs:
        counted = f"{never} of {lfi.label} and {never_theirs} of {control.label}"
        text += f" Seeds that never did, {counted}, count with the last step."
    return [text], None if never else Crossing(score=score, step=mean, label=lfi.label, control=control.label)


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
    evaluation = next((run.scores for run in lfi.counted if run.scores is not None), None)
    if mine is None or evaluation is None or evaluation.teacher_pointing is None:
        return []
    chance = f", and chance at {points(evaluation.area)}\u00a0%" if evaluation.area is not None else ""
    return [
        f"Its last tap points into the right object for {points(mine.mean)}\u00a0% of words; "
        f"the teacher does for {points(evaluation.teacher_pointing)}\u00a0%{chance}."
    ]


def choices_toml(chosen: Sequence[Choice]) -> str:
    """Return the best trials as `[[where]]` of a sweep, each with its scores, and whether a better may lie beyond.

    Where there is nothing to match it is `[base]`. What is at its default, or left out, is not set, but told; so are
    trials that no match tells from the others, since TOML has no word for a setting that is left out.
    """
    text = ""
    for each in chosen:
        scores = [f"{name} {value_text(score, 'share')}" for name, score in each.trial.scores.items()]
        beyond = f", {' and '.join(each.edges)} at the edge" if each.edges else ""
        changes = {name: value for name, value in each.set.items() if value not in (None, {})}
        unset = [name for name in each.set if name not in changes]
        usual = f", {' and '.join(unset)} left out" if unset else ""
        text += f"# best of {each.trials} trials{beyond}{usual}: {', '.join(scores)}\n"
        settings = settings_toml({name: value for name, value in each.match.items() if value is not None}, changes)
        if changes and not each.matches:
            only = ", ".join(f"{name} {'left out' if v is None else shown(v)}" for name, v in each.match.items())
            text += f"# Not written, since no match tells {only} from the others. Set by hand for these:\n"
            settings = "".join(f"# {line}\n" for line in settings_toml({}, changes).splitlines()[1:])
        text += f"{settings}\n"
    return text
