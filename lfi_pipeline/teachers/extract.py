"""Stage one: run the teacher once over a data set and commit its interaction maps shard by shard."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from lfi_pipeline.core.errors import ConfigError, DatasetError, ImageReadError
from lfi_pipeline.core.runtime import cpu_threads, progress_bar, resolve_device, tell
from lfi_pipeline.data import Dataset, Sample, load_manifest, read_dataset
from lfi_pipeline.data.images import read_image
from lfi_pipeline.targets import (
    CodecSpec,
    DatasetSpec,
    MapSpec,
    PreprocessingSpec,
    Summary,
    TargetSpec,
    TargetStore,
    TargetWriter,
    TextSpec,
    Vocabulary,
)
from lfi_pipeline.targets.vocabulary import readable_names
from lfi_pipeline.targets.writer import Committer
from lfi_pipeline.teachers.captioner import generated_captions
from lfi_pipeline.teachers.choice import AUTO, cost_beside_default, resolve_kind
from lfi_pipeline.teachers.config import ExtractConfig, ShardAssignment, assign_shards, require_row
from lfi_pipeline.teachers.module import ModuleTeacher
from lfi_pipeline.teachers.registry import load_teacher, require_able
from lfi_pipeline.teachers.reuse import Extension, recorded_centre, require_same_templates
from lfi_pipeline.teachers.settings import data_centre
from lfi_pipeline.teachers.shards import Plan, ShardMaker
from lfi_pipeline.teachers.teacher import Teacher, class_embeddings
from lfi_pipeline.teachers.text import (
    DEFAULT_PROMPTS,
    TextSource,
    read_by_some,
    resolve_mode,
    sample_words,
    stop_words_sha256,
    telling_sample,
)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A cache in the making.

    Attributes:
        writer: of the cache.
        maker: makes its shards' payloads.
        label: of the progress bar.
        shown: makes lines that say what the teacher reads and, of another kind than its own, what that costs.
        extension: what `writer` writes takes the place of, where a cache is extended.
        captioning_seconds: that the teacher took to write captions, where it did.
    """

    writer: TargetWriter
    maker: ShardMaker
    label: str
    shown: Callable[[], Sequence[str]]
    extension: Extension | None
    captioning_seconds: float = 0.0

    def pending_shards(self) -> list[int]:
        """Shards that nobody has committed; none once another process has put an extended cache in its place."""
        return [] if self.extension is not None and self.extension.done else self.writer.pending_shards()

    def progress(self, share: ShardAssignment) -> Any:
        """Return a progress bar over the share's images that are not committed; shown by the first rank alone."""
        order = share.order(self.pending_shards())
        own = [shard for shard in order if shard % share.world == share.rank]
        total = sum(len(self.writer.shard_range(shard)) for shard in own)
        return progress_bar(total=total, desc=self.label, unit="image", disable=not total or share.rank > 0)

    def finish(self) -> Summary:
        """Tidy up, once everything is committed: working files go, and an extended cache takes its place."""
        if self.pending_shards():
            return self.writer.summary()
        if self.extension is None or not self.extension.done:
            self._require_targets()
            self.writer.finish()
        if self.extension is None:
            return self.writer.summary()
        self.extension.put_in_place()
        return TargetStore.open(self.extension.out).summary()

    def _require_targets(self) -> None:
        """Raise DatasetError where every image is quarantined: that is a fault of paths or files, not a cache."""
        summary = self.writer.summary()
        if summary.samples and summary.quarantined == summary.samples:
            first = min(self.writer.quarantined().items())[1]
            raise DatasetError(
                f"An image or more must be readable; all {summary.samples} are quarantined. The first: {first}. Mend "
                "the files or their names, then run the same command again: it tries them anew."
            )

    def retry_quarantined(self, dataset: Dataset, *, requested: bool, captions: Mapping[str, str] | None) -> None:
        """Make the shards pending again in which a quarantined image can be read by now.

        Args:
            dataset: the samples.
            requested: look at every quarantined image; otherwise only in a cache that holds nothing else.
            captions: where the teacher wrote them, by key.

        Raises:
            ConfigError: an image can be read by now, but has no caption, whose words would need rows in the vocabulary.
        """
        quarantined = self.writer.quarantined()
        if not quarantined or not (requested or len(quarantined) == len(dataset)):
            return
        paths = ((position, dataset.samples[position].path) for position in sorted(quarantined))
        mended: set[int] = set()
        for position, path in progress_bar(paths, desc="quarantined", unit="image", total=len(quarantined), delay=2):
            shard = position // self.writer.spec.samples_per_shard
            if shard not in mended and _is_readable(dataset.root, path):
                if captions is not None and dataset.samples[position].key not in captions:
                    raise ConfigError(
                        f"The teacher writes the captions of this cache, and has written none of {path}, which could "
                        "not be read; its words are not in the cache. Use `overwrite` to make the cache anew; the "
                        "captions of the other images are kept.",
                        argument="retry_quarantined",
                    )
                mended.add(shard)
        for shard in sorted(mended):
            self.writer.take_back(shard)


