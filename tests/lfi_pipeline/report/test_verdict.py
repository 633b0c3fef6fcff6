"""The verdict's wording follows the numbers: better, worse, not told apart, no interval."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from lfi_pipeline.evaluation.protocols import latest_results, write_result
from lfi_pipeline.report.groups import SLOTS, gather
from lfi_pipeline.report.runs import Run, ValPoint, load_run
from lfi_pipeline.report.table import training_table
from lfi_pipeline.report.text import points
from lfi_pipeline.report.verdict import Verdict, conclude


def judge(*paths: Any) -> tuple[Verdict, str]:
    groups = gather([load_run(path) for path in paths])[0]
    verdict = conclude(groups, training_table(groups))
    return verdict, " ".join(verdict.sentences)


def several(make_run: Any, objective: str, finals: list[float], **options: Any) -> list[Any]:
    label = f"{objective}-{options.get('maps', 'teacher')}"
    return [make_run(f"{label}-{s}", objective, seed=s, seen=v, **options) for s, v in enumerate(finals)]


def test_points_have_a_true_minus_sign() -> None:
    assert points(0.557) == "55.7"
    assert points(-0.031, signed=True) == "−3.1"
    assert points(0.031, signed=True) == "+3.1"
    assert points(-0.0004) == points(0.0004, signed=True) == "0.0"


def test_better(make_run: Any) -> None:
    controls = several(make_run, "none", [0.30, 0.31, 0.32])
    verdict, text = judge(*controls, *several(make_run, "lfi", [0.55, 0.56, 0.58]))
    assert verdict.headline == "lfi beats none by 25.3 mAP"
    assert "3 seeds, paired" in text
    assert "worse" not in text
    assert "On held-out domains" in text
    assert "lfi reached none's final" in text
    assert "× sooner than none itself" in text
    assert verdict.crossing is not None
    assert verdict.crossing.step < 930


def test_true_masks_are_neither_judged_nor_beaten(make_run: Any) -> None:
    runs = several(make_run, "none", [0.30, 0.31, 0.32]) + several(make_run, "lfi", [0.55, 0.56, 0.58])
    without, _ = judge(*runs)
    with_masks, _ = judge(*runs, *several(make_run, "lfi", [0.70, 0.71, 0.72], maps="masks"))
    assert with_masks.headline == without.headline == "lfi beats none by 25.3 mAP"


def test_worse_is_said_plainly(make_run: Any) -> None:
    controls = several(make_run, "none", [0.50, 0.51, 0.52])
    verdict, text = judge(*controls, *several(make_run, "lfi", [0.30, 0.31, 0.33]))
    assert verdict.headline == "lfi is worse than none by 19.7 mAP"
    assert "lfi is worse here" in text
    assert "lfi never reached none's final" in text
    assert verdict.crossing is None


def test_an_interval_over_zero_is_no_win(make_run: Any) -> None:
    controls = several(make_run, "none", [0.30, 0.40, 0.35])
    verdict, text = judge(*controls, *several(make_run, "lfi", [0.42, 0.33, 0.36]))
    assert verdict.headline == "lfi and none are not told apart"
    assert "The interval includes zero" in text


def test_one_seed_has_no_interval(make_run: Any) -> None:
    verdict, text = judge(*several(make_run, "none", [0.3]), *several(make_run, "lfi", [0.5]))
    assert verdict.headline == "lfi is 20.0 mAP ahead of none, with too few seeds to be sure"
    assert "One seed each, so there is no interval" in text
    assert "95" not in text
    behind, _ = judge(*several(make_run, "embedding", [0.6]), make_run("x", "lfi", seen=0.4))
    assert "behind embedding" in behind.headline


def test_equal_scores_are_level(make_run: Any) -> None:
    verdict, text = judge(make_run("a", "none", seen=0.4, held_out=False), make_run("b", seen=0.4, held_out=False))
    assert verdict.headline == "lfi is level with none, with too few seeds to be sure"
    assert "On the validation split, lfi scores 40.0 mAP" in text  # without held-out domains there are no seen ones
    assert "seen domains" not in text


def test_the_best_control_is_the_one_to_beat(make_run: Any) -> None:
    controls = several(make_run, "none", [0.30, 0.31]) + several(make_run, "embedding", [0.40, 0.41])
    verdict, text = judge(*controls, *several(make_run, "lfi", [0.55, 0.56]))
    assert "embedding, the best of the controls" in text
    assert verdict.headline == "lfi beats embedding by 15.0 mAP"


def test_shuffled_maps_that_do_as_well_are_said(make_run: Any) -> None:
    runs = several(make_run, "none", [0.30, 0.31, 0.32]) + several(make_run, "lfi", [0.50, 0.52, 0.51])
    _, same = judge(*runs, *several(make_run, "lfi", [0.51, 0.50, 0.53], maps="shuffled"))
    assert "do not show that it matters where the maps point" in same


def test_shuffled_maps_that_fall_back_are_said(make_run: Any) -> None:
    runs = several(make_run, "none", [0.30, 0.31, 0.32]) + several(make_run, "lfi", [0.50, 0.52, 0.51])
    _, less = judge(*runs, *several(make_run, "lfi", [0.11, 0.10, 0.13], maps="shuffled"))
    assert "so it matters where the maps point" in less


def test_no_lfi_and_no_control(make_run: Any) -> None:
    verdict, text = judge(*several(make_run, "none", [0.3]))
    assert verdict.headline == "No lfi run to judge"
    assert "lfi train --objective lfi" in text
    verdict, text = judge(*several(make_run, "lfi", [0.5]))
    assert verdict.headline == "Nothing to compare lfi with"
    assert "lfi train --objective none" in text


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(make_run: Any) -> None:
    runs = [
        make_run("a", seed=0, lambda_int=0.3),
        make_run("b", seed=1, lambda_int=0.3),
        make_run("c", seed=0, lambda_int=1.0),
        make_run("d", "none", lambda_int=9.0),
        make_run("e", state="reset"),
        make_run("f", maps="uniform"),
    ]
    groups, notes = gather([load_run(run) for run in runs])
    assert [group.label for group in groups] == [
        "none",
        "lfi · λ 0.3",
        "lfi · λ 1",
        "lfi · uniform maps",
        "lfi · reset",
    ]
    assert len({group.slot for group in groups}) == len(groups)
    assert groups[1].slot == SLOTS["lfi"]
    assert len(notes) == 1
    assert "“λ”" in notes[0]
    _, text = judge(*runs)
    assert "the best of 2 lfi settings" in text


def test_a_repeated_seed_counts_once_and_unequal_settings_are_noted(make_run: Any) -> None:
    runs = [make_run("a", seed=0), make_run("b", seed=0), make_run("c", "none", epochs=30)]
    groups, notes = gather([load_run(run) for run in runs])
    assert [len(group.runs) for group in groups] == [1, 1]
    assert "seed 0 is there twice; only b counts" in notes[0]
    assert "“epochs”" in notes[1]
    assert "30 for none" in notes[1]


def stop(run: Path, step: int) -> Path:
    """Leave of a run what it had when it was stopped after `step`."""
    (run / "summary.json").unlink()
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    return run


def test_a_run_that_was_stopped_is_not_judged(make_run: Any) -> None:
    controls = several(make_run, "none", [0.30, 0.31, 0.32], scores=False)
    lfi = several(make_run, "lfi", [0.31, 0.30, 0.33], scores=False)
    whole = judge(*controls[:2], *lfi)
    stopped = judge(*controls[:2], stop(controls[2], 130), *lfi)
    assert stopped[0].headline == whole[0].headline == "lfi and none are not told apart"
    assert stopped[1] == whole[1]
    assert whole[0].notes == ()
    (note,) = stopped[0].notes
    assert note.startswith("Not finished, and so left out of the verdict")
    assert note.endswith(": none (seed 2).")


def test_runs_of_which_none_is_finished_say_nothing(make_run: Any) -> None:
    control, lfi = make_run("a", "none"), stop(make_run("b", "lfi"), 130)
    verdict, text = judge(control, lfi)
    assert (verdict.headline, verdict.crossing) == ("No lfi run to judge", None)
    assert "to its end" in text
    verdict, text = judge(stop(control, 130), make_run("c", "lfi", seed=1))
    assert verdict.headline == "Nothing to compare lfi with"
    assert "no finished control" in text


def grown(like: Run, seed: int, rng: random.Random, rate: float = 4.0) -> Run:
    """A run whose validation curve rises to 60 mAP, with noise."""
    values = (0.6 * (1 - math.exp(-n / rate)) + rng.gauss(0, 0.01) for n in range(1, 16))
    points_of = tuple(ValPoint(step=62 * n, map_seen=value) for n, value in enumerate(values, start=1))
    return replace(like, config=msgspec.structs.replace(like.config, seed=seed), validation=points_of)


def test_neither_side_is_sooner_where_both_are_draws_of_one_process(make_run: Any) -> None:
    sides = [load_run(make_run(objective, objective, scores=False)) for objective in ("lfi", "none")]
    rng, said = random.Random(0), []
    for _ in range(100):
        groups, _notes = gather([grown(side, seed, rng) for side in sides for seed in range(5)])
        said.append(" ".join(conclude(groups, training_table(groups)).sentences))
    sooner, later = (sum(word in text for text in said) for word in ("× sooner than", "no sooner than"))
    assert sooner <= 6  # an interval of 95 % is off to one side in 2.5 of 100
    assert later <= 6
    assert sum("not told apart from none itself" in text for text in said) > 60


def test_seeds_that_never_reach_the_score_count_on_either_side(make_run: Any) -> None:
    lfi, none = (load_run(make_run(objective, objective, scores=False)) for objective in ("lfi", "none"))
    rng = random.Random(1)
    fast = [grown(lfi, seed, rng, rate=1.0) for seed in range(3)]
    slow = [grown(none, 0, rng), grown(none, 1, rng), grown(none, 2, rng, rate=9.0)]
    groups, _ = gather([*fast, *slow])
    verdict = conclude(groups, training_table(groups))
    (speed,) = [text for text in verdict.sentences if "reached" in text]
    assert "lfi reached none's final" in speed
    assert "Seeds that never did, 0 of lfi and 1 of none, count with the last step." in speed
    assert verdict.crossing is not None


def test_scores_of_different_weights_are_told(make_run: Any) -> None:
    runs = several(make_run, "none", [0.30, 0.31]) + several(make_run, "lfi", [0.50, 0.51])
    assert judge(*runs)[0].notes == ()
    unscored = make_run("none-2", "none", seed=2, scores=False)  # by its last validation, as the others by last weights
    assert judge(*runs, unscored)[0].notes == ()
    for run in runs[2:]:
        latest = latest_results(run)["classification"]
        write_result(run, replace(latest, settings={**latest.settings, "weights": "best"}))
    (note,) = judge(*runs, unscored)[0].notes
    assert note.startswith("Scores of classification are not of the same weights. ")
    assert "weights last: none (seed 0, 1, 2); weights best: lfi (seed 0, 1)." in note
