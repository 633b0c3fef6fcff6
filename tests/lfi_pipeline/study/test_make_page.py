"""The page in a real browser: what a rater does with keys and clicks, and that scoring undoes the shuffling."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from lfi_pipeline.study import score_study
from lfi_pipeline.study.answers import key_path, write_key
from lfi_pipeline.study.make import PageItem, render
from tests.lfi_pipeline.study.browser import BROWSER, PATIENCE, Page
from tests.lfi_pipeline.study.conftest import key_of

ITEMS, REPEATED = 10, 3
SHOWINGS = ITEMS + REPEATED

# the side whose map is the brighter one in its first corner, where run A's maps have their peak
BRIGHTER = """(async () => {
  const level = async (side) => {
    const map = document.querySelector(`[data-answer="${side}"] .heat`);
    await map.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: 4, height: 4 });
    const context = canvas.getContext("2d");
    context.drawImage(map, 0, 0, 4, 4);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
    return red + green + blue;
  };
  return await level("left") > await level("right") ? "ArrowLeft" : "ArrowRight";
})()"""
COUNT = "document.querySelector('#count').textContent"
SHOWN = "[...document.querySelectorAll('main')].filter((each) => !each.hidden).map((each) => each.id).join()"


def _map(cell: int) -> npt.NDArray[np.float32]:
    grid = np.full(16, 0.01, np.float32)
    grid[cell] = 0.85
    return grid.reshape(4, 4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of ten pairs; run A's maps peak in the first corner, B's in the last. Read only."""
    maps = {"a": _map(0), "b": _map(15)}
    key = key_of(ITEMS, repeated=REPEATED)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    items = [
        PageItem(word="</script><b>cat & 'dog'", image=0, x=maps[i.x], y=maps[i.y], repeated=i.repeated)
        for i in key.items
    ]
    page, study, names = render([pixels], items)
    renamed = tuple(replace(item, id=name) for item, name in zip(key.items, names, strict=True))
    path = tmp_path_factory.mktemp("study") / "study.html"
    path.write_text(page, encoding="utf-8")
    write_key(key_path(path), replace(key, study=study, items=renamed))
    return path


def test_the_page_asks_for_nothing(study: Path) -> None:
    text = study.read_text(encoding="utf-8")
    for trace in ("http:", "https:", "//cdn", "runs/none", "runs/lfi", "'self'", "s0", "s9", '"domain'):
        assert trace not in text
    assert "default-src 'none'" in text


def test_ids_depend_on_content() -> None:
    def made(cell: int) -> tuple[str, str, list[str]]:
        item = PageItem(word="cat", image=0, x=_map(cell), y=_map(1), repeated=False)
        return render([np.zeros((8, 8, 3), np.uint8)], [item, item])

    assert made(0) == made(0)
    assert made(0)[1] != made(2)[1]
    assert len(set(made(0)[2] + made(2)[2])) == 4


def _begin(page: Page, rater: str) -> None:
    assert page.run(SHOWN) == "intro"
    page.tap("#rater")
    page.send("Input.insertText", text=rater)
    page.tap("form button")
    assert page.run(SHOWN) == "trial"


def _look() -> None:
    time.sleep(0.22)  # the page takes no answer sooner


def _saved(page: Page, folder: Path) -> Path:
    assert page.run(SHOWN) == "end"
    before = set(folder.glob("*.json"))
    page.tap(".save")
    until = time.monotonic() + PATIENCE
    while not (found := set(folder.glob("*.json")) - before):
        assert time.monotonic() < until, "nothing was downloaded"
        time.sleep(0.05)
    return found.pop()


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")
def test_two_raters_in_a_browser(study: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with Page(tmp_path / "profile") as page:
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        page.open(study)
        _begin(page, "ann")
        for number in range(SHOWINGS):
            assert page.run(COUNT) == f"{number + 1} of {SHOWINGS}"
            wanted = page.run(BRIGHTER)
            page.press(wanted)  # at once: the second half of a double tap
            assert page.run(COUNT) == f"{number + 1} of {SHOWINGS}"
            _look()
            page.press(wanted)
            if number == 4:  # answers outlive a reload; undo takes back one
                page.reload()
                assert page.run(COUNT) == f"6 of {SHOWINGS}"
                page.press("Backspace")
                assert page.run(COUNT) == f"5 of {SHOWINGS}"
                wanted = page.run(BRIGHTER)
                _look()
                page.press(wanted)
        ann = _saved(page, downloads)
        assert json.loads(page.run("document.querySelector('#answers').value"))["rater"] == "ann"

        page.run("confirm = () => true")
        page.tap(".next")
        _begin(page, "Zoë  B.")
        sides = ["left"] * (SHOWINGS - 1) + ["none"]
        for side in sides:
            _look()
            page.tap(f'[data-answer="{side}"]')
        zoe = _saved(page, downloads)

        assert page.run("document.querySelector('b')") is None  # the word is text
        asked = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
        assert all(address.startswith(("file:", "data:", "blob:")) for address in asked)
        assert not [e for e in page.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]

    alone = score_study([ann], key_path(study))
    assert alone.preference.share == 1  # whatever the side
    assert (alone.preference.a, alone.repeats.count, alone.repeats.same) == (ITEMS, REPEATED, REPEATED)
    assert 0.2 < (alone.raters[0].left or 0) < 0.8
    assert alone.raters[0].unanswered == 0
    assert 0.2 <= alone.raters[0].seconds < PATIENCE
    both = score_study([ann, zoe], key_path(study))
    second = both.raters[1]
    assert second.rater == "Zoë B."
    assert second.left == 1
    assert second.unanswered == 0
    assert second.repeats.same == 0
    assert 0 < second.preference.a < ITEMS  # which side A's map is on has nothing to do with the page's order
    orders = [[a["item"] for a in json.loads(path.read_text())["answers"]] for path in (ann, zoe)]
    assert orders[0] != orders[1]
