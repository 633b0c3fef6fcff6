"""How deep in a network each of its feature maps lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def layers_passed(model: Any) -> Iterator[dict[str, int]]:
    """Note, for each module that timm records as the source of a feature, how many layers ran before it was done.

    A layer is a module without children that has a matrix (a convolution, a linear map). The forward pass inside the
    context fills the dictionary.
    """
    done: dict[str, int] = {}
    ran = 0

    def count(*_: object) -> None:
        nonlocal ran
        ran += 1

    def note(name: str) -> Any:
        return lambda *_: done.__setitem__(name, ran)

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for module in modules.values():
            if not any(module.children()) and any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_hook(count).remove)
        for record in _records(model):  # after the counters: a feature may be a layer itself
            source = modules.get(record["module"])
            if isinstance(source, nn.Module):
                hooks.callback(source.register_forward_hook(note(record["module"])).remove)
        yield done


def relative_depths(model: Any, features: Sequence[Tensor], done: dict[str, int]) -> list[float]:
    """Return the relative depth in (0, 1] of each feature map [1, D, rows, columns]; the last is 1.

    The blocks of a plain transformer are alike: the share of blocks. Stages of a pyramid are not (Swin-T has 2, 2, 6
    and 2 blocks): the share of layers, where timm's record of the model's features fits its features; else the share
    of stages.
    """
    by_index = [(index + 1) / len(features) for index in range(len(features))]
    if len({feature.shape[1:] for feature in features}) == 1:
        return by_index
    records = _records(model)
    if [record["num_chs"] for record in records] != [feature.shape[1] for feature in features]:
        return by_index
    passed = [done.get(record["module"], 0) for record in records]
    if passed[0] < 1 or passed != sorted(set(passed)):
        return by_index
    return [layers / passed[-1] for layers in passed]


def reductions(model: Any, features: Sequence[Tensor]) -> list[int | None]:
    """Return timm's record of the stride of each feature map; None where it has none that fits."""
    records = _records(model)
    if [record["num_chs"] for record in records] != [feature.shape[1] for feature in features]:
        return [None] * len(features)
    return [int(record["reduction"]) for record in records]


def _records(model: Any) -> list[dict[str, Any]]:
    """Return timm's records of a model's features, in a list or in an object with such a list, or nothing."""
    info = getattr(model, "feature_info", None)
    records = getattr(info, "info", info)
    whole = isinstance(records, list) and all({"module", "num_chs", "reduction"} <= set(each) for each in records)
    return records if whole and isinstance(records, list) else []
