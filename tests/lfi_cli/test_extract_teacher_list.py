"""lfi teachers"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_all_are_listed_with_what_they_support(lfi: Callable[..., Any]) -> None:
    listed = lfi("teachers", "--json").json["teachers"]
    by_name = {each["name"]: each for each in listed}
    assert by_name["coca_ViT-B-32"]["kinds"][0] == "contrastive"
    assert by_name["ViT-B-16-SigLIP"]["grid"] == [14, 14]
    assert "openai" in by_name["ViT-B-32"]["tags"]
    assert "RN50" not in by_name
    plain = lfi("teachers").out
    assert all(name in plain for name in by_name)


def test_a_family_alone(lfi: Callable[..., Any], fails: Callable[..., str]) -> None:
    listed = lfi("teachers", "--family", "coca", "--json").json["teachers"]
    assert {each["family"] for each in listed} == {"coca"}
    assert "Choices: coca, dual" in fails("UnknownNameError", "teachers", "--family", "gan")


def test_one_in_full(lfi: Callable[..., Any], fails: Callable[..., str]) -> None:
    sheet = lfi("teachers", "ViT-B-32", "--json").json
    assert sheet["parameters"] == 151_277_313
    out = lfi("teachers", "coca_roberta-ViT-B-32").out
    assert "roberta-base from the hub" in out
    assert "relevance, attention, gradcam, integrated (the first is the default)" in out
    assert "Did you mean 'coca_ViT-B-32'" in fails("UnknownNameError", "teachers", "coca_vit-b-32")
