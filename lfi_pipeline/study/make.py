"""Make a study: choose images and words, draw both runs' maps of them, write the page and, apart from it, the key."""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from lfi_pipeline.core.errors import ConfigError, ImageReadError, OutputExistsError, OutputWriteError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.data import Dataset, read_dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.report.gallery import encode_image, quantise, still
from lfi_pipeline.study.answers import (
    CATCH,
    INTERACTION,
    RUNS,
    KeyItem,
    StudyConfig,
    StudyKey,
    key_path,
    read_key,
    write_key,
)
from lfi_pipeline.study.items import Map, NamedWord, choose_kind, evenly, named_words, teacher_map, word_maps
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.learner import LoadedRun, load_run


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
        items: in the page's order; their ids depend on content and place alone.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Where a study was written, and what is in it.

    Attributes:
        page: for the raters.
        key: not for the raters.
        id: of the study.
        maps: `interaction` or `gradcam`.
        items: pairs.
        repeated: pairs that are shown twice.
        catch: catch trials.
        domains: pairs by visual domain.
        passed_over: why words were not taken: "a" or "b", that run has no map of them; "image", it cannot be read.
    """

    page: Path
    key: Path
    id: str
    maps: str
    items: int
    repeated: int
    catch: int
    domains: dict[str, int]
    passed_over: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pair:
    word: NamedWord
    image: npt.NDArray[np.uint8]
    a: Map
    b: Map


def make_study(run_a: Path, run_b: Path, out: Path, config: StudyConfig) -> Study:
    """Write the page `out` and its key beside it (`study-key.json` for `study.html`).

    The same arguments give the same page and the same key.

    Args:
        run_a: run A.
        run_b: run B; of the same data set, whatever its student and objective.
        out: the HTML file.
        config: the rest.

    Raises:
        RunError, TargetsError, DatasetError: a run, the cache or the data set is not there, or holds no named words.
        ConfigError: the runs or the cache do not belong together, a run lacks maps of the kind, or there are too few
            words.
        OutputExistsError: `out` is a directory, or its key is that of another study, whose answers would be lost.
        OutputWriteError: page or key cannot be written.
    """
    if out.is_dir():
        raise OutputExistsError(f"{out} must be a file to write, got a directory. Give a name ending in .html.")
    runs = [
        load_run(run, device=config.device, weights=config.weights, data_root=config.data_root)
        for run in (run_a, run_b)
    ]
    store = TargetStore.open(config.targets, data_root=config.data_root or runs[0].store.source_root)
    kind = choose_kind(config.maps, runs)
    for run in runs:
        _require_fit(run, store, kind)
    dataset = read_dataset(store.source, store.source_root, store.spec.dataset.split)
    pairs, passed_over = _pairs(runs, store, dataset, kind, config)
    draws = random.Random(f"{config.seed}:sides")  # a stream beside that of the words
    again = set(draws.sample(range(len(pairs)), round(config.repeat * len(pairs))))
    entries = [
        _entry(pair.word, number, (pair.a, pair.b), RUNS, number in again, flipped)
        for (number, pair), flipped in zip(enumerate(pairs), _halves(len(pairs), draws), strict=True)
    ]
    tested = draws.sample(range(len(pairs)), config.catch)
    for number, flipped in zip(tested, _halves(len(tested), draws), strict=True):
        shown = _catch(store, pairs[number].word, draws)
        entries.append(_entry(pairs[number].word, number, shown, CATCH, False, flipped))
    draws.shuffle(entries)
    page, study, names = render([pair.image for pair in pairs], [item for item, _ in entries])
    key = StudyKey(
        study=study,
        a=str(run_a),
        b=str(run_b),
        maps=kind,
        dataset=dataset.name,
        split=dataset.split,
        weights=config.weights,
        seed=config.seed,
        passed_over=passed_over,
        items=tuple(
            KeyItem(
                id=name,
                sample=word.key,
                word=word.word,
                domain=word.domain,
                x=x,
                y=y,
                repeated=item.repeated,
            )
            for name, (item, (word, x, y)) in zip(names, entries, strict=True)
        ),
    )
    _write(out, page, key)
    return Study(
        page=out,
        key=key_path(out),
        id=study,
        maps=kind,
        items=len(pairs),
        repeated=len(again),
        catch=config.catch,
        domains=dict(sorted(Counter(pair.word.domain for pair in pairs).items())),
        passed_over=passed_over,
    )


def _require_fit(run: LoadedRun, store: TargetStore, kind: str) -> None:
    """Raise ConfigError unless the cache is of the run's validation split, and of its teacher where words are seeds."""
    spec = run.store.spec
    checks: list[tuple[str, object, object]] = [
        ("data set", spec.dataset.name, store.spec.dataset.name),
        ("classes", spec.dataset.classes, store.spec.dataset.classes),
        ("validation split", run.config.val_split, store.spec.dataset.split),
    ]
    if kind == INTERACTION:
        checks.append(("teacher", spec.teacher, store.spec.teacher))
    for name, ours, theirs in checks:
        if ours != theirs:
            raise ConfigError(
                f"The targets of a study must have the {name} of both runs; {store.path} has {theirs}, {run.path} has "
                f"{ours}."
            )


