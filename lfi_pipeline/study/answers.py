"""The settings of a study, what raters send back, and the key that tells which map is whose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from lfi_pipeline.core.errors import ConfigError, RunError, StudyError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.options import DEVICE, Option, check
from lfi_pipeline.core.parse import parse_json, read_checked
from lfi_pipeline.core.schema import Count, read_as, wrong

INTERACTION, GRADCAM, AUTO = "interaction", "gradcam", "auto"
KINDS = (AUTO, INTERACTION, GRADCAM)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """Options of `make_study`."""

    targets: Annotated[
        Path, Option("Cache of the split that both runs were validated on: it knows the words of the images.")
    ]
    items: Annotated[int, Option("Pairs of image and word, evenly over domains and classes.", ge=1)] = 60
    maps: Annotated[
        str,
        Option(
            "Which maps; auto is interaction if both runs have queries, else gradcam.",
            choices=KINDS,
            noun="kind of map",
        ),
    ] = AUTO
    repeat: Annotated[float, Option("Share of the items shown to each rater again with sides swapped.", ge=0, le=1)] = (
        0.1
    )
    catch: Annotated[int, Option("Trials more: the teacher's map against the same one, its cells shuffled.", ge=0)] = 0
    weights: Annotated[str, Option("Which checkpoint.", choices=("last", "best"))] = "last"
    data_root: Annotated[Path | None, Option("Where the images lie, if they moved.")] = None
    seed: Annotated[int, Option("Of the choice of items and of whose map is which.", ge=0)] = 0
    device: Annotated[str, Option(DEVICE)] = "auto"

    def __post_init__(self) -> None:
        check(self)
        if self.catch > self.items:
            raise ConfigError(
                f"catch must be from 0 to the number of items ({self.items}), got {self.catch}.", argument="catch"
            )


FORMAT, VERSION = "lfi-study-answers", 1
SIDES = ("left", "right")
TIE = "none"
"""The answer of a rater who prefers neither."""
LONGEST_RATER, LONGEST_ANSWER = 80, 86_400_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, translated from the side that was pressed to the map that stood there.

    Attributes:
        item: what was shown.
        showing: 1, or 2 for the second time with sides swapped.
        side: `left`, `right` or `none`: what was pressed.
        chosen: whose map that was (see `KeyItem.x`); `none` without a preference.
        milliseconds: from showing to answering.
    """

    item: KeyItem
    showing: int
    side: str
    chosen: str
    milliseconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RaterAnswers:
    """All answers of one rater, in the order pressed."""

    rater: str
    path: Path
    answers: tuple[Answer, ...]


def read_answers(paths: Sequence[Path], key: StudyKey) -> list[RaterAnswers]:
    """Read the raters' files.

    Raises:
        StudyError: no file; a file that is not of this study, or with a wrong field, an unknown or repeated item (names
            file and item); two files of one rater.
    """
    if not paths:
        raise StudyError("Scoring needs at least one file of a rater, got none.")
    seen: dict[str, Path] = {}
    raters = []
    for path in paths:
        try:
            rater = _read(path, key)
        except RunError as error:
            raise StudyError(f"{error} Ask the rater to save the file again.") from error
        name = " ".join(rater.rater.split()).casefold()
        if name in seen:
            raise StudyError(
                f"{path} and {seen[name]} are both of rater {rater.rater!r}; each rater counts once. Leave one out, or "
                "give each person a code of their own."
            )
        seen[name] = path
        raters.append(rater)
    return raters


class _Form(msgspec.Struct):
    format: str
    version: Count


class _Sheet(msgspec.Struct):
    study: str
    rater: str
    answers: Annotated[tuple[Any, ...], msgspec.Meta(min_length=1, description="a list of at least one answer")]


class _Named(msgspec.Struct):
    item: str


class _Pressed(msgspec.Struct):
    showing: Literal[1, 2]
    answer: Literal["left", "right", "none"]
    x_side: Literal["left", "right"]
    ms: Annotated[
        float, msgspec.Meta(ge=0, lt=LONGEST_ANSWER, description="a number of at least 0 and less than a day")
    ]


def _read_form(path: Path, form: str, version: int) -> Any:
    values = parse_json(read_checked(path), str(path), error=RunError)
    head = read_as(_Form, values, str(path))
    if (head.format, head.version) != (form, version):
        raise StudyError(f"{path} must be a {form} of version {version}, got {head.format!r}, {head.version}.")
    return values


