"""Data set manifests: one declarative TOML file per data set, shipped in the wheel or written by the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from lfi_pipeline.core.errors import DatasetError, UnknownNameError
from lfi_pipeline.core.io import why_unsafe
from lfi_pipeline.core.parse import parse_toml
from lfi_pipeline.data.readers.sniff import sniff_layout


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutRules:
    """What a manifest must and may say for one layout.

    Attributes:
        roles: names that every split must give a path to.
        optional_roles: names that a split may give a path to.
        options: option name -> `text`, `path`, `names`, `paths`, `column` (a name), `separator` (a character) or `mapping`
            (from values to names); all but `text` are required.
        one_role: of `optional_roles`, a split must say one at least.
        optional_options: names of options that may be left out whatever their kind.
    """

    roles: frozenset[str] = frozenset()
    optional_roles: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    one_role: bool = False
    optional_options: frozenset[str] = frozenset()

    def faults(self, options: Mapping[str, Any], splits: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
        """Yield each fault of `options` and `splits`, as a phrase for a message."""
        for name in sorted(options.keys() - self.options.keys()):
            yield f"its layout has no option {name!r}; options: {', '.join(sorted(self.options)) or 'none'}"
        for name, kind in self.options.items():
            if name not in options:
                if kind != "text" and name not in self.optional_options:
                    yield f"its layout needs option {name!r} ({kind})"
            elif wrong := _fault_of_option(options[name], kind):
                yield f"option {name!r} {wrong}"
        for split, roles in splits.items():
            if missing := self.roles - roles.keys():
                yield f"split {split!r} must say {', '.join(sorted(missing))}"
            if self.one_role and not self.optional_roles & roles.keys():
                yield f"split {split!r} must say {' or '.join(sorted(self.optional_roles))}"
            if unknown := roles.keys() - self.roles - self.optional_roles:
                known = ", ".join(sorted(self.roles | self.optional_roles)) or "nothing"
                yield f"split {split!r} says {', '.join(sorted(unknown))}; this layout knows {known}"


def _fault_of_option(value: object, kind: str) -> str | None:
    if kind in ("column", "separator"):
        fits = isinstance(value, str) and (bool(value.strip()) if kind == "column" else value in _SEPARATORS)
        required = "the name of a column" if kind == "column" else f"one of {', '.join(map(repr, _SEPARATORS))}"
        return None if fits else f"must be {required}, got {value!r}"
    if kind == "mapping":
        names = list(value.values()) if isinstance(value, dict) else []
        fits = bool(names) and all(isinstance(name, str) and name.strip() and name.isprintable() for name in names)
        return None if fits else f"must be a table of values and their names, got {value!r}"
    if kind in ("text", "path"):
        if not isinstance(value, str):
            return f"must be text, got {value!r}"
        return _fault_of_path(value) if kind == "path" else None
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        return f"must be a list of texts, got {value!r}"
    if len(set(value)) != len(value):
        return f"must not repeat an entry, got {value!r}"
    return next(filter(None, map(_fault_of_path, value)), None)


_SEPARATORS = (",", ";", "|", "\t", " ")


def _fault_of_path(path: str) -> str | None:
    reason = why_unsafe(path)
    return f"must be a path below the data root, and {path!r} {reason}" if reason else None


LAYOUTS: Mapping[str, LayoutRules] = {
    "coco": LayoutRules(
        roles=frozenset({"images"}),
        optional_roles=frozenset({"captions", "instances"}),
        options={"domain_field": "text"},
        one_role=True,
    ),
    "imagefolder": LayoutRules(roles=frozenset({"folder"})),
    "images": LayoutRules(roles=frozenset({"folder"})),
    "parquet": LayoutRules(roles=frozenset({"files"})),
    "pacs": LayoutRules(
        optional_roles=frozenset({"list"}),
        options={
            "domains": "names",
            "classes": "names",
            "image_folders": "paths",
            "list_folders": "paths",
            "may_be_absent": "paths",
        },
    ),
    "table": LayoutRules(
        roles=frozenset({"table"}),
        optional_roles=frozenset({"value"}),
        options={
            **{"path": "column", "label": "column", "domain": "column", "split": "column"},
            **{"classes": "mapping", "domains": "mapping", "separator": "separator"},
            **{"partition": "path", "folders": "paths", "images": "paths"},
        },
        optional_options=frozenset(
            {"domain", "split", "classes", "domains", "separator", "partition", "folders", "images"}
        ),
    ),
    "tiny-imagenet": LayoutRules(
        roles=frozenset({"images"}),
        optional_roles=frozenset({"annotations"}),
        options={"folders": "paths", "wnids": "path", "words": "path"},
    ),
    "vlcs": LayoutRules(
        optional_roles=frozenset({"folder"}),
        options={"domains": "names", "official_domains": "names", "classes": "names", "folders": "paths"},
    ),
    "webdataset": LayoutRules(roles=frozenset({"tars"})),
    "yolo": LayoutRules(
        roles=frozenset({"images", "labels"}),
        options={"classes_file": "path"},
        optional_options=frozenset({"classes_file"}),
    ),
}
FOLDER = "folder"
"""Name of the data set that a folder is without a manifest, as `sniff_layout` finds it."""
DEFAULT_TEACHER = "coca_ViT-L-14:laion2b_s13b_b90k"
_FOLDER_PROMPTS = ("a photo of a {}.",)


_LARGEST = 1 << 20  # bytes; a manifest is a page of text


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a data set's files are called and where it comes from.

    Attributes:
        name: lower-case letters, digits, `-` and `_`; for a shipped manifest the name of its file.
        title, license, homepage, obtain: for people; may be left out.
        teacher: `NAME[:TAG]` of the teacher that suits it, used where none is named.
        layout: name of the reader that knows the layout, one of `LAYOUTS`.
        prompts: templates with one `{}` for a class name, where images have no captions.
        options: the table named like the layout, passed to that reader.
        splits: split name -> role -> POSIX path below the data root.
        text: of a file of the user's own, as it was read; empty for any other.
    """

    name: str
    title: str = ""
    license: str = ""
    homepage: str = ""
    obtain: str = ""
    teacher: str = DEFAULT_TEACHER
    layout: str
    prompts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, str]]
    text: str = field(default="", compare=False, repr=False)

    def files(self, split: str) -> Mapping[str, str]:
        """Return the files of `split`; an unknown split lists the choices."""
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.name}", split, self.splits)
        return self.splits[split]

    @property
    def how_to_obtain(self) -> str:
        """A sentence for messages; empty where the manifest does not tell."""
        return f"To obtain {self.name}: {self.obtain}." if self.obtain else ""


