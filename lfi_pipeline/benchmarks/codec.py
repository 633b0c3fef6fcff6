"""Codecs of maps by bytes, loss and speed, on real maps; and the cache's own path among them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lfi_pipeline.benchmarks.codec_candidates import Array, candidates
from lfi_pipeline.benchmarks.compressors import Compressor, compressors
from lfi_pipeline.benchmarks.demo_maps import LAYER_KINDS, demo_maps
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, require
from lfi_pipeline.benchmarks.synthetic import maps_spec, payload_of, write_targets
from lfi_pipeline.benchmarks.timing import interleaved, seconds_of
from lfi_pipeline.errors import ConfigError
from lfi_pipeline.targets import CODECS, CodecSpec, TargetStore, codec_kl, decode_maps

BYTES_LIMIT = 16_000
KL_LIMIT = 0.005
CHECKED = 8
"""Samples that the gate looks at."""

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """What to compare.

    Attributes:
        samples: of 4 layers x 16 words x 16 x 16 cells.
        forms: how real maps come to that grid, see `demo_maps`.
        rounds: of each timing.
    """

    samples: int = 64
    forms: tuple[str, ...] = ("resize",)
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.forms:
            raise ConfigError(f"samples must be 1 or more and forms not empty, got {self.samples}, {self.forms}.")


def bench_codec(config: CodecConfig) -> Outcome:
    """Compare every candidate with every compressor, and measure the cache's own path.

    Raises:
        BenchmarkError: a compressor does not give back what it got, or a codec does not give back distributions.
    """
    measurements: list[Measurement] = []
    asked: list[Asked] = []
    for form in config.forms:
        with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
            made = demo_maps(config.samples, form, Path(scratch))
            _check(made.maps[:CHECKED])
            for name in CODECS:
                found = _cache_path(made.maps, name, form, Path(scratch))
                measurements += found
                if name == CodecSpec().name:
                    asked += _asked(found)
        measurements += _candidates(made.maps, form, config.rounds)
    return Outcome(
        benchmark="codec",
        checked="compressors are lossless, decoded rows sum to 1, and KL agrees with the cache's own figure",
        measurements=tuple(measurements),
        asked=tuple(asked),
        notes=(
            f"Layers are the kinds {', '.join(LAYER_KINDS)} of the demo teacher, rows the words of real captions, "
            "packed from scene after scene; see lfi_pipeline.benchmarks.demo_maps.",
            "Bytes are of one sample and one view, scales included. KL(map || decoded) is per row; 'passes' is 1 where "
            f"bytes are {BYTES_LIMIT:,} or fewer at a mean KL of {KL_LIMIT} or less.",
            "Rows 'cache: ...' are files that the writer wrote (maps and scale, checksums and shard index included); "
            "their encoding is a whole commit, fsync included, and their decoding TargetStore.read_many and "
            "decode_maps. 'all' adds words, kept mass, image embedding and index.",
            "'top k' gives 1e-3 of a row's mass to an even floor over all cells, for a finite KL; 'top k + rest' "
            "stores each row's dropped mass and spreads it evenly over the cells that were dropped.",
        ),
    )


def row_kl(maps: npt.NDArray[np.floating], decoded: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """KL(map || decoded) in nats of each row [..., N], both sides renormalised; infinite where mass was lost."""
    p, d = maps.astype(np.float64), decoded.astype(np.float64)
    p, d = (x / x.sum(-1, keepdims=True) for x in (p, d))
    with np.errstate(divide="ignore"):
        kl: npt.NDArray[np.float64] = (p * (np.log(np.where(p > 0, p, 1.0)) - np.log(np.where(p > 0, d, 1.0)))).sum(-1)
    return kl


def _check(maps: Maps) -> None:
    rows = _as_rows(maps)
    for name, candidate in candidates().items():
        codes, side = candidate.encode(rows)
        decoded = candidate.decode(codes, side)
        sums = decoded.sum(-1, dtype=np.float64)
        require(decoded.shape == rows.shape, f"{name} must keep the shape {rows.shape}, got {decoded.shape}.")
        require(bool(np.abs(sums - 1).max() < 5e-3), f"Rows decoded by {name} must sum to 1, got {sums.max():.4f}.")
        for label, compressor in compressors().items():
            same = all(
                np.array_equal(_decompress(compressor, _compress(compressor, each), each), each) for each in codes
            )
            require(same, f"{label} must give back what it got from {name}.")
        if name in CODECS:
            ours, theirs = float(row_kl(rows, decoded).mean()), codec_kl(rows[..., None, :], decoded[..., None, :])
            require(abs(ours - theirs) <= 1e-9 + 1e-6 * theirs, f"KL of {name} must agree, got {ours} and {theirs}.")


def _candidates(maps: Maps, form: str, rounds: int) -> list[Measurement]:
    rows, shape = _as_rows(maps), _shape(maps)
    n, found = len(rows), candidates()
    encoded = {name: candidate.encode(rows) for name, candidate in found.items()}
    to_codes = interleaved(
        {name: lambda c=candidate: c.encode(rows) for name, candidate in found.items()},  # type: ignore[misc]
        rounds,
        name="encode",
    )
    to_rows = interleaved(
        {name: lambda c=candidate, e=encoded[name]: c.decode(*e) for name, candidate in found.items()},  # type: ignore[misc]
        rounds,
        name="decode",
    )
    measurements = []
    for name, (codes, side) in tqdm(encoded.items(), desc="compress", unit="codec", leave=False):
        kl = row_kl(rows, found[name].decode(codes, side))
        squeeze = compressors()
        packed = {label: [_compress(c, each) for each in codes] for label, c in squeeze.items()}
        pack = interleaved(
            {label: lambda c=c, codes=codes: [_compress(c, each) for each in codes] for label, c in squeeze.items()},  # type: ignore[misc]
            rounds,
            name=name,
        )
        unpack = interleaved(
            {label: lambda c=c, p=packed[label]: [c.decode(each) for each in p] for label, c in squeeze.items()},  # type: ignore[misc]
            rounds,
            name=name,
        )
        for label in squeeze:
            size = (sum(map(len, packed[label])) + side.nbytes) / n
            encode, decode = n / (to_codes[name] + pack[label]), n / (to_rows[name] + unpack[label])
            measurements += _row(f"{form}: {name}, {label}", shape, size, kl, encode, decode)
    return measurements


def _cache_path(maps: Maps, codec: str, form: str, scratch: Path) -> list[Measurement]:
    """Write a cache of `maps`, look at its files, read it back."""
    n, out = len(maps), scratch / f"cache-{codec}"
    spec = maps_spec(samples=n, maps_shape=maps.shape[1:], codec=CodecSpec(name=codec), samples_per_shard=n)

    def write(folder: Path) -> float:
        return write_targets(folder, spec, lambda positions: payload_of(spec, maps[positions.start : positions.stop]))

    seconds = min(write(out), write(scratch / f"again-{codec}"))  # the first ever also starts tensorstore's threads
    store = TargetStore.open(out)
    positions = np.arange(n)
    stored = store.read_many(positions)
    decoded = decode_maps(stored.maps, stored.scale, codec)
    kl = row_kl(_as_rows(maps), _as_rows(decoded))
    mean = store.summary().codec_kl
    require(
        abs(kl.mean() - mean) <= 1e-6 + 1e-3 * mean, f"KL of {out} must be {kl.mean():.3e}, the cache says {mean:.3e}."
    )

    def read() -> None:
        again = store.read_many(positions)
        decode_maps(again.maps, again.scale, codec)

    decode = min(seconds_of(read) for _ in range(3))
    size = sum(f.stat().st_size for array in ("maps", "scale") for f in (out / "views/full" / array).glob("c*")) / n
    case, shape = f"{form}: cache: {codec}, zstd {CodecSpec().level}", _shape(maps)
    rows = _row(case, shape, size, kl, n / seconds, n / decode)
    rows.append(Measurement(case=case, shape=shape, metric="all", value=store.summary().bytes_per_sample, unit="B"))
    return rows


def _row(
    case: str, shape: str, size: float, kl: npt.NDArray[np.float64], encode: float, decode: float
) -> list[Measurement]:
    mean = float(kl.mean())
    values = (
        ("bytes a sample", size, "B"),
        ("KL mean", mean, "nats"),
        ("KL 99 %", float(np.percentile(kl, 99)), "nats"),
        ("encode", encode, "samples/s"),
        ("decode", decode, "samples/s"),
        ("passes", float(size <= BYTES_LIMIT and mean <= KL_LIMIT), ""),
    )
    return [Measurement(case=case, shape=shape, metric=metric, value=v, unit=unit) for metric, v, unit in values]


def _asked(found: list[Measurement]) -> list[Asked]:
    values = {each.metric: each.value for each in found}
    case = found[0].case
    return [
        Asked(what=f"{case}, bytes a sample", value=values["bytes a sample"], most=BYTES_LIMIT),
        Asked(what=f"{case}, mean KL in nats", value=values["KL mean"], most=KL_LIMIT),
    ]


def _as_rows(maps: Maps) -> Maps:
    return maps.reshape(len(maps), -1, maps.shape[-2] * maps.shape[-1])


def _shape(maps: Maps) -> str:
    return "x".join(map(str, maps.shape))


def _compress(compressor: Compressor, sample: Array) -> bytes:
    return compressor.encode(np.ascontiguousarray(sample))


def _decompress(compressor: Compressor, data: bytes, like: Array) -> Array:
    restored: Array = np.frombuffer(compressor.decode(data), dtype=like.dtype).reshape(like.shape)
    return restored
