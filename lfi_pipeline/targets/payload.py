"""What stage one hands over for one shard, and the checks that it fits the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets.spec import TargetSpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ViewArrays:
    """One view of the n samples of a shard.

    Attributes:
        maps: float32 [n, L, M, gh, gw]; rows sum to 1, or are all zero where there is no map.
        words: int32 [n, M], ids into the vocabulary; -1 pads (the rows of a pad are stored as zero).
        image_embedding: float32 [n, E], the teacher's embedding of the view.
        kept: float32 [n, L, M], share of the attention mass kept before renormalising, in [0, 1]: a quality
            signal. None where nothing is dropped: stored as 1 for every present row.
    """

    maps: npt.NDArray[np.float32]
    words: npt.NDArray[np.int32]
    image_embedding: npt.NDArray[np.float32]
    kept: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardPayload:
    """Everything of one shard.

    Attributes:
        views: arrays by view name, exactly the views of the spec.
        image_crc32c: uint32 [n], of the image files' bytes.
        quarantined: reason by position in the shard; whatever the arrays hold there is stored as absent.
        image_size: int64 [n], bytes of the image files, where known.
        donated: bool [V, n, L], rows that come out of another cache; encoding them again changes nothing, so their
            loss is not measured but taken to be `donated_kl`. None where there are none.
        donated_kl: mean KL(map || decoded) of those rows in nats.
        images: the image files' bytes, None where quarantined; the webdataset layout needs them.
    """

    views: Mapping[str, ViewArrays]
    image_crc32c: npt.NDArray[np.uint32]
    quarantined: Mapping[int, str] = field(default_factory=dict)
    image_size: npt.NDArray[np.int64] | None = None
    donated: npt.NDArray[np.bool_] | None = None
    donated_kl: float = 0.0
    images: Sequence[bytes | None] | None = None


def check_payload(spec: TargetSpec, vocabulary_size: int, samples: int, payload: ShardPayload) -> None:
    """Check shapes, word ids and names; the values of maps are checked by the codec.

    Args:
        spec: of the cache.
        vocabulary_size: V.
        samples: n, samples of the shard.
        payload: to check.

    Raises:
        ConfigError: something does not fit; says what must hold and what was given.
    """
    if set(payload.views) != set(spec.views):
        raise ConfigError(f"payload.views must be {sorted(spec.views)}, got {sorted(payload.views)}.")
    _shape("image_crc32c", payload.image_crc32c, samples)
    if payload.image_size is not None:
        _shape("image_size", payload.image_size, samples)
    if payload.donated is not None:
        _shape("donated", payload.donated, len(spec.views), samples, len(spec.layers))
    for position in payload.quarantined:
        if not 0 <= position < samples:
            raise ConfigError(f"quarantined positions must be in 0..{samples - 1}, got {position}.")
    layers, words = len(spec.layers), spec.words_per_sample
    for view, arrays in payload.views.items():
        _shape(f"views[{view!r}].maps", arrays.maps, samples, layers, words, *spec.grid)
        _shape(f"views[{view!r}].words", arrays.words, samples, words)
        _shape(f"views[{view!r}].image_embedding", arrays.image_embedding, samples, spec.embedding_dim)
        if arrays.kept is not None:
            _shape(f"views[{view!r}].kept", arrays.kept, samples, layers, words)
        good = np.ones(samples, dtype=bool)
        good[list(payload.quarantined)] = False
        ids = arrays.words[good]
        if ids.size and (ids.min() < -1 or ids.max() >= vocabulary_size):
            raise ConfigError(
                f"views[{view!r}].words must be in -1..{vocabulary_size - 1}, got {ids.min()}..{ids.max()}."
            )
        values = [arrays.image_embedding[good]] + ([] if arrays.kept is None else [arrays.kept[good]])
        if not all(np.isfinite(value).all() for value in values):
            raise ConfigError(f"views[{view!r}] must have finite image_embedding and kept, got NaN or infinity.")


def _shape(name: str, array: npt.NDArray[np.generic], *shape: int) -> None:
    if array.shape != shape:
        raise ConfigError(f"{name} must be {list(shape)}, got {list(array.shape)}.")
