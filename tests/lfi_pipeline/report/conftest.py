"""Synthetic run directories with realistic curves, maps that really point, and images with known masks."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from lfi_pipeline.evaluation.protocols import ProtocolResult, write_result

FINAL = {
    "none": (0.307, 0.162),
    "embedding": (0.315, 0.173),
    "lfi": (0.557, 0.255),
    "shuffled": (0.131, 0.102),
}
DOMAINS = ("flat", "line", "painted")
HELD_OUT = "painted"
TAPS = (0.33, 0.67, 1.0)
GRID = 14

Disc = tuple[float, float, float]
Scene = Callable[[int], tuple[npt.NDArray[np.uint8], str, str, list[str], list[Disc | None]]]
"""Number -> image, caption, domain, words, and each word's object as (centre x, y, radius) in [0, 1]."""


class MakeRun(Protocol):
    """What the `make_run` fixture gives."""

    def __call__(self, name: str, objective: str = ..., **options: Any) -> Path: ...


def plain_scene(
    number: int,
) -> tuple[npt.NDArray[np.uint8], str, str, list[str], list[tuple[float, float, float] | None]]:
    """Two discs on a gradient."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:64, 0:64] / 63.0
    image = np.stack([90 + 60 * y, 120 + 40 * x, 150 - 50 * y], axis=-1)
    objects: list[tuple[float, float, float] | None] = []
    for colour in ((220, 80, 60), (240, 200, 70)):
        at = rng.uniform(0.25, 0.75, 2)
        image[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 0.18**2] = colour
        objects.append((float(at[0]), float(at[1]), 0.18))
    return (
        image.astype(np.uint8),
        "a dog beside a yellow ball",
        DOMAINS[number % 2],
        ["dog", "ball", "beside"],
        [*objects, None],
    )


def bump(x: float, y: float, width: float, noise: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A map [GRID, GRID] around (x, y) that sums to 1."""
    rows, columns = (np.mgrid[0:GRID, 0:GRID] + 0.5) / GRID
    raw = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)) + noise * rng.random((GRID, GRID))
    return (raw / raw.sum()).astype(np.float32)


def inside(found: npt.NDArray[np.float32], target: tuple[float, float, float] | None) -> bool | None:
    """Whether the peak lies in the disc."""
    if target is None:
        return None
    row, column = np.unravel_index(int(np.argmax(found)), found.shape)
    return bool(math.hypot((column + 0.5) / GRID - target[0], (row + 0.5) / GRID - target[1]) <= target[2])


def write_gallery(
    path: Path, scene: Scene, samples: int, queries: bool, skill: float, rng: np.random.Generator, classes: bool
) -> None:
    """gallery.json and gallery.safetensors; `skill` in [0, 1] is how often the last tap points right."""
    listed, tensors = [], {}
    for i in range(samples):
        image, caption, domain, words, objects = scene(i)
        steady = np.random.default_rng(1000 + i)
        teacher = np.stack([bump(*(o or (0.5, 0.5, 0))[:2], 0.09, 0.12, steady) for o in objects])
        taps = []
        for depth in TAPS:
            rows = []
            for o in objects:
                right = rng.random() < skill * (0.4 + 0.6 * depth)
                x, y = (o[0], o[1]) if o and right else rng.uniform(0.1, 0.9, 2)
                rows.append(bump(x, y, 0.2 - 0.1 * depth, 0.6 - 0.4 * depth, rng))
            taps.append(np.stack(rows))
        tensors[f"image_{i}"] = image
        tensors[f"teacher_{i}"] = teacher.astype(np.float16)
        if queries:
            tensors[f"student_{i}"] = np.stack(taps).astype(np.float16)
        cams = np.stack([bump(*o[:2], 0.2, 0.5, rng) if o else np.zeros((GRID, GRID), np.float32) for o in objects])
        if classes:
            tensors[f"cam_{i}"] = cams.astype(np.float16)
        listed.append(
            {
                "key": f"val/{i:06d}",
                "caption": caption,
                "domain": domain,
                "words": words,
                "teacher_correct": [inside(m, o) for m, o in zip(teacher, objects, strict=True)],
                "student_correct": [[inside(m, o) for m, o in zip(t, objects, strict=True)] for t in taps]
                if queries
                else [],
                "classes": [None if o is None else 0 for o in objects],
                "cam_correct": [inside(m, o) for m, o in zip(cams, objects, strict=True)] if classes else [],
            }
        )
    (path / "gallery.json").write_text(json.dumps({"samples": listed}), encoding="utf-8")
    save_file(tensors, path / "gallery.safetensors")


