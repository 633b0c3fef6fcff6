"""lfi inspect"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, facts, finish, percent


@command
def inspect(
    targets: Annotated[Path, typer.Argument(help="A cache made by lfi extract-teacher.")],
    pointing: Annotated[
        bool, typer.Option("--pointing", help="Score the maps against the data set's instance masks.")
    ] = False,
    data_root: Annotated[Path | None, typer.Option(help="Where the images lie, if they moved.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Show what a cache holds: teacher, kind of map, counts, bytes, quarantined images.

    Example: lfi inspect shards/ --pointing
    """
    from lfi_pipeline.targets import TargetStore

    store = TargetStore.open(targets, data_root=data_root)
    spec, summary = store.spec, store.summary()
    quarantined = {store.index.keys[i]: reason for i, reason in enumerate(store.index.reasons) if reason is not None}
    result: Result = {
        "spec": spec.to_plain(),
        "fingerprint": spec.fingerprint,
        "summary": asdict(summary),
        "vocabulary": len(store.vocabulary.words),
        "quarantined": quarantined,
    }
    if pointing:
        from lfi_pipeline.data import read_dataset
        from lfi_pipeline.evaluation import grounded_words, teacher_grounding

        dataset = read_dataset(spec.dataset.name, store.source_root, spec.dataset.split)
        scores = teacher_grounding(store, grounded_words(store, dataset))
        result["pointing"] = [
            {"layer": layer.name} | asdict(score) for layer, score in zip(spec.layers, scores, strict=True)
        ]

    def render(console: Console) -> None:
        facts(
            console,
            str(targets),
            [
                ("data set", f"{spec.dataset.name}, {spec.dataset.split}"),
                ("teacher", f"{spec.teacher.name}:{spec.teacher.tag}"),
                (
                    "maps",
                    f"{spec.kind}, {spec.row} rows, {len(spec.layers)} layer(s), grid {spec.grid}, views {spec.views}",
                ),
                ("samples", f"{summary.samples}, {summary.quarantined} quarantined"),
                (
                    "words",
                    f"{len(store.vocabulary.words)} in the vocabulary, at most {spec.words_per_sample} an image",
                ),
                ("bytes an image", f"{summary.bytes_per_sample:,.0f}"),
                ("codec, mean KL", f"{summary.codec_kl:.2e} nats"),
                ("fingerprint", spec.fingerprint),
                *((f"quarantined {key}", reason) for key, reason in quarantined.items()),
                *(
                    (
                        f"pointing, {row['layer']}",
                        f"peak in mask {percent(row['pointing'])}, mass in mask {percent(row['mass_in_mask'])} "
                        f"(chance {percent(row['area'])}; {row['count']} words of images with two or more classes)",
                    )
                    for row in result.get("pointing", [])
                ),
            ],
        )

    return finish(result, as_json, render)
