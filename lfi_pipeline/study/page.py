"""The page that raters get: one self-contained HTML file that does not tell whose a map is."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from lfi_pipeline.report.gallery import encode_image, quantise, still


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PageItem:
    """What a rater sees of one item.

    Attributes:
        word: shown above the maps.
        image: index into the page's images.
        x: map fp32 [gh, gw] that sums to 1.
        y: the other one; the grids may differ.
        repeated: show it a second time with sides swapped.
    """

    word: str
    image: int
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    repeated: bool


def render(images: Sequence[npt.NDArray[np.uint8]], items: Sequence[PageItem]) -> tuple[str, str, list[str]]:
    """Return the page, the study's id (a digest of all that is shown) and the items' ids, in their order.

    Maps are drawn as the report's gallery draws them, both by the same rule: relative to their own peak.

    Args:
        images: uint8 [H, W, 3] each.
        items: what is asked; ids depend on content and place alone.
    """
    shown = [
        {"word": item.word, "image": item.image, "x": still(quantise(item.x)), "y": still(quantise(item.y))}
        for item in items
    ]
    pictures = [{"source": encode_image(pixels), "aspect": pixels.shape[1] / pixels.shape[0]} for pixels in images]
    digest = hashlib.sha256(repr((shown, pictures, [item.repeated for item in items])).encode()).hexdigest()
    names = [hashlib.sha256(f"{digest}:{number}".encode()).hexdigest()[:10] for number in range(len(items))]
    study: dict[str, Any] = {
        "id": digest[:12],
        "images": pictures,
        "items": [{"id": name} | each for name, each in zip(names, shown, strict=True)],
        "repeats": [name for name, item in zip(names, items, strict=True) if item.repeated],
    }
    script = _asset("study.js")
    page = (
        jinja2.Environment(
            loader=jinja2.FunctionLoader(_asset),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        .get_template("study.html.jinja")
        .render(
            study=study,
            showings=len(items) + len(study["repeats"]),
            style=Markup(_asset("study.css")),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    return page, study["id"], names


def _asset(name: str) -> str:
    return (resources.files("lfi_pipeline.study") / "templates" / name).read_text(encoding="utf-8")
