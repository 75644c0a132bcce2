"""The noise levels and steps of annealed Langevin dynamics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.recon.option_types import number, whole_number

DATA_END = 0.1
"""While settling, the data's extra SD falls to this share of the smallest level, then to zero."""
STEP_END = 0.1
"""Share of the step that is left at the very end."""


@dataclass(frozen=True)
class Level:
    """What one step works with."""

    sigma: float
    """Noise level of the score."""
    data_variance: float
    """Added to the variance of the data."""
    share: float
    """Of the step that would be made otherwise."""


@dataclass(frozen=True)
class Schedule:
    """``levels`` noise levels in geometric sequence, ``steps`` at each, and ``settle`` more.

    In the first half of the settling steps the data's extra SD falls from ``sigma_min`` to zero,
    in the second half the step falls to a tenth, both in geometric sequence. So the discretisation,
    which makes variances ``1 / (1 - a P / 2)`` times too large in directions of precision P, fades.

    Raises:
        InputError: for numbers that make no schedule.
    """

    levels: int
    steps: int
    settle: int
    step: float | None
    sigma_max: float
    sigma_min: float

    def __post_init__(self) -> None:
        for what, least in (("levels", 1), ("steps", 1), ("settle", 0)):
            value = whole_number(f"{what} of langevin", getattr(self, what), least)
            object.__setattr__(self, what, value)
        if self.step is not None and number("step of langevin", self.step) <= 0:
            raise InputError(f"step of langevin must be positive, not {self.step}.")
        if not 0 < self.sigma_min <= self.sigma_max < float("inf"):
            raise InputError(
                "the noise levels must be positive and finite, not "
                f"{self.sigma_max} to {self.sigma_min}."
            )

    @property
    def total(self) -> int:
        """Number of steps."""
        return int(self.levels * self.steps + self.settle)

    def __iter__(self) -> Iterator[Level]:
        """Every step in turn; a single level is ``sigma_min``."""
        ratio = self.sigma_min / self.sigma_max
        for index in range(int(self.levels)):
            place = index / (self.levels - 1) if self.levels > 1 else 1.0
            sigma = self.sigma_max * ratio**place
            for _ in range(int(self.steps)):
                yield Level(sigma, sigma**2, 1.0)
        for index in range(1, int(self.settle) + 1):
            place = 2 * index / self.settle
            extra = self.sigma_min * DATA_END**place if place < 1 else 0.0
            yield Level(self.sigma_min, extra**2, STEP_END ** max(place - 1, 0.0))

    def step_size(self, level: Level, noise_variance: Tensor) -> Tensor:
        """``a``, shaped as ``noise_variance``: that asked for, at most the inverse of the steepest
        slope ``1/sigma^2 + 1/(noise_variance + data_variance)`` of the force."""
        steepest = 1 / level.sigma**2 + 1 / (noise_variance + level.data_variance)
        a = 1 / steepest
        if self.step is not None:
            a = a.clamp(max=self.step * (level.sigma / self.sigma_min) ** 2)
        return level.share * a

    def limited(self, noise_variance: float) -> int:
        """How many steps are smaller than was asked for, by more than rounding."""
        if self.step is None:
            return 0
        variance = torch.tensor(noise_variance, dtype=torch.float64)
        wanted = [self.step * (one.sigma / self.sigma_min) ** 2 * one.share for one in self]
        return sum(
            float(self.step_size(one, variance)) < (1 - 1e-9) * a for one, a in zip(self, wanted)
        )
