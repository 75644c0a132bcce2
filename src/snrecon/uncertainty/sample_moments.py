"""Running sums over samples of an image, and the outermost magnitudes of each voxel.

Memory does not grow with the number of samples, unless they are kept. Deviations are from the first
sample, so that a small spread about a large image loses no digits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.accumulated import Accumulated, Found
from snrecon.noise.moments import Moments
from snrecon.noise.state import KINDS
from snrecon.uncertainty.intervals import (
    ORDER,
    kind_of_interval,
    order_limits,
    outermost,
    student_limits,
    tail,
)

FEWEST_KEPT = 8
"""Of the outermost magnitudes, so that a run can be resumed for more samples."""


@dataclass(frozen=True, eq=False)
class SampleMoments(Accumulated):
    """Sums over samples ``x`` of one image."""

    kind: ClassVar[str] = "samples"
    origin: Tensor
    """The first sample, ``(*image)``."""
    magnitude: Moments
    """Of ``|x| - |origin|``."""
    first: Tensor
    """Sum of ``x - origin``, double precision."""
    second: Tensor
    """Sum of ``|x - origin|^2``, float64."""
    low: Tensor
    """The smallest magnitudes ``(kept, *image)``, ascending; infinite while there are fewer."""
    high: Tensor
    """The largest, descending."""
    images: Tensor | None = None
    """All samples ``(sample, *image)``, if they are kept."""

    @staticmethod
    def empty(origin: Tensor, outer: int = FEWEST_KEPT, keep: bool = False) -> SampleMoments:
        """No samples yet.

        Args:
            origin: What deviations are taken from.
            outer: How many of the outermost magnitudes to hold on each side.
            keep: Hold all samples.
        """
        size = origin.abs()
        wide = torch.complex128 if origin.is_complex() else torch.float64
        end = size.new_full((max(outer, FEWEST_KEPT), *origin.shape), float("inf"))
        return SampleMoments(
            origin, Moments.empty(size, zero_mean=False), torch.zeros_like(origin, dtype=wide),
            torch.zeros_like(size, dtype=torch.float64), end, -end,
            origin.new_zeros((0, *origin.shape)) if keep else None)

    def added(self, images: Tensor) -> SampleMoments:
        """With a batch of samples ``(batch, *image)`` more."""
        size = images.abs()
        away = images.to(self.first.dtype) - self.origin
        return replace(
            self,
            magnitude=self.magnitude.added(size.double() - self.origin.abs().double(), None),
            first=self.first + away.sum(0),
            second=self.second + (away.abs() ** 2).sum(0),
            low=outermost(self.low, size, largest=False),
            high=outermost(self.high, size, largest=True),
            images=None if self.images is None else torch.cat([self.images, images]),
        )

    @property
    def samples(self) -> int:
        """Samples so far."""
        return self.magnitude.count

    def mean(self) -> Tensor:
        """Mean image, in the precision of the samples."""
        return (self.origin + self.first / max(self.samples, 1)).to(self.origin.dtype)

    def mean_magnitude(self) -> Tensor:
        """Mean of ``|x|``, float64."""
        return self.origin.abs().double() + self.magnitude.sums["a1"] / max(self.samples, 1)

    def spread_complex(self) -> Tensor:
        """``sqrt(E|x - E x|^2)`` with n - 1 in the denominator, float64."""
        n = self.samples
        gap = self.second - self.first.abs() ** 2 / max(n, 1)
        return (gap.clamp_min(0) / max(n - 1, 1)).sqrt()

    def limits(self, level: float) -> tuple[Tensor, Tensor, str]:
        """Both limits of the magnitude's interval, and which kind it is.

        Raises:
            InputError: if too few of the outermost magnitudes were kept.
        """
        kind = kind_of_interval(self.samples, level)
        if kind == ORDER:
            self.require(self.samples, level)
            return *order_limits(self.low, self.high, self.samples, level), kind
        sd = self.magnitude.sigma()[0]
        return *student_limits(self.mean_magnitude(), sd, self.samples, level), kind

    def require(self, samples: int, level: float) -> None:
        """InputError if intervals of so many samples need more outer magnitudes than are kept."""
        if tail(samples, level) > self.low.shape[0]:
            raise InputError(
                f"the state keeps the {self.low.shape[0]} smallest and largest magnitudes of each "
                f"voxel, too few for {level:.3g} intervals of {samples} samples; ask for fewer, or "
                "start another --state file."
            )

    def merged(self, other: SampleMoments) -> SampleMoments:
        """Raises InputError: one run is asked for more samples instead."""
        raise InputError(
            "states of posterior samples are not merged; ask one run for more samples instead."
        )

    def to(self, device: torch.device) -> SampleMoments:
        """The same on another device."""
        moved = {name: part.to(device) for name, part in self._tensors().items()}
        return replace(self, **moved, magnitude=self.magnitude.to(device))

    def result(self, image: Tensor) -> Found:
        """Raises InputError: this is no noise."""
        raise InputError(
            "this is a state of samples at fixed data, whose spread is no noise; continue it with "
            "the command that began it."
        )

    def _tensors(self) -> dict[str, Tensor]:
        found = {"origin": self.origin, "first": self.first, "second": self.second,
                 "low": self.low, "high": self.high}
        return found if self.images is None else found | {"images": self.images}

    def arrays(self) -> dict[str, Tensor]:
        """All sums, the outermost magnitudes, and the samples if they are kept."""
        return self.magnitude.arrays() | self._tensors()

    def attributes(self) -> dict[str, Any]:
        """``count``."""
        return {"count": self.samples}

    @classmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> SampleMoments:
        """From a state file."""
        magnitude = Moments.restored(arrays, {**attributes, "zero_mean": False})
        names = ("origin", "first", "second", "low", "high")
        return cls(**{name: arrays[name] for name in names}, magnitude=magnitude,
                   images=arrays.get("images"))


KINDS[SampleMoments.kind] = SampleMoments
