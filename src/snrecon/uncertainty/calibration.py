"""Do predicted uncertainties fit the errors that were made? Coverage, reliability, z-scores.

Reliability: voxels are sorted into bins of their predicted SD; in each the root mean square of the
SD stands against that of the error. Expected calibration errors: Laves et al., Well-calibrated
regression uncertainty in medical imaging with deep learning, MIDL 2020 (weighted by voxels), and
Levi et al., Evaluating and calibrating uncertainty prediction in regression tasks, Sensors 22, 2022
(relative, each bin alike).

Errors of neighbouring voxels go together (a misplaced edge, an aliased line), so voxels are not so
many independent trials. Every interval here is of a bootstrap over whole scans, or over blocks of
voxels where there are few scans. Blocks leave errors that reach further correlated, and say nothing
about other scans: their intervals are the narrowest that can be defended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.recon.option_types import seed_number, whole_number
from snrecon.uncertainty.intervals import checked_level, student_quantile
from snrecon.uncertainty.spread_map import SpreadMap

ENOUGH_SCANS = 10
"""From so many on the bootstrap is over scans."""
SUMS = ("voxels", "predicted", "squared", "covered", "width", "z", "z_squared")
"""Kept of each unit and bin: number, sums of sd^2, error^2, covered, width, z, z^2."""
Limits = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Estimate:
    """One reconstruction's claim about its error, with the reference to hold against it.

    Magnitudes are compared. Arrays are ``(*grid)``, in the same units.

    numpy arrays will do as well.

    Raises:
        InputError: if shapes differ, values are not finite, an SD is negative, a lower limit lies
            above its upper one, or nothing is left.
    """

    reference: Tensor
    """Complex or real."""
    image: Tensor
    """Complex or real."""
    sd: Tensor
    """Predicted SD of the magnitude."""
    lower: Tensor | None = None
    """Limits of the magnitude's interval; None: Gaussian ones, ``|x| -+ z sd``."""
    upper: Tensor | None = None
    level: float = 0.95
    """What the intervals claim to cover."""
    region: Tensor | None = None
    """Boolean: voxels to judge; all by default. Those without spread (SD 0) are left out."""
    scan: str = ""
    """Which scan it belongs to; estimates of one scan stay together."""

    def __post_init__(self) -> None:
        checked_level(self.level)
        shape = None
        for name in ("reference", "image", "sd", "lower", "upper", "region"):
            array = getattr(self, name)
            if array is None and name in ("lower", "upper", "region"):
                continue
            if not isinstance(array, Tensor | np.ndarray):
                raise InputError(f"{name} must be an array, not {type(array).__name__}.")
            array = torch.as_tensor(array).resolve_conj()
            object.__setattr__(self, name, array)
            shape = array.shape if shape is None else shape
            if array.is_complex() and name not in ("reference", "image"):
                raise InputError(f"{name} must be real.")
            if array.shape != shape:
                raise InputError(
                    f"{name} has shape {tuple(array.shape)}, but the reference {tuple(shape)}."
                )
            plain = torch.view_as_real(array) if array.is_complex() else array
            if not bool(torch.isfinite(plain).all()):
                raise InputError(f"{name} contains NaN or infinite values.")
        if bool((self.sd < 0).any()):
            raise InputError("an SD is negative.")
        if (self.lower is None) != (self.upper is None):
            raise InputError("give both limits of the intervals, or neither.")
        if self.lower is not None and self.upper is not None and bool(
                (self.lower > self.upper).any()):
            raise InputError("a lower limit lies above its upper limit.")
        if not bool(self.where.any()):
            raise InputError("no voxel of the region has a predicted SD above 0.")

    @property
    def where(self) -> Tensor:
        """Boolean: the voxels that are judged."""
        spread = self.sd > 0
        return spread if self.region is None else spread & self.region.to(torch.bool)

    @staticmethod
    def of(
        result: SpreadMap | NoiseMap,
        reference: Tensor,
        *,
        region: Tensor | None = None,
        scan: str = "",
        level: float = 0.95,
    ) -> Estimate:
        """Of a result: posterior spread and its own intervals, or sigma and Gaussian ones.

        Args:
            result: The mean magnitude of a SpreadMap is the estimate, the image of a NoiseMap.
            reference: In the result's units.
            region: See :class:`Estimate`.
            scan: See :class:`Estimate`.
            level: Of the Gaussian intervals of a noise map.
        """
        if isinstance(result, SpreadMap):
            return Estimate(reference, result.magnitude, result.spread, result.lower, result.upper,
                            result.level, region, scan)
        return Estimate(reference, result.image, result.sigma, level=level, region=region,
                        scan=scan)

    def judged(self) -> dict[str, np.ndarray]:
        """``sd``, ``error``, ``covered`` and ``width`` of the judged voxels, float64."""
        image, truth = self.image.abs().double(), self.reference.abs().double()
        sd = self.sd.double()
        if self.lower is None or self.upper is None:
            tail = torch.tensor((1 + self.level) / 2, dtype=torch.float64)
            reach = float(torch.special.ndtri(tail)) * sd
            lower, upper = image - reach, image + reach
        else:
            lower, upper = self.lower.double(), self.upper.double()
        covered = (lower <= truth) & (truth <= upper)
        found = {"sd": sd, "error": image - truth, "covered": covered.double(),
                 "width": upper - lower}
        where = self.where
        return {name: values[where].cpu().numpy() for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well predicted uncertainties fit the errors; each figure with its 95 % limits."""

    level: float
    """What the intervals claim to cover."""
    coverage: float
    """Share of voxels whose reference lies inside."""
    coverage_limits: Limits
    width: float
    """Mean width of the intervals, image units."""
    width_limits: Limits
    predicted: np.ndarray
    """RMS of the predicted SD in each bin, ascending, image units."""
    error: np.ndarray
    """RMS error in each bin."""
    error_lower: np.ndarray
    """95 % limits of it."""
    error_upper: np.ndarray
    voxels: np.ndarray
    """In each bin."""
    ece: float
    """Expected calibration error: mean over voxels of ``|RMS error - RMS SD|`` of their bin."""
    ece_limits: Limits
    ence: float
    """Mean over bins of ``|RMS error - RMS SD| / RMS SD``."""
    z_mean: float
    """Mean of error over SD: 0 without bias."""
    z_sd: float
    """SD of error over SD: 1 if calibrated, above if too confident."""
    z_sd_limits: Limits
    rms_error: float
    rms_sd: float
    units: str
    """What the bootstrap draws: ``scans``, or ``blocks of 16 voxels``."""
    count: int
    """How many there are of those; below about 20 all limits are too narrow."""
    scans: int

    def __repr__(self) -> str:
        low, high = self.coverage_limits
        z = self.z_sd_limits
        return (
            f"Calibration({self.level:.3g} intervals cover {self.coverage:.1%} ({low:.1%} to "
            f"{high:.1%}), z SD {self.z_sd:.3g} ({z[0]:.3g} to {z[1]:.3g}), ECE {self.ece:.3g}, "
            f"RMS error {self.rms_error:.3g}, RMS SD {self.rms_sd:.3g}; {self.count} {self.units})"
        )


def calibration(
    estimates: Estimate | Sequence[Estimate],
    *,
    bins: int = 10,
    block: int = 16,
    by: str = "auto",
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Hold predicted uncertainties of one method against its errors, over one scan or many.

    Args:
        estimates: With the same ``level``, and images in the same units.
        bins: Of about as many voxels each; fewer where many voxels have the same SD.
        block: Edge of a block, voxels; more than the reach of the errors' correlation.
        by: What the bootstrap draws: ``"scans"``, ``"blocks"``, or ``"auto"``: scans from 10 on.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: for no estimates, different levels, or fewer than two blocks (or scans).
    """
    items = [estimates] if isinstance(estimates, Estimate) else list(estimates)
    for item in items:
        if not isinstance(item, Estimate):
            raise InputError(f"calibration takes Estimates, not {type(item).__name__}.")
    bins, block = whole_number("bins", bins), whole_number("block", block)
    resamples, seed = whole_number("resamples", resamples), seed_number(seed)
    if not items:
        raise InputError("calibration needs at least one estimate with its reference.")
    if len({item.level for item in items}) > 1:
        raise InputError("the estimates' intervals claim different levels; judge them apart.")
    if by not in ("auto", "scans", "blocks"):
        raise InputError(f"by must be 'scans', 'blocks' or 'auto', not {by!r}.")
    if bins < 1 or block < 1 or resamples < 2:
        raise InputError("bins and block must be at least 1, and resamples at least 2.")
    names = [item.scan or f"#{k}" for k, item in enumerate(items)]
    scans = len(set(names))
    whole = by == "scans" or (by == "auto" and scans >= ENOUGH_SCANS)
    units, count = _units(items, names, None if whole else block)
    if count < 2:
        what = "one scan" if whole else f"one block of {block} voxels"
        raise InputError(
            f"there is only {what} to judge, which leaves the error of every figure unknown; "
            f"{'bootstrap over blocks' if whole else 'choose a smaller block'}."
        )
    values = [item.judged() for item in items]
    joined = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
    sums = _sums(joined, np.concatenate(units), count, bins)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    drawn = _figures((times @ sums.reshape(count, -1)).reshape(resamples, *sums.shape[1:]))
    found = _figures(sums.sum(0))
    # The mean that an SD is taken about follows the units at hand: once here, twice when resampled.
    own = _variance_of_mean(sums, "z")
    found["z_sd"] = np.sqrt(found["z_sd"] ** 2 + own)
    drawn["z_sd"] = np.sqrt(drawn["z_sd"] ** 2 + 2 * own)
    tails = _tails(count)

    def limits(name: str) -> Limits:
        low, high = np.nanquantile(drawn[name], tails)
        return float(low), float(high)

    lower, upper = np.nanquantile(drawn["error"], tails, axis=0)
    single = ("coverage", "width", "ece", "ence", "z_mean", "z_sd", "rms_error", "rms_sd")
    return Calibration(
        level=items[0].level, **{name: float(found[name]) for name in single},
        coverage_limits=_share_limits(sums), width_limits=limits("width"),
        ece_limits=limits("ece"), z_sd_limits=limits("z_sd"),
        predicted=found["predicted"], error=found["error"], error_lower=lower, error_upper=upper,
        voxels=found["voxels"].astype(int), units="scans" if whole else f"blocks of {block} voxels",
        count=count, scans=scans)


def _units(
    items: list[Estimate], names: list[str], block: int | None
) -> tuple[list[np.ndarray], int]:
    """For each judged voxel the number of its scan or block, and how many there are."""
    numbers: dict[Any, int] = {}
    found = []
    for k, (item, name) in enumerate(zip(items, names, strict=True)):
        places = item.where.nonzero().cpu().numpy()
        if block is None:
            found.append(np.full(len(places), numbers.setdefault(name, len(numbers))))
            continue
        blocks, inverse = np.unique(places // block, axis=0, return_inverse=True)
        own = np.array([numbers.setdefault((k, *b), len(numbers)) for b in blocks.tolist()])
        found.append(own[inverse.reshape(-1)])
    return found, len(numbers)


def _tails(count: int) -> tuple[float, float]:
    """Which quantiles of the resamples are 95 % limits for few units: wider than 2.5 and 97.5 % by
    what Student's t and n - 1 demand (Hesterberg, What teachers should know about the bootstrap,
    The American Statistician 69, 2015)."""
    reach = student_quantile(0.975, count - 1) * (count / (count - 1)) ** 0.5
    tail = float(torch.special.ndtr(torch.tensor(-reach, dtype=torch.float64)))
    return tail, 1 - tail


def _variance_of_mean(sums: np.ndarray, name: str) -> float:
    """Of the mean over all voxels, from the scatter of the units' totals."""
    units = sums.sum(1)
    n, total = units[:, 0], units[:, SUMS.index(name)]
    gap = total - n * (total.sum() / n.sum())
    return float((gap**2).sum() / n.sum() ** 2 * len(n) / (len(n) - 1))


def _share_limits(sums: np.ndarray) -> Limits:
    """95 % limits of the share of covered voxels: Wilson's, with as many independent trials as give
    the scatter between units. (A bootstrap of units that are all covered would have no width.)"""
    count = sums.shape[0]
    total = sums.sum((0, 1))
    share = float(total[SUMS.index("covered")] / total[0])
    variance = _variance_of_mean(sums, "covered")
    trials = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else float(count)
    t = student_quantile(0.975, count - 1)
    half = t * (share * (1 - share) / trials + t**2 / (4 * trials**2)) ** 0.5
    middle, scale = share + t**2 / (2 * trials), 1 + t**2 / trials
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def _sums(values: dict[str, np.ndarray], unit: np.ndarray, count: int, bins: int) -> np.ndarray:
    """:data:`SUMS` of every unit and bin, ``(unit, bin, 7)``."""
    sd, error = values["sd"], values["error"]
    edges = np.unique(np.quantile(sd, np.linspace(0, 1, bins + 1)))[1:-1]
    bin_ = np.searchsorted(edges, sd, side="right")
    place = unit * (len(edges) + 1) + bin_
    z = error / sd
    columns = (np.ones_like(sd), sd**2, error**2, values["covered"], values["width"], z, z**2)
    size = count * (len(edges) + 1)
    totals = [np.bincount(place, weights=column, minlength=size) for column in columns]
    return np.stack(totals, axis=-1).reshape(count, len(edges) + 1, len(SUMS))


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """All figures from sums ``(..., bin, 7)``; a bin that a resample left empty is NaN."""
    bins = {name: sums[..., k] for k, name in enumerate(SUMS)}
    everything = {name: column.sum(-1) for name, column in bins.items()}
    n, total = bins["voxels"], everything["voxels"]
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted, error = np.sqrt(bins["predicted"] / n), np.sqrt(bins["squared"] / n)
        gap = np.abs(error - predicted)
        z_mean = everything["z"] / total
        return {
            "voxels": n,
            "predicted": predicted,
            "error": error,
            "coverage": everything["covered"] / total,
            "width": everything["width"] / total,
            "ece": np.nansum(gap * n, axis=-1) / total,
            "ence": np.nanmean(gap / predicted, axis=-1),
            "z_mean": z_mean,
            "z_sd": np.sqrt(np.maximum(everything["z_squared"] / total - z_mean**2, 0)),
            "rms_error": np.sqrt(everything["squared"] / total),
            "rms_sd": np.sqrt(everything["predicted"] / total),
        }
