"""Sums over pairs of noisy reconstructions that correct a first-order noise map.

For a draw ``n`` let ``o`` and ``e`` be the parts of ``f(y + n) - f(y)`` that are odd and even in n,
and ``j = J n``. The spread of ``f(y + n)`` about its own mean is ``E[o^2] + E[e^2] - (E e)^2``,
odd and even parts being uncorrelated. Of it ``E[j^2]`` is the first-order variance, which Jacobian
products give with far fewer passes; what remains, ``E[o^2 + e^2 - j^2] - (E e)^2``, is small where
the first order nearly holds, and its samples scatter little, ``j`` being a control variate of
``o``. Products of distinct draws estimate ``(E e)^2`` without bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snrecon.noise.accumulated import Accumulated, Found

NAMES = ("taa", "tbb", "tab", "t2", "ea", "eb", "eaa", "ebb", "eab")
"""``t = o^2 + e^2 - j^2`` of the components a along and b across the image's phase, the square of
``taa``, ``e``, and products of ``e``."""
COST = 3
"""Passes a pair: two reconstructions, one Jacobian product."""
FEWEST = 2
"""Pairs without which there is neither a correction nor its error."""
FLOOR = 0.5
"""Least variance, in its own standard errors: what came out lower, or negative, is only known to be
small. Sigma is then stated as no better known than to 100 %, not as 0."""


@dataclass(frozen=True, eq=False)
class PairMoments(Accumulated):
    """Sums over pairs, and the first-order map that they correct."""

    kind: ClassVar[str] = "pairs"
    count: int
    sums: dict[str, Tensor]
    """Float64, each ``(*image)``."""
    first: Tensor
    """First-order ``(Var a, Var b, Cov)``, ``(3, *image)`` float64."""
    first_error: Tensor
    """Standard error of its sigma, ``(*image)``."""
    first_passes: float

    @staticmethod
    def empty(first: Tensor, first_error: Tensor, first_passes: float) -> PairMoments:
        """No pairs yet."""
        zeros = torch.zeros_like(first_error, dtype=torch.float64)
        sums = {name: zeros.clone() for name in NAMES}
        return PairMoments(0, sums, first.double(), first_error.double(), first_passes)

    @property
    def samples(self) -> int:
        """Pairs."""
        return self.count

    @property
    def passes(self) -> float:
        """Of the pairs and of the first-order map."""
        return COST * self.count + self.first_passes

    def added(
        self,
        odd: tuple[Tensor, Tensor | None],
        even: tuple[Tensor, Tensor | None],
        linear: tuple[Tensor, Tensor | None],
    ) -> PairMoments:
        """With pairs more.

        Args:
            odd: Components a and b of ``o``, ``(batch, *image)``; b is None for real images.
            even: Those of ``e``.
            linear: Those of ``j``.
        """
        oa, ob = (None if part is None else part.double() for part in odd)
        ea, eb = (None if part is None else part.double() for part in even)
        ja, jb = (None if part is None else part.double() for part in linear)
        assert oa is not None
        assert ea is not None
        assert ja is not None
        taa = oa**2 + ea**2 - ja**2
        new = {"taa": taa, "t2": taa**2, "ea": ea, "eaa": ea**2}
        if ob is not None and eb is not None and jb is not None:
            new |= {"tbb": ob**2 + eb**2 - jb**2, "tab": oa * ob + ea * eb - ja * jb,
                    "eb": eb, "ebb": eb**2, "eab": ea * eb}
        sums = dict(self.sums)
        for name, values in new.items():
            sums[name] = sums[name] + values.sum(0)
        return replace(self, count=self.count + oa.shape[0], sums=sums)

    def merged(self, other: PairMoments) -> PairMoments:
        """With the pairs of another run, and the mean of both first-order maps."""
        sums = {name: self.sums[name] + other.sums[name] for name in NAMES}
        error = (self.first_error**2 + other.first_error**2).sqrt() / 2
        return PairMoments(self.count + other.count, sums, (self.first + other.first) / 2, error,
                           self.first_passes + other.first_passes)

    def to(self, device: torch.device) -> PairMoments:
        """The same on another device."""
        sums = {name: total.to(device) for name, total in self.sums.items()}
        return replace(self, sums=sums, first=self.first.to(device),
                       first_error=self.first_error.to(device))

    def correction(self) -> Tensor:
        """What the pairs add to the first-order ``(Var a, Var b, Cov)``, ``(3, *image)``; nothing
        while there are fewer than two, whose spread is no estimate of anything."""
        s, n = self.sums, self.count
        if n < FEWEST:
            return torch.zeros_like(self.first)
        spread = torch.stack([s["taa"], s["tbb"], s["tab"]]) / n
        distinct = torch.stack([
            s["ea"] ** 2 - s["eaa"], s["eb"] ** 2 - s["ebb"], s["ea"] * s["eb"] - s["eab"]])
        return spread - distinct / (n * (n - 1))

    def correction_error(self) -> Tensor:
        """Standard error of the first of them, ``(*image)``."""
        s, n = self.sums, self.count
        if n < FEWEST:
            return torch.full_like(s["taa"], float("inf"))
        scatter = (s["t2"] - s["taa"] ** 2 / n).clamp_min(0) / (n - 1)
        mean = s["ea"] / n
        even = (s["eaa"] - n * mean**2).clamp_min(0) / (n - 1)
        return ((scatter + 4 * mean**2 * even) / n + 2 * even**2 / (n * (n - 1))).sqrt()

    def result(self, image: Tensor) -> Found:
        """The corrected covariance; with fewer than two pairs the first order's, with an infinite
        standard error."""
        covariance = self.first + self.correction()
        total = float(self.first[0].sum())
        ratio = float(covariance[0].sum()) / total if total > 0 else 1.0
        facts = {"over_first_order": max(ratio, 0.0) ** 0.5, "pairs": self.count}
        scatter = self.correction_error()
        variance_error = (4 * self.first[0] * self.first_error**2 + scatter**2).sqrt()
        covariance[:2] = covariance[:2].clamp_min(0)
        if self.count >= FEWEST:
            covariance[0] = torch.maximum(covariance[0], FLOOR * variance_error)
        sigma = covariance[0].sqrt()
        tiny = torch.finfo(torch.float64).tiny
        # Without noise the pairs scatter by nothing.
        error = torch.where(variance_error > 0, variance_error / (2 * sigma).clamp_min(tiny), 0)
        return Found(covariance, error, facts)

    def arrays(self) -> dict[str, Tensor]:
        """Sums and the first-order map."""
        return self.sums | {"first": self.first, "first_error": self.first_error}

    def attributes(self) -> dict[str, Any]:
        """``count`` and ``first_passes``."""
        return {"count": self.count, "first_passes": self.first_passes}

    @classmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> PairMoments:
        """From a state file."""
        sums = {name: arrays[name] for name in NAMES}
        return PairMoments(int(attributes["count"]), sums, arrays["first"],
                           arrays["first_error"], float(attributes["first_passes"]))
