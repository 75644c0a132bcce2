"""Masks of training measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.masks import make_mask
from snrecon.training.config import SimulationConfig

PLANAR = ("poisson", "gaussian2d")
"""Mask kinds that vary along both axes."""


def draw_mask(
    settings: SimulationConfig, grid: tuple[int, ...], generator: torch.Generator, strip: bool
) -> Tensor:
    """A boolean mask ``(ky, kx)`` of the configured kinds, accelerations and calibration.

    Args:
        settings: ``kinds``, ``accelerations`` and ``calibration``.
        grid: ``(ky, kx)``.
        generator: Source of randomness.
        strip: The grid is a strip of a wider image: only kinds that leave kx fully sampled.

    Raises:
        InputError: if there is no such kind, or a mask cannot be made.
    """
    kinds = _kinds(settings, strip)
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    rates = settings.accelerations
    rate = rates[int(torch.randint(len(rates), (), generator=generator))]
    low, high = settings.calibration
    share = low + (high - low) * float(torch.rand((), generator=generator))
    lines = _lines(kind, grid, rate, share)
    seed = int(torch.randint(2**31, (), generator=generator))
    return make_mask(kind, grid, rate, calibration=lines, seed=seed).tensor


def check_masks(settings: SimulationConfig, grid: tuple[int, ...], strip: bool) -> None:
    """Make sure that :func:`draw_mask` can draw all it may draw on a grid, lest a training ends
    at the first mask that cannot be.

    Args:
        settings: ``kinds``, ``accelerations`` and ``calibration``.
        grid: ``(ky, kx)``.
        strip: The grid is a strip of a wider image.

    Raises:
        InputError: naming the settings that do not go together.
    """
    for kind in dict.fromkeys(_kinds(settings, strip)):
        for rate in dict.fromkeys(settings.accelerations):
            lines = _lines(kind, grid, rate, settings.calibration[1])
            # Both planar kinds have the same limits, and Poisson discs take long; one column will
            # do for the others.
            likewise, points = ("gaussian2d", grid) if kind in PLANAR else (kind, (grid[0], 1))
            try:
                make_mask(likewise, points, rate, calibration=lines)
            except InputError as error:
                raise InputError(
                    f"simulation.accelerations = {rate:g} and simulation.kinds = '{kind}' do not "
                    f"go together on a grid of {grid[0]}x{grid[1]}: {error}"
                ) from error


def _kinds(settings: SimulationConfig, strip: bool) -> list[str]:
    kinds = [kind for kind in settings.kinds if not strip or kind not in PLANAR]
    if not kinds:
        raise InputError("strips need mask kinds that leave kx fully sampled: set [simulation] "
                         "kinds to some.")
    return kinds


def _lines(kind: str, grid: tuple[int, ...], rate: float, share: float) -> int:
    """Calibration lines, or side of the block of planar kinds."""
    lines = max(4, round(grid[0] * min(share, 0.4 / rate)))
    return 2 * lines if kind in PLANAR else lines
