"""Which measured samples predict a missing one in GRAPPA, and with what weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrecon.errors import InputError

MOST_PATTERNS = 400
"""Different source patterns that are calibrated; irregular 2D masks have too many."""
READOUT_LIMIT = 96
"""Central readout samples used for calibration; further out there is noise and cost only."""

Offsets = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Missing points of the phase-encoding plane that have their sources at the same offsets."""

    offsets: Offsets
    """Sources relative to the missing point."""
    targets: Tensor
    """``(target,)`` flat indices of the missing points in the plane."""
    sources: Tensor
    """``(target, source)`` flat indices of their sources."""


def source_patterns(
    sampled: Tensor, calibration: tuple[int, int], per_side: int, unknowns: int, equations: int
) -> list[Pattern]:
    """Group the missing points by the relative positions of the samples that will predict them.

    Along one axis these are the ``per_side`` nearest samples before and after; in a plane those of
    each quadrant. Sources that the calibration block cannot cover are left out, farthest first.

    Args:
        sampled: Boolean plane ``(p1, p2)``; p1 is 1 when only one axis is undersampled.
        calibration: Size of the calibration block.
        per_side: Sources on each side.
        unknowns: Weights per source (coils times readout taps).
        equations: Equations per position of the kernel in the calibration block.

    Raises:
        InputError: if the pattern is too irregular.
    """
    plane = sampled.cpu().numpy()
    measured, missing = np.argwhere(plane), np.argwhere(~plane)
    found: dict[Offsets, list[np.ndarray]] = {}
    for point in missing:
        relative = measured - point
        near = (np.abs(relative) < np.array(calibration)).all(axis=1)
        chosen = _choose(relative[near], per_side)
        while len(chosen) and not _covered(chosen, calibration, unknowns, equations):
            chosen = chosen[:-1]
        if len(chosen):
            offsets = tuple(sorted((int(a), int(b)) for a, b in chosen))
            found.setdefault(offsets, []).append(point)
        if len(found) > MOST_PATTERNS:
            raise InputError(
                f"grappa needs a regular mask: this one has more than {MOST_PATTERNS} different "
                "surroundings of a missing sample; use sense instead."
            )
    return [_pattern(offsets, points, plane.shape[1]) for offsets, points in found.items()]


def _choose(relative: np.ndarray, per_side: int) -> np.ndarray:
    """The nearest samples on every side, nearest first, ``(source, 2)``."""
    distance = np.hypot(relative[:, 0], relative[:, 1])
    relative = relative[np.lexsort((relative[:, 1], relative[:, 0], distance))]
    if (relative[:, 0] == 0).all():
        side = np.sign(relative[:, 1])
    else:
        side = np.floor(np.arctan2(relative[:, 0], relative[:, 1]) / (np.pi / 2) - 1e-9)
    kept = np.zeros(len(relative), dtype=bool)
    for one in np.unique(side):
        kept[np.flatnonzero(side == one)[:per_side]] = True
    return relative[kept]


def _covered(
    chosen: np.ndarray, calibration: tuple[int, int], unknowns: int, equations: int
) -> bool:
    """Whether the block has at least as many equations for these sources as weights."""
    room = _room(chosen, calibration)
    return min(room) > 0 and room[0] * room[1] * equations >= len(chosen) * unknowns


def _room(chosen: np.ndarray, calibration: tuple[int, int]) -> tuple[int, int]:
    """Positions of the kernel (with its target) inside the block, along both axes."""
    low, high = np.minimum(chosen.min(axis=0), 0), np.maximum(chosen.max(axis=0), 0)
    return int(calibration[0] - (high - low)[0]), int(calibration[1] - (high - low)[1])


def _pattern(offsets: Offsets, points: list[np.ndarray], width: int) -> Pattern:
    targets = np.array(points)
    sources = targets[:, None, :] + np.array(offsets)[None]
    flat = np.array([width, 1])
    return Pattern(offsets, torch.from_numpy(targets @ flat), torch.from_numpy(sources @ flat))


def fit_weights(block: Tensor, offsets: Offsets, taps: int, ridge: float) -> Tensor:
    """Least-squares weights of one pattern from a calibration block (Griswold et al. 2002).

    ``min |G w - t|^2 + ridge * mean(diag(G^H G)) |w|^2`` over all positions in the block.

    Args:
        block: ``(coil, c1, c2, readout)`` whitened k-space.
        offsets: Sources relative to the target.
        taps: Readout samples of the kernel.
        ridge: Relative weight of the Tikhonov term.

    Returns:
        ``(coil, coil * source, taps)`` in double precision: target coil, source, readout offset
        ``-(taps // 2)`` and following.
    """
    coils, n = block.shape[0], block.shape[-1]
    keep = min(n, READOUT_LIMIT)
    start = min(max(n // 2 - keep // 2, 0), n - keep)
    block = block[..., start : start + keep].to(torch.complex128)
    array = np.array(offsets)
    low = np.minimum(array.min(axis=0), 0)
    room = _room(array, (block.shape[1], block.shape[2]))
    width = keep - taps + 1

    def window(offset: tuple[int, int], shift: int) -> Tensor:
        i, j = offset[0] - int(low[0]), offset[1] - int(low[1])
        part = block[:, i : i + room[0], j : j + room[1], shift : shift + width]
        return part.reshape(coils, -1)

    def sources() -> Iterator[Tensor]:
        for offset in offsets:
            yield torch.stack([window(offset, shift) for shift in range(taps)], dim=1)

    # (coil, source, taps, equation)
    gathered = torch.stack(list(sources()), dim=1).reshape(coils * len(offsets) * taps, -1)
    target = window((0, 0), taps // 2)
    normal = gathered.conj() @ gathered.mT
    size = normal.diagonal().real.mean().clamp(min=torch.finfo(torch.float64).tiny)
    eye = torch.eye(normal.shape[0], dtype=normal.dtype, device=normal.device)
    normal = normal + max(ridge, 1e-12) * size * eye
    weights = torch.linalg.solve(normal, gathered.conj() @ target.mT)
    return weights.mT.reshape(coils, -1, taps)
