"""Recompute the maps of a random share of a cache's samples and compare them with those that it holds.

Checksums show that bytes are those that were written. They cannot show that the right bytes were written: that a row
belongs to its image, its word and its view, and comes from the teacher that the spec names. This can. Texts come from
the cache's own index, so that the data set's annotations need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from lfi_pipeline.core.errors import TeacherError, UnknownNameError
from lfi_pipeline.core.runtime import progress_bar, resolve_device
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.targets import Fault, SampleTargets, ShardPayload, TargetSpec, TargetStore, decode_maps
from lfi_pipeline.targets.codec import kl_total
from lfi_pipeline.targets.commits import index_file, remedy, tar_file
from lfi_pipeline.teachers.config import RecomputeConfig
from lfi_pipeline.teachers.module import PREFIX
from lfi_pipeline.teachers.registry import load_teacher
from lfi_pipeline.teachers.shards import ShardMaker
from lfi_pipeline.teachers.teacher import Teacher, class_faults
from lfi_pipeline.teachers.text import SEPARATOR, TextSource, sample_words, stop_words_sha256

TOLERANCE = 2e-2
"""Largest mean KL(recomputed || stored) of a sample's rows in nats, beyond the mean that encoding cost the cache.

Largest of 96 rendered scenes with the embedded teacher: in batches of another size 1e-4, four times what encoding cost
on average; stored in bf16 and recomputed in fp32, which stands for any other rounding, 3e-5 (attention) to 8e-3
(relevance). Maps of another image were 0.2 (attention) or 2.7 (relevance) away at the least.
"""
FLOOR = 1e-6
"""Least mass of a stored cell in that KL: a cell that was 0 exactly may be 1e-9 on another device."""
COSINE = 0.999
"""Least cosine of the recomputed and the stored image embedding."""
CHUNK = 256
"""Samples whose maps are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A check for `targets.verify(..., further=(Recomputation(config),))`."""

    config: RecomputeConfig = field(default_factory=RecomputeConfig)

    def __call__(self, store: TargetStore) -> Iterator[Fault]:
        """Yield one fault for each chosen sample that is not what the teacher says; names shard, sample and key.

        Embeddings of the same share of the classes are recomputed and compared too.

        Raises:
            TeacherError: the teacher cannot be loaded, or is not the one that the spec names.
        """
        teacher = teacher_of_cache(
            store.spec, self.config.teacher, self.config.device, precision=store.spec.teacher.precision
        )
        positions = _chosen(store.usable, len(store), self.config)
        yield from class_faults(store, teacher, share=self.config.share or 0.0, seed=self.config.seed)
        dataset, source = samples_of_cache(store, positions), texts_of_cache(store.spec)
        spec = replace(
            store.spec,
            dataset=replace(store.spec.dataset, samples=max(1, len(positions))),
            samples_per_shard=CHUNK,
        )
        maker = ShardMaker(
            teacher,
            spec,
            dataset,
            source,
            _vocabulary(store, teacher, source, dataset),
            batch_size=self.config.batch_size,
            workers=self.config.workers,
        )
        shards = range(spec.shards) if len(positions) else range(0)
        with progress_bar(
            total=len(positions), desc="recompute", unit="sample", disable=not self.config.progress
        ) as bar:
            for shard, payload in maker.payloads(shards, bar.update):
                yield from _faults(store, positions[shard * CHUNK : (shard + 1) * CHUNK], payload)


def teacher_of_cache(spec: TargetSpec, teacher: str, device: str, *, precision: str = "fp32") -> Teacher:
    """Load the teacher that a cache's spec names, its weights compared with those that made the cache.

    Args:
        spec: of the cache.
        teacher: `NAME[:TAG]`, or `NAME:PATH` of its weights; empty for the name and tag in the spec.
        device: where it runs.
        precision: of its trunk and text tower.

    Raises:
        TeacherError: it cannot be loaded, its weights are others, or this release has another list of stop words.
        UnknownNameError: no teacher is called `teacher`.
    """
    name, prefix = spec.teacher.name, spec.teacher.name.rpartition(":")[0]  # of hf-hub:ORG/REPO and local-dir:FOLDER
    named = name if prefix else f"{name}:{spec.teacher.tag}"
    place = "local-dir:PATH" if prefix else f"{name}:PATH"
    if prefix == PREFIX and not teacher:
        raise TeacherError(
            f"The cache was made by a module of somebody's own ({name}), which cannot be loaded by its name. What needs "
            "no teacher still works: training, evaluation, and the check of every checksum."
        )
    try:
        loaded = load_teacher(teacher or named, device=resolve_device(device), precision=precision)
    except (UnknownNameError, TeacherError) as error:
        if teacher:
            raise
        raise TeacherError(
            f"The cache was made by {named}, which cannot be loaded by that name; say where its weights are: "
            f"`teacher={place}`. {error}"
        ) from error
    actual, recorded = loaded.identity.weights_sha256, spec.teacher.weights_sha256
    if actual != recorded:
        raise TeacherError(
            f"The cache was made by {named} with weights of sha256 {recorded}, but {teacher or named} has "
            f"{actual}. Give the same weights: `teacher={place}`."
        )
    if stop_words_sha256() != spec.text.stop_words_sha256:
        raise TeacherError(
            "The cache was made with another list of stop words than this release has, so its words cannot be found "
            "again. Recompute with the release that made the cache."
        )
    return loaded


def _chosen(usable: npt.NDArray[np.int64], samples: int, config: RecomputeConfig) -> npt.NDArray[np.int64]:
    """Ascending positions of the samples to recompute."""
    count = min(len(usable), max(1, round((config.share or 0.0) * samples)))
    return np.sort(np.random.default_rng(config.seed).choice(usable, count, replace=False))


def samples_of_cache(store: TargetStore, positions: npt.NDArray[np.int64]) -> Dataset:
    """Return chosen samples as a data set of their own, each with the texts that the teacher read as its captions."""
    index = store.index
    return Dataset(
        name=store.spec.dataset.name,
        root=store.data_root,
        split=store.spec.dataset.split,
        classes=store.spec.dataset.classes,
        samples=[
            Sample(
                key=index.keys[position],
                path=index.paths[position],
                captions=tuple(index.captions[position].split(SEPARATOR)),
                labels=tuple(index.labels[position]),
                domain=index.domains[position],
                height=0,
                width=0,
            )
            for position in positions.tolist()
        ],
    )


def texts_of_cache(spec: TargetSpec) -> TextSource:
    """Return the source of the texts that the cache holds: its prompts, or its captions, which are all read."""
    if spec.text.mode == "prompts":
        return TextSource("prompts", spec.text.captions, classes=spec.dataset.classes, prompts=spec.text.prompts)
    return TextSource("captions", "all", vocabulary=spec.text.vocabulary)


def _vocabulary(store: TargetStore, teacher: Teacher, source: TextSource, dataset: Dataset) -> list[str]:
    """The cache's words, and after them those that the teacher finds but the cache does not know."""
    words = list(store.vocabulary.words)
    teacher_words: set[str] = set()
    for sample in dataset.samples:
        teacher_words.update(sample_words(teacher.encode_text, source(sample), store.spec.words_per_sample))
    return words + sorted(teacher_words.difference(words))


