"""Tables over seeds that commands show: scores of a protocol, a sweep's leaderboard, costs, and left-out domains.

The cross-domain table is DomainBed's (Gulrajani & Lopez-Paz, ICLR 2021, section 4; its collect_results.py): mean over
seeds, and their standard deviation (divided by n, not n - 1) over the root of n as standard error. The 95 % interval
(Student's t) stands beside it. The mean over domains is taken for each seed first, of seeds that have every domain.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfi_pipeline.core.hub import in_full
from lfi_pipeline.core.options import flatten
from lfi_pipeline.core.schema import read_as
from lfi_pipeline.evaluation.metrics import HEAD_SCORES, MEASURES
from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.report.groups import Group, gather, telling
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import Estimate, estimate
from lfi_pipeline.report.table import TRAINING, Row, Table, aggregate, over_domains, result_table, training_table
from lfi_pipeline.training.config import DEFAULT_WEIGHT, TrainConfig, Weight
from lfi_pipeline.training.run_dir import CONFIG, SUMMARY, config_fields, recorded_config, summary_fields
from lfi_pipeline.training.sweep import Condition

CROSS_DOMAIN = "cross-domain"
_SEED = "seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRow:
    """Scores of runs that differ in their seed alone.

    Attributes:
        label: as `report.groups` names them.
        seeds: of its runs.
        scores: measure -> mean over the seeds that have it, and interval, in the measure's unit.
    """

    label: str
    seeds: tuple[int, ...]
    scores: Mapping[str, Estimate]


def seed_tables(
    results: Mapping[Path, Mapping[str, ProtocolResult]],
) -> tuple[dict[str, list[SeedRow]], list[str]]:
    """Return protocol -> rows, controls first, and notes on what was odd among the runs.

    Args:
        results: run -> protocol -> result, as `evaluation.evaluate_runs` returns them.

    Raises:
        RunError: a run whose files cannot be read.
    """
    groups, notes = gather([load_run(path) for path in results])
    table = result_table(groups, {path: list(of_run.values()) for path, of_run in results.items()})
    scores = aggregate(table, "protocol", "label", "measure")
    seeds = {key: part.distinct("seed") for key, part in table.split("protocol", "label").items()}
    tables: dict[str, list[SeedRow]] = {}
    for protocol in dict.fromkeys(name for of_run in results.values() for name in of_run):
        names = [measure.name for measure in MEASURES[protocol]]
        tables[protocol] = [
            SeedRow(
                label=group.label,
                seeds=tuple(seeds.get((protocol, group.label), ())),
                scores={n: scores[protocol, group.label, n] for n in names if (protocol, group.label, n) in scores},
            )
            for group in groups
        ]
    return tables, notes


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Runs of one setting in the leaderboard of a sweep.

    Attributes:
        settings: those that differ between rows.
        seeds: of its runs.
        scores: name in `HEAD_SCORES` -> mean over the seeds that have it, a share in [0, 1], and interval.
        runs: names of the directories.
        recorded: for each run `settings` as its config has them, where a cache is a path.
    """

    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    scores: Mapping[str, Estimate]
    runs: tuple[str, ...]
    recorded: tuple[Mapping[str, Any], ...]


def standings(runs: Sequence[Path]) -> list[Standing]:
    """Return one row a setting of the finished ones of `runs`, best first by the first score that there is.

    Raises:
        RunError: a run whose files cannot be read.
    """
    finished = [run for run in runs if (run / SUMMARY).is_file()]
    caches: dict[str, str] = {}
    configs = {run: recorded_config(run) for run in finished}
    settings = {run: _settings(run, config, caches) for run, config in configs.items()}
    names = next(iter(settings.values()), {})
    differing = [name for name in names if name != _SEED and len({exact(each[name]) for each in settings.values()}) > 1]
    rows = []
    for run in sorted(finished, key=lambda run: settings[run][_SEED]):
        summary = summary_fields(run) or {}
        scored = read_as(dict[str, float | None], {n: summary.get(n) for n in HEAD_SCORES}, str(run / SUMMARY))
        label, seed = exact([settings[run][name] for name in differing]), settings[run][_SEED]
        rows += [
            Row(label=label, seed=seed, run=run, protocol=TRAINING, measure=name, value=value)
            for name, value in scored.items()
        ]
    table = Table(tuple(rows))
    scores, of_label = aggregate(table, "label", "measure"), table.split("label")
    made = []
    for label in dict.fromkeys(exact([settings[run][name] for name in differing]) for run in finished):
        paths = of_label[label,].distinct("run")
        flats = [flatten(configs[path]) | {"targets": in_full(configs[path].data.targets)} for path in paths]
        made.append(
            Standing(
                settings={name: settings[paths[0]][name] for name in differing},
                seeds=tuple(settings[path][_SEED] for path in paths),
                scores={name: scores[label, name] for name in HEAD_SCORES if (label, name) in scores},
                runs=tuple(path.name for path in paths),
                recorded=tuple({name: flat[name] for name in differing} for flat in flats),
            )
        )
    main = next((name for name in HEAD_SCORES if any(name in row.scores for row in made)), "")
    return sorted(made, key=lambda row: -row.scores[main].mean if main in row.scores else 1.0)


