"""Read Tiny ImageNet as it is unpacked: class folders for training, one folder and a list for validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfi_pipeline.data.expectation import misfit, require_directory
from lfi_pipeline.data.imagefolder import image_sample, labelled, require_classes
from lfi_pipeline.data.listing import read_lines
from lfi_pipeline.data.manifest import Manifest
from lfi_pipeline.data.sample import Dataset, Sample
from lfi_pipeline.data.table import SampleTable
from lfi_pipeline.data.trees import image_paths, subfolders
from lfi_pipeline.errors import DatasetError

_WNID = re.compile(r"n[0-9]{8}")
_UNSORTED = "images"  # the folder that holds the images of all classes


def read_tiny_imagenet(manifest: Manifest, root: Path, split: str) -> Dataset:
    """Read one split. Labels follow the sorted WordNet ids; a class is called by the first synonym of `words.txt`.

    The boxes (`<wnid>_boxes.txt`, and the numbers of `val_annotations.txt`) are left alone: they are no masks. A
    validation folder that was sorted into class folders is read as well.

    Raises:
        DatasetError: a file is absent or has a line of another form; names file and line.
    """
    require_directory(manifest, root)
    files, options = manifest.files(split), manifest.options
    needed = [options["wnids"], options["words"], files["images"]]
    place = next((each for each in options["folders"] if all((root / each / name).exists() for name in needed)), None)
    if place is None:
        raise misfit(manifest, root, f"{', '.join(needed)} (in one of {', '.join(options['folders'])})")
    base, prefix = root / place, "" if place == "." else f"{place}/"
    wnids = _wnids(base / options["wnids"])
    folder, annotations = files["images"], files.get("annotations")
    found = [name for name in subfolders(base / folder) if name != _UNSORTED]
    if annotations is None or found:
        require_classes(base / folder, found, wnids)
        source = labelled(base / folder, f"{prefix}{folder}/", found, wnids)
    else:
        images = f"{folder}/{_UNSORTED}"
        if not (base / images).is_dir() or not (base / annotations).is_file():
            raise misfit(manifest, base / folder, f"{_UNSORTED}/ and {Path(annotations).name}, or a folder a class")
        source = _annotated(base / images, f"{prefix}{images}/", base / annotations, wnids)
    samples = SampleTable(source)
    if not samples:
        raise misfit(manifest, base / folder, "images")
    return Dataset(
        name=manifest.name,
        root=root,
        split=split,
        classes=_names(base / options["words"], wnids),
        samples=samples,
        prompts=manifest.prompts,
    )


def _wnids(path: Path) -> list[str]:
    found: list[str] = []
    for number, line in read_lines(path):
        if not _WNID.fullmatch(line.strip()):
            raise DatasetError(f"{path}, line {number}: must be a WordNet id such as n01443537, got {line!r}.")
        found.append(line.strip())
    if not found or len(set(found)) != len(found):
        raise DatasetError(f"{path} must hold each WordNet id once, and at least one.")
    return sorted(found)


def _names(path: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    wanted = dict.fromkeys(wnids, "")
    for number, line in read_lines(path):
        wnid, tab, words = line.partition("\t")
        if not tab:
            raise DatasetError(f"{path}, line {number}: must be a WordNet id, a tab and words, got {line!r}.")
        if wnid in wanted:
            wanted[wnid] = words.partition(",")[0].strip()
    nameless = [wnid for wnid, name in wanted.items() if not name]
    if nameless:
        raise DatasetError(f"{path} must name every class; it has no words for {', '.join(nameless[:5])}.")
    return tuple(wanted.values())


def _annotated(folder: Path, prefix: str, annotations: Path, wnids: Sequence[str]) -> Iterator[Sample]:
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    there = frozenset(image_paths(folder))
    for number, line in read_lines(annotations):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in label_of:
            raise DatasetError(
                f"{annotations}, line {number}: must be a file name, a tab and a WordNet id of wnids.txt, got {line!r}."
            )
        if name not in there:
            raise DatasetError(f"{annotations}, line {number}: there is no image {name} in {folder}.")
        yield image_sample(prefix + name, name.rpartition(".")[0], label_of[wnid])
