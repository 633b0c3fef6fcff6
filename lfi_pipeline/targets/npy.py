"""The one kind of .npy file that a cache holds: a float16 matrix, read without trusting what its header says."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt


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
