"""The page: self-contained, escaped, whole with pieces missing, small, legible in both themes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import OutputExistsError, OutputWriteError, RunError
from lfi_pipeline.evaluation.protocols import latest_results, write_result
from lfi_pipeline.report import write_map_gallery, write_report
from lfi_pipeline.report.groups import SLOT_COUNT
from lfi_pipeline.report.html import prose

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \"' </style> dog {{ 7*7 }}"
VOID = {"meta", "link", "img", "input", "br", "hr"}
SVG = {"path", "line", "circle", "rect"}


class Page(HTMLParser):
    """Collects addresses, handlers, ids and scripts, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.handlers += [name for name in named if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href", "formaction"):
            if name in named:
                self.addresses.append(named[name] or "")
        self.addresses += re.findall(r"url\(([^)]*)\)", named.get("style") or "")
        if "id" in named:
            self.ids.append(named["id"] or "")
        if tag == "script":
            self.scripts.append((named, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        else:
            self.text.append(data)
        if self.open and self.open[-1] == "style":
            self.addresses += re.findall(r"url\(([^)]*)\)", data) + re.findall(r"@import.*", data)


def report(out: Path, *runs: Path, **options: Any) -> tuple[str, Page]:
    text = write_report(runs, out / "report.html", **options).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def full(make_run: Any) -> list[Path]:
    runs = []
    for seed in range(3):
        runs.append(make_run(f"none-{seed}", "none", seed=seed))
        runs.append(make_run(f"embedding-{seed}", "embedding", seed=seed))
        runs.append(make_run(f"lfi-{seed}", seed=seed, gallery=12 if seed < 2 else 0))
        runs.append(make_run(f"shuffled-{seed}", maps="shuffled", seed=seed, gallery=12 if seed < 1 else 0))
    return runs


def test_nothing_leaves_the_page(tmp_path: Path, full: list[Path]) -> None:
    text, page = report(tmp_path, *full)
    assert page.addresses
    assert [a for a in page.addresses if not a.startswith(("data:", "#"))] == []
    own = text.replace("http://www.w3.org/2000/svg", "")  # the name of a vocabulary, never fetched
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", own)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket|sendBeacon)\s*\(", text)
    assert "default-src 'none'" in text


def test_every_link_has_its_target_and_ids_are_unique(tmp_path: Path, full: list[Path]) -> None:
    _, page = report(tmp_path, *full)
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)


def test_the_policy_admits_this_script_only(tmp_path: Path, full: list[Path]) -> None:
    text, page = report(tmp_path, *full)
    allowed = re.search(r"script-src 'sha256-([^']+)'", text)
    assert allowed is not None
    code = [body for attrs, body in page.scripts if attrs.get("type") != "application/json"]
    assert [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in code] == [allowed.group(1)]


def test_what_a_run_says_is_text_and_never_markup(tmp_path: Path, make_run: Any) -> None:
    def scene(number: int) -> Any:
        return np.zeros((8, 8, 3), np.uint8), EVIL, EVIL, ["dog", EVIL], [(0.5, 0.5, 0.2), None]

    dataset = {"name": EVIL, "split": EVIL, "train_samples": 1, "val_samples": 1}
    run = make_run(
        "a",
        gallery=1,
        scene=scene,
        command=EVIL,
        dataset=dataset,
        student=EVIL,
        targets=EVIL,
        teacher={"name": EVIL, "tag": EVIL},
        kind=EVIL,
        hold_out=[EVIL],
        **{EVIL: EVIL},
    )
    classified = latest_results(run).get("classification")
    assert classified is not None
    write_result(run, replace(classified, details={"map_per_domain": {EVIL: 0.5}}))
    other = make_run("b", "none", student="other", state=EVIL)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"objective": EVIL}))
    text, page = report(tmp_path, run, other, title=EVIL)
    assert len(page.scripts) == 2
    assert page.handlers == []
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "".join(page.text).count("<script>alert(1)</script>") > 5
    assert "49" not in "".join(t for t in page.text if "alert(1)" in t)
    data = next(body for attrs, body in page.scripts if attrs.get("id") == "gallery-data")
    assert json.loads(data)["samples"][0]["words"] == ["dog", EVIL]


def test_every_section_is_there(tmp_path: Path, full: list[Path]) -> None:
    text, page = report(tmp_path, *full)
    assert {"scores", "curves", "domains", "maps", "gallery", "made"} <= set(page.ids)
    assert "learning where to look" in text
    assert text.count('<article class="card"') == 12
    for label in ("none", "embedding", "lfi", "lfi · shuffled maps"):
        assert text.count(f">{label}<") >= 2
    assert "9f2c41d07be3" in text
    assert "lfi train --targets" in text


def test_a_single_run_with_nothing_else(tmp_path: Path, make_run: Any) -> None:
    run = make_run("alone", "none", scores=False, summary=False)
    text, page = report(tmp_path, run)
    assert "gallery" not in page.ids
    assert "domains" not in page.ids
    assert "lfi evaluate alone" in text
    assert "the same command starts it again" in text
    assert "lfi train --targets targets/scenes --objective none --maps teacher --seed 0" in text
    assert "one seed" in text


