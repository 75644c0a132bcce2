"""How well two noise maps agree, beyond the sampling error that both carry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import NoiseMap


@dataclass(frozen=True)
class Agreement:
    """Comparison of the sigma of two results over a set of voxels."""

    correlation: float
    """Pearson correlation as it is."""
    ceiling: float
    """The correlation that two perfect estimators with these sampling errors would show:
    ``1 / sqrt((1 + e1^2/CV^2) (1 + e2^2/CV^2))``, e the relative sampling error of a map and CV
    the coefficient of variation of the true map."""
    mean_ratio: float
    """Mean of the first sigma over mean of the second."""
    voxels: int
    """Number of voxels compared."""

    @property
    def corrected(self) -> float:
        """``correlation / ceiling``; may exceed 1 by chance."""
        return self.correlation / self.ceiling if self.ceiling > 0 else float("nan")

    def __str__(self) -> str:
        if self.ceiling == 0:
            return (
                f"no spatial structure beyond sampling error, mean ratio {self.mean_ratio:.4f}, "
                f"{self.voxels} voxels"
            )
        return (
            f"correlation {self.correlation:.4f} (ceiling {self.ceiling:.4f} from sampling error, "
            f"corrected {self.corrected:.4f}), mean ratio {self.mean_ratio:.4f}, "
            f"{self.voxels} voxels"
        )


def agreement(first: NoiseMap, second: NoiseMap, where: Tensor | None = None) -> Agreement:
    """Compare ``sigma`` of two results of the same scan.

    Args:
        first: A result.
        second: Another, with voxels of the same meaning.
        where: Boolean mask of the voxels; by default those with ``|x| >= 3 sigma`` in ``first``.

    Raises:
        ValueError: if fewer than three voxels are left.
    """
    if where is None:
        where = (first.sigma > 0) & ~first.low_snr
    where = where & (first.sigma > 0) & (second.sigma > 0)
    if int(where.sum()) < 3:
        raise ValueError("fewer than three voxels to compare noise maps over.")
    a, b = first.sigma[where].double(), second.sigma[where].double()
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    shares = [_true_share(m, where) for m in (first, second)]
    return Agreement(
        correlation=correlation,
        ceiling=(shares[0] * shares[1]) ** 0.5,
        mean_ratio=float(a.mean() / b.mean()),
        voxels=int(where.sum()),
    )


def _true_share(result: NoiseMap, where: Tensor) -> float:
    """Share of the variance over voxels that is not sampling error, ``1 / (1 + e^2/CV^2)``."""
    spread = float(result.sigma[where].double().var())
    if result.standard_error is None or spread == 0:
        return 1.0
    error = float((result.standard_error[where].double() ** 2).mean())
    return max(1 - error / spread, 0.0)
