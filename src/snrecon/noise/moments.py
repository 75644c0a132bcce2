"""Streaming moments of noise samples, and the error bar on the standard deviation they give.

A sample is the pair ``(a, b)``: the components of ``dx`` along and across the image's phase. Only
sums are kept, so memory does not depend on the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.accumulated import Accumulated, Found

NAMES = ("a1", "a2", "a3", "a4", "b1", "b2", "ab")
FEWEST = 2
"""Samples without which there is no spread about their own mean."""
TOO_FEW = "replicas need at least two passes"
GAUSSIAN = 2.0
"""Dispersion of Gaussian samples: kurtosis 3 minus 1."""


@dataclass(eq=False)
class Moments(Accumulated):
    """Sums over samples, float64, each of the image's shape.

    ``a1..a4``: powers of the component along the phase; ``b1, b2``: across it; ``ab``: their
    product. ``zero_mean`` tells whether the mean of a sample is known to be zero (Jacobian
    products) or has to be estimated (replicas of a nonlinear reconstruction).
    """

    kind: ClassVar[str] = "moments"
    count: int
    sums: dict[str, Tensor]
    zero_mean: bool

    @staticmethod
    def empty(like: Tensor, zero_mean: bool) -> Moments:
        """No samples yet, for images shaped as ``like``."""
        zeros = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        return Moments(0, {name: zeros.clone() for name in NAMES}, zero_mean)

    def added(self, a: Tensor, b: Tensor | None) -> Moments:
        """With a batch ``(batch, *image)`` of samples more; ``b`` is None for real images.

        New sums, so that an interrupt in between leaves the old ones whole.
        """
        a = a.double()
        a_squared = a * a
        s = dict(self.sums)
        s["a1"] = s["a1"] + a.sum(0)
        s["a2"] = s["a2"] + a_squared.sum(0)
        if not self.zero_mean:
            s["a3"] = s["a3"] + (a_squared * a).sum(0)
        s["a4"] = s["a4"] + (a_squared * a_squared).sum(0)
        if b is not None:
            b = b.double()
            s["b1"] = s["b1"] + b.sum(0)
            s["b2"] = s["b2"] + (b * b).sum(0)
            s["ab"] = s["ab"] + (a * b).sum(0)
        return Moments(self.count + a.shape[0], s, self.zero_mean)

    def merged(self, other: Moments) -> Moments:
        """The sums of both sets of (independent) samples."""
        sums = {name: self.sums[name] + other.sums[name] for name in NAMES}
        return Moments(self.count + other.count, sums, self.zero_mean and other.zero_mean)

    @property
    def samples(self) -> int:
        """Samples so far."""
        return self.count

    def to(self, device: torch.device) -> Moments:
        """The same on another device."""
        sums = {name: total.to(device) for name, total in self.sums.items()}
        return Moments(self.count, sums, self.zero_mean)

    def result(self, image: Tensor) -> Found:
        """The sample covariance, and its standard error from fourth moments.

        Raises:
            InputError: if the mean has to be estimated, from fewer than two samples.
        """
        if not self.zero_mean and self.count < FEWEST:
            raise InputError(f"{TOO_FEW}, and there are only {self.count} so far.")
        return Found(self.covariance(), self.sigma()[1])

    def arrays(self) -> dict[str, Tensor]:
        """The sums."""
        return self.sums

    def attributes(self) -> dict[str, Any]:
        """``count`` and ``zero_mean``."""
        return {"count": self.count, "zero_mean": self.zero_mean}

    @classmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> Moments:
        """From a state file."""
        sums = {name: arrays[name].double() for name in NAMES}
        return Moments(int(attributes["count"]), sums, bool(attributes["zero_mean"]))

    @property
    def _degrees(self) -> int:
        return self.count if self.zero_mean else self.count - 1

    def covariance(self) -> Tensor:
        """Unbiased ``(Var a, Var b, Cov ab)``, ``(3, *image)``."""
        s, n = self.sums, max(self.count, 1)
        a2, b2, ab = s["a2"], s["b2"], s["ab"]
        if not self.zero_mean:
            a2 = a2 - s["a1"] ** 2 / n
            b2 = b2 - s["b1"] ** 2 / n
            ab = ab - s["a1"] * s["b1"] / n
        return torch.stack([a2.clamp_min(0), b2.clamp_min(0), ab]) / max(self._degrees, 1)

    def dispersion(self) -> Tensor:
        """``c`` of ``Var(estimated variance) = c variance^2 / n`` for sigma, per voxel.

        Measured from the fourth moments and shrunk towards the pooled value by as much as the
        sampling error of a fourth moment demands (empirical Bayes): raw fourth moments of few
        samples are low exactly where the variance is low by chance, which would make intervals
        too short. 2 for Gaussian samples.
        """
        s, n = self.sums, max(self.count, 1)
        variance = self.covariance()[0]
        noisy = variance > 0
        if n < 4 or not bool(noisy.any()):
            return torch.full_like(variance, GAUSSIAN)
        # The kurtosis of n Gaussian samples is 3 n / (n + 2) on average about a known mean and
        # 3 (n - 1) / (n + 1) about their own: undo that small-sample deficit.
        if self.zero_mean:
            fourth = s["a4"] / n
            deficit = n / (n + 2)
        else:
            m = s["a1"] / n
            fourth = (s["a4"] - 4 * m * s["a3"] + 6 * m**2 * s["a2"]) / n - 3 * m**4
            deficit = (n - 1) / (n + 1) * ((n - 1) / n) ** 2
        raw = fourth[noisy] / variance[noisy] ** 2 / deficit - 1
        pooled = float(raw.mean().clamp(0.05, 100.0))
        sampling = 6 * pooled**2 / n  # variance of a sample kurtosis, 24 / n when Gaussian
        between = max(float(raw.var()) - sampling, 0.0) if raw.numel() > 1 else 0.0
        trust = between / (between + sampling)
        result = torch.full_like(variance, pooled)
        result[noisy] = (pooled + trust * (raw - pooled)).clamp_min(0.05)
        return result

    def dispersion_complex(self) -> Tensor:
        """As :meth:`dispersion`, for ``sigma_complex``, from the 2x2 covariance of Gaussian
        samples: ``2 (l1^2 + l2^2) / (l1 + l2)^2`` of its eigenvalues; 1 when circular."""
        a, b, ab = self.covariance()
        total = (a + b).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(a + b > 0, 2 * (a**2 + b**2 + 2 * ab**2) / total**2, 1.0)

    def sigma(self) -> tuple[Tensor, Tensor]:
        """sigma and its standard error, float64."""
        sigma = self.covariance()[0].sqrt()
        return sigma, sigma * (self.dispersion() / (4 * max(self._degrees, 1))).sqrt()

    def degrees_of_freedom(self) -> Tensor:
        """Of the chi-square distribution that the estimated ``sigma^2`` follows: ``2 n / c``."""
        return 2 * self._degrees / self.dispersion()

    def degrees_of_freedom_complex(self) -> Tensor:
        """The same for ``sigma_complex^2``."""
        return 2 * self._degrees / self.dispersion_complex()
