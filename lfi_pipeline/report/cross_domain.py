"""The table of protocol `cross-domain`: a row for each objective, a column for each domain left out, and their mean.

As DomainBed reports it (Gulrajani & Lopez-Paz, ICLR 2021, section 4; its collect_results.py): mean over seeds, and
their standard deviation (divided by n, not n - 1) over the root of n as standard error. The 95 % interval (Student's t)
stands beside it. The mean over domains is taken for each seed first, of seeds that have a run for every domain.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import command_line
from lfi_pipeline.evaluation.metrics import MEASURES
from lfi_pipeline.evaluation.results import ProtocolResult, latest_result
from lfi_pipeline.report.groups import label_runs
from lfi_pipeline.report.runs import load_run
from lfi_pipeline.report.statistics import estimate

PROTOCOL = "cross-domain"
MISSING = "–"
LEGEND = "Per cent: mean over seeds ± standard error (as DomainBed), and 95 % interval (Student's t)."
_LEFT_OUT = ("hold out", "train samples")
"""What differs between the runs of one row: which domain is left out, and so how many images are left."""
_DOMAINS = "domains"


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
        rows: in the order of the runs given.
        notes: what the reader should know.
    """

    settings: Mapping[str, Any]
    measure: str
    domains: tuple[str, ...]
    rows: tuple[DomainRow, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the numbers are of."""
        heading = next(measure.heading for measure in MEASURES[PROTOCOL] if measure.name == self.measure)
        return f"{heading}: {self.settings['dataset']}, {self.settings['split']}, {self.settings['weights']} weights"


def read_domain_tables(runs: Sequence[Path]) -> list[DomainTable]:
    """Return the tables of the latest results of `runs`.

    Raises:
        ConfigError: a run was not scored by the protocol.
        RunError: a run whose files cannot be read.
    """
    results = {}
    for run in runs:
        result = latest_result(run, PROTOCOL)
        if result is None:
            raise ConfigError(
                f"{run} has no cross-domain score. Run {command_line('evaluate', run, protocol=PROTOCOL)} first."
            )
        results[run] = result
    return domain_tables(results)


def domain_tables(results: Mapping[Path, ProtocolResult]) -> list[DomainTable]:
    """Return a table for each way in which the runs were scored.

    Args:
        results: run -> its result of the protocol.

    Raises:
        RunError: a run whose files cannot be read.
    """
    alike: dict[str, dict[Path, ProtocolResult]] = {}
    for run, result in results.items():
        settings = {name: value for name, value in result.settings.items() if name != _DOMAINS}
        alike.setdefault(json.dumps(settings, sort_keys=True), {})[run] = result
    return [_table(found, json.loads(settings)) for settings, found in alike.items()]


def _table(results: Mapping[Path, ProtocolResult], settings: Mapping[str, Any]) -> DomainTable:
    notes: list[str] = []
    runs = [load_run(path) for path in results]
    measure = "top1" if any(result.scores.get("top1") is not None for result in results.values()) else "map"
    values: dict[str, dict[tuple[str, int], float]] = {}
    labels = {run.path: label for label, members in label_runs(runs, _LEFT_OUT).items() for run in members}
    for run in runs:
        result, label = results[run.path], labels[run.path]
        row = values.setdefault(label, {})
        left_out, score = result.settings[_DOMAINS], result.scores.get(measure)
        if len(left_out) != 1:
            notes.append(f"{run.path.name} leaves out {' and '.join(left_out)} at once: it is not in the table.")
        elif score is None:
            notes.append(f"{run.path.name} has no {measure} on {left_out[0]}: it is not in the table.")
        else:
            place = (left_out[0], run.config.seed)
            if place in row:
                notes.append(f"{label}: {place[0]} left out, seed {place[1]}, is there twice; {run.path.name} counts.")
            row[place] = score
    domains = tuple(sorted({domain for row in values.values() for domain, _ in row}))
    rows = tuple(_row(label, row, domains) for label, row in values.items() if row)
    return DomainTable(
        settings=settings,
        measure=measure,
        domains=domains,
        rows=rows,
        notes=(*notes, *_unequal(results.values()), *(_missing(row) for row in rows if row.missing)),
    )


def _row(label: str, values: Mapping[tuple[str, int], float], domains: Sequence[str]) -> DomainRow:
    seeds = sorted({seed for _, seed in values})
    by_domain = {domain: {s: values[domain, s] for s in seeds if (domain, s) in values} for domain in domains}
    complete = [seed for seed in seeds if all(seed in found for found in by_domain.values())]
    means = {seed: math.fsum(found[seed] for found in by_domain.values()) / len(domains) for seed in complete}
    return DomainRow(
        label=label,
        domains={domain: score for domain, found in by_domain.items() if (score := _score(found)) is not None},
        mean=_score(means),
        missing=tuple((domain, seed) for domain in domains for seed in seeds if seed not in by_domain[domain]),
    )


def _score(by_seed: Mapping[int, float]) -> DomainScore | None:
    found = estimate(list(by_seed.values()))
    if found is None:
        return None
    error = statistics.pstdev(by_seed.values()) / math.sqrt(found.count) if found.count > 1 else None
    return DomainScore(mean=found.mean, error=error, half=found.half, seeds=tuple(by_seed))


def _missing(row: DomainRow) -> str:
    told = ", ".join(f"{domain} with seed {seed}" for domain, seed in row.missing)
    of = f"its mean is of {_counted(row.mean.seeds)}" if row.mean is not None else "no seed has all, so it has no mean"
    return f"{row.label}: no run left out {told}; {of}."


def _counted(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _unequal(results: Iterable[ProtocolResult]) -> list[str]:
    """Leaving one out of the same domains is what makes columns comparable."""
    wholes = {tuple(sorted({*result.details["trained_on"], *result.settings[_DOMAINS]})) for result in results}
    if len(wholes) == 1:
        return []
    told = "; ".join(", ".join(whole) for whole in sorted(wholes))
    return [f"Runs do not leave one out of the same domains, so columns differ in more than the one left out: {told}."]


def domain_cells(table: DomainTable) -> tuple[list[str], list[list[list[str]]]]:
    """Return headings, and for each row its cells as lines: per cent ± standard error, then the 95 % interval."""
    cells = [
        [
            [row.label],
            *(_lines(row.domains.get(domain)) for domain in table.domains),
            _lines(row.mean),
            [str(len({seed for score in row.domains.values() for seed in score.seeds}))],
        ]
        for row in table.rows
    ]
    return ["", *table.domains, "mean", "seeds"], cells


def domain_markdown(table: DomainTable) -> str:
    """Return the table in Markdown, with what its numbers are and its notes."""
    headings, cells = domain_cells(table)
    lines = [headings, ["---"] * len(headings), *(["<br>".join(cell) for cell in row] for row in cells)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([table.title[0].upper() + table.title[1:], "", *text, "", LEGEND, *notes]) + "\n"


def _lines(score: DomainScore | None) -> list[str]:
    if score is None:
        return [MISSING]
    if score.error is None or score.half is None:
        return [f"{100 * score.mean:.1f}"]
    low, high = score.mean - score.half, score.mean + score.half
    return [f"{100 * score.mean:.1f} ± {100 * score.error:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