def _read(path: Path, key: StudyKey) -> RaterAnswers:
    sheet = read_as(_Sheet, _read_form(path, FORMAT, VERSION), str(path))
    if sheet.study != key.study:
        raise StudyError(
            f"{path} holds answers to study {sheet.study!r}; the key is of study {key.study!r}. Give the key that was "
            "made with this rater's page."
        )
    rater = sheet.rater.strip()
    if not rater or len(rater) > LONGEST_RATER or not rater.isprintable():
        wanted = f"a name or code of 1 to {LONGEST_RATER} printable characters"
        raise wrong(str(path), "rater", wanted, sheet.rater)
    items = {item.id: item for item in key.items}
    answers = []
    places: dict[tuple[str, int], str] = {}  # of map x
    for i, values in enumerate(sheet.answers):
        answer, x_side = _answer(values, str(path), f"answers[{i}]", items)
        name = answer.item.id
        if (name, answer.showing) in places:
            raise StudyError(f"{path}: item {name!r} is answered twice (showing {answer.showing}).")
        if places.get((name, 3 - answer.showing)) == x_side:
            raise StudyError(f"{path}: item {name!r} has its maps on the same sides in both showings.")
        places[name, answer.showing] = x_side
        answers.append(answer)
    return RaterAnswers(rater=rater, path=path, answers=tuple(answers))


def _answer(values: Any, origin: str, where: str, items: dict[str, KeyItem]) -> tuple[Answer, str]:
    """Return one answer, and on which side map x stood."""
    name = read_as(_Named, values, origin, where).item
    item = items.get(name)
    if item is None:
        raise wrong(origin, f"{where}.item", f"one of the {len(items)} items of this study", name)
    pressed = read_as(_Pressed, values, f"{origin}, item {name!r}", where)
    if pressed.showing == 2 and not item.repeated:
        raise wrong(f"{origin}, item {name!r}", f"{where}.showing", "1, since this item is shown once", 2)
    chosen = TIE if pressed.answer == TIE else item.of("x" if pressed.answer == pressed.x_side else "y")
    answer = Answer(item=item, showing=pressed.showing, side=pressed.answer, chosen=chosen, milliseconds=pressed.ms)
    return answer, pressed.x_side


KEY_FORMAT, KEY_VERSION = "lfi-study-key", 1
RUNS = ("a", "b")
"""What a pair's two maps may be of."""
CATCH = ("teacher", "shuffled")
"""What the two maps of a catch trial are: the teacher's map of the word, and the same with its cells shuffled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyItem:
    """One item, with what raters are not shown: whose its two maps are.

    Attributes:
        id: opaque name of the item in the page and in the raters' files.
        sample: key of the image.
        word: shown with it.
        domain: of the image, "" where the data set has none.
        x: whose the page's map x is: one of `RUNS`, or of `CATCH` for a catch trial.
        y: the other one.
        repeated: whether the page shows it twice.
    """

    id: str
    sample: str
    word: str
    domain: str
    x: str
    y: str
    repeated: bool

    @property
    def is_catch(self) -> bool:
        """Whether the item checks the rater instead of comparing the runs."""
        return self.x in CATCH

    def of(self, shown: str) -> str:
        """Return whose map `shown` ("x" or "y") is."""
        return self.x if shown == "x" else self.y


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyKey:
    """What scoring needs beside the raters' files.

    Attributes:
        study: id of the study; a digest of everything that is shown.
        a: the run called A.
        b: the run called B.
        maps: `interaction` or `gradcam`.
        dataset: name of the data set.
        split: of it.
        weights: `last` or `best`.
        seed: of the choice of items.
        passed_over: why words were not taken: "a" or "b", that run has no map of them; "image", it cannot be read.
        items: in the page's order.
    """

    study: str
    a: str
    b: str
    maps: str
    dataset: str
    split: str
    weights: str
    seed: Count
    passed_over: Mapping[str, Count]
    items: tuple[KeyItem, ...]


def key_path(page: Path) -> Path:
    """Where the key of the study in `page` lies: `study-key.json` beside `study.html`."""
    return page.with_name(f"{page.stem}-key.json")


def write_key(path: Path, key: StudyKey) -> None:
    """Write `key` to `path`, whole or not at all."""
    content = {"format": KEY_FORMAT, "version": KEY_VERSION} | asdict(key)
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_key(path: Path) -> StudyKey:
    """Read a key.

    Raises:
        StudyError: not a key, or one with a wrong field; names it.
    """
    try:
        key = read_as(StudyKey, _read_form(path, KEY_FORMAT, KEY_VERSION), str(path))
        for i, item in enumerate(key.items):
            if {item.x, item.y} not in (set(RUNS), set(CATCH)):
                wanted = f"one of {', '.join((*RUNS, *CATCH))}, and y the other of its pair"
                raise wrong(str(path), f"items[{i}].x", wanted, item.x)
    except RunError as error:
        raise StudyError(f"{error} Give the key that lfi study make wrote beside the page (`key`).") from error
    if len({item.id for item in key.items}) != len(key.items) or not key.items:
        raise StudyError(f"{path} must list each item once, and at least one.")
    return key
