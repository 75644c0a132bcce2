"""Intervals for one more sample, from a few samples of each voxel.

Both kinds are made for what is compared with them: something drawn from the same distribution as
the samples, such as the truth under an exact posterior, falls inside with probability ``level``,
however many samples there are.

- Order statistics, where the samples reach far enough into the tails, ``(n + 1)(1 - level)/2 >= 1``
  (39 samples for 95 %): of n + 1 values drawn alike each is the k-th smallest with the same
  probability, so the limits at the ranks ``(n + 1)(1 -+ level)/2`` hold for any distribution.
  Between ranks the limits are interpolated.
- Below that the normal approximation ``mean +- t sd sqrt(1 + 1/n)`` with Student's t of n - 1
  degrees of freedom, exact for Gaussian samples.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from snrecon.errors import InputError

ORDER, STUDENT = "order statistics", "student"
_ROUNDING = 1e-9


def _rank(samples: int, level: float) -> float:
    return (samples + 1) * (1 - level) / 2 + _ROUNDING


def kind_of_interval(samples: int, level: float) -> str:
    """``"order statistics"`` or ``"student"``."""
    return ORDER if _rank(samples, level) >= 1 else STUDENT


def tail(samples: int, level: float) -> int:
    """How many of the smallest (and of the largest) samples the limits are taken from."""
    rank = _rank(samples, level)
    return math.floor(rank) + 1 if rank >= 1 else 0


def order_limits(low: Tensor, high: Tensor, samples: int, level: float) -> tuple[Tensor, Tensor]:
    """Both limits from the outermost samples.

    Args:
        low: The smallest samples ``(tail or more, *image)``, ascending.
        high: The largest, descending.
        samples: Their number.
        level: Coverage.
    """
    rank = _rank(samples, level)
    k = math.floor(rank)
    part = max(rank - k - _ROUNDING, 0.0)
    lower = low[k - 1] + part * (low[k] - low[k - 1]) if part else low[k - 1]
    upper = high[k - 1] + part * (high[k] - high[k - 1]) if part else high[k - 1]
    return lower, upper


def student_limits(
    mean: Tensor, sd: Tensor, samples: int, level: float
) -> tuple[Tensor, Tensor]:
    """``mean -+ t sd sqrt(1 + 1/n)``; of a magnitude, so never below 0."""
    reach = sd * (student_quantile((1 + level) / 2, samples - 1) * (1 + 1 / samples) ** 0.5)
    return (mean - reach).clamp_min(0), mean + reach


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for whole ``degrees`` >= 1 and ``probability`` in [1/2, 1).

    Bisection on the finite series of its distribution (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    central = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, degrees) < central else (low, middle)
    return math.tan((low + high) / 2) * degrees**0.5


def _central(angle: float, degrees: int) -> float:
    """``P(|t| < sqrt(degrees) tan(angle))``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def checked_level(level: float) -> float:
    """``level``, if it is a probability inside (0, 1); else InputError."""
    if not isinstance(level, Real) or not 0 < level < 1:
        raise InputError(f"the level of the intervals must lie between 0 and 1, not {level!r}.")
    return float(level)


def outermost(kept: Tensor, more: Tensor, largest: bool) -> Tensor:
    """The outermost ``len(kept)`` of both sets of samples, outermost first."""
    both = torch.cat([kept, more.to(kept)])
    return both.sort(dim=0, descending=largest).values[: kept.shape[0]]
