"""lfi datasets"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lfi_cli.output import JsonFlag, Result, command, facts, finish

if TYPE_CHECKING:
    from lfi_pipeline.data import Manifest


@command
def datasets(
    name: Annotated[
        str, typer.Argument(help="A data set, or the path of your own .toml manifest; empty lists all.")
    ] = "",
    data_root: Annotated[Path | None, typer.Option(help="Read the data set's files there and count.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """List the data sets that can be read: what each needs on disk and how to obtain it. Nothing is downloaded.

    Example: lfi datasets pacs --data-root data/PACS
    """
    from lfi_pipeline.core.errors import ConfigError
    from lfi_pipeline.data import load_manifest, manifest_names

    if name:
        return _sheet(load_manifest(name, data_root), name, data_root, as_json)
    if data_root is not None:
        raise ConfigError("--data-root needs the name of a data set: lfi datasets NAME --data-root DIR.")
    manifests = [load_manifest(each) for each in manifest_names()]

    def render(console: Console) -> None:
        for each in map(_described, manifests):
            rows = [(field, ", ".join(each[field])) for field in ("splits", "needs")]
            facts(console, f"{each['name']} – {each['title']}", [*rows, *((f, each[f]) for f in ("license", "obtain"))])
        console.print("One sheet, and a check of your files: lfi datasets NAME --data-root DIR", markup=False)

    return finish({"datasets": [_described(manifest) for manifest in manifests]}, as_json, render)


def _sheet(manifest: Manifest, name: str, data_root: Path | None, as_json: bool) -> Result:
    from lfi_pipeline.core.errors import DatasetError

    result: Result = _described(manifest)
    if data_root is not None:
        result["data_root"] = str(data_root)
        result["found"] = {split: _counted(name, data_root, split) for split in manifest.splits}
        if not any("samples" in counts for counts in result["found"].values()):
            first = next(iter(result["found"].values()))
            raise DatasetError(str(first["error"]))

    def render(console: Console) -> None:
        rows = [(field, result[field]) for field in ("title", "license", "homepage", "obtain", "teacher", "layout")]
        rows += [("prompt", prompt) for prompt in result["prompts"]]
        rows += [("needs", line) for line in result["needs"]]
        rows += [("split", split) for split in result["splits"] if data_root is None]
        for split, found in result.get("found", {}).items():
            told = ", ".join(f"{value} {what}" for what, value in found.items() if what not in ("domains", "error"))
            domains = ", ".join(f"{domain} {count}" for domain, count in found.get("domains", {}).items())
            rows.append((f"split {split}", found.get("error") or f"{told}{f' ({domains})' if domains else ''}"))
        facts(console, manifest.name, rows)

    return finish(result, as_json, render)


def _described(manifest: Manifest) -> Result:
    from lfi_pipeline.data import expected_tree

    return {
        "name": manifest.name,
        "title": manifest.title,
        "license": manifest.license,
        "homepage": manifest.homepage,
        "obtain": manifest.obtain,
        "teacher": manifest.teacher,
        "layout": manifest.layout,
        "prompts": list(manifest.prompts),
        "splits": list(manifest.splits),
        "needs": list(expected_tree(manifest)),
    }


def _counted(name: str, data_root: Path, split: str) -> Result:
    """Count what one split holds, or say why it cannot be read."""
    from lfi_pipeline.core.errors import DatasetError
    from lfi_pipeline.data import read_dataset, summarize

    try:
        return summarize(read_dataset(name, data_root, split))
    except DatasetError as error:
        return {"error": str(error)}
