"""Look at a folder and say what it is: which layout, of which tool, with which splits. Few files are opened."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lfi_pipeline.core.errors import DatasetError
from lfi_pipeline.data.readers.coco_json import stream_lists

_ENDINGS = "jpg jpeg jpe jfif png webp gif bmp tif tiff ppm pgm pbm pnm jp2 j2k avif ico"
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})  # of Windows, macOS, network storage
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_DATE = re.compile(r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?(0[1-9]|[12]\d|3[01]))?)?|0[1-9]|1[0-2]")
_CAMERA = re.compile(r"\d{3}[A-Z_0-9]{5}|DCIM", re.IGNORECASE)  # as the rule of camera file systems has them


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the operating system's and not the data set's."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Whether `name` ends like an image file, in either case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - called once a file, Path costs 20 times


def split_named(name: str) -> str | None:
    """Return `train`, `val` or `test` for what tools call such a split, also with a year; None for other names."""
    return _SPLITS.get(re.sub(r"[-_]?\d{4}$", "", name.lower()))


def is_no_class(name: str) -> bool:
    """Whether a folder of this name is of a time or of a camera, and not of a class: `2023`, `05`, `100CANON`."""
    return bool(_DATE.fullmatch(name) or _CAMERA.fullmatch(name))


_HEAD = 1 << 18  # bytes of a JSON file that are looked at
_COCO = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_MOST_ENTRIES = 2000  # of a folder, that are looked at
_MOST_FOLDERS = 50  # beside each other, that are looked into
_CLASS_LISTS = ("classes.txt", "obj.names", "predefined_classes.txt")
_YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
KNOWN = (
    "COCO (as COCO, Roboflow, CVAT, Label Studio and FiftyOne lay it out)",
    "YOLO text files",
    "tars of webdataset",
    "Parquet files of Hugging Face datasets",
    "a folder for each class (ImageFolder)",
    "images",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Layout of a folder.

    Attributes:
        layout: name of the reader.
        tool: who lays it out so, in words.
        splits: split name -> role -> POSIX path below the folder, as a manifest has them.
        options: as a manifest has them.
    """

    layout: str
    tool: str
    splits: Mapping[str, Mapping[str, str]]
    options: Mapping[str, object] = field(default_factory=dict)


