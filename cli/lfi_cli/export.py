"""lfi export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, facts, finish

_HEADS = {
    "inside": "the trained head is timm's classifier",
    "apart": "pooled features; the trained head is in head.safetensors",
    "slots": "pooled features; slots, and the head that reads them, are not in it",
    "none": "pooled features; trained without a head",
}


@command
def export(
    run: Annotated[Path, typer.Argument(help="A run directory made by lfi train.")],
    out: Annotated[Path, typer.Option(help="Directory to make; must be absent or empty.")],
    weights: Annotated[
        str | None, typer.Option(help="last or best; the best by default, where the run has one.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too (extra: onnx).")] = False,
    as_json: JsonFlag = False,
) -> Result:
    """Write a trained student as a plain timm checkpoint with a model card, checked by loading it through timm.

    Example: lfi export runs/lfi-0 --out exported/
    """
    from lfi_pipeline.exporting import export_run

    result: Result = export_run(run, out, weights=weights, onnx=onnx)
    check = result["check"]

    def render(console: Console) -> None:
        shown = f"{check['images']} images and {check['noise']} of noise"
        rows = [
            ("model", f"{result['model']}, {result['parameters']:,} parameters"),
            ("output", _HEADS[result["head"]]),
            ("weights", result["weights"]),
            (f"timm alone against the student, {shown}", f"features differ by {check['features']:.1e}"),
        ]
        if check["logits"] is not None:
            rows.append(("", f"logits differ by {check['logits']:.1e}"))
        if onnx:
            differs = "not run: no onnxruntime" if check["onnx"] is None else f"differs by {check['onnx']:.1e}"
            rows.append(("ONNX against PyTorch", differs))
        rows.append(("load it", f'timm.create_model("local-dir:{out}", pretrained=True)'))
        facts(console, str(out), rows)

    return finish(result, as_json, render)
