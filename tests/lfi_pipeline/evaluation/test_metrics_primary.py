"""Names of primary measures, before there are results and with them."""

from __future__ import annotations

import pytest

from lfi_pipeline.core.errors import UnknownNameError
from lfi_pipeline.evaluation.metrics import check_primary, is_primary


@pytest.mark.parametrize(
    "name", ["map_seen", "cross-domain:map", "pointing", "map_heldout_photo", "cross-domain:map_a:b"]
)
def test_before_there_are_results_a_domain_may_have_any_name(name: str) -> None:
    check_primary([name])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("map_seem", "Did you mean 'map_seen'"),
        ("map_photo", "Unknown measure 'map_photo'"),  # of which protocol?
        ("teacher_pointing", "Unknown measure"),  # it is no measure of a run
        ("crossdomain:map", "Unknown protocol 'crossdomain'. Did you mean 'cross-domain'"),
        ("grounding:map_heldout_photo", "Unknown measure"),
        ("", "Unknown measure ''"),
    ],
)
def test_names_that_there_are_not(name: str, told: str) -> None:
    with pytest.raises(UnknownNameError, match=told):
        check_primary(["map_seen", name])


def test_with_results_a_domain_must_be_one_of_theirs() -> None:
    there = {"classification": {"map_heldout_photo"}}
    check_primary(["map_heldout_photo", "classification:map_heldout_photo"], there)
    with pytest.raises(UnknownNameError, match="map_heldout_photos"):
        check_primary(["map_heldout_photos"], there)


def test_a_name_alone_is_of_every_protocol_that_has_it() -> None:
    assert is_primary("map", "zero-shot", ["map"])
    assert is_primary("map", "cross-domain", ["cross-domain:map"])
    assert not is_primary("map", "zero-shot", ["cross-domain:map"])
    assert not is_primary("map_art", "cross-domain", ["map"])
