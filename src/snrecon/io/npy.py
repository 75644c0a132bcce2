"""NumPy's array format, ``.npy``: read without trusting its header and without unpickling."""

from __future__ import annotations

import ast
import struct
import warnings
from pathlib import Path
from typing import IO

import numpy as np

from snrecon.errors import InputError
from snrecon.io.limits import check_size, reason, regular_file

MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 65536


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a ``.npy`` file.

    Raises:
        InputError: if the file is damaged, holds Python objects, or is too large.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            return read_array(stream, size, size, str(path))
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({reason(error)}).") from error


def read_array(stream: IO[bytes], size: int, stored: int, what: str) -> np.ndarray:
    """One array from a binary stream positioned at its magic bytes.

    Args:
        stream: Binary stream.
        size: Bytes of the array with its header, as the container says.
        stored: Bytes it takes in the file, smaller than ``size`` if compressed.
        what: Names the file and the array in messages.

    Raises:
        InputError: if the array is damaged, holds Python objects, or is too large.
    """
    dtype, fortran, shape, header = read_header(stream, what)
    count = 1
    for n in shape:
        count *= n
    needed = count * dtype.itemsize
    if needed != size - header:
        raise InputError(
            f"{what} declares shape {shape} of {dtype}, {needed} bytes, but has {size - header}: "
            "it is truncated or damaged."
        )
    check_size(needed, stored, what)
    data = stream.read(needed)
    if len(data) != needed:
        raise InputError(f"{what} ends after {len(data)} of {needed} bytes: it is truncated.")
    flat = np.frombuffer(data, dtype=dtype) if data else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def read_header(stream: IO[bytes], what: str) -> tuple[np.dtype, bool, tuple[int, ...], int]:
    """Type, column-major flag, shape and length in bytes of the header."""
    start = stream.read(8)
    if len(start) != 8 or start[:6] != MAGIC:
        raise InputError(f"{what} is not a NumPy array.")
    fields = {1: ("<H", 2), 2: ("<I", 4), 3: ("<I", 4)}
    if start[6] not in fields:
        raise InputError(f"{what} is a NumPy array of unknown version {start[6]}.{start[7]}.")
    form, width = fields[start[6]]
    raw = stream.read(width)
    length = struct.unpack(form, raw)[0] if len(raw) == width else 0
    if not 0 < length <= _HEADER_BYTES:
        raise InputError(f"{what} has a damaged header.")
    text = stream.read(length)
    if len(text) != length:
        raise InputError(f"{what} ends within its header: it is truncated.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fields_read = ast.literal_eval(
                text.decode("utf-8" if start[6] == 3 else "latin1").strip()
            )
            if set(fields_read) != {"descr", "fortran_order", "shape"}:
                raise ValueError("wrong fields")
            dtype = np.dtype(fields_read["descr"])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, Warning) as error:
        raise InputError(f"{what} has a damaged header.") from error
    fortran, shape = fields_read["fortran_order"], fields_read["shape"]
    if dtype.hasobject:
        raise InputError(
            f"{what} holds pickled Python objects, which are never loaded; save a plain array."
        )
    if dtype.kind not in "biufcUS" or dtype.subdtype is not None or dtype.itemsize == 0:
        raise InputError(f"{what} holds {dtype}, not numbers.")
    good = isinstance(fortran, bool) and isinstance(shape, tuple) and len(shape) <= 32
    if not good or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise InputError(f"{what} has a damaged header.")
    return dtype, fortran, shape, 8 + width + length
