"""The functions of `import lfi_pipeline as lfi`: each is what the command of the same name runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lfi_pipeline.core import extras
from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.options import build, declared

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from lfi_pipeline.data.readers.webdataset import Pairs
    from lfi_pipeline.evaluation.protocols import ProtocolResult
    from lfi_pipeline.exporting.predict import Prediction
    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.training.dataset import TargetSample

IMAGES = "images"
"""Suffix of the folder beside a cache that holds the images of a torch data set."""


@extras()
def make_scenes(out: str | Path, **settings: Any) -> Path:
    """Render the embedded data set `scenes` in COCO's layout: captioned pictures of 64 emoji categories, exact masks.

    Example:
        >>> import lfi_pipeline as lfi
        >>> lfi.make_scenes("data/scenes", train=400, val=100)                     # doctest: +SKIP
        PosixPath('data/scenes')

    Args:
        out: directory to make, or to finish.
        settings: by the names of the options of `lfi make-scenes`: `train`, `val` (numbers of scenes), `domains`,
            `held_out`, `size` (pixels a side), `seed`.

    Returns:
        `out`.

    Raises:
        ConfigError, UnknownNameError: a setting that does not exist or cannot be.
        OutputExistsError: `out` holds something else.
    """
    from lfi_pipeline.data.config import ScenesConfig
    from lfi_pipeline.data.scenes import write_scenes

    write_scenes(Path(out), build(ScenesConfig, settings))
    return Path(out)


@extras()
def extract(
    dataset: str | Path | Pairs,
    *,
    out: str | Path,
    data_root: str | Path | None = None,
    teacher: str | nn.Module = "",
    extend: bool = False,
    overwrite: bool = False,
    retry_quarantined: bool = False,
    **settings: Any,
) -> TargetStore:
    """Run the teacher once over a data set and write its interaction maps to the cache `out`, or finish one.

    Killed at any moment, the same call finishes the work, and the cache has the bytes that it would have had.

    Example:
        >>> import lfi_pipeline as lfi
        >>> store = lfi.extract("scenes", data_root="data/scenes", out="shards")   # doctest: +SKIP
        >>> store.summary().samples                                                # doctest: +SKIP
        4000

    Args:
        dataset: a folder of images, name of a data set (`lfi datasets` lists them) or path of a manifest; or a torch
            `Dataset` whose items are (image, caption). Its images are then written to `OUT.images`, since training
            reads them again.
        out: directory of the cache.
        data_root: where the files of the data set lie; left out: data/DATASET, or the folder that `dataset` is.
        teacher: name, as `lfi teachers` lists them; or a module of your own with three methods
            (`lfi_pipeline.teachers.TeacherModule`). Left out: the one that suits the data set.
        extend: `out` may hold a cache of fewer images, layers, views or words, whose rows are taken over.
        overwrite: `out` may hold any cache, which stands until the new one is complete.
        retry_quarantined: make shards anew in which an image that could not be read can be read by now.
        settings: others, by the names of the options of `lfi extract-teacher`, such as `split="val"`,
            `kind="contrastive"`, `words=8` or `device="cuda:0"`.

    Returns:
        The cache, opened for reading.

    Raises:
        LFIError: an unknown name or setting, a data root that does not fit, a data set of which no image can be read,
            an `out` that holds something else, or a setting that differs from the one `out` was begun with.
    """
    from lfi_pipeline.targets import TargetStore
    from lfi_pipeline.teachers.config import ExtractConfig
    from lfi_pipeline.teachers.extract import extract as run

    folder = Path(out)
    if not isinstance(dataset, str | Path):
        from lfi_pipeline.data.readers.webdataset import write_pairs

        if data_root is not None:
            raise ConfigError(
                "data_root must be left out for a torch data set: its images are written beside the cache."
            )
        data_root = folder.with_name(f"{folder.name}.{IMAGES}")
        write_pairs(dataset, data_root)
        dataset = "webdataset"
    module, name = (None, teacher) if isinstance(teacher, str) else (teacher, "")
    config = build(ExtractConfig, {"dataset": str(dataset), "data_root": data_root, "teacher": name, **settings})
    run(config, folder, extend=extend, overwrite=overwrite, retry_quarantined=retry_quarantined, module=module)
    return TargetStore.open(folder)


@extras()
def train(
    targets: str | Path,
    *,
    student: str = "vit_tiny_patch16_224",
    out: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a student against a cache, or go on where a run was stopped. The teacher is not loaded.

    Example:
        >>> import lfi_pipeline as lfi
        >>> summary = lfi.train("shards", student="resnet10t", head="queries", out="runs/a")   # doctest: +SKIP
        >>> summary["map"]                                                                     # doctest: +SKIP
        0.62

    Args:
        targets: directory of a cache.
        student: name of a timm model.
        out: directory of the run; left out: runs/NAME, of student, objective and seed.
        settings: others, by the names of the options of `lfi train`, such as `head="queries"`, `objective="lfi"`,
            `epochs=30`, `lr=1e-3`, `workers=4` or `device="cuda"`.

    Returns:
        The run's summary: `out`, steps, seconds, parameters and final scores.

    Raises:
        LFIError: a cache that cannot serve, an unknown name or setting, settings that contradict each other, an `out`
            that holds something else.
        RunError: a loss became NaN or exploded; the run has written down the batch.
    """
    from lfi_pipeline import training
    from lfi_pipeline.core.hub import in_full
    from lfi_pipeline.training.config import RuntimeConfig, TrainConfig
    from lfi_pipeline.training.run_dir import run_name

    of_runtime = {name: settings.pop(name) for name in list(settings) if name in declared(RuntimeConfig)}
    config = build(
        TrainConfig,
        {"targets": in_full(targets), "student": student, **settings},
    )
    folder = Path("runs") / run_name(config) if out is None else Path(out)
    (summary,) = training.train([(config, folder)], build(RuntimeConfig, of_runtime))
    return {"out": str(folder), **summary}


