"""One measurement is shown and tested once, however many results hold it, and held-out domains have columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.report.compare import Comparison, compare

VALUES = {"none": (0.2, 0.24, 0.22), "lfi": (0.3, 0.29, 0.33)}


def names(made: Comparison) -> dict[str, list[str]]:
    """Protocol -> names of its columns, block after block."""
    columns: dict[str, list[str]] = {}
    for block in made.blocks:
        columns.setdefault(block.protocol, []).extend(column.name for column in block.columns)
    return columns


def test_a_held_out_score_is_shown_and_tested_once(scored: Any) -> None:
    """One domain is left out: its score is that of `classification` on the same images."""

    def runs(shift: float) -> list[Path]:
        return [
            scored(
                objective,
                seed,
                {
                    "classification": {"map_seen": 2 * value, "map_heldout": value},
                    "cross-domain": [({"domains": ["photo"]}, {"map": value + 1e-9 + shift})],
                },
                hold_out=["photo"],
            )
            for objective, of_seeds in VALUES.items()
            for seed, value in enumerate(of_seeds)
        ]

    made = compare(runs(0.0))
    assert [block.protocol for block in made.blocks] == ["classification"]
    assert made.tests == 2
    assert any("left-out domain, mAP: photo is the held-out score of classification" in note for note in made.notes)
    other = compare(runs(0.01))  # of other images
    assert [block.protocol for block in other.blocks] == ["classification", "cross-domain"]
    assert other.tests == 3


def by_domain(scored: Any, *, shift: float = 0.0, seeds: int = 3) -> list[Path]:
    """Runs that left out each of two domains in turn, scored by both protocols; `shift` is that of other images."""
    return [
        scored(
            objective,
            seed,
            {
                "classification": {"map_seen": 2 * value, "map_heldout": value + gain},
                **({"cross-domain": [({"domains": [domain]}, {"map": value + gain + shift})]} if seed < seeds else {}),
            },
            hold_out=[domain],
        )
        for objective, of_seeds in VALUES.items()
        for domain, gain in (("art", 0.0), ("photo", 0.1))
        for seed, value in enumerate(of_seeds)
    ]


def test_domains_left_out_in_turn_are_shown_and_tested_by_cross_domain_alone(scored: Any) -> None:
    made = compare(by_domain(scored))
    assert names(made) == {"classification": ["map_seen"], "cross-domain": ["map", "map_art", "map_photo"]}
    assert made.tests == 2 + 3  # seen for each domain left out; two domains and their mean
    assert any("of classification is told by cross-domain" in note for note in made.notes)
    other = compare(by_domain(scored, shift=0.01))
    assert names(other)["classification"] == ["map_seen", "map_heldout"]
    assert other.tests == 4 + 3


def test_where_some_runs_lack_the_other_result_the_column_with_all_of_them_stays(scored: Any) -> None:
    made = compare(by_domain(scored, seeds=2))
    assert names(made) == {"classification": ["map_seen", "map_heldout"], "cross-domain": ["map"]}


@pytest.mark.parametrize(
    ("primary", "classified", "crossed"),
    [
        ("map_heldout", ["map_seen", "map_heldout"], ["map"]),
        ("cross-domain:map_art", ["map_seen"], ["map", "map_art", "map_photo"]),
    ],
)
def test_of_two_that_are_the_same_the_primary_one_stays(
    primary: str, classified: list[str], crossed: list[str], scored: Any
) -> None:
    made = compare(by_domain(scored), primary=[primary])
    assert names(made) == {"classification": classified, "cross-domain": crossed}
    assert made.tests == (2 if primary == "map_heldout" else 1)


def test_accuracies_that_agree_by_chance_are_not_the_same_images(scored: Any) -> None:
    """Another measure of the same two results tells them apart."""
    runs = [
        scored(
            objective,
            seed,
            {
                "classification": {"top1_heldout": 0.5, "map_heldout": value},
                "cross-domain": [({"domains": ["photo"]}, {"top1": 0.5, "map": value + 0.01})],
            },
            hold_out=["photo"],
        )
        for objective, of_seeds in VALUES.items()
        for seed, value in enumerate(of_seeds)
    ]
    assert names(compare(runs))["cross-domain"] == ["top1", "map"]


def test_other_weights_are_another_measurement(scored: Any) -> None:
    runs = [
        scored(
            "lfi",
            seed,
            {"classification": [({"weights": w}, {"map_seen": 0.1 + 0.1 * seed}) for w in ("best", "last")]},
        )
        for seed in range(2)
    ]
    assert names(compare(runs)) == {"classification": ["map_seen", "map_seen"]}


def test_scores_of_the_head_are_the_same_at_whatever_settings_of_the_probes(scored: Any) -> None:
    """`probes` and none: the head is scored alike, and only k-NN depends on them."""
    runs = [
        scored(
            objective,
            seed,
            {
                "classification": [
                    ({"probes": False}, {"map_seen": value}),
                    ({"knn_k": 5}, {"map_seen": value, "knn_map_seen": value}),
                    ({"knn_k": 20}, {"map_seen": value, "knn_map_seen": value}),
                ]
            },
        )
        for objective, of_seeds in VALUES.items()
        for seed, value in enumerate(of_seeds)
    ]
    made = compare(runs)
    assert names(made) == {"classification": ["map_seen", "knn_map_seen", "knn_map_seen"]}
    assert made.tests == 3
    assert sum("do not depend on the probes" in note for note in made.notes) == 1


def held_out(scored: Any, domains: int, **options: Any) -> list[Path]:
    """Runs that held out that many domains, with scores of each."""
    own = [f"d{number}" for number in range(domains)]
    return [
        scored(
            objective,
            seed,
            {"classification": {"map_seen": 0.6, "map_heldout": value, "top1_heldout": value, "teacher_map_seen": 0.9}},
            {
                "classification": {
                    f"{name}_per_domain": {"seen": 0.6, **{d: value + 0.01 * i for i, d in enumerate(own)}}
                    for name in ("map", "top1")
                }
                | {"teacher_map_per_domain": {"seen": 0.9, **{d: 0.7 + 0.01 * i for i, d in enumerate(own)}}}
            },
            hold_out=own,
            **options,
        )
        for objective, of_seeds in VALUES.items()
        for seed, value in enumerate(of_seeds)
    ]


def test_each_of_several_held_out_domains_has_its_columns_and_no_test_of_its_own(scored: Any) -> None:
    made = compare(held_out(scored, 2))
    (block,) = made.blocks
    assert [column.heading for column in block.columns] == [
        "top-1, held-out domains", "top-1, held-out domain d0", "top-1, held-out domain d1",
        "mAP, seen domains", "mAP, held-out domains", "mAP, held-out domain d0", "mAP, held-out domain d1",
    ]  # fmt: skip
    assert block.teacher == (None, None, None, 0.9, None, pytest.approx(0.7), pytest.approx(0.71))
    lfi = next(row for row in block.rows if row.label == "lfi")
    last = lfi.cells[-1]
    assert last.value is not None
    assert last.value.mean == pytest.approx(sum(VALUES["lfi"]) / 3 + 0.01)
    assert last.gap is not None
    assert (last.gap.gap.p, last.gap.p_holm, last.gap.mark) == (None, None, "")
    assert last.gap.gap.half is not None
    assert made.tests == sum(block.tested) == 3
    assert "single held-out domains aside" in made.caption
    assert compare(held_out(scored, 2), primary=["map_heldout_d1"]).tests == 1
    recorded = compare(held_out(scored, 2, seen_domains=["seen", "d0"])).blocks[0]  # what the run itself says
    assert not any("domain d0" in column.heading for column in recorded.columns)


def test_one_held_out_domain_is_the_merged_score(scored: Any) -> None:
    assert names(compare(held_out(scored, 1))) == {"classification": ["top1_heldout", "map_seen", "map_heldout"]}


@pytest.mark.parametrize(("domains", "shown", "note"), [(5, 5, "only mAP is"), (9, 0, "none is")])
def test_of_many_held_out_domains_no_more_is_shown_than_can_be_read(
    domains: int, shown: int, note: str, scored: Any
) -> None:
    made = compare(held_out(scored, domains))
    parts = [column.name for block in made.blocks for column in block.columns if column.part_of]
    assert parts == [f"map_heldout_d{number}" for number in range(shown)]
    assert any(f"of {domains} held-out domains {note} shown one by one" in each for each in made.notes)
