"""Cartesian sampling masks: seeded, with the acceleration that they really achieve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.poisson import poisson_disc

Pattern = Callable[[tuple[int, ...], float, np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True, eq=False)
class Mask:
    """A sampling pattern and how it came about.

    ``nominal`` is what was asked for, ``acceleration`` what the pattern has: several published
    definitions miss their nominal value by far (``equispaced`` adds the calibration lines on top).
    """

    tensor: Tensor
    """Boolean ``(*grid)``, true where sampled; k-space centre at ``n // 2``."""
    kind: str
    """One of :data:`MASK_KINDS`."""
    nominal: float
    """The acceleration asked for."""
    calibration: int
    """Fully sampled lines around the centre (1D kinds) or side of the fully sampled block."""
    seed: int
    """Seed of the pattern."""

    @property
    def acceleration(self) -> float:
        """True acceleration R: grid points over sampled points, calibration counted."""
        return self.tensor.numel() / int(self.tensor.sum())

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.tensor.shape))
        return (
            f"Mask({self.kind}, {grid}, nominal R={self.nominal:g}, achieved "
            f"R={self.acceleration:.3f}, calibration={self.calibration}, seed={self.seed})"
        )


def make_mask(
    kind: str,
    grid: tuple[int, ...],
    acceleration: float,
    calibration: int | None = None,
    seed: int = 0,
) -> Mask:
    """Draw a sampling mask.

    One-dimensional kinds undersample ky (axis -2) and are constant along the others. The
    two-dimensional kinds (``poisson``, ``gaussian2d``) undersample ``(ky, kx)`` of a 2D grid and
    the phase-encoding plane ``(kz, ky)`` of a 3D grid, whose readout stays full.

    With W lines, acceleration R and c calibration lines (at ``(W - c + 1) // 2`` and following):

    - ``random``: every other line with probability ``(W/R - c) / (W - c)`` (fastMRI);
    - ``equispaced``: every R-th line from a random offset, calibration on top (fastMRI; achieves
      less than R);
    - ``equispaced_fraction``: the same with the spacing ``R (W - c) / (W - c R)``, so that R is
      met (fastMRI);
    - ``magic``: interleaved spacings for positive and negative frequencies, so that conjugate
      symmetry fills the gaps (fastMRI);
    - ``regular``: every R-th line counted from the centre line ``W // 2``, calibration on top;
    - ``uniform1d``, ``gaussian1d``, ``gaussian2d``: ``round(points / R)`` samples drawn without
      replacement, with equal weights or Gaussian ones (SD a sixth of the grid);
    - ``poisson1d``, ``poisson``: variable-density Poisson disc with ``round(points / R)`` samples;
    - ``partial_fourier``: the last ``round(W / R)`` lines, so ``acceleration=1/0.625`` keeps 5/8.

    Args:
        kind: One of :data:`MASK_KINDS`.
        grid: ``(ky, kx)`` or ``(kz, ky, kx)``.
        acceleration: Nominal R, at least 1; 1 samples everything.
        calibration: Fully sampled centre lines, or side of the centred block for 2D kinds (cut to
            the axis that is shorter). None: ``0.32 W / R`` lines (8 % at R = 4, as in fastMRI), or
            ``0.32 W / sqrt(R)`` for the side of a block (a tenth of all samples). ``regular``
            with 0 is the pure lattice. ``partial_fourier`` has as many as it has and only checks
            a given number.
        seed: Same seed, same mask.

    Raises:
        InputError: for an unknown kind, a grid that is not 2D or 3D, an acceleration below 1 or
            not whole where lines are counted off, or calibration that does not fit the grid or R.

    Source: Zbontar et al., arXiv:1811.08839 (fastMRI); Lustig et al., Magn. Reson. Med. 58 (2007).
    """
    if kind not in _PATTERNS:
        raise InputError(f"there is no mask kind '{kind}'; known kinds: {', '.join(MASK_KINDS)}.")
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise InputError(f"a mask needs a grid (ky, kx) or (kz, ky, kx), not {tuple(grid)}.")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise InputError(f"the acceleration must be a number of at least 1, not {acceleration}.")
    if seed < 0:
        raise InputError(f"the mask seed must not be negative, but it is {seed}.")
    pattern, planar = _PATTERNS[kind]
    axes = _axes(planar, len(grid))
    shape = tuple(grid[a] for a in axes)
    count = math.prod(shape)
    if calibration is None and kind == "partial_fourier":
        calibration = 0
    elif calibration is None:
        share = 0.32 / (math.sqrt(acceleration) if planar else acceleration)
        calibration = round(min(shape) * share)
    if not 0 <= calibration <= max(shape):
        raise InputError(
            f"{calibration} calibration lines do not fit the {'x'.join(map(str, shape))} "
            "phase-encoding grid."
        )
    if count / acceleration < 0.5:
        raise InputError(f"acceleration {acceleration:g} leaves nothing of {count} samples.")
    if acceleration == 1:
        profile = np.ones(shape, dtype=bool)
    else:
        block = _block(shape, calibration)
        if kind in _EXACT and block.sum() > count / acceleration:
            raise InputError(
                f"acceleration {acceleration:g} cannot be reached with {calibration} calibration "
                f"lines: they alone are {int(block.sum())} of the {count / acceleration:.0f} "
                "samples; use fewer of them or a lower acceleration."
            )
        profile = pattern(shape, float(acceleration), block, np.random.default_rng(seed))
    if kind == "partial_fourier":
        first = int(np.argmax(profile))
        symmetric = min(2 * (shape[0] // 2 - first) + 1, shape[0])
        if calibration > symmetric:
            raise InputError(
                f"acceleration {acceleration:g} of a partial Fourier mask leaves {symmetric} "
                f"centre lines, fewer than the {calibration} asked for; use a lower acceleration."
            )
        calibration = symmetric
    if not profile.any():
        raise InputError(
            f"the {kind} mask of acceleration {acceleration:g} with seed {seed} has no samples; "
            "use calibration lines or a lower acceleration."
        )
    view = torch.from_numpy(profile.astype(bool))
    expanded = view.reshape([n if i - len(grid) in axes else 1 for i, n in enumerate(grid)])
    return Mask(expanded.expand(grid).clone(), kind, float(acceleration), calibration, seed)


def _axes(planar: bool, dimensions: int) -> tuple[int, ...]:
    if not planar:
        return (-2,)
    return (-2, -1) if dimensions == 2 else (-3, -2)


def _block(shape: tuple[int, ...], side: int) -> np.ndarray:
    """Centred fully sampled lines or block."""
    block = np.zeros(shape, dtype=bool)
    sides = [min(side, n) for n in shape]
    block[tuple(slice((n - s + 1) // 2, (n - s + 1) // 2 + s) for n, s in zip(shape, sides))] = True
    return block


def _whole(acceleration: float, kind: str) -> int:
    step = round(acceleration)
    if abs(step - acceleration) > 1e-6:
        raise InputError(
            f"a {kind} mask counts lines off and needs a whole acceleration, not "
            f"{acceleration:g}; equispaced_fraction takes any."
        )
    return step


def _random(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    free = block.size - block.sum()
    probability = (block.size / acceleration - block.sum()) / max(free, 1)
    return np.asarray(block | (rng.random(shape) < probability))


def _equispaced(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    step = _whole(acceleration, "equispaced")
    mask = block.copy()
    mask[int(rng.integers(step)) :: step] = True
    return mask


def _equispaced_fraction(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    width, acs = block.size, int(block.sum())
    mask = block.copy()
    if width > acs * acceleration:
        spacing = acceleration * (width - acs) / (width - acs * acceleration)
        offset = int(rng.integers(max(round(spacing), 1)))
        # The last line is only reached by rounding: part of the published definition.
        mask[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = True
    return mask


def _magic(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    width = block.size
    target = int(width / acceleration)
    acs = max(int(block.sum()), 1)
    mask = block | _block(shape, 1)
    if target <= acs:
        return mask
    step = round(width / (target - acs))
    offset = int(rng.integers(step))
    # First lines counted from the centre: the two sides are two apart, so that at a spacing of
    # four the mirror image of one side falls between the lines of the other.
    positive, negative = (offset + 1, offset + 3) if offset % 2 == 0 else (offset + 2, offset)
    centre = width // 2
    mask[centre + positive :: step] = True
    below = centre - np.arange(negative, centre + 1, step)
    mask[below] = True
    return mask


def _regular(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    step = _whole(acceleration, "regular")
    lines = np.arange(block.size)
    return np.asarray(block | ((lines - block.size // 2) % step == 0))


def _partial_fourier(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    width = block.size
    first = width - round(width / acceleration)
    if first > width // 2:
        raise InputError(
            "a partial Fourier mask must reach the centre of k-space: its acceleration is at most "
            f"2, not {acceleration:g} (1/0.625 keeps five eighths)."
        )
    return np.arange(width) >= first


def _drawn(spread: float | None) -> Pattern:
    """Samples without replacement, weighted by a Gaussian of SD ``spread`` times the grid."""

    def pattern(
        shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        log_weight = np.zeros(shape)
        if spread is not None:
            for axis, n in enumerate(shape):
                k = (np.arange(n) - n // 2) / (spread * n)
                log_weight = log_weight - np.expand_dims(
                    k**2 / 2, tuple(i for i in range(len(shape)) if i != axis)
                )
        # The largest log-weights plus Gumbel noise are a weighted draw without replacement.
        score = np.where(block, np.inf, log_weight + rng.gumbel(size=shape)).ravel()
        wanted = max(round(block.size / acceleration), int(block.sum()))
        mask = np.zeros(block.size, dtype=bool)
        mask[np.argsort(-score, kind="stable")[:wanted]] = True
        return mask.reshape(shape)

    return pattern


def _poisson(
    shape: tuple[int, ...], acceleration: float, block: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    plane = (1, *shape) if len(shape) == 1 else shape
    wanted = round(block.size / acceleration)
    mask, _ = poisson_disc((plane[0], plane[1]), wanted, block.reshape(plane), rng)
    return mask.reshape(shape)


_PATTERNS: dict[str, tuple[Pattern, bool]] = {
    "random": (_random, False),
    "equispaced": (_equispaced, False),
    "equispaced_fraction": (_equispaced_fraction, False),
    "magic": (_magic, False),
    "regular": (_regular, False),
    "poisson": (_poisson, True),
    "poisson1d": (_poisson, False),
    "gaussian1d": (_drawn(1 / 6), False),
    "gaussian2d": (_drawn(1 / 6), True),
    "uniform1d": (_drawn(None), False),
    "partial_fourier": (_partial_fourier, False),
}
_EXACT = tuple(k for k in _PATTERNS if k not in ("regular", "equispaced", "partial_fourier"))

MASK_KINDS = tuple(_PATTERNS)
"""Every kind that :func:`make_mask` draws."""