def _settings(run: Path, config: TrainConfig, caches: dict[str, str]) -> dict[str, Any]:
    """Settings of a run; data that only moved are the same: a cache is known by its fingerprint, kept in `caches`."""
    flat, usual = flatten(config), replace(config, queries=replace(config.queries, scale="auto"))
    if usual.resolved_queries == config.resolved_queries:
        flat["query_scale"] = "auto"  # what it stands for may be written out
    path = Path(flat["targets"])
    recorded = config_fields(run).get("targets_fingerprint")
    fingerprint = str(path) if recorded is None else read_as(str, recorded, str(run / CONFIG), "targets_fingerprint")
    flat["targets"] = caches.setdefault(fingerprint, f"{path.name} {fingerprint[:8]}")
    del flat["data_root"]
    return flat


def exact(value: Any) -> str:
    """A setting as text that two settings share only where they are equal."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The best of the trials that differ in the settings tried alone: its row, and how many trials there were.

    `match` are the settings that tell these trials from all others, in the words of a sweep; `set` those tried, as the
    best has them; `edges` are those of them that are the least or the largest of several values, so that a better one
    may lie beyond. `matches` tells whether a sweep's match, which cannot ask for what is None, is of these trials alone.
    """

    trial: Standing
    trials: int
    match: Mapping[str, Any]
    matches: bool
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
    for trials in alike.values():
        chosen = {n: trials[0].settings[n] for n in names if n in tried}
        ordered = [n for n, value in chosen.items() if not isinstance(value, str | None)]  # else nothing lies beyond
        sizes = {n: sorted({_size(v) for row in trials if (v := row.settings[n]) is not None}) for n in ordered}
        edges = [n for n, of in sizes.items() if len(of) > 1 and _size(chosen[n]) in (of[0], of[-1])]
        own, rest = ([f for row in rows if (row in trials) is mine for f in row.recorded] for mine in (True, False))
        match = {n: _any_of([flat[n] for flat in own]) for n in matched}
        holds = Condition(match={n: v for n, v in match.items() if v is not None}, set={}).holds
        choice = Choice(trial=trials[0], trials=len(trials), match=match, set=chosen, edges=tuple(edges), matches=False)
        made.append(replace(choice, matches=all(map(holds, own)) and not any(map(holds, rest))))
    return made


def _any_of(values: Sequence[Any]) -> Any:
    """One value as it is, several as the list of which a match takes any: a cache that moved has several paths."""
    first, *others = {exact(value): value for value in values}.values()
    return [first, *others] if others else first


