"""Regions of an image: boolean arrays by name, over which results are given as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from snrecon.errors import InputError

Mask = Tensor | np.ndarray


def region_of(name: str, mask: Mask, shape: tuple[int, ...] | None = None) -> Tensor:
    """A region as a boolean tensor.

    Args:
        name: What it is called in errors.
        mask: Boolean, a tensor or a numpy array.
        shape: Of the image; None while it is not known.

    Raises:
        InputError: if it is not a boolean array of that shape with at least one voxel.
    """
    found = torch.as_tensor(mask) if isinstance(mask, Tensor | np.ndarray) else None
    if found is None or found.dtype != torch.bool or shape not in (None, tuple(found.shape)):
        kind = type(mask).__name__
        if found is not None:
            kind = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        wanted = "" if shape is None else f" of shape {shape}"
        raise InputError(f"the region {name!r} must be a boolean array{wanted}, not {kind}.")
    if not bool(found.any()):
        raise InputError(f"the region {name!r} has no voxel.")
    return found


def regions_of(
    regions: Mapping[str, Mask] | None, shape: tuple[int, ...] | None = None
) -> dict[str, Tensor]:
    """All regions, each as :func:`region_of` has it.

    Raises:
        InputError: if they are not arrays by name, or one does not fit.
    """
    if regions is not None and not isinstance(regions, Mapping):
        raise InputError(f"regions are boolean arrays by name, not {type(regions).__name__}.")
    return {str(name): region_of(name, mask, shape) for name, mask in (regions or {}).items()}


def digest(regions: Mapping[str, Tensor]) -> str:
    """Tells regions by their names and voxels, in whichever order they are given."""
    found = hashlib.sha256()
    for name in sorted(regions):
        voxels = regions[name].cpu().contiguous().numpy()
        found.update(repr((name, voxels.shape)).encode())
        found.update(voxels.tobytes())
    return found.hexdigest()