def _is_readable(root: Path, path: str) -> bool:
    try:
        read_image(root, path)
    except ImageReadError:
        return False
    return True


def read_split(config: ExtractConfig) -> Dataset:
    """Read the data set's split, which must hold images; raises as `extract`."""
    dataset = read_dataset(config.dataset, config.data_root, config.split)
    if not len(dataset):
        raise DatasetError(f"Split {config.split} of {dataset.root} must hold images, got none.")
    return dataset


def open_job(
    config: ExtractConfig,
    out: Path,
    *,
    share: ShardAssignment,
    extend: bool = False,
    overwrite: bool = False,
    retry_quarantined: bool = False,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
) -> Job:
    """Load the teacher, and create the cache of `dataset` (by default `read_split`) or join it; raises as `extract`."""
    if overwrite and (extend or share != ShardAssignment()):
        raise ConfigError(
            "overwrite replaces a whole cache by one process: leave out extend and shards, and run one process.",
            argument="overwrite",
        )
    if dataset is None:
        dataset = read_split(config)
    manifest = load_manifest(config.dataset, config.data_root)
    mode = resolve_mode("generate" if config.vocabulary else config.text, telling_sample(dataset.samples))
    device = resolve_device(config.device, share.local_rank)
    teacher: Teacher
    if module is None:
        teacher = load_teacher(config.teacher or manifest.teacher, device=device, precision=config.precision)
    else:
        teacher = ModuleTeacher(module, device=device, precision=config.precision)
    if config.kind not in ("", AUTO):
        teacher.layers(config.kind, config.layers)  # complains before captions are written
    require_able(teacher, config)
    generated, captioning_seconds = None, 0.0
    if mode == "generate":
        began = time.monotonic()
        generated = generated_captions(
            *(teacher, dataset, out),
            batch_size=config.batch_size,
            share=share,
            extend=extend,
            overwrite=overwrite,
            vocabulary=config.vocabulary,
        )
        captioning_seconds = time.monotonic() - began
    source = TextSource(
        mode,
        config.captions,
        classes=dataset.classes,
        prompts=config.prompts or dataset.prompts or DEFAULT_PROMPTS,
        generated=generated,
        vocabulary=config.vocabulary,
    )
    kind, choice = resolve_kind(config.kind, teacher, dataset, source, out)
    require_row(config.row, kind)
    settings = teacher.map_settings(
        kind,
        centre=(recorded_centre(out) if extend else None) or data_centre(teacher.encode_text, dataset, source),
        steps=config.steps,
        artefacts=config.artefacts,
    )
    spec = _spec(config, dataset, teacher, kind, source, settings)
    extension = Extension.of(out, spec, overwrite) if extend or overwrite else None
    place = extension.place if extension is not None else out
    writer = TargetWriter.open(
        place,
        spec,
        Plan(dataset.samples, source),
        lambda: _vocabulary(teacher, source, dataset, config.words),
        data_root=dataset.root,
        layout=config.layout,
        source_manifest=manifest.text,
        zero_shot=(
            (lambda: class_embeddings(teacher, dataset.classes, source.templates))
            if dataset.classes and teacher.compares
            else None
        ),
        choice=choice,
    )
    require_same_templates(writer, source.templates, place)
    maker = ShardMaker(
        teacher,
        spec,
        dataset,
        source,
        writer.vocabulary.words,
        batch_size=config.batch_size,
        workers=config.workers,
        donor=extension.donor if extension is not None else None,
        images=config.layout == "webdataset",
        compiled=config.compile,
    )
    shown = partial(_shown, teacher, dataset, source, kind)
    job = Job(writer, maker, f"{teacher.identity.name} {kind}", shown, extension, captioning_seconds)
    job.retry_quarantined(dataset, requested=retry_quarantined, captions=generated)
    return job


COSTED_FROM = 200
"""Images from which on a dear kind says what it costs: counting takes some images' time itself."""


def _shown(teacher: Teacher, dataset: Dataset, source: TextSource, kind: str) -> list[str]:
    dear = cost_beside_default(teacher, dataset, source, kind) if len(dataset) >= COSTED_FROM else []
    return [*read_by_some(dataset.samples, source), *dear]


