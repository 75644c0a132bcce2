"""Reading HDF5 without trusting it: every fault of the file becomes one sentence."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snrecon.errors import InputError
from snrecon.io.hdf5_heap import check_attribute_text, check_dataset_text, check_global_heaps
from snrecon.io.limits import check_size, reason, regular_file

_DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,  # h5py on inconsistent types
    IndexError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    AssertionError,
    struct.error,
)
_TEXT_BYTES = 2**24
_PLAIN = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; library errors in the block become InputError.

    Raises:
        InputError: if the file is missing, truncated or damaged.
    """
    path = regular_file(path)
    try:
        check_global_heaps(path)
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{path}: the HDF5 file is truncated or damaged ({reason(error)})."
        ) from error


def names(file: h5py.Group) -> list[str]:
    """Sorted names of what a group holds; h5py gives undecodable ones as bytes."""
    return sorted(n if isinstance(n, str) else repr(n) for n in file)


def has_dataset(file: h5py.Group, name: str) -> bool:
    """Whether ``name`` is a dataset stored in this file itself."""
    if name not in file:
        return False
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return False  # would read another file of the machine
    return isinstance(file[name], h5py.Dataset)


def read_dataset(file: h5py.Group, name: str, index: int | None = None) -> np.ndarray:
    """Values of a dataset of numbers.

    Args:
        file: Open file or group.
        name: Dataset.
        index: Read only this place along the first axis, which is kept with length 1.

    Raises:
        InputError: if it is absent, stored elsewhere, not numbers, or too large.
    """
    what = f"{file.file.filename}: '{name}'"
    if not has_dataset(file, name):
        raise InputError(f"{what} is not there.")
    data = file[name]
    if data.is_virtual or data.external:
        raise InputError(f"{what} is stored in other files, which are not followed.")
    if data.shape is None or data.dtype.kind not in "biufc":
        raise InputError(f"{what} holds {data.dtype}, not numbers.")
    declared = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
    stored = int(data.id.get_storage_size())
    parts = 1 if index is None else max(data.shape[0], 1)
    # Chunks that were never written take no space and read as zeros.
    check_size(declared // parts, stored // parts, what)
    if declared and stored == 0:
        raise InputError(f"{what} is declared but holds no data: the file is incomplete.")
    return np.asarray(data[()] if index is None else data[index : index + 1])


def read_text(file: h5py.Group, name: str) -> str | None:
    """A scalar or one-element string dataset, or None if there is none.

    Raises:
        InputError: if it is not text or too long.
    """
    if not has_dataset(file, name):
        return None
    data = file[name]
    what = f"{file.file.filename}: '{name}'"
    text = data.id.get_type().get_class() == h5py.h5t.STRING
    if not text or data.shape is None or data.size != 1 or data.is_virtual or data.external:
        raise InputError(f"{what} is not a single text.")
    if data.id.get_storage_size() > _TEXT_BYTES or data.dtype.itemsize > _TEXT_BYTES:
        raise InputError(f"{what} is too long.")
    if data.dtype.kind == "O":
        check_dataset_text(Path(file.file.filename), _value_offset(data))
    return _text(np.asarray(data[()]).reshape(-1)[0], what)


def _value_offset(data: h5py.Dataset) -> int | None:
    """Place in the file of a value that is stored as it is, else None."""
    if data.chunks is None:
        offset = data.id.get_offset()
    elif data.id.get_num_chunks() == 1 and data.id.get_create_plist().get_nfilters() == 0:
        offset = data.id.get_chunk_info(0).byte_offset
    else:
        return None
    return None if offset is None else int(offset)


def attributes(file: h5py.Group, names: tuple[str, ...]) -> dict[str, Any]:
    """Plain values of those attributes that exist: text, numbers, lists of them."""
    found: dict[str, Any] = {}
    for name in names:
        if name not in file.attrs:
            continue
        stored = file.attrs.get_id(name)
        # Other types (sequences, references) are nothing that is written here, and reading
        # damaged ones can bring the HDF5 library down.
        if stored.get_type().get_class() not in _PLAIN:
            raise InputError(f"{file.file.filename}: the attribute '{name}' is damaged.")
        count = int(np.prod(stored.shape or (), dtype=object))
        if count * stored.dtype.itemsize > _TEXT_BYTES:
            raise InputError(f"{file.file.filename}: the attribute '{name}' is too long.")
        if stored.dtype.kind == "O":
            check_attribute_text(Path(file.file.filename), name, count)
        value = file.attrs[name]
        if isinstance(value, h5py.Empty):
            continue
        if isinstance(value, bytes | str):
            found[name] = _text(value, name)
        elif isinstance(value, np.ndarray) and value.size <= 4096:
            found[name] = [
                _text(v, name) if isinstance(v, bytes | str) else v
                for v in value.reshape(-1).tolist()
            ]
        elif isinstance(value, np.generic):
            found[name] = value.item()
    return found


def _text(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    raise InputError(f"{what} is not text.")
