"""Teach a small vision model how a large vision-language model looks at images, from targets cached once.

    import lfi_pipeline as lfi

    lfi.extract("scenes", data_root="data/scenes", out="shards")       # stage one, once: or a torch Dataset of (image, caption)
    targets = lfi.TargetDataset("shards", image_size=224)              # image, words, maps, label, key
    targets[0].maps["dog"]                                             # fp32 [layers, 14, 14]; each layer sums to 1
    lfi.show(targets[0])                                               # a picture in a notebook

    distiller = lfi.Distiller("resnet18", targets)                     # an nn.Module: any timm model or your own
    for batch in targets.loader(64, workers=4):
        loss = distiller(batch)                                        # your own loop from here
        loss.backward()
    distiller.backbone                                                 # a plain timm model again

    lfi.train("shards", student="vit_small_patch16_224", out="runs/a") # or ours: resume, schedules, logs, checkpoints
    lfi.evaluate("runs/a", targets="shards-val")
    lfi.export("runs/a", "exported")
    lfi.load("exported").predict("photo.jpg").answers[0]               # a name, its score, and a map of where it looked

    lfi.distil("photos", student="resnet18", out="distilled")          # all of it, from a folder of your own images

Every function takes further settings by the names of the options of its command. Errors are
`lfi.LFIError`: each says what must hold, what was found and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.api import evaluate, export, extract, make_scenes, show, train
    from lfi_pipeline.core.errors import LFIError
    from lfi_pipeline.distiller import Distiller
    from lfi_pipeline.exporting.model import Model, load
    from lfi_pipeline.recipes.distil import distil
    from lfi_pipeline.training.data import Batch
    from lfi_pipeline.training.dataset import TargetDataset, TargetSample

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Distiller",
    "LFIError",
    "Model",
    "TargetDataset",
    "TargetSample",
    "distil",
    "evaluate",
    "export",
    "extract",
    "load",
    "make_scenes",
    "show",
    "train",
]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "api": ["evaluate", "export", "extract", "make_scenes", "show", "train"],
            "core.errors": ["LFIError"],
            "distiller": ["Distiller"],
            "exporting.model": ["Model", "load"],
            "recipes.distil": ["distil"],
            "training.data": ["Batch"],
            "training.dataset": ["TargetDataset", "TargetSample"],
        },
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
