"""The page in a real browser: what its script does, at which widths it fits, and that nothing goes wrong silently."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lfi_pipeline.evaluation.protocols import ProtocolResult, write_result
from lfi_pipeline.report import write_report

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

LISTEN = """
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => wrong.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
DRIVE = Path(__file__).with_name("drive.js").read_text(encoding="utf-8")


def opened(page: str, folder: Path, *, width: int = 1280) -> dict[str, Any]:
    """Open `page` with the two scripts added, which its policy is told of, and return what they found."""
    for script in (LISTEN, DRIVE):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page = page.replace("<title>", f"<script>{LISTEN}</script><title>", 1)
    page = page.replace("</body>", f"<script>{DRIVE}</script></body>", 1)
    file = folder / "driven.html"
    file.write_text(page, encoding="utf-8")
    assert BROWSER is not None
    ended = subprocess.run(
        [
            BROWSER,
            "--force-prefers-reduced-motion",  # its clock runs ahead of the frames of a motion
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=9000"),
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = re.search(r'data-found="([^"]*)"', ended.stdout)
    assert said is not None, ended.stderr[-2000:]
    found = json.loads(html.unescape(said.group(1)))
    assert isinstance(found, dict)
    return found | {"console": [line for line in ended.stderr.splitlines() if "CONSOLE" in line]}


@pytest.fixture
def page(tmp_path: Path, make_run: Any) -> str:
    names = [f"{what}_{part}" for what in ("map", "knn_map", "linear_map") for part in ("seen", "heldout")]
    runs = []
    for seed, objective in [(seed, objective) for seed in range(2) for objective in ("none", "embedding", "lfi")]:
        run = make_run(
            f"{objective}-{seed}", objective, seed=seed, gallery=0 if objective == "embedding" else 6, classes=True
        )
        scores = dict.fromkeys(names, 0.3 + 0.01 * seed + 0.1 * (objective == "lfi"))
        settings = {"dataset": "scenes", "split": "val", "weights": "last", "k": 20}
        write_result(
            run,
            ProtocolResult(protocol="classification", settings=settings, scores=scores, details={}, seconds=1.0),
        )
        runs.append(run)
    return write_report(runs, tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_script_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    found = opened(page, tmp_path)
    assert found["wrong"] == []
    assert found["console"] == []
    # the slider moves the map to another depth and back
    assert (found["last"]["who"], found["first"]["who"]) == ("Student, 100 %", "Student, 33 %")
    assert found["spoken"] == "33 %"
    assert found["first"]["picture"] != found["last"]["picture"]
    assert found["first"]["ring"] != found["last"]["ring"]
    assert found["again"] == found["last"]
    # arrow keys move through the words, and the map follows
    assert found["moved"] == 1
    assert found["other"]["picture"] != found["last"]["picture"]
    # failures first are in order, failures only leave out the others, mixed is neither
    assert found["worst"] == sorted(found["mixed"])
    assert found["mixed"][0] == min(found["mixed"])
    assert found["mixed"][1] == max(found["mixed"])
    assert 0 < len(found["miss"]) <= len(found["worst"])
    assert max(found["miss"]) < found["words"]
    # a run without queries shows its class maps alone
    assert found["runs"] == 3
    assert found["control"] == {"student": False, "cam": True, "named": ["✓ hit", "✓ hit", "no class"]}
    # play begins again at the first depth and goes on by itself
    assert (found["playing"], found["played"]) == ("0", "1")
    assert found["theme"] == "dark"


def test_a_phone_shows_all_without_scrolling_the_page_sideways(page: str, tmp_path: Path) -> None:
    found = opened(page, tmp_path, width=360)
    assert found["wrong"] == []
    assert found["overflow"] <= 0
    assert found["scrolled"] == [30, 60]  # a table scrolls, under its headings and its first column
    assert found["sticky"] == [pytest.approx(0, abs=1), pytest.approx(0, abs=1)]


def test_an_error_in_a_script_would_be_seen(page: str, tmp_path: Path) -> None:
    body = re.search(r"<script>(.*?)</script>\s*</body>", page, re.DOTALL)
    assert body is not None
    broken = body.group(1).replace("tools.reset();", "tools.resets();")
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (body.group(1), broken)]
    found = opened(page.replace(body.group(1), broken).replace(*digests), tmp_path)
    assert any("resets" in line for line in found["wrong"])
    assert any("resets" in line for line in found["console"])
