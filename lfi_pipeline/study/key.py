"""The key of a study: which map of which item is whose. Raters never get it; scoring cannot do without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lfi_pipeline.errors import RunError, StudyError
from lfi_pipeline.report.fields import Fields
from lfi_pipeline.training.run_dir import write_json

FORMAT, VERSION = "lfi-study-key", 1
RUNS = ("a", "b")
"""What a pair's two maps may be of."""
CATCH = ("teacher", "shuffled")
"""What the two maps of a catch trial are: the teacher's map of the word, and the same with its cells shuffled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyItem:
    """One item as the raters do not see it.

    Attributes:
        id: opaque; what the page and the raters' files call it.
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
        """Whether it tests the rater and not the runs."""
        return self.x in CATCH

    def of(self, shown: str) -> str:
        """Whose the map `shown` ("x" or "y") is."""
        return self.x if shown == "x" else self.y


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyKey:
    """Everything that scoring needs to know.

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
    write_json(path, {"format": FORMAT, "version": VERSION} | asdict(key))


def read_key(path: Path) -> StudyKey:
    """Read a key.

    Raises:
        StudyError: not a key, or one with a wrong field; names it.
    """
    try:
        fields = Fields.read(path)
        found = (fields.text("format"), fields.integer("version"))
        if found != (FORMAT, VERSION):
            raise StudyError(f"{path} must be a {FORMAT} of version {VERSION}, got {found[0]!r}, {found[1]}.")
        items = tuple(_item(item) for item in fields.children("items"))
        passed_over = fields.child("passed_over")
        key = StudyKey(
            **{name: fields.text(name) for name in ("study", "a", "b", "maps", "dataset", "split", "weights")},
            seed=fields.integer("seed"),
            passed_over={name: passed_over.integer(name) for name in passed_over.values},
            items=items,
        )
    except RunError as error:
        raise StudyError(f"{error} Give the key that lfi study make wrote beside the page (--key).") from error
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
