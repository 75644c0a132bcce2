"""What a reader hands to :func:`snrecon.io.load`: a scan, and the noise as the file states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError


@dataclass(frozen=True, eq=False)
class Contents:
    """A scan whose noise is still to be decided.

    The noise is not resolved by the reader because an option of the user goes before it, and a
    useless noise scan must not keep such a file from loading.
    """

    scan: Scan
    """The scan; its own ``noise`` is set only by formats that resolve it themselves."""
    noise_covariance: Tensor | None = None
    """``(coil, coil)``."""
    noise_scan: Tensor | None = None
    """Noise-only samples ``(coil, samples)``."""
    dwell_ratio: float = 1.0
    """Dwell time of the noise scan over that of the scan."""
    noise_spectrum: Tensor | None = None
    """``(readout,)`` relative noise variance along the readout position."""
    slices: int | None = None
    """Slices in the file when the reader has already picked one of them."""


def numeric_tensor(array: np.ndarray, what: str) -> Tensor:
    """Array of any number type in native byte order as a tensor; long doubles become doubles.

    Raises:
        InputError: if the array holds no numbers.
    """
    kind = array.dtype.kind
    if kind not in "biufc":
        raise InputError(f"{what} holds {array.dtype}, not numbers.")
    native: Any = array.dtype.newbyteorder("=")
    if kind == "c" and array.dtype.itemsize > 16:
        native = np.complex128
    elif kind == "f" and array.dtype.itemsize > 8:
        native = np.float64
    elif kind == "u" and array.dtype.itemsize > 1:
        native = np.int64 if array.dtype.itemsize < 8 else np.float64
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def complex_tensor(array: np.ndarray, what: str) -> Tensor:
    """Complex array as complex64, or complex128 if it is stored so.

    Raises:
        InputError: if the array is not complex.
    """
    if array.dtype.kind != "c":
        raise InputError(
            f"{what} is {array.dtype}, but k-space and coil maps must be complex: magnitude images "
            "cannot be reconstructed again."
        )
    return numeric_tensor(array, what)


def finite(tensor: Tensor, what: str) -> Tensor:
    """The tensor itself, known to be finite.

    Raises:
        InputError: if it contains NaN or infinite values.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{what} contains NaN or infinite values.")
    return tensor
