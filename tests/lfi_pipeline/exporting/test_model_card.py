"""The card says what the run says, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.evaluation.protocols import EVALUATION, ProtocolResult, write_result
from lfi_pipeline.exporting import export_run
from lfi_pipeline.exporting.check import Check, plain_model
from lfi_pipeline.exporting.model_card import CardFacts, _taught, card_facts, model_card
from lfi_pipeline.training.learner import load_run


def facts(**changes: Any) -> CardFacts:
    known: dict[str, Any] = {
        "title": "lfi-0",
        "folder": "out",
        "taught": "taught by nobody",
        "head": "inside",
        "parameters": 12345,
        "model": {"architecture": "vit_tiny_patch16_224"},
        "data": {"data set": "scenes"},
        "training": {"objective": "lfi"},
    }
    return CardFacts(**known | changes)


def test_front_matter() -> None:
    card = model_card(facts())
    assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- ")
    assert "pipeline_tag: image-feature-extraction" in model_card(facts(head="apart"))


def test_absent_scores_are_not_invented() -> None:
    assert "## Scores\n\nNot evaluated." in model_card(facts())
    card = model_card(facts(scores={"map seen": 0.25, "map heldout": None}))
    assert "| map seen | 25.00 % |" in card
    assert "| map heldout | not evaluated |" in card


def test_scores_of_other_weights_are_not_passed_off() -> None:
    card = model_card(facts(scores={"map seen": 0.25}, weights="best", scored="last"))
    assert "weights (`best`): not evaluated. Scores that the run holds, of its `last` weights" in card


@pytest.mark.parametrize(
    ("head", "says"),
    [("inside", "classifier"), ("apart", "head.safetensors"), ("queries", "in the whole model"), ("none", "without")],
)
def test_where_the_head_is(head: str, says: str) -> None:
    assert says in model_card(facts(head=head)).partition("## Use")[0]


def test_the_snippet_runs(tmp_path: Path) -> None:
    card = model_card(facts(folder='a"b`'))
    code = card.partition("```python\n")[2].partition("```")[0]
    assert '"local-dir:ab"' in code
    compile(code, "card", "exec")


def test_texts_stay_in_their_places() -> None:
    card = model_card(facts(title="a\n---\nlicense: mit", data={"data set": "x | y\n# z"}, command="lfi\n```\n# train"))
    assert card.count("\n---\n") == 1
    assert "| data set | x \\| y \\# z |" in card
    assert "\n    lfi ``` # train" in card


def test_onnx_is_told_of_only_where_it_is() -> None:
    assert "model.onnx" in model_card(facts(onnx=True))
    assert "model.onnx" not in model_card(facts())


@pytest.mark.parametrize(
    ("terms", "maps", "says"),
    [
        ((), "teacher", "without a teacher"),
        (("embedding",), "teacher", "terms: embedding"),
        (("lfi",), "teacher", "with the interaction maps of"),
        (("lfi", "presence"), "uniform", "uniform interaction maps, a control"),
    ],
)
def test_a_control_is_called_one(terms: tuple[str, ...], maps: str, says: str) -> None:
    assert says in _taught(terms, maps)


def test_the_card_of_a_run_without_a_teacher(run: Path, tmp_path: Path) -> None:
    loaded = load_run(run, device="cpu")
    loaded = replace(loaded, config=replace(loaded.config, objective="none"))
    check = Check(images=0, noise=4, features=0.0, logits=None, inputs=0.0)
    plain = plain_model(loaded.student)
    told = card_facts(loaded, plain, check, folder="out", weights="last", onnx=False, onnx_differs=None)
    assert told.data["teacher"] == "none took part"
    assert not {"maps", "state"} & told.training.keys()


def test_the_card_of_a_run(run: Path, tmp_path: Path) -> None:
    spec = load_run(run, device="cpu").store.spec
    summary = json.loads((run / "summary.json").read_text())
    export_run(run, tmp_path / "first")
    card = (tmp_path / "first" / "README.md").read_text()
    for text in (
        spec.teacher.weights_sha256,
        spec.fingerprint,
        "| teacher | tiny-coca, weights test |",
        "| data set | scenes, split train, 24 samples |",
        "CC BY-SA 4.0",
        "| objective | lfi |",
        "| epochs | 1 |",
        "| start | random weights |",
        "    lfi train --targets shards",
        f"| map seen | {100 * summary['map_seen']:.2f} % |",
    ):
        assert text in card
    result = ProtocolResult(
        protocol="classification",
        settings={"weights": "last"},
        scores={"map_seen": 0.5},
        details={"map_per_domain": {"grey": 0.125}, "unreadable": 0},
        seconds=1.0,
    )
    write_result(run, result)
    write_result(run, replace(result, settings={"weights": "best"}, scores={"map_seen": 0.625}))
    export_run(run, tmp_path / "second", weights="last")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| map seen | 50.00 % |" in card
    assert "| map per domain: grey | 12.50 % |" in card
    elsewhere = {"weights": "last", "split": "test"}
    write_result(run, replace(result, settings=elsewhere, scores={"map_seen": 0.75}))
    export_run(run, tmp_path / "other", weights="last")  # not of another split than that of validation
    assert "| map seen | 50.00 % |" in (tmp_path / "other" / "README.md").read_text()
    export_run(run, tmp_path / "best", weights="best")  # not the scores of other weights
    assert "| map seen | 62.50 % |" in (tmp_path / "best" / "README.md").read_text()
    shutil.rmtree(run / EVALUATION)
    (run / "summary.json").unlink()
    export_run(run, tmp_path / "third")
    assert "Not evaluated." in (tmp_path / "third" / "README.md").read_text()
