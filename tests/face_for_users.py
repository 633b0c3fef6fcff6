"""What users write against `lfi_pipeline`, for mypy: the block of its docstring, with the types that come out."""

from __future__ import annotations

from typing import assert_type

import torch
from PIL import Image
from torch import Tensor, nn

import lfi_pipeline as lfi


def quickstart() -> None:
    lfi.extract("scenes", data_root="data/scenes", out="shards")
    targets = lfi.TargetDataset("shards", image_size=224)
    assert_type(targets[0], lfi.TargetSample)
    assert_type(targets[0].maps["dog"], Tensor)
    assert_type(lfi.show(targets[0]), Image.Image)
    distiller = lfi.Distiller("resnet18", targets)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    for batch in targets.loader(64, workers=4):
        assert_type(batch, lfi.Batch)
        loss: Tensor = distiller(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # as torch has it
        optimizer.step()
    assert_type(distiller.backbone, nn.Module)
    lfi.train(targets="shards", student="vit_small_patch16_224", out="runs/a")
    lfi.evaluate("runs/a", targets="shards-val")
    lfi.export("runs/a", "exported")
    answer = lfi.load("exported").predict("photo.jpg").answers[0]
    assert_type(answer.name, str)
    assert_type(answer.score, float)
