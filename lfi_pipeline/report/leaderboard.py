"""The leaderboard: one row a label, mean and interval over seeds; and finished runs side by side.

The settings that differ between any two runs are columns, whatever they are, so that no two rows look the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lfi_pipeline.core.options import flatten
from lfi_pipeline.evaluation.metrics import HEAD_SCORES
from lfi_pipeline.report.groups import Group
from lfi_pipeline.report.runs import Run
from lfi_pipeline.report.statistics import Estimate, estimate
from lfi_pipeline.report.verdict import points
from lfi_pipeline.training.run_dir import CONFIG, SUMMARY, read_json, recorded_config
from lfi_pipeline.training.sweep import shown

MISSING = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value. `dot` is (low, mean, high) in per cent of the column's scale, for the interval drawing."""

    text: str
    interval: str = ""
    best: bool = False
    dot: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A heading, what it means, and its cells in the order of the groups."""

    name: str
    hint: str
    cells: tuple[Cell, ...]


def leaderboard(groups: Sequence[Group]) -> list[Column]:
    """The columns that at least one label has a value in."""
    estimates = [
        _score_column(groups, "mAP seen", "mean average precision, domains seen in training", lambda r: r.map_seen),
        _score_column(
            groups,
            "mAP held-out",
            "mean average precision, domains held out of training",
            lambda r: r.map_heldout,
        ),
        _score_column(
            groups,
            "pointing",
            "words whose peak in the last tap's map lies in the object's mask, %",
            lambda r: r.pointing,
        ),
    ]
    return [c for c in [*estimates, _parameters(groups), *_time(groups)] if c is not None]


def _score_column(groups: Sequence[Group], name: str, hint: str, pick: Callable[[Run], float | None]) -> Column | None:
    scores = [group.estimate(pick) for group in groups]
    known = [score for score in scores if score is not None]
    if not known:
        return None
    best = max(score.mean for score in known)
    top = min(1.0, max(score.high or score.mean for score in known)) or 1.0
    cells = []
    for score in scores:
        if score is None:
            cells.append(Cell(text=MISSING))
            continue
        low, mean, high = (
            100 * min(max(v if v is not None else score.mean, 0.0) / top, 1.0)
            for v in (score.low, score.mean, score.high)
        )
        cells.append(
            Cell(
                text=points(score.mean),
                interval=_interval(score),
                best=len(known) > 1 and score.mean == best,
                dot=(round(low, 1), round(mean, 1), round(high, 1)) if len(known) > 1 else None,
            )
        )
    return Column(name=name, hint=hint, cells=tuple(cells))


def _interval(score: Estimate) -> str:
    return f"± {points(score.half)}" if score.half is not None else "one seed"


def _parameters(groups: Sequence[Group]) -> Column | None:
    cells = []
    for group in groups:
        summary = next((run.summary for run in group.runs if run.summary is not None), None)
        if summary is None:
            cells.append(Cell(text=MISSING))
            continue
        queries = f"+ {millions(summary.queries)} in training" if summary.queries else ""
        cells.append(Cell(text=f"{millions(summary.backbone)} / {millions(summary.head)}", interval=queries))
    if all(cell.text == MISSING for cell in cells):
        return None
    hint = "backbone / head; the interaction queries serve in training only"
    return Column(name="parameters", hint=hint, cells=tuple(cells))


def millions(count: int) -> str:
    """A parameter count: "5.7 M", "12.3 k"."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)


def _time(groups: Sequence[Group]) -> list[Column]:
    times = [group.estimate(lambda run: run.step_ms) for group in groups]
    known = [time.mean for time in times if time is not None]
    if not known:
        return []
    base = next((t.mean for g, t in zip(groups, times, strict=True) if t and g.config.objective == "none"), None)
    cells = []
    for time in times:
        if time is None:
            cells.append(Cell(text=MISSING))
            continue
        ratio = f"{time.mean / base:.2f}× none" if base else ""
        cells.append(Cell(text=f"{time.mean:.1f} ms", interval=ratio, best=len(known) > 1 and time.mean == min(known)))
    return [
        Column(
            name="step time",
            hint="median milliseconds of a training step, and its ratio to none",
            cells=tuple(cells),
        )
    ]