def write_run(
    root: Path,
    name: str,
    objective: str = "lfi",
    *,
    maps: str = "teacher",
    seed: int = 0,
    seen: float | None = None,
    held_out: bool = True,
    scores: bool = True,
    gallery: int = 0,
    classes: bool = False,
    summary: bool = True,
    scene: Scene = plain_scene,
    **config: Any,
) -> Path:
    """Write one run directory and return it."""
    key = "shuffled" if maps != "teacher" else objective
    rng = np.random.default_rng(zlib.crc32(f"{key}{seed}".encode()))
    final = np.array(FINAL[key.split("+")[0]]) + rng.normal(0, [0.006, 0.008])
    if seen is not None:
        final[0] = seen
    path = root / name
    path.mkdir(parents=True)
    queries = "lfi" in objective.split("+")
    fields: dict[str, Any] = {
        "name": name,
        "student": "vit_tiny_patch16_224",
        "objective": objective,
        "maps": maps,
        "state": "persistent",
        "seed": seed,
        "epochs": 15,
        "batch_size": 64,
        "learning_rate": 0.001,
        "lambda_int": 0.3,
        "image_size": 64,
        "patch_size": 8,
        "hold_out": [HELD_OUT] if held_out else [],
        "targets": "targets/scenes",
        "targets_fingerprint": "9f2c41d07be3a85566aa",
        "teacher": {"name": "coca_ViT-B-32", "tag": "laion2b_s13b_b90k"},
        "kind": "relevance",
        "taps": [{"index": 2 * i + 1, "depth": d, "teacher_layer": 0} for i, d in enumerate(TAPS)],
        "dataset": {"name": "Emoji scenes", "split": "train", "train_samples": 4000, "val_samples": 800},
        "command": f"lfi train --targets targets/scenes --objective {objective} --maps {maps} --seed {seed}"
        f" --out runs/{name}",
    } | config
    (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    steps, rate = 930, {"lfi": 260.0}.get(objective, 340.0)
    for step in range(0, steps + 1, 10):
        task = 0.02 + 0.17 * math.exp(-step / rate) + rng.normal(0, 0.003) + 0.05 * (0.5 - final[0])
        interaction = 1.1 + 1.9 * math.exp(-step / 200) + rng.normal(0, 0.03) if queries else None
        lines.append(
            {
                "event": "train",
                "step": step,
                "epoch": step // 62,
                "loss": task + 0.3 * (interaction or 0),
                "task_loss": task,
                **({"lfi_loss": interaction} if interaction is not None else {}),
                "images_per_second": 900.0,
                "step_ms": 71.0 if queries else 61.0,
            }
        )
        if step and step % 62 < 10:
            grown = final * (1 - math.exp(-2.2 * step / rate)) / (1 - math.exp(-2.2 * steps / rate))
            wiggle = rng.normal(0, 0.004, 2) if step < steps else np.zeros(2)
            grown = np.clip(grown + wiggle, 0, 1)
            lines.append(
                {
                    "event": "val",
                    "step": step,
                    "epoch": step // 62,
                    "map_seen": float(grown[0]),
                    "map_heldout": float(grown[1]) if held_out else None,
                }
            )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if summary:
        parameters = {"backbone": 5_524_416, "head": 11_580, "queries": 412_160 if queries else 0}
        parameters |= {"kept_queries": 0, "terms": 0}
        took = {
            "steps": steps,
            "seconds": 66.0,
            "step_ms": 71.2 if queries else 61.4,
            "parameters": parameters,
        }
        (path / "summary.json").write_text(json.dumps(took), encoding="utf-8")
    if scores:
        skill = 0.2 if maps != "teacher" else 0.8
        domains = {d: float(final[0] + 0.02 * i) for i, d in enumerate(DOMAINS[:2])}
        if held_out:
            domains[HELD_OUT] = float(final[1])
        taps = [
            {
                "index": 2 * i + 1,
                "depth": d,
                "pointing": skill * (0.5 + 0.5 * d) + rng.normal(0, 0.01),
                "mass_in_mask": skill * (0.35 + 0.4 * d) + rng.normal(0, 0.01),
            }
            for i, d in enumerate(TAPS)
            if queries
        ]
        _write_results(path, (float(final[0]), float(final[1]) if held_out else None), domains, taps)
    if gallery:
        write_gallery(path, scene, gallery, queries, 0.25 if maps != "teacher" else 0.9, rng, classes)
    return path


def _write_results(
    path: Path, final: tuple[float, float | None], domains: dict[str, float], taps: list[dict[str, Any]]
) -> None:
    """What `lfi evaluate RUN --targets SHARDS` leaves."""
    settings = {"dataset": "Emoji scenes", "split": "val", "weights": "last"}
    teacher = {"pointing": 0.94, "mass_in_mask": 0.84}
    classified = ProtocolResult(
        protocol="classification",
        settings=settings,
        scores={"map_seen": final[0], "map_heldout": final[1]},
        details={"map_per_domain": domains},
        seconds=1.0,
    )
    last = {name: taps[-1][name] for name in teacher} if taps else {}
    grounded = ProtocolResult(
        protocol="grounding",
        settings=settings,
        scores={**last, **{f"teacher_{name}": value for name, value in teacher.items()}},
        details={"taps": taps, "teacher": teacher, "area": 0.16},
        seconds=1.0,
    )
    for result in (classified, grounded):
        write_result(path, result)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Build a run directory under the test's own folder."""

    def build(name: str, objective: str = "lfi", **options: Any) -> Path:
        return write_run(tmp_path / "runs", name, objective, **options)

    return build


SETTINGS = {"dataset": "scenes", "split": "val", "weights": "last"}


@pytest.fixture
def scored(make_run: MakeRun) -> Callable[..., Path]:
    """Make a run with results: protocol -> scores, or a list of (settings, scores); details of protocols by keyword."""
    numbers = itertools.count()

    def build(
        objective: str,
        seed: int,
        results: Mapping[str, Any],
        details: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Path:
        run = make_run(f"run-{next(numbers)}", objective, seed=seed, scores=False, **options)
        known = {"grounding": {"taps": [], "teacher": None, "area": None}, **(details or {})}
        for protocol, scored_as in results.items():
            for settings, scores in scored_as if isinstance(scored_as, list) else [({}, scored_as)]:
                write_result(
                    run,
                    ProtocolResult(
                        protocol=protocol,
                        settings=SETTINGS | settings,
                        scores=scores,
                        details=known.get(protocol, {}),
                        seconds=1.0,
                    ),
                )
        return run

    return build
