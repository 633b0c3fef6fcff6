"""Export a trained run: read it, write the timm checkpoint beside its place, check it, and only then put it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputExistsError, OutputWriteError
from lfi_pipeline.core.io import new_folder
from lfi_pipeline.core.parse import seal_folder
from lfi_pipeline.data.images import read_image
from lfi_pipeline.exporting.check import (
    INSIDE,
    ONNX,
    check_export,
    plain_model,
    require_onnx,
    write_checkpoint,
    write_onnx,
)
from lfi_pipeline.exporting.model_card import card_facts, model_card
from lfi_pipeline.exporting.whole import ONNX as WHOLE_ONNX
from lfi_pipeline.exporting.whole import HeadCost, WholeCheck, head_cost, whole_model, write_whole
from lfi_pipeline.exporting.whole import write_onnx as write_whole_onnx
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.learner import WEIGHTS, LoadedRun, load_run

CARD = "README.md"
_IMAGES = 4  # that the export is compared on


def export_run(run: Path, out: Path, *, weights: str | None = None, onnx: bool = False) -> dict[str, Any]:
    """Write the student of `run` to `out`: as a plain timm checkpoint, and whole, with its head; with a model card.

    Args:
        run: directory of a run.
        out: directory to make; nothing is left there unless every check passes.
        weights: `last` or `best`; None takes the best where the run has one.
        onnx: write `model.onnx` too, and `lfi.onnx` where the head is made of queries.

    Returns:
        What was written, and how far it is from the trained student.

    Raises:
        OutputExistsError: `out` holds something already.
        ExportError: what was exported is not the trained student.
        OutputWriteError: `out` cannot be written.
        ConfigError, RunError, TargetsError, UnknownNameError: as `load_run` and `require_onnx`.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputExistsError(f"{out} must be absent or an empty directory, and is not. Choose another `out`.")
    if onnx:
        require_onnx()
    weights = weights or ("best" if (run / WEIGHTS["best"]).is_file() else "last")
    loaded = load_run(run, device="cpu", weights=weights)
    plain = plain_model(loaded.student)
    classes = loaded.store.spec.dataset.classes
    try:
        with new_folder(out) as folder:
            write_checkpoint(folder, plain, loaded.config.student, loaded.student.size, classes)
            images = _some_images(loaded.store)
            check = check_export(folder, loaded.student, plain, images)
            differs = write_onnx(plain.model, folder / ONNX, loaded.student.size) if onnx else None
            whole, whole_report, cost = _write_whole(loaded, folder, images, onnx=onnx)
            facts = card_facts(
                loaded, plain, check, folder=out.name, weights=weights, onnx=onnx, onnx_differs=differs, whole=whole,
                cost=cost,
            )  # fmt: skip
            (folder / CARD).write_text(model_card(facts), encoding="utf-8")
            files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            seal_folder(folder, leave_out=frozenset())
    except LFIError:
        raise
    except OSError as error:
        raise OutputWriteError(f"Cannot write the export to {out}: {error.strerror or error}.") from error
    return {
        "out": str(out),
        "run": str(run),
        "weights": weights,
        "model": plain.model.pretrained_cfg["architecture"],
        "head": plain.head,
        "classes": len(classes) if plain.head == INSIDE else 0,
        "parameters": facts.parameters,
        "files": files,
        "check": {**asdict(check), "onnx": differs},
        "whole": whole_report,
    }


def _write_whole(
    loaded: LoadedRun, folder: Path, images: Sequence[Image.Image], *, onnx: bool
) -> tuple[WholeCheck | None, dict[str, Any], HeadCost | None]:
    """Write the whole model where the student has one; return its check, its part of the result, its head's cost."""
    try:
        model = whole_model(loaded)
    except ConfigError as error:  # the plain model is complete without it
        return None, {"reason": str(error)}, None
    check = write_whole(folder, model, images)
    differs = write_whole_onnx(model, folder / WHOLE_ONNX) if onnx and model.student.query_head is not None else None
    parameters, cost = sum(p.numel() for p in model.parameters()), head_cost(model)
    report = {**asdict(check), "head": model.config.head, "parameters": parameters, "onnx": differs}
    return check, report | {"head_cost": None if cost is None else asdict(cost) | {"text": cost.text}}, cost


def _some_images(store: TargetStore) -> list[Image.Image]:
    """Return a few images of the training data; none where they are no longer there."""
    try:
        paths = [store.index.paths[int(position)] for position in store.usable[:_IMAGES]]
        return [read_image(store.data_root, path)[0] for path in paths]
    except (LFIError, OSError):
        return []