def _size(value: Any) -> float:
    weights = [Weight.parse(each) for each in value.values()] if isinstance(value, Mapping) else []
    return float(value) if isinstance(value, int | float) else next(iter(weights), DEFAULT_WEIGHT).value


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one group cost.

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
    means = aggregate(training_table(groups), "label", "measure")
    costs = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        control = controls.get(group.label)
        own, other = means.get((group.label, "step_ms")), means.get((control, "step_ms"))
        costs.append(
            Cost(
                label=group.label,
                slot=group.slot,
                seeds=len(group.counted),
                control=control,
                backbone=summary.backbone if summary else None,
                head=summary.head if summary else None,
                kept=summary.kept_queries if summary else None,
                added=summary.queries - summary.kept_queries + summary.terms if summary else None,
                step_ms=own,
                ratio=own.mean / other.mean if own and other else None,
                seconds=means.get((group.label, "seconds")),
            )
        )
    return costs


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainScore:
    """Mean over seeds, in [0, 1].

    Attributes:
        mean: of the seeds.
        error: standard error as DomainBed reports it; None for one seed.
        half: half of the 95 % interval; None for one seed.
        seeds: that it is of.
    """

    mean: float
    error: float | None
    half: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainRow:
    """Runs of one label.

    Attributes:
        label: as `report.groups` names them, without the domain left out.
        domains: left-out domain -> its score; without those that no run left out.
        mean: over all domains of the table, of the seeds that have them all; None where no seed has.
        missing: (domain, seed) without a run, of the domains of the table and the seeds of the row.
    """

    label: str
    domains: Mapping[str, DomainScore]
    mean: DomainScore | None
    missing: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainTable:
    """Runs that were scored alike: same data set, splits and choice of weights.

    Attributes:
        settings: of the results, without the domains.
        measure: `top1` where runs have it, else `map`.
        domains: columns.
        rows: controls first.
        notes: what the reader should know.
    """

    settings: Mapping[str, Any]
    measure: str
    domains: tuple[str, ...]
    rows: tuple[DomainRow, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Title: the measure, the data set, its split and the weights."""
        heading = next(measure.heading for measure in MEASURES[CROSS_DOMAIN] if measure.name == self.measure)
        return f"{heading}: {self.settings['dataset']}, {self.settings['split']}, {self.settings['weights']} weights"


def domain_tables(results: Mapping[Path, ProtocolResult]) -> list[DomainTable]:
    """Return a table for each way in which the runs were scored.

    Args:
        results: run -> its result of the protocol.

    Raises:
        RunError: a run whose files cannot be read.
    """
    everything = Group(label="", slot=0, runs=tuple(load_run(path) for path in results))  # is labelled by settings
    table = result_table([everything], {path: [result] for path, result in results.items()})
    return [
        _domain_table(part, {path: results[path] for path in part.distinct("run")}, json.loads(settings))
        for (settings,), part in table.split("settings").items()
    ]


def _domain_table(table: Table, results: Mapping[Path, ProtocolResult], settings: Mapping[str, Any]) -> DomainTable:
    measure = "top1" if any(row.value is not None for row in table.where(measure="top1").rows) else "map"
    rows: dict[tuple[str, str, int], Row] = {}
    notes: list[str] = []
    for row in table.where(measure=measure).rows:
        left_out = results[row.run].settings["domains"]
        if len(left_out) != 1:
            notes.append(f"{row.run.name} leaves out {' and '.join(left_out)} at once: it is not in the table.")
        elif row.value is None:
            notes.append(f"{row.run.name} has no {measure} on {row.domain}: it is not in the table.")
        else:
            place = (row.label, row.domain, row.seed)
            if place in rows:
                twice = f"{row.domain} left out, seed {row.seed}, is there twice"
                notes.append(f"{row.label}: {twice}; {row.run.name} counts.")
            rows[place] = row
    table = Table(tuple(rows.values()))
    domains = tuple(sorted(table.distinct("domain")))
    made = tuple(_domain_row(label, part, domains) for (label,), part in table.split("label").items())
    missing = [_missing(row) for row in made if row.missing]
    return DomainTable(
        settings=settings,
        measure=measure,
        domains=domains,
        rows=made,
        notes=(*notes, *_unequal(results.values()), *missing),
    )


def _domain_row(label: str, table: Table, domains: Sequence[str]) -> DomainRow:
    seeds = sorted(table.distinct("seed"))
    by_domain = {domain: table.where(domain=domain).by_seed() for domain in domains}
    scores = {domain: _score(by_domain[domain]) for domain in domains}
    return DomainRow(
        label=label,
        domains={domain: score for domain, score in scores.items() if score is not None},
        mean=_score(over_domains(list(by_domain.values()))),
        missing=tuple((domain, seed) for domain in domains for seed in seeds if seed not in by_domain[domain]),
    )


def _score(by_seed: Mapping[int, float]) -> DomainScore | None:
    value = estimate(list(by_seed.values()))
    if value is None:
        return None
    error = statistics.pstdev(by_seed.values()) / math.sqrt(value.count) if value.count > 1 else None
    return DomainScore(mean=value.mean, error=error, half=value.half, seeds=tuple(sorted(by_seed)))


def _missing(row: DomainRow) -> str:
    absent = ", ".join(f"{domain} with seed {seed}" for domain, seed in row.missing)
    if row.mean is None:
        return f"{row.label}: no run left out {absent}; no seed has all, so it has no mean."
    seeds = row.mean.seeds
    counted = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{row.label}: no run left out {absent}; its mean is of {counted}."


def _unequal(results: Iterable[ProtocolResult]) -> list[str]:
    """Return a note where runs do not leave one out of the same domains, since columns are then not comparable."""
    wholes = {tuple(sorted({*result.details["trained_on"], *result.settings["domains"]})) for result in results}
    if len(wholes) == 1:
        return []
    listed = "; ".join(", ".join(whole) for whole in sorted(wholes))
    return [
        f"Runs do not leave one out of the same domains, so columns differ in more than the one left out: {listed}."
    ]
