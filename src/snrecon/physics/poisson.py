"""Variable-density Poisson-disc patterns on a Cartesian grid."""

from __future__ import annotations

import numpy as np

QUANTUM = 32
"""Exclusion radii are rounded up to this fraction of a grid step, so that discs can be reused."""


def poisson_disc(
    shape: tuple[int, int], wanted: int, kept: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A pattern of exactly ``wanted`` points that keep a distance growing with ``|k|``.

    Grid points are visited in random order. A point is taken unless an earlier one lies closer
    than that earlier point's exclusion radius ``r = 1 + slope * |k|`` (grid steps along the
    longest axis, ``|k| = 1`` at the middle of an edge; along a shorter axis the radius shrinks
    with the axis, but not below one step). Few distances occur on a grid, so that the density
    would fall in steps as r grows; each point's ``r^2`` is therefore lowered by a random part of
    one squared step. Samples of the disc pattern at p and q are at least
    ``sqrt(min(r(p), r(q))^2 - 1)`` apart. The slope comes from bisection; the few points in
    excess are then dropped at random, which keeps every distance.

    The density model is the one of Lustig et al., Magn. Reson. Med. 58 (2007), in the disc form
    that is usual for two phase-encoding directions.

    Args:
        shape: ``(n, m)``; ``(1, m)`` gives a one-dimensional pattern.
        wanted: Number of points, those of ``kept`` included.
        kept: Boolean ``(n, m)``: points that are sampled in any case (the calibration block); they
            take no part in the distances.
        generator: Source of randomness.

    Returns:
        The pattern, boolean ``(n, m)`` with ``wanted`` points (more only if ``kept`` has more),
        and the slope.
    """
    order = generator.permutation(shape[0] * shape[1])
    distance = radial_distance(shape)
    dither = generator.random(shape)
    low, high = 0.0, float(max(shape))
    best, found = np.ones(shape, dtype=bool), 0.0  # slope 0: every point
    for _ in range(24):
        slope = (low + high) / 2
        radius = np.sqrt(np.maximum((1 + slope * distance) ** 2 - dither, 1))
        taken = _throw(shape, radius, order) | kept
        excess = int(taken.sum()) - wanted
        if excess < 0:
            high = slope
            continue
        low = slope
        if taken.sum() < best.sum():
            best, found = taken, slope
        if excess <= 0.002 * wanted:
            break
    free = np.flatnonzero(best & ~kept)
    excess = min(max(int(best.sum()) - wanted, 0), free.size)
    best = best.copy()
    best.ravel()[generator.choice(free, size=excess, replace=False)] = False
    return best, found


def radial_distance(shape: tuple[int, int]) -> np.ndarray:
    """``|k|`` relative to the middle of an edge: 0 at the centre ``n // 2``, ``(n, m)``."""
    axes = [(np.arange(n) - n // 2) / max(n / 2, 1) for n in shape]
    return np.hypot(axes[0][:, None], axes[1][None, :])


def axis_scale(shape: tuple[int, int], radius: float) -> tuple[float, float]:
    """Semi-axes, in grid steps, of the exclusion ellipse of a given radius."""
    longest = max(shape)
    return max(radius * shape[0] / longest, 1.0), max(radius * shape[1] / longest, 1.0)


def _throw(shape: tuple[int, int], radius: np.ndarray, order: np.ndarray) -> np.ndarray:
    """One maximal pattern: visit the points in ``order``, take what is not excluded yet."""
    keys = np.ceil(radius * QUANTUM).astype(int)
    discs: dict[int, tuple[np.ndarray, int, int]] = {}
    pad = [int(np.ceil(s)) for s in axis_scale(shape, int(keys.max()) / QUANTUM)]
    width = shape[1] + 2 * pad[1]
    # A byte view for the (many) reads of single points, an array view for the block writes.
    buffer = bytearray((shape[0] + 2 * pad[0]) * width)
    excluded = np.frombuffer(buffer, dtype=np.uint8).reshape(-1, width)
    rows, columns = np.divmod(order, shape[1])
    rows, columns = rows + pad[0], columns + pad[1]
    flat = (rows * width + columns).tolist()
    visits = zip(
        flat, rows.tolist(), columns.tolist(), keys.ravel()[order].tolist(), order.tolist()
    )
    taken = []
    for position, row, column, key, point in visits:
        if buffer[position]:
            continue
        taken.append(point)
        if key not in discs:
            discs[key] = _disc(shape, key / QUANTUM)
        disc, up, left = discs[key]
        block = excluded[row - up : row + up + 1, column - left : column + left + 1]
        np.bitwise_or(block, disc, out=block)
    pattern = np.zeros(shape, dtype=bool)
    pattern.ravel()[taken] = True
    return pattern


def _disc(shape: tuple[int, int], radius: float) -> tuple[np.ndarray, int, int]:
    """Grid offsets closer than ``radius``, with the half-widths of the array."""
    a, b = axis_scale(shape, radius)
    up, left = int(np.ceil(a)) - 1, int(np.ceil(b)) - 1
    y, x = np.arange(-up, up + 1)[:, None] / a, np.arange(-left, left + 1)[None, :] / b
    return (y**2 + x**2 < 1).astype(np.uint8), up, left
