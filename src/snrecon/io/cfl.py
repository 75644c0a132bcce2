"""BART's format: ``NAME.hdr`` with the dimensions, ``NAME.cfl`` with column-major complex64.

BART's axes: 0 readout, 1 phase encoding, 2 second phase encoding, 3 coil, 4 map set, 10 time,
11 and 12 unused here, 13 slice, 15 averages. Here k-space is ``(coil, [kz,] ky, kx)`` or a stack
``(slice, coil, ky, kx)``: the reversed order, so that no sample moves in memory for a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io.contents import Contents, finite
from snrecon.io.limits import check_size, reason, regular_file

READOUT, PHASE, PHASE2, COIL, MAPS, SLICE = 0, 1, 2, 3, 4, 13
_HDR_BYTES = 2**20


def base_name(path: str | Path) -> Path:
    """The name that both files share: without a ``.cfl`` or ``.hdr`` ending."""
    path = Path(path)
    return path.with_name(path.stem) if path.suffix in (".cfl", ".hdr") else path


def parts(path: str | Path) -> tuple[Path, Path]:
    """``NAME.hdr`` and ``NAME.cfl``; endings are added, so dots within the name stay."""
    base = base_name(path)
    return base.with_name(base.name + ".hdr"), base.with_name(base.name + ".cfl")


def is_cfl(path: str | Path) -> bool:
    """Whether the path names a pair of files whose header says "# Dimensions"."""
    try:
        header, data = parts(path)
        named = Path(path)
        if not (header.is_file() and data.is_file()):
            return False
        if named.exists() and named not in (header, data):
            return False  # a file or folder of just this name is what was meant
        with header.open("rb") as stream:
            return b"# Dimensions" in stream.read(4096)
    except (OSError, ValueError):
        return False


def read_cfl(path: str | Path) -> np.ndarray:
    """The array of a ``.cfl/.hdr`` pair, complex64, axes in BART's order, trailing ones kept.

    Raises:
        InputError: if a part is missing, damaged, or sizes do not agree.
    """
    header, data = parts(path)
    try:
        there = header.is_file(), data.is_file()
    except (OSError, ValueError):  # no possible name, as is said below
        there = False, False
    if there == (False, True):
        raise InputError(f"{data}: the header {header.name} of {data.name} is missing.")
    if there == (True, False):
        raise InputError(f"{header}: the data {data.name} of {header.name} are missing.")
    header, data = regular_file(header), regular_file(data)
    dims = _dimensions(header)
    count = 1
    for n in dims:
        count *= n
    size = data.stat().st_size
    if count * 8 != size:
        raise InputError(
            f"{data}: the header declares {count * 8} bytes but the file has {size}: it is "
            "truncated or belongs to another header."
        )
    check_size(size, size, str(data))
    try:
        flat = np.fromfile(data, dtype="<c8")
    except OSError as error:
        raise InputError(f"{data}: the file cannot be read ({reason(error)}).") from error
    return flat.astype(np.complex64, copy=False).reshape(dims, order="F")


def write_cfl(
    path: str | Path, array: np.ndarray | Tensor, dims: Sequence[int] | None = None
) -> None:
    """Write an array in BART's axis order as a ``.cfl/.hdr`` pair, complex64.

    The files are written under their final names; results go through :func:`snrecon.io.save`,
    which renames finished files.

    Args:
        path: Name with or without ending.
        array: Values; real arrays become complex.
        dims: BART dimensions when the array is to be reshaped (column-major) to them; by default
            the shape of the array. Padded with ones to 16.

    Raises:
        InputError: if the dimensions do not fit or the files cannot be written.
    """
    values = np.asarray(array.detach().cpu().resolve_conj() if isinstance(array, Tensor) else array)
    shape = list(values.shape if dims is None else dims)
    if np.prod(shape, dtype=object) != values.size:
        raise InputError(f"{path}: {values.size} values cannot have the dimensions {shape}.")
    header, data = parts(path)
    try:
        write_pair(header, data, values.reshape(shape, order="F"))
    except OSError as error:
        raise InputError(f"{base_name(path)}: cannot be written ({reason(error)}).") from error


def write_pair(header: Path, data: Path, values: np.ndarray) -> None:
    """Write header and data, dimensions padded with ones to BART's 16; OSError passes through."""
    shape = [*values.shape, *(1,) * (16 - values.ndim)]
    values.astype("<c8").ravel(order="F").tofile(data)
    header.write_text("# Dimensions\n" + " ".join(map(str, shape)) + " \n", encoding="ascii")


