"""Codecs of maps by bytes, loss and speed, on real maps; and the cache's own path among them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, Zstd

from lfi_pipeline.benchmarks.config import CodecConfig
from lfi_pipeline.benchmarks.inputs import LAYER_KINDS, demo_maps, maps_spec, payload_of, write_targets
from lfi_pipeline.benchmarks.outcome import Asked, Measurement, Outcome, interleaved, require, seconds_of
from lfi_pipeline.core.runtime import progress_bar
from lfi_pipeline.targets import CODECS, CodecSpec, TargetStore, codec_kl, decode_maps, encode_maps


class Compressor(Protocol):
    """A lossless compressor with the interface of numcodecs' codecs."""

    def encode(self, buf: object) -> bytes: ...
    def decode(self, buf: bytes) -> bytes: ...


class Keep:
    """No compression."""

    def encode(self, buf: object) -> bytes:
        return bytes(cast(bytes, buf))

    def decode(self, buf: bytes) -> bytes:
        return buf


def compressors() -> dict[str, Compressor]:
    """Every compressor by name. Blosc's byte shuffle does nothing to types of one byte, its bit shuffle does."""
    by_name: dict[str, Compressor] = {"none": Keep(), "zstd 3": Zstd(level=3), "zstd 9": Zstd(level=9)}
    for name in ("zstd", "lz4"):
        for label, mode in (("shuffle", Blosc.SHUFFLE), ("bitshuffle", Blosc.BITSHUFFLE)):
            by_name[f"blosc {name} {label}"] = Blosc(cname=name, clevel=3 if name == "zstd" else 5, shuffle=mode)
    return by_name


Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]
FLOOR = 1e-3
"""Share of a top-k row that is spread evenly over all cells, where nothing is stored of what was dropped."""


class Candidate(Protocol):
    """A lossy codec of rows [n, R, N]: n samples of R rows of N cells, each row summing to 1.

    `encode` returns the array that a compressor sees, a sample at a time along its first axis, and one of numbers a
    row that is kept as it is. `decode` undoes it.
    """

    def encode(self, rows: Floats) -> tuple[Array, Array]: ...
    def decode(self, codes: Array, side: Array) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Half:
    """Plain fp16; a cell that would underflow keeps the smallest number, or KL would be infinite."""

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        tiny = np.finfo(np.float16).smallest_subnormal
        return np.maximum(rows.astype(np.float16), np.where(rows > 0, tiny, np.float16(0))), _nothing(rows)

    def decode(self, codes: Array, side: Array) -> Floats:
        return codes.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stored:
    """A codec of `lfi_pipeline.targets.codec`, through its own functions."""

    name: str

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        codes, scale = encode_maps(rows[..., None, :], self.name)
        return codes[..., 0, :], scale

    def decode(self, codes: Array, side: Array) -> Floats:
        maps = decode_maps(codes[..., None, :].astype(np.uint8), side.astype(np.float16), self.name)
        return maps[..., 0, :]