def _pairs(
    runs: Sequence[LoadedRun], store: TargetStore, dataset: Dataset, kind: str, config: StudyConfig
) -> tuple[list[_Pair], dict[str, int]]:
    """Choose words that both runs have a map of, evenly; return also why others were passed over."""
    named = named_words(store, dataset)
    drawn = evenly(named, config.seed)
    usable: dict[NamedWord, _Pair] = {}
    passed_over: Counter[str] = Counter()
    while len(usable) < config.items:
        chunk = list(islice(drawn, max(8, (config.items - len(usable)) * 3 // 2)))  # some will not do
        if not chunk:
            raise ConfigError(
                f"The study needs {config.items} words that both runs have a map of; {store.path} has {len(named)} "
                f"words that name a class, and {len(usable)} of them will do. Ask for fewer `items`."
            )
        both = (word_maps(run, store, dataset, chunk, kind) for run in runs)
        for word, a, b in zip(chunk, *both, strict=True):
            image = _image(dataset, word)
            if a is not None and b is not None and image is not None:
                usable[word] = _Pair(word=word, image=image, a=a, b=b)
            passed_over.update(name for name, part in (("a", a), ("b", b), ("image", image)) if part is None)
    chosen = islice(evenly(list(usable), config.seed), config.items)
    return [usable[word] for word in chosen], dict(sorted(passed_over.items()))


def _image(dataset: Dataset, word: NamedWord) -> npt.NDArray[np.uint8] | None:
    try:
        image, _, _ = read_image(dataset.root, dataset.samples[word.place].path)
    except ImageReadError:
        return None
    return np.asarray(image)


def _halves(count: int, draws: random.Random) -> list[bool]:
    """Return `count` booleans in random order, half of them true (one fewer where `count` is odd)."""
    flips = [number % 2 == 1 for number in range(count)]
    draws.shuffle(flips)
    return flips


def _entry(
    word: NamedWord, image: int, shown: tuple[Map, Map], whose: tuple[str, str], repeated: bool, flipped: bool
) -> tuple[PageItem, tuple[NamedWord, str, str]]:
    """Return one item of the page, and what the key holds of it: its word, and whose maps x and y are."""
    (x, y), (of_x, of_y) = (shown[::-1], whose[::-1]) if flipped else (shown, whose)
    return PageItem(word=word.word, image=image, x=x, y=y, repeated=repeated), (word, of_x, of_y)


def _catch(store: TargetStore, word: NamedWord, draws: random.Random) -> tuple[Map, Map]:
    true = teacher_map(store, word)
    if true is None:
        raise ConfigError(f"A catch trial needs the teacher's map of {word.word!r}, and {store.path} has none of it.")
    order = draws.sample(range(true.size), true.size)
    return true, true.ravel()[order].reshape(true.shape)


def _write(out: Path, page: str, key: StudyKey) -> None:
    path = key_path(out)
    if path.exists() and read_key(path) != key:
        raise OutputExistsError(
            f"{path} is the key of another study, and its raters' answers mean nothing without it. Choose another "
            "`out`, or move that key away."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_key(path, key)
        write_atomic(out, page.encode())
    except OSError as error:
        raise OutputWriteError(f"{out} and its key cannot be written: {error.strerror or error}.") from error