def _vocabulary(teacher: Teacher, source: TextSource, dataset: Dataset, limit: int) -> Vocabulary:
    """Every word that gets a row, with the teacher's embedding of it."""
    words = set(source.vocabulary)  # all of them, so that a student can be asked for each
    if not teacher.compares:  # there is no classifier to seed the queries of classes by
        words.update(readable_names(dataset.classes))
    for sample in progress_bar(dataset.samples, desc="words", unit="text", delay=2):
        words.update(sample_words(teacher.encode_text, source(sample), limit))
    names = tuple(sorted(words))
    return Vocabulary(words=names, embeddings=teacher.embed_words(names).numpy().astype(np.float16))


def _spec(
    config: ExtractConfig, dataset: Dataset, teacher: Teacher, kind: str, source: TextSource, settings: MapSpec
) -> TargetSpec:
    listing, names = hashlib.sha256(), sorted(field.name for field in fields(Sample))
    encode = json.JSONEncoder().encode
    for sample in dataset.samples:  # not by `asdict`, which copies: this is done for ten million
        listing.update(encode({name: getattr(sample, name) for name in names}).encode())
    return TargetSpec(
        teacher=teacher.identity,
        preprocessing=PreprocessingSpec(
            image_size=teacher.image_size,
            resize="squash",
            interpolation=teacher.interpolation,
            mean=teacher.mean,
            std=teacher.std,
        ),
        dataset=DatasetSpec(
            name=dataset.name,
            split=dataset.split,
            classes=dataset.classes,
            listing_sha256=listing.hexdigest(),
            samples=len(dataset),
        ),
        kind=kind,
        layers=teacher.layers(kind, config.layers),
        maps=settings,
        row="emitting" if config.row == "emitting" else "reading",
        text=TextSpec(
            mode=cast(Literal["captions", "prompts", "generate"], source.mode),
            captions=cast(Literal["first", "longest", "all"], config.captions),
            prompts=source.prompts,
            stop_words_sha256=stop_words_sha256(),
            vocabulary=config.vocabulary,
        ),
        words_per_sample=config.words,
        grid=teacher.grid,
        views=config.views,
        embedding_dim=teacher.embedding_dim,
        codec=CodecSpec(name=config.codec),
        samples_per_shard=config.samples_per_shard,
    )


POLL_SECONDS = 2.0
"""How long to wait before looking again at shards that other processes are making."""


def extract(
    config: ExtractConfig,
    out: Path,
    *,
    share: ShardAssignment | None = None,
    extend: bool = False,
    overwrite: bool = False,
    retry_quarantined: bool = False,
    module: nn.Module | None = None,
) -> tuple[Summary, float]:
    """Write the cache `out`, or finish it; returns its summary and the seconds this call took.

    Returns when every shard of the share is committed, by this process or by others at work on the same cache.

    Args:
        config: what to extract.
        out: the cache's directory.
        share: which shards; by default what torchrun's environment says, else all.
        extend: `out` may hold a cache of fewer images, layers, views or words; its rows are taken over.
        overwrite: `out` may hold any cache; it stands until the new one is complete, and is deleted then.
        retry_quarantined: make shards anew in which an image that could not be read can be read by now.
        module: a teacher of one's own (`TeacherModule`), in place of the one that `config` names.

    Raises:
        LFIError: unknown names, a data root that does not fit, an output that holds something else, a spec that
            differs from the one `out` was begun with, a data set of which no image can be read; `overwrite` with
            `extend` or with a share of the shards.
    """
    began = time.monotonic()
    share = share or assign_shards()
    with cpu_threads(config.threads):
        job = open_job(
            *(config, out),
            share=share,
            extend=extend,
            overwrite=overwrite,
            retry_quarantined=retry_quarantined,
            module=module,
        )
        if share.rank == 0 and job.pending_shards():
            tell(*job.shown())
        with job.progress(share) as bar:
            run_shards(job, share, bar)
    return job.finish(), time.monotonic() - began


def run_shards(job: Job, share: ShardAssignment, bar: Any) -> None:
    """Make every pending shard of `share`; wait for those that others hold, and take them over if their holders die."""
    while order := share.order(job.pending_shards()):
        if _run_once(job, order, bar):
            continue
        bar.set_postfix_str(f"waiting for {len(order)} shards of other processes")
        time.sleep(POLL_SECONDS)


def _run_once(job: Job, order: list[int], bar: Any) -> int:
    """Make what can be claimed of `order`; returns how many shards that were."""
    claims: dict[int, ExitStack] = {}

    def claimed() -> Iterator[int]:
        for shard in order:
            with ExitStack() as stack:
                if stack.enter_context(job.writer.claim(shard)):
                    claims[shard] = stack.pop_all()
                    yield shard

    made = 0
    try:
        with Committer(job.writer) as committer, closing(job.maker.payloads(claimed(), bar.update)) as payloads:
            for shard, payload in payloads:
                committer.commit(shard, payload, claims.pop(shard))
                made += 1
    finally:
        for claim in claims.values():
            claim.close()
    return made