_SEED = "seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Runs of one setting.

    Attributes:
        settings: those that differ between rows.
        seeds: of its runs.
        scores: name in `HEAD_SCORES` -> mean over the seeds that have it, a share in [0, 1], and interval.
        runs: names of the directories.
    """

    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    scores: Mapping[str, Estimate]
    runs: tuple[str, ...]


def standings(runs: Sequence[Path]) -> list[Standing]:
    """Return one row a setting of the finished ones of `runs`, best first by the first score that there is.

    Raises:
        RunError: a run whose files cannot be read.
    """
    finished = [run for run in runs if (run / SUMMARY).is_file()]
    caches: dict[str, str] = {}
    flats = [_settings(run, caches) for run in finished]
    differing = [
        name for name in (flats[0] if flats else ()) if name != _SEED and len({_key(f[name]) for f in flats}) > 1
    ]
    members: dict[str, list[int]] = {}
    for place, flat in enumerate(flats):
        members.setdefault(_key([flat[name] for name in differing]), []).append(place)
    rows = []
    for places in members.values():
        places.sort(key=lambda place: flats[place][_SEED])
        summaries = [read_json(finished[place] / SUMMARY) for place in places]
        scores = {name: estimate([s[name] for s in summaries if s.get(name) is not None]) for name in HEAD_SCORES}
        rows.append(
            Standing(
                settings={name: flats[places[0]][name] for name in differing},
                seeds=tuple(flats[place][_SEED] for place in places),
                scores={name: score for name, score in scores.items() if score is not None},
                runs=tuple(finished[place].name for place in places),
            )
        )
    main = next(iter(_columns(rows)[1]), "")
    return sorted(rows, key=lambda row: -row.scores[main].mean if main in row.scores else 1.0)


def _settings(run: Path, caches: dict[str, str]) -> dict[str, Any]:
    """Settings of a run; data that only moved are the same: a cache is known by its fingerprint, kept in `caches`."""
    flat = flatten(recorded_config(run))
    path = Path(flat["targets"])
    fingerprint = str(read_json(run / CONFIG).get("targets_fingerprint", path))
    flat["targets"] = caches.setdefault(fingerprint, f"{path.name} {fingerprint[:8]}")
    del flat["data_root"]
    return flat


def standings_table(rows: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells as a person reads them: per cent, mean ± half the interval."""
    settings, scores = _columns(rows)
    cells = [
        [
            *(shown(row.settings[name]) for name in settings),
            str(len(row.seeds)),
            *(_points(row.scores.get(name)) for name in scores),
        ]
        for row in rows
    ]
    return [*settings, "seeds", *(HEAD_SCORES[name] for name in scores)], cells


def standings_markdown(rows: Sequence[Standing]) -> str:
    """Return the table in Markdown, with a line that says what the numbers are."""
    headings, cells = standings_table(rows)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [headings, ["---"] * len(headings), *cells]]
    lines = ["| " + " | ".join(line) + " |" for line in escaped]
    return "\n".join(lines) + "\n\nPer cent; mean over seeds ± half of the 95 % interval (Student's t).\n"


def standings_csv(rows: Sequence[Standing]) -> str:
    """Return the table as CSV: settings, seeds, and mean, low and high of every score as shares."""
    settings, scores = _columns(rows)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*settings, "seeds", *(f"{n}{end}" for n in scores for end in ("", "_low", "_high"))])
    for row in rows:
        found = [row.scores.get(name) for name in scores]
        numbers = [value for e in found for value in ((e.mean, e.low, e.high) if e else (None, None, None))]
        writer.writerow([*(shown(row.settings[n]) for n in settings), " ".join(map(str, row.seeds)), *numbers])
    return text.getvalue()


def _columns(rows: Sequence[Standing]) -> tuple[list[str], list[str]]:
    return list(rows[0].settings) if rows else [], [
        name for name in HEAD_SCORES if any(name in row.scores for row in rows)
    ]


def _points(score: Estimate | None) -> str:
    if score is None:
        return MISSING
    return f"{100 * score.mean:.1f}" + (f" ± {100 * score.half:.1f}" if score.half is not None else "")


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
