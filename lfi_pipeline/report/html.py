"""Self-contained HTML pages: the report of a set of runs, and a gallery of maps. They load nothing from elsewhere."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from PIL import Image

from lfi_pipeline import __version__
from lfi_pipeline.core.errors import OutputExistsError, RunError
from lfi_pipeline.report.compare import Row, compare_groups
from lfi_pipeline.report.figures import domain_bars, leaderboard, learning_curves, loss_charts, map_charts
from lfi_pipeline.report.gallery import build_gallery, map_gallery
from lfi_pipeline.report.groups import commands_for_missing, gather
from lfi_pipeline.report.runs import Run, load_run
from lfi_pipeline.report.table import training_table
from lfi_pipeline.report.text import (
    cell_text,
    cost_table,
    gap_text,
    heading,
    legend,
    millions,
    number,
    p_texts,
    points,
    settings_text,
    write_text,
)
from lfi_pipeline.report.verdict import conclude

_DARK_GOES_HERE = "/* repeated by the page for prefers-color-scheme: dark */"
_VERSIONED = ("torch", "timm", "numpy")


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None, primary: Sequence[str] = ()) -> Path:
    """Write the report of `runs` to the one file `out`, replacing an older report there.

    Args:
        runs: run directories; those that differ only in their seed are averaged.
        out: the HTML file; missing parents are made.
        title: the small line above the headline; names the data set where None.
        primary: measures that were named beforehand, and alone are tested; as of `compare.compare`.

    Returns:
        `out`.

    Raises:
        RunError: no runs, or a directory that is not a readable run.
        UnknownNameError: no such measure.
        OutputExistsError: `out` is a directory.
        OutputWriteError: `out` cannot be written.
    """
    if not runs:
        raise RunError("A report needs at least one run directory, got none.")
    out = _file_to_write(out)
    write_text(out, render([load_run(Path(run)) for run in runs], title=title, primary=primary))
    return out


def write_map_gallery(
    images: Sequence[npt.NDArray[np.uint8] | Image.Image],
    maps: Sequence[Mapping[str, npt.ArrayLike]],
    out: Path,
    *,
    captions: Sequence[str] | None = None,
    depths: Sequence[float] = (),
    title: str = "Where the student looks",
) -> Path:
    """Write a student's maps of your own images, which need no masks, to the self-contained HTML page `out`.

    Example:
        >>> write_map_gallery([pixels], [{"dog": maps_of_dog}], Path("maps.html"))  # doctest: +SKIP

    Args:
        images: uint8 [H, W, 3], or images of Pillow.
        maps: for each image, word -> map [gh, gw], or [T, gh, gw] with a map a tap; values of at least 0, of any scale.
        out: the HTML file, replaced where it is there; missing parents are made.
        captions: of the images; by default the words, joined.
        depths: of the T taps in the student, in [0, 1], for the slider.
        title: of the page.

    Returns:
        `out`.

    Raises:
        ConfigError: not one entry an image, an image without a map, or maps of one image that differ in shape.
        OutputExistsError: `out` is a directory.
        OutputWriteError: `out` cannot be written.
    """
    out = _file_to_write(out)
    gallery = map_gallery(images, maps, captions=captions, depths=depths)
    template = _environment().get_template("maps.html.jinja")
    write_text(out, template.render(title=title, gallery=gallery, version=__version__, **_page_assets()))
    return out


def _file_to_write(out: Path) -> Path:
    if Path(out).is_dir():
        raise OutputExistsError(f"{out} must be a file to write, got a directory. Give a name ending in .html.")
    return Path(out)


def _page_assets() -> dict[str, str]:
    """Stylesheet, script, and the digest by which the page's policy admits that script alone."""
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(_stylesheet()), "script": Markup(script), "script_digest": digest}


def render(runs: Sequence[Run], *, title: str | None = None, primary: Sequence[str] = ()) -> str:
    """Return the report of `runs` as a string; arguments and errors as `write_report`."""
    groups, notes = gather(runs)
    table = training_table(groups)
    verdict = conclude(groups, table)
    gallery = build_gallery(groups)
    comparison = compare_groups(groups, primary=primary)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=title or f"{_datasets(runs)}: learning where to look",
            verdict=verdict,
            facts=_facts(runs),
            notes=[*notes, *verdict.notes],
            groups=groups,
            columns=leaderboard(groups, table),
            comparison=comparison,
            legend=legend(comparison),
            costs=cost_table(comparison.costs),
            curves=learning_curves(groups, verdict.crossing),
            losses=loss_charts(groups),
            domains=domain_bars(groups, table),
            maps=map_charts(groups, table),
            gallery=gallery,
            missing=commands_for_missing(groups),
            configs=_configs(runs),
            runs=runs,
            versions={"lfi-pipeline": __version__} | _versions(),
            **_page_assets(),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "millions": millions, "prose": prose, "has_rival": _has_rival}
    texts = (gap_text, heading, number, p_texts, settings_text, cell_text)
    environment.filters |= {text.__name__: text for text in texts}
    return environment


def _asset(name: str) -> str:
    return (resources.files("lfi_pipeline.report") / "templates" / name).read_text(encoding="utf-8")


def prose(text: str) -> Markup:
    """Escape a sentence and set what stands between backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick is only a character
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _has_rival(row: Row) -> bool:
    """Whether another control than the row's own is the best in some measure."""
    return any(cell.best is not None and cell.best.control != row.control for cell in row.cells)


def _stylesheet() -> str:
    """The stylesheet, its dark colours repeated for readers whose system is dark and who chose nothing."""
    style = _asset("style.css")
    start = style.index(':root[data-theme="dark"] {')
    dark = style[start : style.index("}", start) + 1].replace('[data-theme="dark"]', ':not([data-theme="light"])')
    return style.replace(_DARK_GOES_HERE, f"@media (prefers-color-scheme: dark) {{ {dark} }}")


def _versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _some(values: Sequence[str]) -> str:
    """The distinct values, in the order of their first appearance."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def _datasets(runs: Sequence[Run]) -> str:
    return _some([run.config.dataset for run in runs])


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    configs = [run.config for run in runs]
    kept = [
        ("Data", _some([f"{c.dataset} {c.split}".strip() for c in configs])),
        ("Samples", _some([f"{c.train_samples:,} train, {c.val_samples:,} validation" for c in configs])),
        ("Held out", _some(["+".join(c.hold_out) for c in configs])),
        ("Teacher", _some([c.teacher for c in configs])),
        ("Maps", _some([c.kind for c in configs])),
        ("Student", _some([c.student for c in configs])),
        (
            "Runs",
            f"{len(runs)} ({len({c.seed for c in configs})} seeds)" if len(runs) > 1 else f"1 (seed {configs[0].seed})",
        ),
        ("Targets", _some([c.fingerprint[:12] for c in configs])),
    ]
    return [(name, value) for name, value in kept if value]


def _configs(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """(field, its value in each run, whether the runs differ) for every field of every config."""
    flat = [_flatten(run.config.raw) for run in runs]
    names = dict.fromkeys(name for table in flat for name in table)
    rows = []
    for name in names:
        values = [table.get(name, "") for table in flat]
        rows.append((name, values, len(set(values)) > 1))
    return rows


def _flatten(values: Any, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
