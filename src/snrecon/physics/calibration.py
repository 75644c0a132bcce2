"""The fully sampled centre of k-space, from which coil maps and kernels are calibrated."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.gram import varying_axes

ENOUGH = 32
"""Calibration lines along an axis beyond which more are worth nothing."""
FEWEST_LINES = 4
"""Fewest calibration lines along an undersampled axis from which coil maps are estimated."""


def calibration_region(mask: Tensor, minimum: int = 1) -> tuple[slice, ...]:
    """The largest fully sampled block around the centre of k-space.

    Of the fully sampled blocks around the centre the one with most points, where more than 32
    lines along an axis count as 32, so that a square of calibration lines is preferred to one long
    line. Along axes along which the mask does not vary it has the full extent of the grid.

    Args:
        mask: Boolean ``(*grid)``, centre of k-space at ``n // 2``.
        minimum: Fewest lines along every axis along which the mask varies.

    Returns:
        One slice for every grid axis.

    Raises:
        InputError: if the centre is not sampled or the block has fewer than ``minimum`` lines.
    """
    axes = varying_axes(mask)
    bounds = _block(_profile(mask, axes))
    found = [hi - lo for lo, hi in bounds]
    if min(found, default=minimum) < minimum:
        lines = " x ".join(map(str, found)) + " calibration line" + "s" * (found != [1])
        raise InputError(
            f"the fully sampled centre of k-space has only {lines}, but at least {minimum} are "
            "needed along each undersampled axis: give coil maps (--maps FILE) or more "
            "calibration lines."
        )
    region = [slice(0, n) for n in mask.shape]
    for axis, (lo, hi) in zip(axes, bounds):
        region[axis] = slice(lo, hi)
    return tuple(region)


def calibration_lines(mask: Tensor) -> tuple[int, ...]:
    """Calibration lines along each axis along which the mask ``(*grid)`` varies.

    Empty for a fully sampled mask; ``(0,)`` or ``(0, 0)`` when the centre is not sampled.
    """
    return tuple(hi - lo for lo, hi in _block(_profile(mask, varying_axes(mask))))


def cap_region(region: tuple[slice, ...], grid: tuple[int, ...], limit: int) -> tuple[slice, ...]:
    """The central part of a calibration region: at most ``limit`` lines along each axis.

    The part is centred on ``n // 2`` as far as the region allows.
    """
    return tuple(_cap(part, n, limit) for part, n in zip(region, grid, strict=True))


def _cap(part: slice, n: int, limit: int) -> slice:
    if part.stop - part.start <= limit:
        return part
    start = min(max(n // 2 - limit // 2, part.start), part.stop - limit)
    return slice(start, start + limit)


def _profile(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mask over the axes along which it varies only; any index does for the others."""
    selector = tuple(
        slice(None) if axis in axes else 0 for axis in range(-mask.ndim, 0)
    )
    return mask[selector].cpu()


def _block(profile: Tensor) -> list[tuple[int, int]]:
    """Bounds of the fully sampled block around the centre of a boolean array of 0 to 3 axes."""
    centre = tuple(n // 2 for n in profile.shape)
    if profile.ndim and not bool(profile[centre]):
        return [(c, c) for c in centre]
    return _largest_rectangle(profile) if profile.ndim == 2 else _grow(profile)


def _largest_rectangle(profile: Tensor) -> list[tuple[int, int]]:
    """The best rectangle around the centre, by comparing all ranges of rows."""
    rows, columns = (n // 2 for n in profile.shape)
    # Samples in a row, to the left and to the right of the centre, without a gap.
    left = profile[:, :columns].flip(1).cumprod(1).sum(1)
    right = profile[:, columns + 1 :].cumprod(1).sum(1)
    reach = profile[:, columns].long()
    above = int(reach[: rows + 1].flip(0).cumprod(0).sum())  # rows upwards, with the centre's
    below = int(reach[rows:].cumprod(0).sum())

    def narrowest(extent: Tensor) -> Tensor:  # (above, below): over rows -a .. +b
        up = extent[rows - above + 1 : rows + 1].flip(0).cummin(0).values
        down = extent[rows : rows + below].cummin(0).values
        return torch.minimum(up[:, None], down[None, :])

    lefts, rights = narrowest(left), narrowest(right)
    heights = torch.arange(1, above + 1)[:, None] + torch.arange(below)[None, :]
    widths = lefts + rights + 1
    size = heights.clamp(max=ENOUGH) * widths.clamp(max=ENOUGH)
    best = int((size * 2**24 + heights * widths).argmax())
    a, b = divmod(best, below)
    return [
        (rows - a, rows + b + 1),
        (columns - int(lefts[a, b]), columns + int(rights[a, b]) + 1),
    ]


def _grow(profile: Tensor) -> list[tuple[int, int]]:
    """A block grown from the centre line by line, on both sides of every axis in turn."""
    bounds = [(n // 2, n // 2 + 1) for n in profile.shape]
    growing = True
    while growing:
        growing = False
        for axis, n in enumerate(profile.shape):
            for side in (0, 1):  # low side first: an even block around n // 2 starts at n // 2 - h
                lo, hi = bounds[axis]
                line = lo - 1 if side == 0 else hi
                if not 0 <= line < n:
                    continue
                face = [slice(a, b) for a, b in bounds]
                face[axis] = slice(line, line + 1)
                if bool(profile[tuple(face)].all()):
                    bounds[axis] = (line, hi) if side == 0 else (lo, line + 1)
                    growing = True
    return bounds


def periphery(mask: Tensor) -> Tensor:
    """The outermost tenth of the sampled points, by largest relative distance along any axis."""
    radius = torch.zeros((), device=mask.device)
    for axis, n in enumerate(mask.shape):
        distance = (torch.arange(n, device=mask.device) - n // 2).abs() / max(1, n // 2)
        radius = torch.maximum(radius, distance.reshape(-1, *(1,) * (mask.ndim - axis - 1)))
    sampled = radius.expand(mask.shape)[mask]
    return mask & (radius >= sampled.quantile(0.9) if len(sampled) < 2**24 else radius > 0.9)


def peripheral_energy(kspace: Tensor, mask: Tensor) -> float:
    """Mean energy of a sample and coil in the periphery of k-space: an upper bound of the noise.

    The median over the periphery, where little signal is left.
    """
    outer = periphery(mask)
    return float(kspace[:, outer].abs().square().mean(0).median()) if bool(outer.any()) else 0.0


def low_resolution(kspace: Tensor, region: tuple[slice, ...]) -> Tensor:
    """``kspace`` ``(coil, *grid)`` kept in the region only, tapered by a Hann window.

    The taper is along axes where the region is smaller than the grid; it suppresses ringing.
    """
    result = torch.zeros_like(kspace)
    block = kspace[(slice(None), *region)]
    for axis, (part, n) in enumerate(zip(region, kspace.shape[1:], strict=True), start=1):
        width = part.stop - part.start
        if width < n:
            offset = torch.arange(part.start, part.stop, device=kspace.device) - n // 2
            reach = max(abs(part.start - n // 2), abs(part.stop - 1 - n // 2)) + 1
            window = torch.cos(torch.pi * offset.to(kspace.real.dtype) / (2 * reach)) ** 2
            block = block * window.reshape(-1, *(1,) * (kspace.ndim - axis - 1))
    result[(slice(None), *region)] = block
    return result