def sniff_layout(root: Path) -> Layout:
    """Return the layout of the folder `root`.

    Raises:
        DatasetError: it is no folder, or of no known layout; lists what it holds and the known layouts.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise DatasetError(f"{root} must be a folder with images, annotations, tars or Parquet files, and {what}.")
    try:
        for look in _LOOKS:
            layout = look(root)
            if layout is not None:
                return layout
        names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in _entries(root)]
    except OSError as error:
        raise DatasetError(f"{root} cannot be read: {error.strerror or error}.") from error
    shown = ", ".join(map(repr, names[:12])) or "nothing"
    raise DatasetError(f"{root} must be one of: {'; '.join(KNOWN)}. Found there: {shown}.")


def _entries(folder: Path) -> list[Path]:
    entries = []
    for entry in folder.iterdir():
        if not is_hidden(entry.name):
            entries.append(entry)
            if len(entries) == _MOST_ENTRIES:
                break
    return sorted(entries)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _coco(root: Path) -> Layout | None:
    files = [
        path for folder in (root, *_folders(root)[:_MOST_FOLDERS]) for path in folder.glob("*.json*") if _is_coco(path)
    ]
    files += [path for path in root.glob("annotations/*/*.json") if _is_coco(path)]
    captions = {_raw_split(root, path): path for path in files if path.name.startswith("captions")}
    others = [path for path in sorted(files) if not path.name.startswith("captions")]
    plain = [path for path in others if not re.match(r"(person_keypoints|panoptic|stuff|image_info)_", path.name)]
    instances: dict[str, Path] = {}
    for path in plain or others:
        instances.setdefault(_raw_split(root, path), path)
    raw = list(dict.fromkeys([*instances, *captions]))
    counts = Counter(split_named(name) or name for name in raw)
    splits: dict[str, dict[str, str]] = {}
    for name in sorted(raw):
        said = split_named(name) or name
        split = said if counts[said] == 1 else name
        roles = {}
        for role, by_split in (("captions", captions), ("instances", instances)):
            if name in by_split:
                roles[role] = _below(root, by_split[name])
        file = instances.get(name) or captions[name]
        folder = _image_folder(root, file, name)
        if folder is not None:
            splits[split if split != _ONLY else "train"] = {"images": folder, **roles}
    if not splits:
        return None
    if len(splits) == 1 and not splits.keys() & {"train", "val", "test"}:
        splits = {"train": next(iter(splits.values()))}
    return Layout(layout="coco", tool=_coco_tool(root, [*instances.values(), *captions.values()]), splits=splits)


_ONLY = "default"  # what CVAT calls the only split, and what a file is of that names none


def _is_coco(path: Path) -> bool:
    if is_hidden(path.name) or not path.name.endswith((".json", ".json.gz")) or not path.is_file():
        return False
    if path.name.endswith(".gz"):
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _COCO.search(head) is not None


def _raw_split(root: Path, path: Path) -> str:
    stem = path.name.partition(".")[0]
    if path.name == "_annotations.coco.json" or stem in ("labels", "result", "results", "annotations", "coco"):
        return path.parent.name if path.parent != root and path.parent.name != "annotations" else _ONLY
    _, underscore, split = stem.partition("_")
    known = ("captions", "instances", "person", "panoptic", "stuff", "annotations", "coco", "labels")
    return (split if underscore and stem.partition("_")[0] in known else stem) or _ONLY


def _coco_tool(root: Path, files: list[Path]) -> str:
    names = {path.name for path in files}
    if "_annotations.coco.json" in names:
        return "COCO by Roboflow"
    if "result.json" in names:
        return "COCO by Label Studio"
    if "labels.json" in names:
        return "COCO by FiftyOne"
    if "instances_default.json" in names or (root / "images/default").is_dir():
        return "COCO by CVAT"
    return "COCO"


class _Named(msgspec.Struct):
    file_name: str


def _image_folder(root: Path, file: Path, split: str) -> str | None:
    """Return the folder that the first images of `file` are in; None where no folder has them."""
    names: list[str] = []
    try:
        for _, text in stream_lists(file, frozenset({"images"})):
            names = [each.file_name for each in msgspec.json.decode(b"[" + text + b"]", type=list[_Named])[:5]]
            if names:
                break
    except (msgspec.MsgspecError, DatasetError, ValueError, RecursionError):
        names = []
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    folders = [
        *(file.parent / each for each in (".", "images", "data")),
        *(above / each for each in (split, f"images/{split}", f"{split}/images", "images", "data", ".")),
        *(root / each for each in (split, f"images/{split}", "images", "data", ".")),
        *_folders(root),
    ]
    for name in names:
        tidy = name.replace("\\", "/").removeprefix("./")
        for folder in folders:
            if tidy and ".." not in tidy.split("/") and (folder / tidy).is_file():
                return _below(root, folder.resolve()) if folder.name == "." else _below(root, folder)
    if names:
        return None
    return next((_below(root, folder) for folder in folders[3:] if folder != root and folder.is_dir()), None)


def _yolo(root: Path) -> Layout | None:
    listed = next((name for name in (*_YAMLS, *_CLASS_LISTS) if (root / name).is_file()), None)
    splits: dict[str, dict[str, str]] = {}
    bases = [(root, ".")] + [(folder, folder.name) for folder in _folders(root)]
    for base, name in bases:
        if (base / "images").is_dir() and (base / "labels").is_dir():
            inner = [each for each in _folders(base / "labels") if (base / "images" / each.name).is_dir()]
            for each in inner:
                splits[split_named(each.name) or each.name] = {
                    "images": _below(root, base / "images" / each.name),
                    "labels": _below(root, each),
                }
            if not inner and _has(base / "labels", _is_text):
                split = "train" if name == "." else split_named(name) or name
                splits[split] = {"images": _below(root, base / "images"), "labels": _below(root, base / "labels")}
    if not splits:  # text beside the images, as darknet and labelImg have it
        for base, name in bases:
            images = {path.stem for path in _entries(base) if is_image(path.name)}
            texts = [path for path in _entries(base) if _is_text(path.name) and path.stem in images]
            if texts and (listed is not None or any((base / each).is_file() for each in _CLASS_LISTS)):
                split = "train" if name == "." else split_named(name) or name
                splits[split] = {"images": _below(root, base), "labels": _below(root, base)}
    if not splits:
        return None
    if listed is None:
        listed = next(
            (_below(root, base / name) for base, _ in bases for name in _CLASS_LISTS if (base / name).is_file()), None
        )
    return Layout(
        layout="yolo", tool="YOLO text files", splits=splits, options={} if listed is None else {"classes_file": listed}
    )


def _is_text(name: str) -> bool:
    return name.endswith(".txt") and name not in _CLASS_LISTS


def _has(folder: Path, wanted: Callable[[str], bool], depth: int = 1) -> bool:
    """Whether a file with a wanted name is in `folder`, or up to `depth` folders below; the first ends the search."""
    below = []
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MOST_ENTRIES):
            if not is_hidden(entry.name):
                if entry.is_dir():
                    below.append(entry.path)
                elif wanted(entry.name):
                    return True
    return depth > 0 and any(_has(Path(each), wanted, depth - 1) for each in below[:_MOST_FOLDERS])


_SHARD = re.compile(r"\d{5}")  # of a numbered series, as tools that write tars or Parquet files count them


def _is_leftover(root: Path, files: Sequence[str]) -> bool:
    """Whether tars or Parquet files are not the data set: none is named as a shard or split, and images are more."""
    if any(_SHARD.search(name) or split_named(re.split(r"[-_.]", name)[0]) for name in files):
        return False
    return _counted(root, is_image, 4, len(files) + 1) > len(files)


def _counted(folder: Path, wanted: Callable[[str], bool], depth: int, most: int) -> int:
    """How many files with a wanted name are in `folder` and up to `depth` folders below, up to `most`."""
    entries = _entries(folder)
    count = sum(1 for entry in entries if wanted(entry.name) and not entry.is_dir())
    for below in (entry for entry in entries[:_MOST_FOLDERS] if depth and count < most and entry.is_dir()):
        count += _counted(below, wanted, depth - 1, most - count)
    return min(count, most)


def _parquet(root: Path) -> Layout | None:
    for folder in (root, root / "data", *_folders(root)):
        files = [path for path in _entries(folder) if path.name.endswith(".parquet")] if folder.is_dir() else []
        if files and not _is_leftover(root, [path.name for path in files]):
            raw = sorted({re.split(r"[-_.]", path.name)[0] for path in files})
            splits = {split_named(name) or name: {"files": f"{_below(root, folder)}/{name}"} for name in raw}
            if len(splits) == 1 and not {"train", "val", "test"} & splits.keys():
                splits = {"train": next(iter(splits.values()))}
            tidy = {name: {"files": roles["files"].removeprefix("./")} for name, roles in splits.items()}
            return Layout(layout="parquet", tool="Parquet files of Hugging Face datasets", splits=tidy)
    return None


def _is_tar(name: str) -> bool:
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def _webdataset(root: Path) -> Layout | None:
    folders = [folder for folder in _folders(root) if _has(folder, _is_tar)]
    named = {split_named(folder.name): folder.name for folder in folders if split_named(folder.name)}
    tool = "tars of webdataset"
    if named:
        splits = {str(split): {"tars": name} for split, name in sorted(named.items(), key=str)}
        return Layout(layout="webdataset", tool=tool, splits=splits)
    tars = [path.name for path in _entries(root) if _is_tar(path.name)]
    inner = [path.name for folder in folders for path in _entries(folder) if _is_tar(path.name)]
    if _is_leftover(root, tars + inner):
        return None
    starts = sorted({re.match(r"[A-Za-z]*", name)[0] for name in tars})  # type: ignore[index]
    split_of = {split: start for start in starts if (split := split_named(start)) is not None}
    if split_of:
        return Layout(layout="webdataset", tool=tool, splits={k: {"tars": v} for k, v in sorted(split_of.items())})
    return Layout(layout="webdataset", tool=tool, splits={"train": {"tars": "."}}) if tars or folders else None


def _images(root: Path) -> Layout | None:
    named = [(split, folder) for folder in _folders(root) if (split := split_named(folder.name)) is not None]
    bases = {split: folder.name for split, folder in named if _has(folder, is_image, 4)} or {"train": "."}
    if not _has(root, is_image, 6):
        return None
    classed = all(_has_classes(root / base) for base in bases.values())
    splits = {split: {"folder": base} for split, base in sorted(bases.items())}
    tool = "a folder for each class (ImageFolder)" if classed else "images, without classes"
    beside = [path.name for folder in (root, *_folders(root)) for path in _entries(folder) if _is_packed(path.name)]
    if beside:
        tool += f"; {', '.join(beside[:3])}{', ...' if beside[3:] else ''} beside them is left alone"
    return Layout(layout="imagefolder" if classed else "images", tool=tool, splits=splits)


def _is_packed(name: str) -> bool:
    return _is_tar(name) or name.endswith(".parquet")


def _has_classes(base: Path) -> bool:
    """Whether the folders of `base` are classes: two or more, most with images of their own, and not named by dates."""
    entries = _entries(base)
    folders = [entry for entry in entries if entry.is_dir()]
    if len(folders) < 2 or any(is_image(entry.name) for entry in entries):
        return False
    if all(is_no_class(folder.name) for folder in folders):
        return False
    looked_at = folders[:_MOST_FOLDERS]
    return 2 * sum(_has(folder, is_image, 0) for folder in looked_at) > len(looked_at)


_LOOKS: tuple[Callable[[Path], Layout | None], ...] = (_coco, _yolo, _parquet, _webdataset, _images)