_REQUIRED = ("name", "layout")
_TEXTS = (*_REQUIRED, "title", "license", "homepage", "obtain", "teacher")


def manifest_names() -> tuple[str, ...]:
    """Return the names of all shipped manifests, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    )


def load_manifest(name_or_path: str | Path | Manifest, root: Path | None = None) -> Manifest:
    """Return the shipped manifest of that name, that of the user's own `.toml` file, or what a folder is without one.

    Args:
        name_or_path: name of a shipped manifest, path of a `.toml` file or of a folder, `FOLDER` for `root` itself, or
            a manifest, as a cache keeps that of the user's own.
        root: data root; a name that is not shipped is looked for there as `NAME.toml`.

    Raises:
        UnknownNameError: no shipped manifest has this name.
        DatasetError: there is no such file, or it is not a valid manifest; names the field.
    """
    if isinstance(name_or_path, Manifest):
        return name_or_path
    text = str(name_or_path)
    if not text.endswith(".toml"):
        if text == FOLDER and root is not None:
            return folder_manifest(root)
        if text not in manifest_names():
            if Path(text).is_dir():
                return folder_manifest(Path(text))
            if root is not None and _is_name(text) and (root / f"{text}.toml").is_file():
                return load_manifest(root / f"{text}.toml")
            raise UnknownNameError("data set", text, manifest_names())
        return parse_manifest((_folder() / f"{text}.toml").read_bytes(), f"data_manifests/{text}.toml")
    path = Path(text)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise DatasetError(f"Manifest {path}: {getattr(error, 'strerror', None) or error}.") from error
    manifest = parse_manifest(content, str(path))
    if manifest.name in (*manifest_names(), FOLDER):
        raise DatasetError(f"{path}: name {manifest.name!r} is taken by a shipped manifest; give yours another.")
    return replace(manifest, text=content.decode())


def folder_manifest(root: Path) -> Manifest:
    """Return a manifest of what `root` is; raises as `sniff_layout`."""
    layout = sniff_layout(root)
    return Manifest(
        name=FOLDER,
        title=f"{root.resolve().name}: {layout.tool}",
        layout=layout.layout,
        prompts=_FOLDER_PROMPTS,
        options=layout.options,
        splits=layout.splits,
    )


def parse_manifest(content: bytes, source: str) -> Manifest:
    """Check the bytes of a manifest and return it; `source` is for messages.

    Raises:
        DatasetError: not UTF-8, not TOML, a field that is absent, unknown or of the wrong type, an unknown layout, a
            path that leaves the data root, a prompt without exactly one `{}`.
    """
    if len(content) > _LARGEST:
        raise DatasetError(f"{source} is not a valid manifest: it is larger than {_LARGEST} bytes.")
    try:
        table = parse_toml(content, source, error=DatasetError)
    except DatasetError as error:
        raise DatasetError(f"{source} is not a valid manifest: {error}") from error
    faults = list(_faults(table))
    if faults:
        raise DatasetError(f"{source} is not a valid manifest: {'; '.join(faults)}.")
    return Manifest(
        **{name: table[name] for name in _TEXTS if name in table},
        prompts=tuple(table.get("prompts", ())),
        options=table.get(table["layout"], {}),
        splits=table["splits"],
    )


def _faults(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield each fault of a manifest's table, as a phrase for a message."""
    layout = table.get("layout")
    known_layout = layout if isinstance(layout, str) and layout in LAYOUTS else None
    if layout is not None and known_layout is None:
        yield f"field 'layout' must be one of {', '.join(sorted(LAYOUTS))}, got {layout!r}"
    known = {each.name for each in fields(Manifest)} - {"options", "text"} | ({known_layout} if known_layout else set())
    if known_layout or layout is None:
        for name in sorted(table.keys() - known):
            yield f"unknown field {name!r}; fields: {', '.join(sorted(known))}"
    for name in _REQUIRED:
        if name not in table:
            yield f"field {name!r} is missing"
    for name in _TEXTS:
        value = table.get(name, "text")
        if name == "layout" and known_layout is None:
            continue
        if not isinstance(value, str) or not value.strip():
            yield f"field {name!r} must be text, got {value!r}"
        elif not value.isprintable():  # it is shown in terminals, which obey control characters
            yield f"field {name!r} must be one line of printable text, got {value!r}"
        elif name == "name" and not _is_name(value):
            yield f"field 'name' must be of letters, digits, '-', '_' and '.', got {value!r}"
    prompts, splits = _fault_of_prompts(table.get("prompts", [])), _fault_of_splits(table.get("splits"))
    yield from filter(None, (prompts, splits))
    if known_layout is None:
        return
    options = table.get(known_layout, {})
    if not isinstance(options, dict):
        yield f"[{known_layout}] must be a table of options, got {options!r}"
    elif splits is None:
        yield from LAYOUTS[known_layout].faults(options, table["splits"])


