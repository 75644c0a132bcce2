"""Readouts of an ISMRMRD file to k-space: oversampling removed, averages averaged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snrecon.io.limits import check_size
from snrecon.io.mrd_plan import Plan, Window, cropped, ratio
from snrecon.io.mrd_readouts import Readouts
from snrecon.physics.fourier import fft, ifft


def assemble(plan: Plan, readouts: Readouts, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Fill k-space from some rows; what is acquired several times is averaged.

    Args:
        plan: Placement of the readouts.
        readouts: The readouts.
        rows: Which of them.

    Returns:
        K-space ``(repetition, slice, coil, nz, ny, nx)`` complex64, zero where nothing was
        acquired, and how often each point was acquired ``(repetition, slice, nz, ny, nx)`` int32.

    Raises:
        InputError: if samples are missing or not finite, or the arrays are too large.
    """
    nz, ny, _ = plan.grid
    lines = (plan.repetitions, len(plan.slices), nz, ny, plan.readout_points)
    shape = (*lines[:2], plan.coils, *lines[2:])
    declared = int(np.prod(shape, dtype=object)) * 8
    check_size(2 * declared, readouts.storage.bytes.size, f"{readouts.name}: the k-space")
    kspace = np.zeros(shape, dtype=np.complex64)
    counts = np.zeros(lines, dtype=np.int32)
    pending: dict[Window, list[tuple[int, np.ndarray]]] = {}
    waiting = 0
    for row in rows.tolist():
        data = readouts.samples_of(row)
        pending.setdefault(plan.windows[row], []).append((row, data))
        waiting += data.nbytes
        if waiting > 2**25:
            _place(plan, pending, kspace, counts)
            pending, waiting = {}, 0
    _place(plan, pending, kspace, counts)
    if counts.max() > 1:
        kspace /= np.maximum(counts, 1)[:, :, None]
    return torch.from_numpy(kspace), torch.from_numpy(counts)


def _place(
    plan: Plan,
    pending: dict[Window, list[tuple[int, np.ndarray]]],
    kspace: np.ndarray,
    counts: np.ndarray,
) -> None:
    for window, lines in pending.items():
        data = np.stack([data for _, data in lines])
        if window.reverse:
            data = data[..., ::-1]
        data = data[..., window.skip : window.skip + window.length]
        data, start = remove_oversampling(data, window.start, plan.grid[2], plan.readout_points)
        along = slice(start, start + data.shape[-1])
        for (row, _), line in zip(lines, data, strict=True):
            repetition, number, z, y = plan.place[row]
            kspace[repetition, number, :, z, y, along] += line
            counts[repetition, number, z, y, along] += 1


def remove_oversampling(
    data: np.ndarray, start: int, points: int, target: int
) -> tuple[np.ndarray, int]:
    """Readouts of the image cropped along the readout to ``target / points`` of its extent.

    The acquired window is transformed to the image, cropped, and transformed back, all with the
    orthonormal transform: the crop takes a subset of independent equal noise values, so white
    noise of variance v stays exactly white noise of variance v (Psi does not change), for a
    partial echo too, because nothing is filled with zeros before. The signal of a full readout is
    that of the cropped image; that of a partial echo is interpolated periodically within its
    window, which errs near its two ends by the ringing of the cut that lies outside the crop.

    Args:
        data: ``(..., length)``, samples ``start`` to ``start + length`` of the encoded axis.
        start: First index on the encoded axis.
        points: Encoded points, centre at ``points // 2``.
        target: Points after the crop, centre at ``target // 2``; divides ``points`` if the window
            is partial.

    Returns:
        The readouts ``(..., new length)`` and their first index on the new axis.
    """
    if target == points:
        return data, start
    length = data.shape[-1]
    if length != points:
        # Samples next to the cut that do not make a whole new sample are given up.
        excess = length % (points // target)
        length -= excess
        if points // 2 - start <= length // 2:  # the start is cut off
            data, start = data[..., excess:], start + excess
        else:
            data = data[..., :length]
    kept = length * target // points
    centre = points // 2 - start  # of k-space, within the window; may lie outside it
    before = target // 2 if length == points else (centre * target) // points
    turned = torch.roll(torch.from_numpy(np.ascontiguousarray(data)), length // 2 - centre, -1)
    first = length // 2 - kept // 2
    image = ifft(turned, (-1,))[..., first : first + kept]
    lines = torch.roll(fft(image, (-1,)), before - kept // 2, -1)
    return lines.numpy(), target // 2 - before


def crop_phase_oversampling(kspace: Tensor, plan: Plan) -> Tensor:
    """Crop fully sampled k-space ``(..., nz, ny, nx)`` to the reconstructed field of view.

    Phase and slice oversampling can be removed only where every line was acquired: otherwise the
    cropped image is not known before the reconstruction, and the encoded grid stays.
    """
    for axis, dimension in ((-2, 1), (-3, 2)):
        points = kspace.shape[axis]
        target = cropped(points, ratio(plan.encoding, dimension)) if points > 1 else points
        if target == points:
            continue
        image = ifft(kspace, (axis,)).narrow(axis, points // 2 - target // 2, target)
        kspace = fft(image, (axis,))
        name = "phase" if dimension == 1 else "slice"
        plan.facts[f"{name}_oversampling_removed"] = f"{points} to {target} points"
    return kspace
