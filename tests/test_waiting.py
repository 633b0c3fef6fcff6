from __future__ import annotations

import torch

from tests.waiting import watched

CPU = torch.device("cpu")


def test_what_waits_is_seen() -> None:
    """Every way in which a step or a batch once waited, or might."""
    flags, numbers = torch.tensor([True, False]), torch.arange(2.0)
    for wait in (
        lambda: numbers[flags],
        lambda: bool(flags.any()),
        lambda: float(numbers[0]),
        lambda: flags.nonzero(),
        lambda: numbers.tolist(),
        lambda: numbers.cpu(),
        lambda: numbers.masked_select(flags),
        lambda: numbers.unique(),
        lambda: numbers.index_put_((flags,), torch.zeros(1)),
        lambda: torch.equal(numbers, numbers),
    ):
        with watched() as found:
            wait()
        assert found, "not seen"
    with watched() as found:
        torch.where(flags, numbers, 0.0).sum().add_(numbers[torch.tensor([1])].sum())
    assert not found


def test_copies_to_a_device_that_are_waited_for_are_seen_where_they_are_looked_for() -> None:
    numbers, index = torch.arange(4.0), torch.tensor([1, 2])
    for copy in (
        lambda: numbers[[1, 2]],
        lambda: numbers[:, None][[1, 2], 0],
        lambda: numbers.__setitem__([1, 2], 0.0),
        lambda: numbers[index.numpy()],
        lambda: numbers.to(CPU),
        lambda: numbers.to(numbers),
        lambda: torch.tensor([1], device=CPU),
    ):
        with watched(copies=True) as found:
            copy()
        assert found, "not seen"
    with watched(copies=True) as found:
        numbers[index] = numbers[1:3].to(torch.float64).to(CPU, non_blocking=True).float()
        torch.tensor([1, 2])
    assert not found
