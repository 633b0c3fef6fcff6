"""The plan of a cache as a sequence that makes each row when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from lfi_pipeline.data import Sample
from lfi_pipeline.targets import PlannedSample
from lfi_pipeline.teachers.texts import TextSource, planned


class Plan(Sequence[PlannedSample]):
    """Rows of the index for a data set and what the teacher reads of it."""

    def __init__(self, samples: Sequence[Sample], source: TextSource) -> None:
        self._samples, self._source = samples, source

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, position: int) -> PlannedSample: ...
    @overload
    def __getitem__(self, position: slice) -> list[PlannedSample]: ...
    def __getitem__(self, position: int | slice) -> PlannedSample | list[PlannedSample]:
        if isinstance(position, slice):
            return [planned(self._samples[i], self._source) for i in range(*position.indices(len(self)))]
        return planned(self._samples[position], self._source)

    def __iter__(self) -> Iterator[PlannedSample]:
        return (planned(sample, self._source) for sample in self._samples)
