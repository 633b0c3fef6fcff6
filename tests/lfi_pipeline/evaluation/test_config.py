"""Options of the protocols: which protocol has which, and what is said of one that has none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import declared
from lfi_pipeline.evaluation.config import (
    PROTOCOL_CONFIGS,
    ClassificationConfig,
    ConvergenceConfig,
    DetectionConfig,
    EvaluationConfig,
    GroundingConfig,
    ZeroShotConfig,
    evaluation_configs,
)
from lfi_pipeline.evaluation.metrics import HEAD_SCORES


def test_each_option_goes_to_every_protocol_that_has_it() -> None:
    options = {"targets": "cache", "gallery": 3, "scored_root": Path("moved"), "weights": "best", "knn_k": None}
    common, configs = evaluation_configs(("zero-shot", "grounding", "classification"), options)
    assert common == EvaluationConfig(weights="best")
    assert list(configs.items()) == [
        ("zero-shot", ZeroShotConfig(targets=Path("cache"), scored_root=Path("moved"))),
        ("grounding", GroundingConfig(targets=Path("cache"), gallery=3)),
        ("classification", ClassificationConfig(targets=Path("cache"))),
    ]


def test_older_names_are_options_of_their_protocol() -> None:
    _, configs = evaluation_configs(
        ("detection", "convergence"), {"learning_rate": 1, "references": ["a", "b"], "score": None}
    )
    assert configs["detection"] == DetectionConfig(lr=1.0)
    assert configs["convergence"] == ConvergenceConfig(references=(Path("a"), Path("b")))


@pytest.mark.parametrize(
    ("protocols", "options", "told"),
    [
        (("grounding",), {"targets": "c", "knn_k": 3}, "knn_k is an option of protocol classification; asked for: gr"),
        (("detection", "cross-domain"), {"targets": "c"}, r"targets is .* zero-shot or grounding; .*n, cross-d"),
        (("classification",), {"learning_rate": 1}, "learning_rate is an option of protocol detection"),
        (("classification", "zero-shot"), {}, "Protocol zero-shot needs `targets`"),
        (("zero-shot",), {"targets": None}, "Protocol zero-shot needs `targets`"),
        (("convergence",), {}, "convergence needs a finished run to compare with, got none"),
        (("detection",), {"lr": 0}, "lr must be positive"),
        (
            ("zero-shot",),
            {"targets": "c", "split": "test"},
            "split is an option of protocol classification or worst-group or grounding",
        ),
        (("classification",), {"least_images": 3}, "least_images is an option of protocol worst-group"),
    ],
)
def test_an_option_that_would_have_no_effect_or_is_missing_is_told(
    protocols: tuple[str, ...], options: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluation_configs(protocols, options)


def test_ignored_options_are_not_asked_about() -> None:
    with pytest.raises(UnknownNameError, match=r"option 'knn_kk'\. .*Choices: .*knn_k,"):
        evaluation_configs(("classification",), {"knn_kk": 3})
    _, configs = evaluation_configs(("classification",), {"knn_kk": 3, "iterations": 5}, ("knn_kk", "iterations"))
    assert configs == {"classification": ClassificationConfig()}
    with pytest.raises(UnknownNameError, match=r"protocol 'zeroshot'\. Did you mean 'zero-shot'") as raised:
        evaluation_configs(("zeroshot",), {})
    assert raised.value.argument == "protocol"


@pytest.mark.parametrize("kind", PROTOCOL_CONFIGS.values())
def test_no_protocol_has_an_option_of_what_all_share(kind: type[Any]) -> None:
    names = declared(kind).keys() | {alias.name for each in declared(kind).values() for alias in each.aliases}
    assert not names & declared(EvaluationConfig).keys()
    assert all(each.panel for each in declared(kind).values())


def test_a_score_to_reach_is_one_of_a_head() -> None:
    for score in HEAD_SCORES:
        assert ConvergenceConfig(references=(Path("a"),), score=score).score == score
    with pytest.raises(UnknownNameError, match="score 'acuracy'"):
        ConvergenceConfig(references=(Path("a"),), score="acuracy")
    with pytest.raises(UnknownNameError, match=r"source of the backbone 'scrach'\. Did you mean 'scratch'"):
        DetectionConfig(source="scrach")
