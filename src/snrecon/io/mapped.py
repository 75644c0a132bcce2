"""Parts of large arrays in ``.npz`` files without reading the rest."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np

from snrecon.errors import InputError
from snrecon.io import npy
from snrecon.io.limits import reason, regular_file

_LOCAL = struct.Struct("<4s5H3L2H")  # local header of a zip entry, before its name


def mapped_array(path: str | Path, name: str) -> np.ndarray:
    """An array of an uncompressed ``.npz``, read from the disk where it is indexed.

    Raises:
        InputError: if the file is damaged, the array is absent, compressed or not C-ordered.
    """
    path = regular_file(path)
    label = f"{path}: '{name}'"
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{label} is compressed, so its slices cannot be read singly.")
            with archive.open(info) as stream:
                dtype, fortran, shape, _ = npy.read_header(stream, label)
                header = stream.tell()
        with path.open("rb") as file:
            file.seek(info.header_offset)
            *_, names, extra = _LOCAL.unpack(file.read(_LOCAL.size))
        offset = info.header_offset + _LOCAL.size + names + extra + header
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if fortran or dtype.hasobject or header + size != info.file_size:
            raise InputError(f"{label} is not a plain array of its size.")
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    except KeyError as error:
        raise InputError(f"{path}: there is no array '{name}'.") from error
    except (OSError, ValueError, struct.error, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{label} cannot be read ({reason(error)}).") from error
