"""Maps to 8 bits or fewer and back, and the forms that a cache stores: Zstandard frames and .npy matrices.

A row p (one map: non-negative, sums to 1; all zero where there is no map) becomes codes q in 0..c and an fp16 scale:

    q = round(c * (p / max p)^(1/k)),  q >= 1 wherever p > 0
    scale = 1 / sum((q / c)^k)
    decoded = scale * (q / c)^k

k = 1 is plain linear quantisation. k = 2 (square-root companding, the default) and k = 3 spend their codes where most
cells of a map lie, far below the peak. Codes are bytes whatever c is: the array's compressor squeezes what a small c
leaves unused. The floor of one code keeps KL(p || decoded) finite; the scale makes a decoded row sum to 1 up to fp16
rounding (2^-11) whatever was rounded away. `lfi bench codec` compares codecs by bytes, KL and speed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from lfi_pipeline.core.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import torch

_MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes, level: int) -> bytes:
    """Compress `data` to one Zstandard frame whose header gives the size of the content."""
    frame: bytes = Zstd(level=level).encode(data)
    return frame


def decompress(frame: bytes, size: int) -> bytes:
    """Undo `compress`; a frame that says another size is refused before anything is allocated for it.

    Raises:
        ValueError: it is not a frame of `size` bytes.
    """
    declared = _content_size(frame)
    if declared != size:
        raise ValueError(f"the frame cannot be decompressed: it holds {declared} bytes, not {size}")
    try:
        content: bytes = Zstd().decode(frame) if size else b""
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the frame cannot be decompressed: {error}") from error
    return content


def _content_size(frame: bytes) -> int | None:
    """Return the size of the content by the header of a frame (RFC 8878, 3.1.1.1); None where there is none."""
    if len(frame) < 6 or frame[:4] != _MAGIC:
        return None
    flags = frame[4]
    single, code = flags >> 5 & 1, flags >> 6
    width = (1 if single else 0) if code == 0 else 1 << code
    if not width:
        return None
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    field = frame[start : start + width]
    if len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


def npy_bytes(array: npt.NDArray[np.floating]) -> bytes:
    """Content of the .npy file of a matrix, as float16."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()


def parse_npy(data: bytes, shape: tuple[int, int], name: str) -> npt.NDArray[np.float16]:
    """The matrix of a .npy file, which must be exactly the one that `npy_bytes` writes for this shape.

    Raises:
        ValueError: it is anything else; names the file.
    """
    expected = {"descr": "<f2", "fortran_order": False, "shape": shape}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, expected)
    head = buffer.getvalue()
    if not data.startswith(head) or len(data) != len(head) + 2 * shape[0] * shape[1]:
        raise ValueError(f"{name} must be float16 {list(shape)}.")
    return np.frombuffer(data, dtype="<f2", offset=len(head)).reshape(shape)


ROW_SUM_TOLERANCE = 1e-2
"""How far a present row's sum may lie from 1 before `encode_maps` refuses it (half precision rounds)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A quantiser of maps.

    Attributes:
        name: its name in `CODECS`.
        power: k of the module's formula, 1 to 3.
        levels: c of the module's formula, the largest code, at most 255.
    """

    name: str
    power: int
    levels: int = 255


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(name="uint8_sqrt", power=2),
        Codec(name="uint8_linear", power=1),
        Codec(name="uint5_cbrt", power=3, levels=31),
    )
}


def get_codec(name: str) -> Codec:
    """Look a codec up by its exact name.

    Raises:
        UnknownNameError: no such codec; lists the choices.
    """
    if name not in CODECS:
        raise UnknownNameError("codec", name, CODECS)
    return CODECS[name]


