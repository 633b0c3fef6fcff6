"""Parameters that training adds to a student, and those that are left when it is exported."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.synthetic import drawn_maps, maps_spec, payload_of, write_targets
from lfi_pipeline.benchmarks.training_runs import make_run
from lfi_pipeline.export.plain import plain_model
from lfi_pipeline.students import QueryConfig, StudentConfig
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.config import StreamConfig

CASES = {"lfi": ("lfi", "text"), "lfi, learned": ("lfi", "learned"), "embedding": ("embedding", "text")}
"""Objective and mode of the queries, by case."""

_WIDTH = 768  # of the text embeddings of a ViT-L/14
_MOST = 3.0


def bench_parameters(student: StudentConfig) -> Outcome:
    """Count what each objective adds to the backbone, and what the exported model has beyond backbone and head.

    Raises:
        BenchmarkError: the parts do not add up to what the optimizer is given.
    """
    measured, asked = [], []
    with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
        store = _cache(Path(scratch))
        for name, (objective, mode) in CASES.items():
            run = make_run(
                store, student, objective, device=torch.device("cpu"),
                stream=StreamConfig(targets=store.path), queries=QueryConfig(mode=mode),
            )  # fmt: skip
            trained, counts = run.learner.student, run.learner.parameter_counts()
            optimized = sum(p.numel() for group in run.optimizer.param_groups for p in group["params"])
            parts = counts["backbone"] + counts["head"] + counts["queries"] + counts["terms"]
            require(parts == optimized, f"The parts must add up to {optimized:,} parameters, got {parts:,} ({name}).")
            plain = plain_model(trained)
            exported = sum(p.numel() for p in plain.model.parameters())
            head = sum(p.numel() for p in trained.head.parameters()) if trained.head and plain.head == "inside" else 0
            added = counts["queries"] + counts["terms"]
            share, left = 100 * added / counts["backbone"], exported - counts["backbone"] - head
            for metric, value, unit in (
                ("added in training", added, "parameters"),
                ("share of the backbone", share, "%"),
                ("left in the exported model", left, "parameters"),
                ("kept where slots stay", counts["kept_queries"], "parameters"),
            ):
                case = f"{student.name}, {name}"
                measured.append(Measurement(case=case, shape=f"E {_WIDTH}", metric=metric, value=value, unit=unit))
            if name == "lfi":
                what = f"% of {student.name} that lfi adds in training"
                asked.append(Asked(what=what, value=share, most=_MOST))
                asked.append(Asked(what=f"parameters left in the exported {student.name}", value=left, most=0))
    return Outcome(
        benchmark="train",
        checked="parts add up to what the optimizer is given",
        measurements=tuple(measured),
        asked=tuple(asked),
        notes=(
            f"Text embeddings of {_WIDTH} dimensions, as a ViT-L/14 has. Exported: the plain timm model; a student "
            "with learned slots keeps them outside of it.",
        ),
    )


def _cache(root: Path) -> TargetStore:
    spec = maps_spec(samples=4, maps_shape=(4, 2, 4, 4), embedding_dim=_WIDTH)
    write_targets(root / "targets", spec, lambda positions: payload_of(spec, drawn_maps(spec, positions)))
    return TargetStore.open(root / "targets", data_root=root)
