"""Settings of the benchmarks: sizes that a measurement needs, and lists of which each entry is checked."""

from __future__ import annotations

from typing import Any

import pytest

from lfi_pipeline.benchmarks.config import (
    CONTENT_WORDS,
    PARTS,
    CodecConfig,
    ExtractionConfig,
    IndexConfig,
    KernelConfig,
    LoaderConfig,
    MapsConfig,
    ReadsConfig,
    TrainBenchConfig,
)
from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.core.options import build, declared, flatten

CONFIGS = (
    CodecConfig,
    ExtractionConfig,
    IndexConfig,
    KernelConfig,
    LoaderConfig,
    MapsConfig,
    ReadsConfig,
    TrainBenchConfig,
)


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_are_settings_that_can_be_written_down_and_read(kind: type[Any]) -> None:
    assert build(kind, flatten(kind())) == kind()
    assert declared(kind)["rounds"].default >= 1
    with pytest.raises(ConfigError, match="rounds must be 1 or more, got 0") as raised:
        kind(rounds=0)
    assert raised.value.argument == "rounds"


@pytest.mark.parametrize(
    ("kind", "values", "argument", "told"),
    [
        (LoaderConfig, {"images": 63}, "images", "images must fill two batches of 32 or more, got 63"),
        (LoaderConfig, {"workers": (2, -1)}, "workers", r"workers must be 0 or more, got 2, -1"),
        (LoaderConfig, {"workers": ()}, "workers", "workers must name at least one, got none"),
        (ExtractionConfig, {"images": 24}, "images", "images must be a multiple of batch_size, got 24 and 16"),
        (MapsConfig, {"words": len(CONTENT_WORDS) + 1}, "words", f"words must be from 1 to {len(CONTENT_WORDS)}, got"),
        (TrainBenchConfig, {"image_sizes": ("own", 0)}, "image_sizes", "image_sizes must be own or .*, got 0"),
        (TrainBenchConfig, {"image_sizes": ("owm",)}, "image_sizes", "image_sizes must be own or .*, got 'owm'"),
        (TrainBenchConfig, {"what": ()}, "what", "what must name at least one, got none"),
    ],
)
def test_sizes_that_measure_nothing_are_refused(
    kind: type[Any], values: dict[str, Any], argument: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        kind(**values)
    assert raised.value.argument == argument


def test_the_smallest_sizes_that_a_measurement_takes() -> None:
    assert LoaderConfig(images=6, batch_size=3).images == 6
    assert ExtractionConfig(images=16).images == 16
    assert MapsConfig(words=len(set(CONTENT_WORDS))).words == len(CONTENT_WORDS)  # no word stands twice
    assert TrainBenchConfig(image_sizes=("own", 1, 32)).image_sizes == ("own", 1, 32)


def test_names_of_parts_and_forms_are_checked() -> None:
    with pytest.raises(UnknownNameError, match=r"measurement 'steps'\. Did you mean 'step'"):
        TrainBenchConfig(what=("step", "steps"))
    with pytest.raises(UnknownNameError, match=r"form 'resized'\. Did you mean 'resize'"):
        CodecConfig(forms=("resized",))


def test_a_tiny_benchmark_of_training_measures_the_same_at_smaller_sizes() -> None:
    config = TrainBenchConfig(what=("online", "step"), teacher="coca_ViT-B-32:random", kind="attention", layers=2)
    tiny = config.tiny()
    assert (tiny.what, tiny.teacher, tiny.kind, tiny.layers) == (config.what, config.teacher, "attention", 2)
    assert tiny.tiny() == tiny
    assert build(TrainBenchConfig, flatten(tiny)) == tiny
    for name in ("image_size", "batch_size", "rounds", "online_batch", "online_rounds", "steps"):
        assert getattr(tiny, name) <= (getattr(config, name) or 224)
    assert all(small < large for small, large in zip(tiny.maps_shape, config.maps_shape, strict=True))
    assert TrainBenchConfig().what == PARTS