@dataclass(frozen=True, slots=True)
class Companded:
    """`lfi_pipeline.targets.codec`'s formula with any number of codes and any root.

    Attributes:
        levels: the largest code.
        power: k, so that a code is the k-th root of the cell over the row's peak.
        packed: two codes of 4 bits in a byte; otherwise a byte a code, for the compressor to squeeze.
    """

    levels: int
    power: int
    packed: bool = False

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        peak = rows.max(-1, keepdims=True)
        relative = (rows / np.where(peak > 0, peak, 1)) ** np.float32(1 / self.power)
        codes = np.maximum(np.rint(relative * self.levels), rows > 0).astype(np.uint8)
        total = ((codes / self.levels) ** self.power).sum(-1)
        scale = (1 / np.where(total > 0, total, 1)).astype(np.float16)
        return (codes[..., ::2] << 4 | codes[..., 1::2]) if self.packed else codes, scale

    def decode(self, codes: Array, side: Array) -> Floats:
        whole = codes.astype(np.uint8)
        if self.packed:
            whole = np.stack([whole >> 4, whole & 15], axis=-1).reshape(*whole.shape[:-1], -1)
        table = ((np.arange(256) / self.levels) ** self.power).astype(np.float32)
        decoded: Floats = table[whole] * side.astype(np.float32)[..., None]
        return decoded


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest cells: a byte for the place (at most 256 cells) and one for the square root of the value.

    Attributes:
        k: cells kept.
        rest: also keep each row's dropped mass (fp16) and spread it evenly over the cells that were not kept. Without
            it the kept cells are renormalised to 1 - `FLOOR`, and `FLOOR` is spread evenly over all cells.
    """

    k: int
    rest: bool = False

    def encode(self, rows: Floats) -> tuple[Array, Array]:
        places = np.sort(np.argpartition(rows, -self.k, axis=-1)[..., -self.k :], axis=-1)
        values = np.take_along_axis(rows, places, axis=-1)
        peak = values.max(-1, keepdims=True)
        codes = np.rint(np.sqrt(values / np.where(peak > 0, peak, 1)) * 255).astype(np.uint8)
        dropped = (1 - values.sum(-1)).clip(0) if self.rest else np.full(rows.shape[:-1], FLOOR)
        return np.concatenate([places.astype(np.uint8), codes], axis=-1), dropped.astype(np.float16)

    def decode(self, codes: Array, side: Array) -> Floats:
        places, roots = codes[..., : self.k].astype(np.intp), codes[..., self.k :].astype(np.float32)
        values = roots * roots
        total = values.sum(-1, keepdims=True)
        spread = side.astype(np.float32)[..., None]
        values = values / np.where(total > 0, total, 1) * (1 - spread)
        cells = 256
        decoded = np.zeros((*codes.shape[:-1], cells), np.float32)
        if self.rest:
            decoded += spread / (cells - self.k)
        np.put_along_axis(decoded, places, values.astype(np.float32), axis=-1)
        if not self.rest:
            decoded += spread / cells
        return decoded


def candidates() -> dict[str, Candidate]:
    """Every candidate by name; those in `CODECS` go through the code that the cache uses."""
    by_name: dict[str, Candidate] = {"fp16": Half()}
    by_name |= {name: Stored(name) for name in CODECS}
    by_name |= {
        f"uint{bits}_{root}": Companded(levels=2**bits - 1, power=power)
        for bits in (8, 6, 5, 4)
        for root, power in (("sqrt", 2), ("cbrt", 3), ("4th", 4))
        if f"uint{bits}_{root}" not in by_name
    }
    by_name |= {f"uint4_{root}, packed": Companded(15, power, packed=True) for root, power in (("sqrt", 2), ("4th", 4))}
    by_name |= {f"top {k}": TopK(k) for k in (16, 32, 64)}
    return by_name | {f"top {k} + rest": TopK(k, rest=True) for k in (16, 32, 64)}


def _nothing(rows: Floats) -> Array:
    return np.zeros((*rows.shape[:-1], 0), np.float16)


BYTES_LIMIT = 16_000
KL_LIMIT = 0.005
CHECKED = 8
"""Samples that the gate looks at."""

Maps = npt.NDArray[np.float32]


def bench_codec(config: CodecConfig) -> Outcome:
    """Compare every candidate with every compressor, and measure the cache's own path.

    Raises:
        BenchmarkError: a compressor does not give back what it got, or a codec does not give back distributions.
    """
    measurements: list[Measurement] = []
    requirements: list[Asked] = []
    for form in config.forms:
        with tempfile.TemporaryDirectory(prefix="lfi-bench-") as scratch:
            made = demo_maps(config.samples, form, Path(scratch))
            _check(made[:CHECKED])
            for name in CODECS:
                cache_rows = _cache_path(made, name, form, Path(scratch))
                measurements += cache_rows
                if name == CodecSpec().name:
                    requirements += _asked(cache_rows)
        measurements += _candidates(made, form, config.rounds)
    return Outcome(
        benchmark="codec",
        checked="compressors are lossless, decoded rows sum to 1, and KL agrees with the cache's own figure",
        measurements=tuple(measurements),
        asked=tuple(requirements),
        notes=(
            f"Layers are the kinds {', '.join(LAYER_KINDS)} of the demo teacher, rows the words of real captions, "
            "packed from scene after scene; see lfi_pipeline.benchmarks.inputs.",
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
    n, codecs = len(rows), candidates()
    encoded = {name: candidate.encode(rows) for name, candidate in codecs.items()}
    to_codes = interleaved(
        {name: lambda c=candidate: c.encode(rows) for name, candidate in codecs.items()},  # type: ignore[misc]
        rounds,
        name="encode",
    )
    to_rows = interleaved(
        {name: lambda c=candidate, e=encoded[name]: c.decode(*e) for name, candidate in codecs.items()},  # type: ignore[misc]
        rounds,
        name="decode",
    )
    measurements = []
    for name, (codes, side) in progress_bar(encoded.items(), desc="compress", unit="codec", leave=False):
        kl = row_kl(rows, codecs[name].decode(codes, side))
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
    """Write a cache of `maps` and read it back; measure bytes, loss and speed."""
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


def _asked(measurements: list[Measurement]) -> list[Asked]:
    values = {each.metric: each.value for each in measurements}
    case = measurements[0].case
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
