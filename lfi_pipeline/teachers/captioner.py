"""A CoCa writing captions by beam search, and the file beside the cache in which they are kept.

open_clip's own `CoCa.generate` leans on classes that transformers 5 no longer has; this needs no further package.

`OUT.captions/` holds one sealed JSON file per `CHUNK` samples and a `source.json` that says of which data set and
teacher. Processes share the chunks as they share shards. The cache's index holds the captions too; the folder is
what a rerun of the same command reads them from.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from lfi_pipeline.core.errors import (
    DatasetError,
    ImageReadError,
    IncompleteTargetsError,
    OutputExistsError,
    SpecMismatchError,
)
from lfi_pipeline.core.io import exchange, one_at_a_time, output_errors, read_whole, seal, unseal, write_atomic
from lfi_pipeline.core.runtime import progress_bar, tell
from lfi_pipeline.core.schema import plain_differences, to_plain
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets.writer import claimed, clear_staging, staging_file
from lfi_pipeline.teachers.caption_reader import CaptionReader, Request, Seen
from lfi_pipeline.teachers.config import ShardAssignment
from lfi_pipeline.teachers.teacher import Teacher, normalised_images
from lfi_pipeline.teachers.text import Word, listed

BEAMS, SHORTEST, LONGEST = 4, 5, 30  # tokens, start and end included; this project's choice


AT_ONCE = 16
"""Images that are captioned together: keys and values of the decoder are held for every beam of them."""


@torch.no_grad()
def write_captions(model: Any, tokenizer: Any, tokens: Tensor) -> list[str]:
    """Caption images from the trunk's tokens [B, 1+N, D]: the sentence of greatest mean log-probability a token."""
    seen, ends = model.visual._pool(tokens)[1], _ends(tokenizer)
    return [_decode(tokenizer, ids) for part in seen.split(AT_ONCE) for ids in _search(model, *ends, part)]


def _search(model: Any, start: int, end: int, seen: Tensor) -> list[list[int]]:
    """Beam search for B images at once; each has the beams that it would have alone.

    Args:
        model: the CoCa.
        start, end: token ids.
        seen: the decoder's view of the images [B, Q, D].
    """
    decoder, device = model.text_decoder, seen.device
    owners = torch.arange(len(seen), device=device)  # the image of each row
    ids = torch.full((len(seen), 1), start, device=device)
    reader = CaptionReader(decoder, Request(ids=ids, words=[()], row="emitting", layers=()), torch.empty(0))
    looked = reader.see(seen)  # keys and values of the images, made once
    scores = torch.zeros(len(seen), device=device)
    done: list[list[tuple[float, list[int]]]] = [[] for _ in seen]
    while len(ids) and ids.shape[1] < min(LONGEST, decoder.context_length):
        reader.text = model.text(ids)[1][:, : ids.shape[1]].float()
        own = Seen(looked.tokens[owners], *([each[owners] for each in part] for part in (looked.keys, looked.values)))
        hidden = reader.read(own, ids.shape[1]).hidden[:, -1]
        following = (hidden @ decoder.text_projection).log_softmax(-1)
        if ids.shape[1] + 1 < SHORTEST:
            following[:, end] = -torch.inf
        following[:, start] = -torch.inf
        rows, tokens, scores = _extended(scores[:, None] + following, owners, ids, end, done)
        ids, owners = torch.cat([ids[rows], tokens[:, None]], dim=1), owners[rows]
    unended: list[list[tuple[float, list[int]]]] = [[] for _ in seen]  # of the greatest length
    for owner, score, row in zip(owners.tolist(), scores.tolist(), ids.tolist(), strict=True):
        unended[owner].append((score / ids.shape[1], row))
    return [max(ended or cut)[1] for ended, cut in zip(done, unended, strict=True)]


