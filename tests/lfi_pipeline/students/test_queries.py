"""The configuration of queries refuses what cannot work."""

from __future__ import annotations

import pytest

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.students import QueryConfig


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({"mode": "txt"}, "learned, text"),
        ({"state": "forgetful"}, "persistent, reset"),
        ({"readout": "median"}, "concat, max"),
    ],
)
def test_unknown_names_list_the_choices(options: dict[str, str], choices: str) -> None:
    with pytest.raises(UnknownNameError, match=choices):
        QueryConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (0, 1), (8, 0), (8, -2)])
def test_width_and_heads_must_fit(width: int, heads: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"{width} and {heads}|(width|heads) must be 1 or more, got {min(width, heads)}"
    ):
        QueryConfig(width=width, heads=heads)


def test_slots_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="slots must be 1 or more, got 0"):
        QueryConfig(mode="learned", slots=0)
