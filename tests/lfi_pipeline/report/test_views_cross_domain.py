"""The table over left-out domains: DomainBed's numbers, and what is missing said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.evaluation.protocols import ProtocolResult
from lfi_pipeline.report.text import domain_cells
from lfi_pipeline.report.views import domain_tables

ALL = ("art", "cartoon", "photo")
RUNS = {
    ("none", "art", 0): 0.50,
    ("none", "art", 1): 0.56,
    ("none", "art", 2): 0.53,
    ("none", "photo", 0): 0.80,
    ("none", "photo", 1): 0.70,
    ("none", "photo", 2): 0.75,
    ("lfi", "art", 0): 0.60,
    ("lfi", "art", 1): 0.64,
    ("lfi", "photo", 0): 0.90,
}


@pytest.fixture
def scored(make_run: Any) -> Any:
    """Write runs, (objective, left-out domain, seed) -> score, and return their results by directory."""

    def build(
        runs: Mapping[tuple[str, str, int], float | None], measure: str = "top1", prefix: str = "", **settings: Any
    ) -> dict[Path, ProtocolResult]:
        results = {}
        for (objective, domain, seed), score in runs.items():
            left_out = domain.split("+")
            sizes = {"name": "PACS", "split": "train", "train_samples": 100 + len(domain), "val_samples": 9}
            run = make_run(
                f"{prefix}{objective}-{domain}-{seed}", objective, seed=seed, hold_out=left_out, dataset=sizes
            )
            results[run] = ProtocolResult(
                protocol="cross-domain",
                settings={"dataset": "pacs", "split": "all", "weights": "best", "domains": left_out, **settings},
                scores={measure: score},
                details={"trained_on": sorted({*ALL, "sketch"} - set(left_out))},
                seconds=1.0,
            )
        return results

    return build


def test_means_and_errors_are_domainbeds(scored: Any) -> None:
    (table,) = domain_tables(scored(RUNS))
    assert (table.measure, table.domains) == ("top1", ("art", "photo"))
    none, lfi = table.rows
    assert (none.label, lfi.label) == ("none", "lfi")  # neither the domain nor the size of the rest splits a row
    art = np.array([0.50, 0.56, 0.53])
    assert none.domains["art"].mean == pytest.approx(art.mean())
    assert none.domains["art"].error == pytest.approx(np.std(art / np.sqrt(3)))  # as its collect_results.py has it
    assert none.domains["art"].half == pytest.approx(4.302653 * art.std(ddof=1) / math.sqrt(3))
    by_seed = np.array([0.65, 0.63, 0.64])
    assert none.mean is not None
    assert none.mean.mean == pytest.approx(by_seed.mean())
    assert none.mean.error == pytest.approx(np.std(by_seed / np.sqrt(3)))
    assert (none.mean.seeds, none.missing) == ((0, 1, 2), ())


def test_a_seed_without_every_domain_is_not_in_the_mean(scored: Any) -> None:
    (table,) = domain_tables(scored(RUNS))
    lfi = table.rows[1]
    assert lfi.domains["art"].seeds == (0, 1)
    assert lfi.mean is not None
    assert (lfi.mean.mean, lfi.mean.error, lfi.mean.seeds) == (pytest.approx(0.75), None, (0,))
    assert lfi.missing == (("photo", 1),)
    assert "lfi: no run left out photo with seed 1; its mean is of seed 0." in table.notes


def test_no_seed_with_every_domain_is_no_mean(scored: Any) -> None:
    (table,) = domain_tables(scored({("none", "art", 0): 0.5, ("none", "photo", 1): 0.7, ("lfi", "art", 0): 0.6}))
    assert [row.mean for row in table.rows] == [None, None]
    assert table.rows[0].missing == (("art", 1), ("photo", 0))
    assert list(table.rows[1].domains) == ["art"]
    assert any(note.startswith("lfi: no run left out photo with seed 0; no seed has all") for note in table.notes)
    assert domain_cells(table)[1][1] == [["lfi"], ["60.0"], ["–"], ["–"], ["1"]]


def test_runs_that_do_not_fit_are_told(scored: Any) -> None:
    twice = scored({("lfi", "art", 0): 0.1}) | scored({("lfi", "art", 0): 0.6}, prefix="again-")
    (table,) = domain_tables(twice | scored({("lfi", "art+photo", 0): 0.9, ("lfi", "photo", 0): None}))
    assert table.domains == ("art",)
    assert table.rows[0].domains["art"].mean == 0.6
    told = "\n".join(table.notes)
    assert "art left out, seed 0, is there twice; again-lfi-art-0 counts" in told
    assert "lfi-art+photo-0 leaves out art and photo at once" in told
    assert "lfi-photo-0 has no top1 on photo" in told


def test_leaving_one_out_of_other_domains_is_told(scored: Any) -> None:
    """As scenes do whose domain `photo` is in val alone: leaving `grey` out leaves two, leaving `photo` out three."""
    results = scored({("lfi", "art", 0): 0.6, ("lfi", "photo", 0): 0.6})
    assert domain_tables(results)[0].notes == ()
    first = next(iter(results.values()))
    first.details["trained_on"].remove("cartoon")  # type: ignore[attr-defined]
    assert "do not leave one out of the same domains" in domain_tables(results)[0].notes[0]


def test_other_settings_are_another_table(scored: Any) -> None:
    results = scored({("lfi", "art", 0): 0.6}) | scored({("lfi", "art", 0): 0.4}, "map", prefix="v-", dataset="vlcs")
    first, second = domain_tables(results)
    assert (first.settings["dataset"], first.measure) == ("pacs", "top1")
    assert (second.settings["dataset"], second.measure) == ("vlcs", "map")
    assert second.title == "left-out domain, mAP: vlcs, all, best weights"


def test_cells_are_lines_of_per_cent(scored: Any) -> None:
    (table,) = domain_tables(scored(RUNS))
    headings, (none, lfi) = domain_cells(table)
    assert headings == ["", "art", "photo", "mean", "seeds"]
    assert none[:2] == [["none"], ["53.0 ± 1.4", "45.5 to 60.5"]]
    assert none[2][0] == "75.0 ± 2.4"
    assert lfi[2:] == [["90.0"], ["75.0"], ["2"]]
    assert table.notes[-1] == "lfi: no run left out photo with seed 1; its mean is of seed 0."
