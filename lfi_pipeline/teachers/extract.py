"""Stage one: run the teacher once over a data set and commit its interaction maps shard by shard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lfi_pipeline.errors import ConfigError, UnknownNameError
from lfi_pipeline.targets import CODECS, Summary
from lfi_pipeline.targets.layout import LAYOUTS
from lfi_pipeline.teachers.committer import Committer
from lfi_pipeline.teachers.job import Job, open_job
from lfi_pipeline.teachers.shares import Share, share_of
from lfi_pipeline.teachers.teacher import require_row
from lfi_pipeline.teachers.texts import CAPTION_CHOICES, MODES, VIEWS

POLL_SECONDS = 2.0
"""How long to wait before looking again at shards that other processes are making."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """What to extract.

    Attributes:
        dataset: name of a manifest, or the path of one.
        data_root: where its files lie.
        split: which split.
        teacher: `NAME[:TAG]`; empty takes the data set's own default.
        precision: `auto` (bf16 on CUDA, else fp32), `fp32`, `bf16` or `fp16`, of what is not differentiated.
        kind: kind of map; empty takes the teacher's default.
        row: `emitting` or `reading`.
        layers: how many teacher layers, or which (0-based), for kinds that have several; None for 4, or all if fewer.
        text: what the teacher reads: `captions`, `prompts` (class names), `generate`, or `auto`.
        captions: which captions of an image (or prompts) are read: `first`, `longest` or `all`.
        prompts: templates with one `{}`, in place of the data set's own.
        words: M, the most words of a sample that get a map.
        views: geometric versions of the image that the teacher sees.
        layout: of the cache, `zarr` or `webdataset`.
        codec: how maps become bytes, a name in `lfi_pipeline.targets.CODECS`.
        samples_per_shard: size of one commit unit.
        batch_size: images per forward pass; does not change the spec.
        workers: threads that read images; 0 chooses.
        device: where the teacher runs; `auto` takes CUDA where there is one.
    """

    dataset: str
    data_root: Path
    split: str = "train"
    teacher: str = ""
    precision: str = "auto"
    kind: str = ""
    row: str = "emitting"
    layers: int | tuple[int, ...] | None = None
    text: str = "auto"
    captions: str = "first"
    prompts: tuple[str, ...] = ()
    words: int = 16
    views: tuple[str, ...] = VIEWS
    layout: str = "zarr"
    codec: str = "uint8_sqrt"
    samples_per_shard: int = 1024
    batch_size: int = 64
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for kind, name, choices in (
            ("text mode", self.text, MODES),
            ("caption choice", self.captions, CAPTION_CHOICES),
            ("layout", self.layout, LAYOUTS),
            ("codec", self.codec, CODECS),
            *(("view", view, VIEWS) for view in self.views),
        ):
            if name not in choices:
                raise UnknownNameError(kind, name, choices)
        if self.kind:
            require_row(self.row, self.kind)
        if "full" not in self.views:
            raise ConfigError(f"views must include 'full', got {', '.join(self.views) or 'none'}.")
        if self.prompts and self.text not in ("auto", "prompts"):
            raise ConfigError(f"prompts are for the text mode 'prompts', got {self.text!r}.")
        for name in ("words", "samples_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}.")


def extract(
    config: ExtractConfig, out: Path, *, share: Share | None = None, extend: bool = False
) -> tuple[Summary, float]:
    """Write the cache `out`, or finish it; returns its summary and the seconds this call took.

    Returns when every shard of the share is committed, by this process or by others at work on the same cache.

    Args:
        config: what to extract.
        out: the cache's directory.
        share: which shards; by default what torchrun's environment says, else all.
        extend: `out` may hold a cache of fewer images, layers, views or words; its rows are taken over.

    Raises:
        LFIError: unknown names, a data root that does not fit, an output that holds something else, a spec that
            differs from the one `out` was begun with.
    """
    began = time.monotonic()
    share = share or share_of()
    job = open_job(config, out, share=share, extend=extend)
    with job.progress(share) as bar:
        run_shards(job, share, bar)
    return job.finish(), time.monotonic() - began


def run_shards(job: Job, share: Share, bar: tqdm) -> None:
    """Make every pending shard of `share`; wait for those that others hold, and take them over if their holders die."""
    while order := share.order(job.pending_shards()):
        if _run_once(job, order, bar):
            continue
        bar.set_postfix_str(f"waiting for {len(order)} shards of other processes")
        time.sleep(POLL_SECONDS)


def _run_once(job: Job, order: list[int], bar: tqdm) -> int:
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
