"""Labels of one split as indices into the class list of another, matched by name and never by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.dataset import Dataset, Instance, SampleTable

_MOST_NAMES = 12


def relabelled(dataset: Dataset, classes: Sequence[str], source: str) -> Dataset:
    """Return `dataset` with labels that index `classes`, each found by the name of its class.

    Bare numbers are names as well: a split of fewer of them is mapped, one that goes beyond `classes` is refused. A
    name that `classes` lacks and that no image has is passed over.

    Args:
        dataset: a split.
        classes: the list to index, such as that of a cache.
        source: what `classes` is the list of, for messages.

    Raises:
        DatasetError: an image or object has a class that is not in `classes`, or a name stands twice in either list.
    """
    classes = tuple(classes)
    if dataset.classes == classes:
        return dataset
    place = _places(classes, source)
    _places(dataset.classes, _title(dataset))
    used = sorted({label for sample in dataset.samples for label in sample.labels})  # and objects have no other
    unknown = [dataset.classes[label] for label in used if dataset.classes[label] not in place]
    if unknown:
        raise DatasetError(
            f"{_title(dataset)} must have only classes of {source}; {_names(unknown)} {_are(unknown)} not among them. "
            f"Its classes: {_names(dataset.classes)}; those of {source}: {_names(classes)}. Name the classes alike in "
            "both, or read a split that has the same ones."
        )
    new = {label: place[name] for label, name in enumerate(dataset.classes) if name in place}
    if all(new[label] == label for label in used):
        return replace(dataset, classes=classes)
    samples = SampleTable(
        replace(sample, labels=tuple(sorted(new[label] for label in sample.labels))) for sample in dataset.samples
    )
    return replace(dataset, classes=classes, samples=samples, instances=_Relabelled(dataset.instances, new))


def require_labels(dataset: Dataset, remedy: str) -> None:
    """Raise a `DatasetError` unless the split holds an image that has a label; `remedy` ends its message."""
    if not len(dataset):
        raise DatasetError(f"{_title(dataset)} must hold images to be scored on, got none. {remedy}")
    if not any(sample.labels for sample in dataset.samples):
        raise DatasetError(
            f"{_title(dataset)} must have labels to be scored on; none of its {len(dataset)} images has one. {remedy}"
        )


class _Relabelled(Mapping[str, tuple[Instance, ...]]):
    """Objects with other labels, changed as they are read."""

    def __init__(self, instances: Mapping[str, tuple[Instance, ...]], new: Mapping[int, int]) -> None:
        self._instances, self._new = instances, new

    def __getitem__(self, key: str) -> tuple[Instance, ...]:
        return tuple(replace(each, label=self._new[each.label]) for each in self._instances[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._instances)

    def __len__(self) -> int:
        return len(self._instances)


def _places(names: Sequence[str], source: str) -> dict[str, int]:
    place = {name: number for number, name in enumerate(names)}
    if len(place) != len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise DatasetError(
            f"{source} must name each class once, so that labels can be told by name; {_names(twice)} "
            f"{_are(twice)} there twice."
        )
    return place


def _title(dataset: Dataset) -> str:
    return f"Split {dataset.split!r} of {dataset.name} in {dataset.root}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(map(repr, names[:_MOST_NAMES])) or "none") + more
