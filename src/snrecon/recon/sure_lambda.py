"""lambda by Stein's unbiased risk estimate: the weight of the least estimated error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.jacobian import Linearization
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.base import Bound
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.risk import CUTOFF, ProjectedRisk, Risk, inner, random_phases

PROBES, SEED = 4, 0
"""Probes of the divergence, the same for every lambda, so that the curve is smooth."""
STEP = 3.0
"""Factor between neighbours while a minimum is looked for."""
FARTHEST = 8
"""Most such steps to either side."""
PRECISION = 1.05
"""Factor within which lambda is found. The risk is flat there: 5 % of lambda is far below 1 % of
it."""
GOLDEN = (math.sqrt(5) - 1) / 2
SOURCE = "least projected risk (SURE)"
FROZEN = "lambda by SURE"


@dataclass(frozen=True)
class Choice:
    """What the search found."""

    lamda: float
    evaluations: int
    """Values of lambda that were tried."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the metadata of the reconstruction."""
        return {
            "sure_evaluations": self.evaluations,
            "sure_passes": self.evaluations * (PROBES + 2),
            "sure_probes": PROBES,
            "sure_seed": SEED,
            "sure_cutoff": CUTOFF,
        }


class RiskCurve:
    """The estimated risk of a reconstruction as a function of its lambda, up to a constant.

    Args:
        risk: Which one.
        scan: One slice or one 3D grid with known noise.
        bound: lambda to the reconstruction bound to ``scan``.
        probes: Number of probes of the divergence.
        seed: Of the probes.

    Raises:
        InputError: if the noise of the scan is not known.
    """

    def __init__(
        self,
        risk: Risk,
        scan: Scan,
        bound: Callable[[float], Bound],
        probes: int = PROBES,
        seed: int = SEED,
    ) -> None:
        self.risk, self.scan, self.bound = risk, scan, bound
        colouring = NoiseColouring.of(scan)
        generator = torch.Generator().manual_seed(seed)
        self._noise = colouring(
            torch.stack([random_phases(scan.kspace, generator) for _ in range(probes)])
        )
        self._seen = risk.data(self._noise)
        self._data = risk.data(scan.kspace[None])

    def __call__(self, lamda: float) -> float:
        """``|h - T y|^2 + 2 Re<T L v, H J L v>``: the part that depends on lambda."""
        bound = self.bound(lamda)
        linearization = Linearization(
            bound.function, self.scan.kspace,
            linear=bound.linear, batched=bound.batched, own=bound.linearize, traced=False,
        )  # fmt: skip
        where = self.risk.counted
        with torch.no_grad():
            misfit: Tensor = self.risk.image(linearization.value[None]) - self._data
            response = self.risk.image(linearization.jvp(self._noise))
        penalty = inner(self._seen, response, where).mean()
        return float(inner(misfit, misfit, where)[0] + 2 * penalty)


def lambda_by_sure(
    model: ForwardModel, scan: Scan, bound: Callable[[float], Bound], start: float
) -> Choice:
    """The lambda of least :class:`~snrecon.recon.risk.ProjectedRisk`, as estimated from the scan.

    From ``start`` in steps of a factor of 3 downhill until the risk grows, then by golden section
    on ``log lambda``. Each value costs a reconstruction and its Jacobian products with
    :data:`PROBES` probes; about a dozen are tried. Whether the curve has one minimum only is not
    known; the one downhill from ``start`` is found.

    Args:
        model: Of the scan.
        scan: With known noise.
        bound: lambda to the reconstruction bound to ``scan``.
        start: Where to begin, above 0.

    Raises:
        InputError: if the noise of the scan is not known.
    """
    if scan.noise is None:
        why = f", because {scan.noise_unknown}" if scan.noise_unknown else ""
        raise InputError(
            f"{scan.source}: lambda by SURE needs the noise level, but the noise of this scan is "
            f"not known{why}; give a number as --lambda, or the covariance with "
            "--noise-covariance FILE."
        )
    if not bool(model.support.any()) or start <= 0:
        return Choice(max(start, 0.0), 0)
    curve = RiskCurve(ProjectedRisk(model), scan, bound)
    with warnings.catch_warnings():
        # Of values that are only tried; the chosen one is bound again, and warns for itself.
        warnings.simplefilter("ignore", SnreconWarning)
        best, tried = least(lambda t: curve(math.exp(t)), math.log(start))
    return Choice(math.exp(best), tried)


def least(value: Callable[[float], float], start: float) -> tuple[float, int]:
    """Minimum of a function of ``log lambda``: downhill from ``start``, then golden section.

    Returns:
        The best place tried, to within ``log(PRECISION)``, and how many were tried. Where the
        function still falls after :data:`FARTHEST` steps, that last place.
    """
    known: dict[float, float] = {}

    def at(t: float) -> float:
        if t not in known:
            known[t] = value(t)
        return known[t]

    step = math.log(STEP)
    middle, up, down = start, start + step, start - step
    direction = step if at(up) < at(start) else -step
    if direction < 0 and at(down) >= at(start):
        left, right = down, up
    else:
        for k in range(1, FARTHEST + 1):
            middle = start + k * direction
            if at(middle + direction) >= at(middle):
                break
        left, right = sorted((middle - direction, middle + direction))
    low, high = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
    while right - left > 2 * math.log(PRECISION):
        if at(low) < at(high):
            right, high = high, low
            low = right - GOLDEN * (right - left)
        else:
            left, low = low, high
            high = left + GOLDEN * (right - left)
    return min(known, key=known.__getitem__), len(known)