@extras()
def evaluate(
    runs: str | Path | Sequence[str | Path],
    *,
    targets: str | Path | None = None,
    protocols: Sequence[str] = (),
    **settings: Any,
) -> Mapping[Path, Mapping[str, ProtocolResult]]:
    """Score finished runs by one protocol or several, and keep the results in the runs.

    Example:
        >>> import lfi_pipeline as lfi
        >>> results = lfi.evaluate("runs/a", targets="shards-val")             # doctest: +SKIP
        >>> results[Path("runs/a")]["classification"].scores["map"]            # doctest: +SKIP
        0.62

    Args:
        runs: directory of a run, or several.
        targets: a cache by the runs' teacher, of the split that is scored; `grounding` and `zero-shot` need it.
        protocols: of `classification`, `worst-group`, `cross-domain`, `zero-shot`, `grounding`, `detection`,
            `convergence`; left out: classification, and grounding where words of the targets have masks.
        settings: others, by the names of the options of `lfi evaluate`, such as `weights="best"` or `probes=False`.

    Returns:
        Run -> protocol -> result.

    Raises:
        LFIError: no run, an unknown protocol or setting, or as a protocol raises; what was finished is kept.
    """
    from lfi_pipeline.evaluation import evaluate_runs
    from lfi_pipeline.evaluation.config import evaluation_configs
    from lfi_pipeline.evaluation.protocols import default_protocols

    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    cache = None if targets is None else Path(targets)
    options = settings if cache is None else {"targets": cache, **settings}
    names = tuple(protocols) or default_protocols(cache, settings.get("data_root"))
    common, configs = evaluation_configs(names, options, ignored=() if protocols else ("targets",))
    return evaluate_runs(folders, configs, common)


@extras()
def export(run: str | Path, out: str | Path, *, weights: str | None = None, onnx: bool = False) -> dict[str, Any]:
    """Write the student of a run to a new directory: plain timm backbone, whole model with its head, model card.

    `timm.create_model("local-dir:OUT", pretrained=True)` loads the backbone with timm alone, `lfi_pipeline.load(OUT)`
    the whole model. Both are loaded and compared with the student before the directory is put in its place.

    Example:
        >>> import lfi_pipeline as lfi
        >>> lfi.export("runs/a", "exported")["check"]["features"]              # doctest: +SKIP
        0.0

    Args:
        run: directory of a run.
        out: directory to make; it must be absent or empty.
        weights: `last` or `best`; left out: the best where the run has one.
        onnx: write an ONNX file too (extra `onnx`).

    Returns:
        What was written, and how far it is from the trained student.

    Raises:
        OutputExistsError: `out` holds something already.
        ExportError: what was exported is not the trained student.
        LFIError: `run` is not a run, or cannot be read.
    """
    from lfi_pipeline.exporting import export_run

    return export_run(Path(run), Path(out), weights=weights, onnx=onnx)


@extras()
def show(sample: TargetSample | Prediction, *, words: Sequence[str] | None = None) -> Image.Image:
    """Draw an image with the maps of its words, a row a word and a column a layer; a notebook shows the picture.

    Example:
        >>> import lfi_pipeline as lfi
        >>> lfi.show(lfi.TargetDataset("shards")[0]).save("sample.png")        # doctest: +SKIP

    Args:
        sample: of a `TargetDataset`, or what `Model.predict` returned.
        words: which of them; left out: all that have a map.

    Raises:
        ConfigError: a word that has no map here, or none has one.
    """
    from PIL import Image

    from lfi_pipeline.exporting.predict import Prediction, draw
    from lfi_pipeline.report.overlay import MapColumn, contact_sheet

    if isinstance(sample, Prediction):
        if sample.image is None:
            raise ConfigError(f"A prediction must have an image to be shown, got an unreadable one: {sample.error}")
        answers = sample.answers if words is None else tuple(each for each in sample.answers if each.name in words)
        return draw(replace(sample, answers=answers))
    shown = list(sample.maps) if words is None else list(words)
    missing = [word for word in shown if word not in sample.maps]
    if missing or not shown:
        raise ConfigError(
            f"words must have a map in sample {sample.key} ({', '.join(sample.maps) or 'none has'}), got "
            f"{', '.join(missing) or 'none'}."
        )
    image = Image.fromarray(sample.image.numpy().transpose(1, 2, 0))
    layers = len(sample.maps[shown[0]])
    columns = [
        MapColumn(
            title=(f"layer {layer + 1} of {layers}",),
            image=image,
            maps=np.stack([sample.maps[word][layer].numpy() for word in shown]),
        )
        for layer in range(layers)
    ]
    return contact_sheet(image, sample.key, [f"words: {', '.join(sample.words)}"], shown, columns)