def _fault_of_prompts(prompts: object) -> str | None:
    if not isinstance(prompts, list):
        return f"field 'prompts' must be a list of templates, got {prompts!r}"
    for prompt in prompts:
        if (
            not isinstance(prompt, str)
            or not prompt.isprintable()
            or prompt.count("{}") != 1
            or set("{}") & set(prompt.replace("{}", ""))
        ):
            return (
                f"a prompt must be text with exactly one {{}}, for the class name, and no other brace; got {prompt!r}"
            )
    return None


def _fault_of_splits(splits: object) -> str | None:
    if not isinstance(splits, dict) or not splits:
        return f"field 'splits' must be tables [splits.NAME], one or more, got {splits!r}"
    for split, roles in splits.items():
        if not _is_name(split):
            return f"the name of a split must be of letters, digits, '-', '_' and '.', got {split!r}"
        if not isinstance(roles, dict):
            return f"[splits.{split}] must be a table of paths, got {roles!r}"
        for role, path in roles.items():
            if not isinstance(path, str):
                return f"[splits.{split}] {role} must be text, got {path!r}"
            if fault := _fault_of_path(path):
                return f"[splits.{split}] {role} {fault}"
    return None


def _is_name(text: str) -> bool:
    """Whether `text` can stand in messages, records and file names as it is."""
    letters = text.replace("-", "").replace("_", "").replace(".", "")
    return text.isascii() and text[:1].isalnum() and letters.isalnum() and not text.endswith(".toml")


def _folder() -> Traversable:
    """`data_manifests/` inside the wheel, or at the root of the checkout in an editable install."""
    packaged = resources.files("lfi_pipeline") / "data_manifests"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "data_manifests"
