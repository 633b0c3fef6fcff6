"""The settings of a study, what raters send back, and the key that tells which map is whose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from lfi_pipeline.core.errors import ConfigError, RunError, StudyError
from lfi_pipeline.core.io import write_atomic
from lfi_pipeline.core.options import DEVICE, Option, check
from lfi_pipeline.core.schema import Fields

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
    """All answers of one rater, in the order given."""

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


def _read(path: Path, key: StudyKey) -> RaterAnswers:
    fields = Fields.read(path)
    kind = (fields.text("format"), fields.integer("version"))
    if kind != (FORMAT, VERSION):
        raise StudyError(f"{path} must be a {FORMAT} of version {VERSION}, got {kind[0]!r}, {kind[1]}.")
    if fields.text("study") != key.study:
        raise StudyError(
            f"{path} holds answers to study {fields.text('study')!r}; the key is of study {key.study!r}. Give the key "
            "that was made with this rater's page."
        )
    rater = fields.text("rater").strip()
    if not rater or len(rater) > LONGEST_RATER or not rater.isprintable():
        raise fields.wrong("rater", f"a name or code of 1 to {LONGEST_RATER} printable characters")
    items = {item.id: item for item in key.items}
    answers = [_answer(each, items) for each in fields.children("answers")]
    if not answers:
        raise fields.wrong("answers", "a list of at least one answer")
    places: dict[tuple[str, int], str] = {}  # of map x
    for answer, each in zip(answers, fields.children("answers"), strict=True):
        name, side = answer.item.id, each.text("x_side")
        if (name, answer.showing) in places:
            raise StudyError(f"{path}: item {name!r} is answered twice (showing {answer.showing}).")
        if places.get((name, 3 - answer.showing)) == side:
            raise StudyError(f"{path}: item {name!r} has its maps on the same sides in both showings.")
        places[name, answer.showing] = side
    return RaterAnswers(rater=rater, path=path, answers=tuple(answers))


def _answer(fields: Fields, items: dict[str, KeyItem]) -> Answer:
    item = items.get(fields.text("item"))
    if item is None:
        raise fields.wrong("item", f"one of the {len(items)} items of this study")

    def wrong(name: str, wanted: str) -> StudyError:
        return StudyError(str(fields.wrong(name, f"{wanted} (item {item.id!r})")))

    showing, side, x_side = (fields.values.get(name) for name in ("showing", "answer", "x_side"))
    if isinstance(showing, bool) or showing not in ((1, 2) if item.repeated else (1,)):
        raise wrong("showing", "1 or 2" if item.repeated else "1, since this item is shown once")
    if side not in (*SIDES, TIE):
        raise wrong("answer", "left, right or none")
    if x_side not in SIDES:
        raise wrong("x_side", "left or right")
    milliseconds = fields.values.get("ms")
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        raise wrong("ms", "a number")
    if not 0 <= milliseconds < LONGEST_ANSWER:
        raise wrong("ms", "at least 0 and less than a day")
    chosen = TIE if side == TIE else item.of("x" if side == x_side else "y")
    return Answer(
        item=item, showing=2 if showing == 2 else 1, side=side, chosen=chosen, milliseconds=float(milliseconds)
    )


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
    seed: int
    passed_over: Mapping[str, int]
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
        fields = Fields.read(path)
        kind = (fields.text("format"), fields.integer("version"))
        if kind != (KEY_FORMAT, KEY_VERSION):
            raise StudyError(f"{path} must be a {KEY_FORMAT} of version {KEY_VERSION}, got {kind[0]!r}, {kind[1]}.")
        items = tuple(_item(item) for item in fields.children("items"))
        passed_over = fields.child("passed_over")
        key = StudyKey(
            **{name: fields.text(name) for name in ("study", "a", "b", "maps", "dataset", "split", "weights")},
            seed=fields.integer("seed"),
            passed_over={name: passed_over.integer(name) for name in passed_over.values},
            items=items,
        )
    except RunError as error:
        raise StudyError(f"{error} Give the key that lfi study make wrote beside the page (`key`).") from error
    if len({item.id for item in items}) != len(items) or not items:
        raise StudyError(f"{path} must list each item once, and at least one.")
    return key


def _item(fields: Fields) -> KeyItem:
    x, y = fields.text("x"), fields.text("y")
    if {x, y} not in (set(RUNS), set(CATCH)):
        raise fields.wrong("x", f"one of {', '.join((*RUNS, *CATCH))}, and y the other of its pair")
    if not isinstance(fields.values.get("repeated"), bool):
        raise fields.wrong("repeated", "true or false")
    return KeyItem(
        **{name: fields.text(name) for name in ("id", "sample", "word", "domain")},
        x=x,
        y=y,
        repeated=fields.values["repeated"],
    )