def _extended(
    total: Tensor, owners: Tensor, ids: Tensor, end: int, done: list[list[tuple[float, list[int]]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Take each image's best continuations; returns rows that go on [R], their next tokens [R] and scores [R].

    Args:
        total: score of every continuation [R, V].
        owners: image of each row [R], ascending.
        ids: tokens of each row so far [R, T].
        end: the token that ends a sentence.
        done: by image, ended sentences with their score; added to.
    """
    images, counts = torch.unique_consecutive(owners, return_counts=True)
    first = counts.cumsum(0) - counts
    slots = torch.arange(len(owners), device=total.device) - first.repeat_interleave(counts)
    width = int(counts.max())
    padded = total.new_full((len(images), width, total.shape[1]), -torch.inf)
    padded[torch.arange(len(images), device=total.device).repeat_interleave(counts), slots] = total
    best = padded.flatten(1).topk(min(2 * BEAMS, padded[0].numel()))  # half of them may end
    rows = (best.indices // total.shape[1] + first[:, None]).tolist()
    chosen, values = (best.indices % total.shape[1]).tolist(), best.values.tolist()
    length, texts = ids.shape[1] + 1, ids.tolist()
    on: list[tuple[int, int, float]] = []
    for place, image in enumerate(images.tolist()):
        beams = [each for each in zip(rows[place], chosen[place], values[place], strict=True) if math.isfinite(each[2])]
        done[image] += [(score / length, texts[row]) for row, token, score in beams[:BEAMS] if token == end]
        if len(done[image]) < BEAMS:
            on += [each for each in beams if each[1] != end][:BEAMS]
    next_rows, tokens, scores = zip(*on, strict=True) if on else ((), (), ())
    return (
        torch.tensor(next_rows, dtype=torch.long, device=total.device),
        torch.tensor(tokens, dtype=torch.long, device=total.device),
        torch.tensor(scores, dtype=total.dtype, device=total.device),
    )


def _ends(tokenizer: Any) -> tuple[int, int]:
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return tokenizer.sot_token_id, tokenizer.eot_token_id
    return tokenizer.tokenizer.bos_token_id, tokenizer.tokenizer.eos_token_id


def _decode(tokenizer: Any, ids: list[int]) -> str:
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return str(tokenizer.decode(ids[1:])).strip()
    return str(tokenizer.tokenizer.decode(ids, skip_special_tokens=True)).strip()


CHUNK = 1024


def generated_captions(
    teacher: Teacher,
    dataset: Dataset,
    out: Path,
    *,
    batch_size: int,
    share: ShardAssignment,
    extend: bool = False,
    overwrite: bool = False,
    vocabulary: Sequence[str] = (),
    poll_seconds: float = 2.0,
) -> dict[str, str]:
    """Return the teacher's captions by key; those not yet on disk are written first.

    An image that cannot be read has none; the extraction quarantines it.

    Args:
        teacher: that writes.
        dataset: the samples.
        out: the cache that they are for.
        batch_size: images per forward pass.
        share: which chunks are this process's.
        extend: captions of other samples of the data set may be there: they are kept, and those of new ones are added.
        overwrite: captions of another data set or teacher may be there: they are deleted; images without a caption are
            tried again.
        vocabulary: words that captions are to list (`lister`); empty: the teacher writes sentences.
        poll_seconds: how long to wait before looking again at chunks of other processes.

    Raises:
        TeacherError: the teacher cannot write captions.
        SpecMismatchError: the folder holds captions of another data set or teacher; names the fields.
        IncompleteTargetsError: chunks outside this process's share are missing.
        DatasetError: no image can be read.
        OutputWriteError: the folder cannot be written.
    """
    final = out.expanduser().absolute().with_name(f"{out.name}.captions")
    source = _source(teacher, dataset, vocabulary)
    write = lister(teacher, vocabulary) if vocabulary else teacher.generate
    if overwrite and (final / _SOURCE).is_file() and unseal(read_whole(final / _SOURCE), final / _SOURCE) != source:
        with output_errors(final):
            shutil.rmtree(final)
    folder, known = _place(final, source) if extend else (final, {})
    if not folder.exists() and share.rank == 0:
        tell(f"Captions are kept in {final}.")
    _require_same_source(folder, source)
    pieces = range(-(-len(dataset) // CHUNK))
    if overwrite:
        _forget_incomplete(folder, dataset)
    with progress_bar(total=len(dataset), desc="captions", unit="image", delay=1, disable=share.rank > 0) as bar:
        while order := share.order([piece for piece in pieces if not _file(folder, piece).exists()]):
            made = 0
            for piece in order:
                with claimed(folder, f"{piece:06d}") as ours:
                    if ours and not _file(folder, piece).exists():
                        samples = [dataset.samples[i] for i in _positions(piece, len(dataset))]
                        own = {sample.key: known[sample.key] for sample in samples if sample.key in known}
                        bar.update(len(own))
                        new = [sample for sample in samples if sample.key not in own]
                        content = seal(
                            {"captions": own | dict(_captioned(teacher, write, dataset, new, batch_size, bar))}
                        )
                        with output_errors(folder):
                            write_atomic(_file(folder, piece), content, staging_file(folder, f"{piece:06d}", "json"))
                        made += 1
            if not made:
                time.sleep(poll_seconds)  # others hold what is left
    missing = [piece for piece in pieces if not _file(folder, piece).exists()]
    if missing:
        raise IncompleteTargetsError(
            f"{folder} has captions of {len(pieces) - len(missing)} of {len(pieces)} pieces of {CHUNK} images; the "
            "words of all images must be known before maps are made. Let the other `shards` ranges write theirs, then "
            "run the same command again."
        )
    clear_staging(folder)
    _put_in_place(folder, final)
    captions = _read(final)
    if not captions:
        _forget_incomplete(final, dataset)  # so that the next run tries them again
        raise DatasetError(
            f"An image or more of {dataset.root} must be readable; none of {len(dataset)} is, such as "
            f"{dataset.samples[0].path}. Mend the files or their names, then run the same command again."
        )
    return captions


def _forget_incomplete(folder: Path, dataset: Dataset) -> None:
    """Delete the pieces in which an image has no caption, so that they are written again."""
    known = _read(folder)
    with output_errors(folder):
        for piece in range(-(-len(dataset) // CHUNK)):
            if any(dataset.samples[i].key not in known for i in _positions(piece, len(dataset))):
                _file(folder, piece).unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, str]:
    """All captions of a folder by key."""
    captions: dict[str, str] = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        captions |= unseal(read_whole(path), path)["captions"]
    return captions


def _place(final: Path, source: Mapping[str, Any]) -> tuple[Path, dict[str, str]]:
    """Return the folder to write captions of `source` to, and those of an earlier listing to keep, by key."""
    beside = final.with_name(f".{final.name}.lfi-extending")
    with output_errors(final), one_at_a_time(final.parent) if final.parent.is_dir() else nullcontext():
        if beside.exists() and not final.exists():  # killed where directories cannot be exchanged
            beside.rename(final)
        if not (final / _SOURCE).is_file():
            return final, {}
        stored = unseal(read_whole(final / _SOURCE), final / _SOURCE)
        if (
            stored == source
            or any(stored.get(name) != source.get(name) for name in ("teacher", "vocabulary"))
            or stored["dataset"][:2] != source["dataset"][:2]
        ):
            return final, {}
        if beside.exists() and unseal(read_whole(beside / _SOURCE), beside / _SOURCE) != source:
            shutil.rmtree(beside)  # of an extension that was given up
        return beside, _read(final)


def _put_in_place(folder: Path, final: Path) -> None:
    """Replace the earlier captions by the extended ones, unless another process has done so."""
    if folder == final:
        return
    with output_errors(final), one_at_a_time(final.parent):
        if folder.exists():
            if not exchange(folder, final):
                shutil.rmtree(final)
                folder.rename(final)
            shutil.rmtree(folder, ignore_errors=True)


def lister(teacher: Teacher, vocabulary: Sequence[str]) -> Callable[[Tensor], list[str]]:
    """Return a function from images [B, 3, H, W] to captions that list the words each shows, as `text.listed` does.

    A word counts where its zero-shot probability, the softmax over the vocabulary of the scaled cosines of image and
    word (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section
    3.1.2), is above that of a blind guess, 1 / words. The best is always listed; better ones come first.
    """
    known = teacher.embed_words(vocabulary)
    kind = teacher.default_kind
    layers, nothing = teacher.layers(kind, 1), teacher.encode_text(listed(vocabulary[:1]), vocabulary[:1])

    def write(images: Tensor) -> list[str]:
        blank: list[list[Word | None]] = [[None]] * len(images)
        seen = teacher.interaction_maps(images, [nothing] * len(images), blank, kind=kind, layers=layers)
        scores = (teacher.logit_scale * seen.image_embedding.float().cpu() @ known.float().T).softmax(-1)
        captions = []
        for each in scores:
            order = each.argsort(descending=True, stable=True).tolist()
            captions.append(listed([vocabulary[i] for i in order if each[i] * len(vocabulary) >= 1 or i == order[0]]))
        return captions

    return write


def _positions(piece: int, samples: int) -> range:
    return range(piece * CHUNK, min((piece + 1) * CHUNK, samples))


def _captioned(
    teacher: Teacher,
    write: Callable[[Tensor], list[str]],
    dataset: Dataset,
    samples: Sequence[Sample],
    batch_size: int,
    bar: Any,
) -> list[tuple[str, str]]:
    captions = []
    for first in range(0, len(samples), batch_size):
        batch = samples[first : first + batch_size]
        readable, images = [], []
        for sample in batch:
            try:
                image = read_image(dataset.root, sample.path)[0]
            except ImageReadError:
                continue
            readable.append(sample)
            images.append(view_image(image, WHOLE, teacher.image_size, teacher.interpolation))
        if images:
            pixels = normalised_images(teacher, images)
            captions += [(sample.key, caption) for sample, caption in zip(readable, write(pixels), strict=True)]
        bar.update(len(batch))
    return captions


def _file(folder: Path, piece: int) -> Path:
    return folder / f"{piece:06d}.json"


_SOURCE = "source.json"


def _source(teacher: Teacher, dataset: Dataset, vocabulary: Sequence[str]) -> dict[str, Any]:
    """Return what captions of a folder depend on, as JSON: teacher, data set, listing and vocabulary."""
    listing = hashlib.sha256()
    for sample in dataset.samples:
        listing.update(f"{sample.key}\n{sample.path}\n".encode())
    return {
        "teacher": to_plain(teacher.identity),
        "dataset": [dataset.name, dataset.split, len(dataset)],
        "listing_sha256": listing.hexdigest(),
    } | ({"vocabulary": list(vocabulary)} if vocabulary else {})


def _require_same_source(folder: Path, source: Mapping[str, Any]) -> None:
    path = folder / _SOURCE
    with output_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder} is a file; it must be free for the captions. Choose another output.")
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, seal(dict(source)))
    stored = unseal(read_whole(path), path)
    lines = plain_differences(stored, source)
    if lines:
        raise SpecMismatchError(
            f"{folder} holds captions of other settings (captions != this run):\n  "
            + "\n  ".join(lines)
            + "\nDelete the folder, or choose another output."
        )
