"""One round of a decomposition, and running sums over rounds.

A round takes its own noise and its own m seeds, so rounds are independent of each other and alike:
every variance is the mean of its rounds, and their scatter is its standard error. What a round
gives is unbiased, so that a variance which happens to be small may come out below 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.accumulated import Accumulated, Found
from snrecon.noise.state import KINDS

PARTS = ("thermal", "posterior", "total", "fixed_seed")
"""Each as the variance along the phase of the mean image, and as the complex variance."""
FEATURES = 2 * len(PARTS)
CHANNELS = FEATURES + 3
"""Of one round: the features, real and imaginary part of the mean sample, and what finite
differences at the same seeds would add to the complex thermal part."""


def round_of(
    samples: list[Tensor], answers: Tensor, direction: Tensor, differences: Tensor | None = None
) -> Tensor:
    """The channels of one round, ``(CHANNELS, *image)`` float64.

    Args:
        samples: For each noise draw the samples ``(seed, *image)`` at noisy data.
        answers: What each seed answers to the noise, with zero mean over the noise and the
            variance of one draw of it, ``(seed, *image)``.
        direction: ``u``, a unit phase (or sign) of each voxel.
        differences: What the answers are the first order of.
    """
    wide = torch.complex128 if direction.is_complex() else torch.float64
    answers = answers.to(wide)
    thermal, posterior, fixed = [], [], []
    for part in (lambda x: along(x, direction), lambda x: x):
        a = part(answers)
        thermal.append(_common(a))
        fixed.append((a.abs() ** 2).mean(0))
        spreads = [_variance(part(x.to(wide))) for x in samples]
        posterior.append(torch.stack(spreads).mean(0))
    total = [t + p for t, p in zip(thermal, posterior)]
    mean = torch.stack([x.to(wide).mean(0) for x in samples]).mean(0)
    none = torch.zeros_like(thermal[0])
    more = none if differences is None else _common(differences.to(wide)) - thermal[1]
    imaginary = mean.imag if mean.is_complex() else none
    features = (*thermal, *posterior, *total, *fixed)
    return torch.stack([*features, mean.real, imaginary, more])


def along(x: Tensor, direction: Tensor) -> Tensor:
    """``Re(conj(u) x)``."""
    return (x * direction.conj()).real if x.is_complex() else x * direction


def _common(x: Tensor) -> Tensor:
    """Mean of ``Re(x_j conj(x_k))`` over pairs of different seeds."""
    seeds = x.shape[0]
    return (x.sum(0).abs() ** 2 - (x.abs() ** 2).sum(0)) / (seeds * (seeds - 1))


def _variance(x: Tensor) -> Tensor:
    """Over the first axis, n - 1 in the denominator."""
    gap = x - x.mean(0)
    return (gap.abs() ** 2).sum(0) / (x.shape[0] - 1)


@dataclass(frozen=True, eq=False)
class RoundMoments(Accumulated):
    """Sums over rounds, and for each round its means over regions."""

    kind: ClassVar[str] = "rounds"
    count: int
    sums: Tensor
    """Of the channels, ``(CHANNELS, *image)``."""
    squares: Tensor
    """Of the features, ``(FEATURES, *image)``."""
    regional: Tensor
    """Mean over each region of each channel, ``(round, region, CHANNELS)``."""

    @staticmethod
    def empty(like: Tensor, regions: int) -> RoundMoments:
        """No rounds yet, for images shaped as ``like``."""
        def zeros(channels: int) -> Tensor:
            return torch.zeros((channels, *like.shape), dtype=torch.float64, device=like.device)

        regional = torch.zeros((0, regions, CHANNELS), dtype=torch.float64)
        return RoundMoments(0, zeros(CHANNELS), zeros(FEATURES), regional)

    def added(self, rounds: Tensor, regions: list[Tensor]) -> RoundMoments:
        """With rounds ``(round, CHANNELS, *image)`` more."""
        means = torch.stack([rounds[:, :, region].mean(-1) for region in regions], dim=1)
        return RoundMoments(
            self.count + rounds.shape[0], self.sums + rounds.sum(0),
            self.squares + (rounds[:, :FEATURES] ** 2).sum(0),
            torch.cat([self.regional, means.cpu()]))

    def means(self) -> tuple[Tensor, Tensor]:
        """Variances and their standard errors, each ``(FEATURES, *image)`` float64."""
        n = self.count
        mean = self.sums[:FEATURES] / n
        scatter = (self.squares / n - mean**2).clamp_min(0) / max(n - 1, 1)
        return mean, scatter.sqrt()

    def region_means(self) -> tuple[Tensor, Tensor]:
        """The same over regions, ``(region, FEATURES)``."""
        values = self.regional[:, :, :FEATURES]
        return values.mean(0), values.std(0) / self.count**0.5

    def mean_image(self, like: Tensor) -> Tensor:
        """Mean of all samples, as ``like``."""
        real, imaginary = self.sums[FEATURES : FEATURES + 2] / self.count
        return (torch.complex(real, imaginary) if like.is_complex() else real).to(like.dtype)

    def finite_over_first_order(self) -> tuple[float, float]:
        """Thermal part by finite differences over that to first order, means over all voxels and
        both components, and the ratio's standard error."""
        base, more = self.regional[:, 0, 1], self.regional[:, 0, FEATURES + 2]
        size = float(base.mean())
        ratio = 1 + float(more.mean()) / size
        return ratio, float((more - (ratio - 1) * base).std()) / self.count**0.5 / abs(size)

    @property
    def samples(self) -> int:
        """Rounds so far."""
        return self.count

    def merged(self, other: RoundMoments) -> RoundMoments:
        """Raises InputError: one run is asked for more rounds instead."""
        raise InputError("decompositions are not merged; ask one run for more rounds instead.")

    def to(self, device: torch.device) -> RoundMoments:
        """The same on another device."""
        return replace(self, sums=self.sums.to(device), squares=self.squares.to(device))

    def result(self, image: Tensor) -> Found:
        """Raises InputError: this is no noise map."""
        raise InputError(
            "this is a state of a decomposition, not of a noise map; continue it with decompose."
        )

    def arrays(self) -> dict[str, Tensor]:
        """All sums, and the regional means in one row."""
        return {"sums": self.sums, "squares": self.squares, "regional": self.regional.flatten()}

    def attributes(self) -> dict[str, Any]:
        """``count`` and the number of ``regions``."""
        return {"count": self.count, "regions": self.regional.shape[1]}

    @classmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> RoundMoments:
        """From a state file."""
        shape = (int(attributes["count"]), int(attributes["regions"]), CHANNELS)
        return cls(shape[0], arrays["sums"], arrays["squares"], arrays["regional"].reshape(shape))


KINDS[RoundMoments.kind] = RoundMoments
