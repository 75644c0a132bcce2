"""Checks of what the HDF5 library believes: texts of variable length and the heaps they lie in.

The library walks over the objects of a heap by their stated sizes and does not end when such a
size is zero, and it allocates what a text claims to be long. Damage of these kinds is therefore
found here first, from the published file format ("HDF5 File Format Specification", III.E Global
Heap and IV.A.2.m Attribute Message).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from snrecon.errors import InputError

_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n"


def check_global_heaps(path: Path) -> None:
    """Refuse a file one of whose global heaps cannot be walked through.

    Raises:
        InputError: if an object of a heap has a size that leads nowhere or out of the heap.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        width = _length_size(data)
        at = data.find(_SIGNATURE)
        while at >= 0:
            if not _walkable(data, at, width):
                raise InputError(f"{path}: the HDF5 file is damaged (a heap of texts is broken).")
            at = data.find(_SIGNATURE, at + len(_SIGNATURE))


def _length_size(data: mmap.mmap, offsets: bool = False) -> int:
    """Bytes of a length (or of an offset), from the superblock; 8 in all but odd files."""
    start = data.find(_SUPERBLOCK)
    if start < 0 or start + 15 > len(data):
        return 8
    width = data[start + (14 if data[start + 8] < 2 else 10) - offsets]
    return width if width in (2, 4, 8, 16, 32) else 8


def _walkable(data: mmap.mmap, start: int, width: int) -> bool:
    size = int.from_bytes(data[start + 8 : start + 8 + width], "little")
    end = start + size
    if end > len(data):
        return False
    header = (8 + width + 7) // 8 * 8
    at = start + header
    while at + header <= end:  # what is smaller than a header at the end is free space
        index = int.from_bytes(data[at : at + 2], "little")
        length = int.from_bytes(data[at + 8 : at + 8 + width], "little")
        # Object 0 is free space, and its size counts its own header.
        step = header + (length + 7) // 8 * 8 if index else length
        if step < header or step > end - at:
            return False
        at += step
    return True


def check_attribute_text(path: Path, name: str, count: int) -> None:
    """Refuse an attribute whose texts claim to be longer than the file.

    The library allocates the claimed length, up to 4 GiB, before it looks for the text. The lengths
    stand behind the attribute's name in its message (format specification, IV.A.2.m).

    Args:
        path: File.
        name: Name of the attribute.
        count: Number of texts in it.

    Raises:
        InputError: if a length makes no sense.
        OSError: if the file cannot be read.
    """
    wanted = name.encode() + b"\x00"
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(wanted)
        while at >= 0:
            start = _attribute_value(data, at, len(wanted))
            if start is not None and not _plausible(data, start, count):
                raise InputError(f"{path}: the HDF5 file is damaged (the text '{name}' is broken).")
            at = data.find(wanted, at + 1)


def check_dataset_text(path: Path, offset: int | None) -> None:
    """The same for a dataset that holds one text, whose value stands at ``offset`` in the file."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if offset is None or not _plausible(data, offset, 1):
            raise InputError(f"{path}: the HDF5 file is damaged (a text is broken).")


def _attribute_value(data: mmap.mmap, at: int, length: int) -> int | None:
    """Where the value begins in the attribute message with its name at ``at``, if it is one."""
    for version, header in ((1, 8), (2, 8), (3, 9)):
        start = at - header
        if start < 0 or data[start] != version:
            continue
        sizes = list(struct.unpack("<3H", data[start + 2 : start + 8]))
        if sizes[0] != length:
            continue
        if version == 1:  # parts are padded to multiples of 8
            sizes = [(n + 7) // 8 * 8 for n in sizes]
        return at + sum(sizes)
    return None


def _plausible(data: mmap.mmap, start: int, count: int) -> bool:
    """Whether ``count`` references (length, address, index) claim less than the file holds."""
    width = 8 + _length_size(data, offsets=True)
    for i in range(count):
        at = start + i * width
        if at + width > len(data):
            return False
        if int.from_bytes(data[at : at + 4], "little") > len(data):
            return False
    return True