def encode_maps(
    maps: npt.NDArray[np.float32], codec: str = "uint8_sqrt"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Quantise maps row by row.

    Args:
        maps: [..., gh, gw]; each row (the last two axes) non-negative and summing to 1, or all zero.
        codec: a name in `CODECS`.

    Returns:
        q: codes, uint8 [..., gh, gw].
        scale: float16 [...]; 0 for an absent row.

    Raises:
        ConfigError: a row is negative or not finite, or its sum is neither 0 nor 1.
        UnknownNameError: no such codec.
    """
    quantiser = get_codec(codec)
    power, levels = quantiser.power, quantiser.levels
    if maps.ndim < 2:
        raise ConfigError(f"maps must be [..., gh, gw], got shape {maps.shape}.")
    rows = np.ascontiguousarray(maps, dtype=np.float32).reshape(*maps.shape[:-2], -1)  # [..., N]
    _check_rows(rows)
    peak = rows.max(axis=-1, keepdims=True)  # [..., 1]
    relative = rows / np.where(peak > 0, peak, np.float32(1))
    if power > 1:
        (np.sqrt if power == 2 else np.cbrt)(relative, out=relative)
    codes = np.maximum(np.rint(relative * np.float32(levels)), rows > 0).astype(np.uint8)
    # The sum is over integers, so the scale is the same on every machine.
    total = (codes.astype(np.int64) ** power).sum(axis=-1)  # [...]
    scale = np.where(total > 0, float(levels) ** power / np.maximum(total, 1), 0.0).astype(np.float16)
    return codes.reshape(maps.shape), scale


@overload
def decode_maps(
    q: npt.NDArray[np.uint8], scale: npt.NDArray[np.float16], codec: str = ...
) -> npt.NDArray[np.float32]: ...
@overload
def decode_maps(q: torch.Tensor, scale: torch.Tensor, codec: str = ...) -> torch.Tensor: ...
def decode_maps(q: Any, scale: Any, codec: str = "uint8_sqrt") -> Any:
    """Undo `encode_maps`, in numpy or in torch (on the tensors' own device).

    Args:
        q: codes, uint8 [..., gh, gw].
        scale: float16 [...], one per row.
        codec: the name that the rows were encoded with.

    Returns:
        float32 [..., gh, gw], of the library that was given; present rows sum to 1 up to fp16 rounding.

    Raises:
        ConfigError: `scale` is not [...] for `q` [..., gh, gw].
        UnknownNameError: no such codec.
    """
    quantiser = get_codec(codec)
    power, levels = quantiser.power, quantiser.levels
    if tuple(q.shape[:-2]) != tuple(scale.shape):
        raise ConfigError(f"scale must be [...] for q [..., gh, gw], got {tuple(scale.shape)} for {tuple(q.shape)}.")
    if isinstance(q, np.ndarray):
        relative = q.astype(np.float32) / np.float32(levels)
        factor = np.asarray(scale).astype(np.float32)
    else:
        relative = q.float() / levels
        factor = scale.float()
    decoded = relative
    for _ in range(power - 1):
        decoded = decoded * relative
    return decoded * factor[..., None, None]


def kl_total(maps: npt.NDArray[np.floating], decoded: npt.NDArray[np.floating]) -> tuple[float, int]:
    """Sum of KL(map || decoded) in nats over present rows [..., gh, gw], and the number of those rows.

    Both sides are renormalised in float64, so that the rounding of the scale counts for nothing.
    """
    p = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]).astype(np.float64)
    d = decoded.reshape(p.shape).astype(np.float64)
    present = p.sum(axis=-1) > 0
    p, d = p[present], d[present]
    if not len(p):
        return 0.0, 0
    p /= p.sum(axis=-1, keepdims=True)
    d_sum = d.sum(axis=-1, keepdims=True)
    d /= np.where(d_sum > 0, d_sum, 1.0)
    with np.errstate(divide="ignore"):
        terms = p * (np.log(np.where(p > 0, p, 1.0)) - np.log(np.where(p > 0, d, 1.0)))
    return float(terms.sum()), len(p)


def codec_kl(maps: npt.NDArray[np.floating], decoded: npt.NDArray[np.floating]) -> float:
    """Mean KL(map || decoded) in nats over the present rows of [..., gh, gw]; 0 where there are none."""
    total, rows = kl_total(maps, decoded)
    return total / rows if rows else 0.0


def _check_rows(rows: npt.NDArray[np.float32]) -> None:
    total = rows.sum(axis=-1, dtype=np.float64)
    if not np.isfinite(total).all():
        raise ConfigError("maps must be finite, got NaN or infinity; try the teacher in a wider precision.")
    if rows.size and rows.min() < 0:
        raise ConfigError(f"maps must be non-negative, got {rows.min()}.")
    off = (np.abs(total - 1) > ROW_SUM_TOLERANCE) & (total != 0)
    if off.any():
        raise ConfigError(f"each row of maps must sum to 1, or be all zero, got a sum of {total[off][0]:.4g}.")