def to_bart(array: np.ndarray | Tensor, coils: bool, layout: str = "grid") -> np.ndarray:
    """Reorder one of our arrays to BART's axes.

    Args:
        array: ``([coil,] [kz,] ky, kx)``, or ``(slice, [coil,] ky, kx)`` with ``layout="stack"``.
        coils: Whether there is a coil axis.
        layout: ``"grid"`` or ``"stack"``.

    Returns:
        Array with 4 axes ``(kx, ky, kz, coil)``, or 14 with the slices last.
    """
    values = np.asarray(array.detach().cpu().resolve_conj() if isinstance(array, Tensor) else array)
    if not coils:
        values = np.expand_dims(values, 1 if layout == "stack" else 0)
    if layout == "stack":
        moved = values.transpose(3, 2, 1, 0)  # kx, ky, coil, slice
        nx, ny, nc, nz = moved.shape
        return moved.reshape(nx, ny, 1, nc, *(1,) * 9, nz)
    moved = values.transpose(tuple(range(values.ndim))[::-1])  # kx, ky, [kz,] coil
    return moved if moved.ndim == 4 else moved[:, :, None, :]


def from_bart(array: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Reorder an array in BART's axes to ours.

    Returns:
        The array ``(coil, [kz,] ky, kx)`` and ``"grid"``, or ``(slice, coil, ky, kx)`` and
        ``"stack"``.

    Raises:
        InputError: if axes are in use that a Cartesian scan does not have.
    """
    dims = array.shape + (1,) * (16 - array.ndim)
    used = [i for i, n in enumerate(dims) if n != 1]
    extra = [i for i in used if i not in (READOUT, PHASE, PHASE2, COIL, SLICE)]
    if extra:
        hint = (
            "it has several sets of coil maps; pick one with 'bart slice 4 0'"
            if extra == [MAPS]
            else "pick one index of these with 'bart slice'"
        )
        raise InputError(
            f"{name}: the BART axes {extra} are longer than 1, which is not read: {hint}."
        )
    if SLICE in used and PHASE2 in used:
        raise InputError(
            f"{name}: slices (axis 13) of a 3D grid (axis 2) are not read; pick one slice."
        )
    nx, ny, nz, nc = dims[:4]
    values = array.reshape(nx, ny, nz, nc, dims[SLICE], order="F")
    if SLICE in used:
        return values[:, :, 0].transpose(3, 2, 1, 0), "stack"
    values = values[..., 0].transpose(3, 2, 1, 0)
    return (values, "grid") if nz > 1 else (values[:, 0], "grid")


def read_cfl_scan(path: str | Path) -> Contents:
    """K-space from a ``.cfl/.hdr`` pair, zero where not sampled.

    Raises:
        InputError: if the files are damaged or do not hold Cartesian k-space.
    """
    name = str(base_name(path))
    values, layout = from_bart(read_cfl(path), name)
    kspace = torch.from_numpy(np.ascontiguousarray(values))
    return Contents(
        Scan(
            kspace,
            layout="stack" if layout == "stack" else "grid",
            source=name,
            attributes={"format": "cfl"},
        )
    )


def read_cfl_maps(path: str | Path) -> Tensor:
    """Coil maps with the axes of our k-space.

    Raises:
        InputError: if the files are damaged or hold several sets of maps.
    """
    name = str(base_name(path))
    values, _ = from_bart(read_cfl(path), name)
    return finite(torch.from_numpy(np.ascontiguousarray(values)), f"{name}: the coil maps")


def _dimensions(header: Path) -> tuple[int, ...]:
    """The numbers after "# Dimensions"."""
    try:
        if header.stat().st_size > _HDR_BYTES:
            raise InputError(f"{header}: this is not a BART header: it is too large.")
        lines = header.read_bytes().decode("latin1").splitlines()
    except OSError as error:
        raise InputError(f"{header}: the file cannot be read ({reason(error)}).") from error
    for title, numbers in pairwise(lines):
        if title.strip() != "# Dimensions":
            continue
        words = numbers.split()
        if not 1 <= len(words) <= 16 or not all(w.isascii() and w.isdigit() for w in words):
            break
        if any(len(w) > 15 for w in words):
            break
        return tuple(int(w) for w in words)
    raise InputError(f"{header}: the BART header has no valid line of dimensions.")
