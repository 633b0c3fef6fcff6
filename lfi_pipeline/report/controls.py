"""Which group another one is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from lfi_pipeline.errors import UnknownNameError
from lfi_pipeline.report.groups import is_control, unequal_settings
from lfi_pipeline.report.runs import RunConfig

_NECESSARY = frozenset(["student", "student arg", "px", "patch size", "pretrained", "data", "hold out", "task"])
"""Settings without which two runs do not answer the same question; the learning rate, say, may well be tuned apart."""


def comparable(first: RunConfig, second: RunConfig) -> bool:
    """Whether both train the same student for the same task on the same data."""
    return _NECESSARY.isdisjoint(unequal_settings(first, second))


def choose_controls(configs: Mapping[str, RunConfig], control: str | None = None) -> dict[str, str]:
    """Return label -> label of its control, for the labels that have one.

    The control is the group of objective `none` that is comparable and differs in the fewest settings, the first of
    several; groups of objective `none` have none themselves. A `control` that is given is that of every other label.

    Args:
        configs: label -> its configuration.
        control: a label.

    Raises:
        UnknownNameError: there is no label `control`.
    """
    if control is not None:
        if control not in configs:
            raise UnknownNameError("control", control, configs)
        return {label: control for label in configs if label != control}
    plain = {label: config for label, config in configs.items() if config.objective == "none"}
    chosen = {}
    for label, config in configs.items():
        fitting = [name for name, other in plain.items() if label not in plain and comparable(config, other)]
        if fitting:
            chosen[label] = min(fitting, key=lambda name: len(unequal_settings(config, plain[name])))
    return chosen


def rivals(label: str, configs: Mapping[str, RunConfig]) -> list[str]:
    """Return the labels that one that learns the teacher's maps must beat; none for any other label."""
    config = configs[label]
    if is_control(config):
        return []
    return [name for name, other in configs.items() if is_control(other) and comparable(config, other)]
