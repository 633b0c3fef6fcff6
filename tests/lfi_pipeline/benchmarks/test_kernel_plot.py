"""The plot of the kernel benchmark's CSV: which rows it draws, and what it refuses."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from lfi_kernels.bench import Shape
from lfi_pipeline.benchmarks.kernel import plot_kernel
from lfi_pipeline.benchmarks.outcome import COLUMNS
from lfi_pipeline.core.errors import ConfigError, OutputWriteError

SHAPES = [str(Shape(words=words, query_dim=dim, dtype="bf16")) for words in (16, 32) for dim in (128, 384)]
SVG = "{http://www.w3.org/2000/svg}"


def row(case: str, shape: str, metric: str, value: object, **other: str) -> dict[str, object]:
    around = {"commit": "a" * 40, "dirty": "false", "device": "GPU <1>", "threads": "1", "torch": "2.0"}
    measured = {"benchmark": "kernel", "case": case, "shape": shape, "metric": metric, "value": value, "unit": "x"}
    return {**around, **measured, **other}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def drawn(tmp_path: Path, rows: list[dict[str, object]]) -> ET.Element:
    out = plot_kernel(write(tmp_path / "bench.csv", rows), tmp_path / "kernel.svg")
    return ET.parse(out).getroot()


def told(root: ET.Element) -> list[str]:
    """What hovering over the dots tells."""
    return [each.text or "" for each in root.iter(f"{SVG}title")]


def test_ratios_become_dots_on_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [row("sdpa", shape, "both over fused", value) for shape, value in zip(SHAPES, (1, 2, 4, 8), strict=True)]
    root = drawn(tmp_path, rows)
    assert told(root)[0] == "ViT-S/16 N196 M16 Dq128, sdpa: 1x"
    dots = [each for each in root.iter(f"{SVG}use") if each.find(f"{SVG}title") is not None]
    xs = [float(each.attrib["x"]) for each in dots]
    steps = [b - a for a, b in pairwise(xs)]
    assert steps[0] > 50
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    ys = [float(each.attrib["y"]) for each in dots]
    assert ys == sorted(set(ys))
    assert all(0 < x < float(root.attrib["width"]) for x in xs)
    assert max(ys) < float(root.attrib["height"])
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert "GPU <1>, torch 2.0, commit aaaaaaaaaa" in texts
    assert "sdpa" in texts
    assert "projected" not in texts  # nothing of it was measured


def test_time_over_the_floor_has_a_chart_of_its_own(tmp_path: Path) -> None:
    rows = [row("fused", shape, f"{part} over floor", 1.5) for shape in SHAPES for part in ("forward", "both")]
    rows += [row("fused", SHAPES[0], "forward", 3.0), row("floor", SHAPES[0], "forward", 2.0)]
    assert told(drawn(tmp_path, rows)) == [
        f"ViT-S/16 N196 M{words} Dq{dim}, {part}: 1.5x"
        for words in (16, 32)
        for dim in (128, 384)
        for part in ("both", "forward")
    ]


def test_the_last_run_of_a_device_counts_and_its_parts_are_joined(tmp_path: Path) -> None:
    rows = [
        row("sdpa", SHAPES[0], "both over fused", 9, commit="old"),
        row("sdpa", SHAPES[1], "both over fused", 9, commit="old"),
        row("sdpa", SHAPES[0], "both over folded", 5, device="CPU"),
        row("sdpa", SHAPES[0], "both over fused", 3),
        row("folded", SHAPES[0], "both over fused", 2),
        row("sdpa", SHAPES[2], "both over fused", 4),
        row("train", "4x4", "both over fused", 7, benchmark="train"),
    ]
    assert told(drawn(tmp_path, rows)) == [
        "ViT-S/16 N196 M16 Dq128, sdpa: 3x",
        "ViT-S/16 N196 M16 Dq128, folded: 2x",
        "ViT-S/16 N196 M32 Dq128, sdpa: 4x",
        "ViT-S/16 N196 M16 Dq128, sdpa: 5x",
    ]


def test_it_has_light_and_dark_colours_of_its_own(tmp_path: Path) -> None:
    style = drawn(tmp_path, [row("sdpa", SHAPES[0], "both over fused", 3)]).find(f"{SVG}style")
    assert style is not None
    light, dark = (style.text or "").split("@media (prefers-color-scheme: dark)")
    assert "--card: #ffffff" in light
    assert "--card: #161b22" in dark


@pytest.mark.parametrize("value", ["0", "nan", "-1", "inf", "fast", ""])
def test_a_ratio_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="A ratio must be a number above 0"):
        drawn(tmp_path, [row("sdpa", SHAPES[0], "both over fused", value)])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A shape must read like"):
        drawn(tmp_path, [row("sdpa", "4x4", "both over fused", 2)])
    with pytest.raises(ConfigError, match="must hold ratios of the kernel benchmark, found none"):
        drawn(tmp_path, [row("sdpa", SHAPES[0], "both", 2)])
    other = tmp_path / "mine.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"must have the columns commit, dirty.*, got a, b"):
        plot_kernel(other, tmp_path / "kernel.svg")
    good = write(tmp_path / "good.csv", [row("sdpa", SHAPES[0], "both over fused", 2)])
    with pytest.raises(OutputWriteError, match="Name another file"):
        plot_kernel(good, tmp_path)