def test_an_empty_log(tmp_path: Path, make_run: Any) -> None:
    run = make_run("young", scores=False, summary=False)
    (run / "metrics.jsonl").write_text("")
    _, page = report(tmp_path, run)
    assert "curves" not in page.ids


def test_a_diverged_run_still_has_a_page(tmp_path: Path, make_run: Any) -> None:
    run = make_run("lost", "none")
    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines[10:]:
        if line["event"] == "train":
            line["loss"] = line["task_loss"] = float("nan")
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = report(tmp_path, run)
    assert "nan" not in re.sub(r"base64,[^\"')]+|<script.*?</script>", "", text, flags=re.DOTALL).lower()


def test_no_held_out_domain(tmp_path: Path, make_run: Any) -> None:
    runs = [make_run("a", "none", held_out=False), make_run("b", held_out=False)]
    text, _ = report(tmp_path, *runs)
    assert "Held-out domains" not in text
    assert "mAP held-out" not in text


def test_a_missing_gallery_of_lfi_names_its_command(tmp_path: Path, make_run: Any) -> None:
    text, _ = report(tmp_path, make_run("a", "none"), make_run("b"))
    assert "lfi has no gallery" in text
    assert "lfi evaluate b" in text


def test_a_gallery_without_students_shows_the_teacher(tmp_path: Path, make_run: Any) -> None:
    text, _ = report(tmp_path, make_run("a", "none", gallery=2))
    body = text.partition("</style>")[2].partition("<script>")[0]  # style and script name the roles as well
    assert 'data-role="teacher"' in body
    assert 'data-role="student"' not in body


def test_the_page_stays_small(tmp_path: Path, make_run: Any) -> None:
    def photo(number: int) -> Any:
        noise = np.random.default_rng(number).integers(0, 255, (224, 224, 3)).astype(np.uint8)
        words = [f"word{i}" for i in range(8)]
        return noise, " ".join(words), "flat", words, [(0.5, 0.5, 0.2)] * 8

    runs = [make_run(f"r{seed}", seed=seed, gallery=12, scene=photo) for seed in range(3)]
    out = write_report(runs, tmp_path / "r.html")
    assert out.stat().st_size < 5_000_000


def test_a_report_replaces_an_older_one_and_leaves_nothing_behind(tmp_path: Path, make_run: Any) -> None:
    run = make_run("a", "none")
    out = tmp_path / "deep" / "r.html"
    assert write_report([run], out) == out
    first = out.read_bytes()
    write_report([run], out)
    assert out.read_bytes() == first
    assert [p.name for p in out.parent.iterdir()] == ["r.html"]


def test_wrong_arguments_are_refused(tmp_path: Path, make_run: Any) -> None:
    with pytest.raises(RunError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(RunError, match="must be a training run"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(OutputExistsError, match="must be a file"):
        write_report([make_run("a", "none")], tmp_path)


def test_a_page_of_maps_of_ones_own_images(tmp_path: Path) -> None:
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    maps = [{"dog": np.eye(4), EVIL: np.ones((4, 4))}, {"cat": np.eye(4)}]
    out = write_map_gallery(images, maps, tmp_path / "deep" / "maps.html", title=EVIL)
    assert [path.name for path in out.parent.iterdir()] == ["maps.html"]
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert [a for a in page.addresses if not a.startswith(("data:", "#"))] == []
    assert len(page.scripts) == 2
    assert page.handlers == []
    assert text.count('<article class="card"') == 2
    body = text.partition("</style>")[2].partition("<script>")[0]
    assert 'data-role="student"' in body
    assert 'data-role="teacher"' not in body
    assert "Failures first" not in body  # nothing is counted right or wrong without masks
    with pytest.raises(OutputExistsError, match="must be a file"):
        write_map_gallery(images, maps, tmp_path)


def test_a_page_that_cannot_be_written_is_one_error(tmp_path: Path, make_run: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError, match="Cannot write"):
        write_report([make_run("a", "none")], tmp_path / "file" / "r.html")


def contrast(first: str, second: str) -> float:
    """The WCAG contrast of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_colour_reads_on_its_ground_in_both_themes(tmp_path: Path, make_run: Any) -> None:
    text, _ = report(tmp_path, make_run("a", "none"))
    blocks = re.findall(r":root[^{]*\{([^}]*--paper[^}]*)\}", text)
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})\b", block))
        inks = ["ink", "soft", "accent", "hit", "miss", *(f"s{i}" for i in range(SLOT_COUNT))]
        for ink in inks:
            for ground in ("card", "paper"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground, colours[ink])


def test_prose_sets_commands_as_code_and_escapes_the_rest() -> None:
    assert prose("a <b> `lfi <x>`") == "a &lt;b&gt; <code>lfi &lt;x&gt;</code>"
    assert prose("one ` tick <i>") == "one ` tick &lt;i&gt;"
