"""Records with members of variable length, read from an HDF5 file by their place in it.

ISMRMRD stores each readout as a record: a header, and references to its samples, which lie in
global heaps. Where the length in such a reference is damaged, the HDF5 library sets up to 16 GiB of
memory to zero before it compares the length with the heap, even when only the header is asked
for. So the library finds the datasets and their chunks, and references are followed here, compared
with the heap first ("HDF5 File Format Specification", III.E Global Heap). It is also faster: no
Python object is made for each readout.
"""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import numpy as np

from snrecon.errors import InputError
from snrecon.io.limits import check_size

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""Stored form of a member of variable length: number of elements, heap, object in the heap."""

_HEAP_HEADER = 16
_CACHED_HEAPS = 64


class Storage:
    """The bytes of an open HDF5 file."""

    def __init__(self, file: h5py.File, name: str) -> None:
        """Map the file.

        Args:
            file: Open file.
            name: File, for messages.

        Raises:
            InputError: if its addresses are not plain 8-byte offsets from the start of the file.
        """
        plist = file.id.get_create_plist()
        if tuple(plist.get_sizes()) != (8, 8) or plist.get_userblock() != 0:
            raise InputError(f"{name}: the HDF5 file has addresses of an unusual form.")
        self.name = name
        self.bytes = np.asarray(np.memmap(file.filename, dtype=np.uint8, mode="r"))
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def records(self, data: h5py.Dataset, size: int) -> np.ndarray:
        """The stored bytes of a one-dimensional dataset, ``(count, size)`` uint8.

        Args:
            data: Dataset.
            size: Bytes of a record as stored; those of a member of variable length are 16.

        Raises:
            InputError: if not all records are in the file, or they are stored in an unusual way.
        """
        what = f"{self.name}: the dataset '{data.name}'"
        if data.is_virtual or data.external:
            raise InputError(f"{what} is stored in other files, which are not followed.")
        count = int(data.shape[0])
        stored = int(data.id.get_storage_size())
        check_size(count * size, stored, what)
        plist = data.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        incomplete = InputError(f"{what} promises {count} records that are not all in the file.")
        if count == 0 or (not filters and stored < count * size):
            raise incomplete
        if data.chunks is None:
            start = data.id.get_offset()
            if start is None or start + count * size > self.bytes.size:
                raise incomplete
            return self.bytes[start : start + count * size].reshape(count, size)
        pieces: list[Any] = []
        data.id.chunk_iter(pieces.append)
        rows = int(data.chunks[0])
        found = np.zeros((count, size), dtype=np.uint8)
        known = np.zeros(count, dtype=bool)
        for piece in pieces:
            first, end = int(piece.chunk_offset[0]), piece.byte_offset + piece.size
            if not 0 <= first < count or end > self.bytes.size:
                raise incomplete
            chunk = self.bytes[piece.byte_offset : end]
            if filters:
                chunk = _unfiltered(chunk, filters, rows * size, size, what)
            if chunk.size != rows * size:
                raise incomplete
            last = min(first + rows, count)
            found[first:last] = chunk.reshape(rows, size)[: last - first]
            known[first:last] = True
        if not known.all():
            raise incomplete
        return found

    def elements(self, reference: np.void, dtype: str, what: str) -> np.ndarray:
        """The elements of a member of variable length, native and in memory of their own.

        Args:
            reference: One :data:`REFERENCE`.
            dtype: Type of an element as stored.
            what: Names the member in messages.

        Raises:
            InputError: if the heap does not hold as many elements as the reference says.
        """
        length, kind = int(reference["length"]), np.dtype(dtype)
        if length == 0:
            return np.zeros(0, dtype=kind.newbyteorder("="))
        start, size = self._heap(int(reference["address"])).get(int(reference["index"]), (0, -1))
        if size != length * kind.itemsize:
            raise InputError(f"{self.name}: {what} is not where the file says; it is damaged.")
        values = np.frombuffer(self.bytes, kind, length, start)
        return values.astype(kind.newbyteorder("="))

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Objects of a heap: start and size by index; empty if there is no heap at the address."""
        if address not in self._heaps:
            if len(self._heaps) >= _CACHED_HEAPS:
                self._heaps.pop(next(iter(self._heaps)))
            self._heaps[address] = self._objects(address)
        return self._heaps[address]

    def _objects(self, address: int) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        if address + _HEAP_HEADER > self.bytes.size:
            return found
        if self.bytes[address : address + 5].tobytes() != b"GCOL\x01":
            return found
        end = min(address + self._number(address + 8, 8), self.bytes.size)
        at = address + _HEAP_HEADER
        while at + _HEAP_HEADER <= end:
            index, size = self._number(at, 2), self._number(at + 8, 8)
            at += _HEAP_HEADER
            if index == 0 or at + size > end:  # 0 is the free space at the end
                break
            found[index] = (at, size)
            at += (size + 7) // 8 * 8
        return found

    def _number(self, at: int, width: int) -> int:
        return int.from_bytes(self.bytes[at : at + width].tobytes(), "little")


def _unfiltered(chunk: np.ndarray, filters: list[int], size: int, width: int, what: str) -> Any:
    """Undo checksum, deflate and shuffle, in the reverse of the order they were applied in."""
    for code in reversed(filters):
        if code == h5py.h5z.FILTER_FLETCHER32:
            chunk = chunk[:-4]
        elif code == h5py.h5z.FILTER_DEFLATE:
            try:
                plain = zlib.decompressobj().decompress(chunk.tobytes(), size + 8)
            except zlib.error as error:
                raise InputError(f"{what} is compressed and damaged.") from error
            chunk = np.frombuffer(plain, dtype=np.uint8)
        elif code == h5py.h5z.FILTER_SHUFFLE and chunk.size == size:
            chunk = np.ascontiguousarray(chunk.reshape(width, -1).T).reshape(-1)
        else:
            raise InputError(f"{what} is compressed in a way that cannot be read.")
    return chunk