def _faults(store: TargetStore, positions: npt.NDArray[np.int64], payload: ShardPayload) -> Iterator[Fault]:
    """Compare the payload of n samples with what is stored at `positions` [n]."""
    stored = {view: store.read_many(positions, view) for view in store.spec.views}
    tolerance = store.summary().codec_kl + TOLERANCE
    for row, position in enumerate(positions.tolist()):
        complaint = _image_complaint(store, position, row, payload)
        complaint = complaint or _complaint(store.spec, stored, payload, row, tolerance)
        if complaint:
            shard = position // store.spec.samples_per_shard
            yield Fault(
                shard=shard,
                file=tar_file(shard) if store.layout == "webdataset" else index_file(shard),
                sample=position,
                message=f"Sample {store.index.keys[position]} is not what the teacher says: {complaint}. "
                f"{remedy(store.path, shard)}",
            )


def _image_complaint(store: TargetStore, position: int, row: int, payload: ShardPayload) -> str:
    if row in payload.quarantined:
        return f"its image cannot be read ({payload.quarantined[row].removesuffix('.')})"
    actual, recorded = int(payload.image_crc32c[row]), int(store.index.image_crc32c[position])
    if actual != recorded:
        return f"its image {store.index.paths[position]} has crc32c {actual:08x}, recorded was {recorded:08x}"
    return ""


def _complaint(
    spec: TargetSpec, stored: dict[str, SampleTargets], payload: ShardPayload, row: int, tolerance: float
) -> str:
    """What is wrong with a sample's rows; of several views the first that is."""
    for view, targets in stored.items():
        made = payload.views[view]
        if not np.array_equal(targets.words[row], made.words[row]):
            return (
                f"in view {view} it has words {_ids(targets.words[row])}, the teacher finds {_ids(made.words[row])} "
                "(ids of the vocabulary)"
            )
        maps = made.maps[row] * (made.words[row] >= 0)[:, None, None]
        decoded = decode_maps(targets.maps[row], targets.scale[row], spec.codec.name)
        present, kept = maps.any(axis=(-2, -1)), targets.scale[row] > 0
        if not np.array_equal(present, kept):
            return f"in view {view} it has {int(kept.sum())} maps, the teacher gives {int(present.sum())}"
        total, rows = kl_total(maps, np.maximum(decoded, FLOOR))
        if total > tolerance * rows:
            return (
                f"in view {view} the mean KL(recomputed || stored) of its {rows} maps is {total / rows:.3g} nats, "
                f"above {tolerance:.3g}"
            )
        cosine = _cosine(targets.image_embedding[row], made.image_embedding[row])
        if not cosine > COSINE:
            return f"in view {view} the cosine of its image embedding and the teacher's is {cosine:.4f}, below {COSINE}"
    return ""


def _ids(words: Sequence[int] | npt.NDArray[np.int32]) -> str:
    return ", ".join(str(int(word)) for word in words if word >= 0) or "none"


def _cosine(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
