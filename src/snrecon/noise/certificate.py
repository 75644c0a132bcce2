"""How wrong a noise map is, from probes that it has not seen.

A map ``m`` of variances is fixed; two folds of probes that had no part in it give unbiased maps
``t1`` and ``t2`` of their own. Voxel by voxel ``(m - t1)(m - t2)`` is then an unbiased estimate of
``(m - v)^2``: no model of the sampling error enters, and any bias of the map shows. Averaged over
voxels, relative to ``m^2``, it is four times the squared error of sigma as a share of the sigma
that is stated. (As a share of the true sigma, which nobody has, single voxels count for more where
the map says too much, and for less where it says too little; for small errors both are one.)

With 16 folds eight pairs are held out in turn, from eight maps fitted to the other fourteen. What
is delivered is the average of the eight; the error being convex, it is at most the average of
theirs. The spread over pairs gives the upper limit, by Student's distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snrecon.data.noise_map import LOW_SNR
from snrecon.noise.accumulated import Found
from snrecon.noise.blur import blur
from snrecon.noise.crossfit import (
    Setting,
    coefficients,
    controlled,
    fitted_map,
    plain_mean,
)
from snrecon.noise.features import prior_features
from snrecon.noise.folds import FOLDS, FoldMoments, Means
from snrecon.physics.gram import support_box, unboxed

FEWEST = 3
"""Pairs of folds without which there is no certificate."""
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895)
"""95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""
T98 = (15.895, 4.849, 3.482, 2.999, 2.757, 2.612, 2.517)
"""98 % quantiles: of every look of a run that stops at the first one that pleases. While the error
falls by about a tenth from look to look, only two or three of them can stop a run too early, and
the 5 % are shared among these."""
UNEVEN = 1.04
"""Factor of standard errors: among voxels of the same surroundings some are known worse than
others, so that intervals of 1.96 times what holds on average would cover less than they should."""
FAINT = 1e-6
"""Least variance of the surrogate, of its mean over the voxels with noise, that is relied on."""
MARGIN = 2
"""Voxels around those with noise that are looked at."""
SURROUNDINGS = 4.0
"""SD in voxels of the window in which the error of one voxel is judged."""


@dataclass(frozen=True)
class Certificate:
    """RMS error of sigma, relative to the sigma that is stated, over the voxels with
    ``|x| >= 3 sigma``."""

    error: float
    """Estimate; 0 where its square came out negative."""
    bound: float
    """One-sided 95 % upper limit."""
    probes: int
    """Held out, in turn."""
    precision: float = 0.0
    """Part of the bound that allows for tangents in low precision."""

    def __str__(self) -> str:
        return f"error of sigma {self.error:.1%}, at most {self.bound:.1%} (95 %)"


@dataclass(frozen=True, eq=False)
class Certified:
    """A map and what is known of its error."""

    covariance: Tensor
    """``(3, *image)`` float64: Var of the component along the phase, across it, covariance."""
    standard_error: Tensor
    """Of sigma, ``(*image)``, from held-out folds in the surroundings."""
    certificate: Certificate
    regions: dict[str, Certificate]
    """Of the regions asked for, by name."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A map of the training folds and what the held-out pair says of it."""

    covariance: Tensor
    square: Tensor
    """Unbiased estimate of the squared relative error of the variance, ``(*image)``."""
    mean: float
    """That of sigma, over the voxels that count; NaN if there are none."""


def certified(moments: FoldMoments, image: Tensor) -> Certified | None:
    """The map of all probes with its certificate; None before there are six folds.

    Args:
        moments: Products of the probes, by fold.
        image: The reconstruction.
    """
    box, grid = _noise_box(moments), tuple(image.shape)
    found = _certified(moments.cropped(box), image[box])
    if found is None:
        return None
    return replace(found, covariance=unboxed(found.covariance, box, grid),
                   standard_error=unboxed(found.standard_error, box, grid))


def _noise_box(moments: FoldMoments) -> tuple[slice, ...]:
    """What holds all voxels with noise, and their neighbours: air outside costs only time."""
    sums = torch.stack([moments.sums[name].sum(0) for name in ("aa", "bb")])
    grid = sums.shape[1:]
    return tuple(slice(max(part.start - MARGIN, 0), min(part.stop + MARGIN, n))
                 for part, n in zip(support_box(sums), grid, strict=True))


def _certified(moments: FoldMoments, image: Tensor) -> Certified | None:
    pairs, noisy = list(_pairs(moments)), _noisy(moments)
    if len(pairs) < FEWEST or not bool(noisy.any()):
        return None
    inside = _fitted(moments, noisy)
    setting = Setting(prior_features(image, moments.power, inside, moments.predicted), inside)
    candidates: list[list[Judged]] = [[], []]
    for pair, training in pairs:
        halves = moments.part(training[0::2]), moments.part(training[1::2])
        tests = _tests(moments, pair, halves[0].together(halves[1]), inside)
        for number, fitted in enumerate((fitted_map(halves, setting), plain_mean(halves))):
            square, mean = _square(tests, fitted[0], image, noisy)
            candidates[number].append(Judged(fitted, square, mean))
    best = _better(*candidates)
    if not all(math.isfinite(one.mean) for one in best):
        return None
    maps, squares = ([getattr(one, name) for one in best] for name in ("covariance", "square"))
    overall = [one.mean for one in best]
    covariance = torch.stack(maps).mean(0).double()
    covariance[:2] = covariance[:2].clamp_min(0)
    average = torch.stack(squares).mean(0)
    counted = _counted(covariance[0], image, noisy)
    # Where there is hardly any signal errors are others: each kind of voxel has its own average.
    kinds = [blur(average, SURROUNDINGS, kind.to(average.dtype)) / 4
             for kind in (counted, noisy & ~counted)]
    nearby = torch.where(counted, kinds[0], kinds[1])
    found = _certificate(overall, moments.samples, moments.adaptive)
    # The squared error itself is known to within its limit only, which is allowed for.
    allowed = found.bound**2 - found.error**2
    least = (found.error**2 + allowed) / 4
    relative = UNEVEN * (nearby + allowed).clamp_min(least).sqrt()
    found = _with_precision(found, moments, covariance[0], counted)
    regions = {}
    for name, region in moments.regions.items():
        there = region & counted
        if not bool(there.any()):
            there = region & noisy
        if bool(there.any()):
            parts = [float(square[there].double().mean()) / 4 for square in squares]
            regions[name] = _with_precision(
                _certificate(parts, moments.samples, moments.adaptive), moments, covariance[0],
                there)
    return Certified(covariance, relative.double() * covariance[0].sqrt(), found, regions)


def judged(moments: FoldMoments, sigma: Tensor, image: Tensor) -> Certificate | None:
    """Certificate of any map that these probes had no part in; None before there are six folds.

    Args:
        moments: Products of fresh probes, by fold.
        sigma: The map, real ``(*image)``.
        image: The reconstruction.
    """
    noisy = _noisy(moments)
    inside = _fitted(moments, noisy)
    variance = sigma.to(image.abs().dtype) ** 2
    overall = [
        _square(_tests(moments, pair, moments.part(training), inside), variance, image, noisy)[1]
        for pair, training in _pairs(moments)
    ]
    if len(overall) < FEWEST or not all(math.isfinite(one) for one in overall):
        return None
    return _certificate(overall, moments.samples)


def _noisy(moments: FoldMoments) -> Tensor:
    """Voxels with noise."""
    return moments.sums["aa"].sum(0) > 0


def _fitted(moments: FoldMoments, noisy: Tensor) -> Tensor:
    """Those of them that the surrogate reaches: where its coil maps end, the reconstruction's own
    may go on, and there the map is the plain mean."""
    if moments.power is None or not bool((noisy & (moments.power > 0)).any()):
        return noisy
    # Beyond its maps the surrogate fades out over tens of orders of magnitude, and what is left of
    # its variance there is rounding.
    return noisy & (moments.power > FAINT * moments.power[noisy].mean())


def _pairs(moments: FoldMoments) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Pairs of folds to hold out, and the others."""
    filled = [k for k in range(FOLDS) if int(moments.counts[k]) > 0]
    if len(filled) < 2 * FEWEST:
        return
    for j in range(0, len(filled) - 1, 2):
        pair = (filled[j], filled[j + 1])
        yield pair, [k for k in filled if k not in pair]


def _better(fitted: list[Judged], plain: list[Judged]) -> list[Judged]:
    """The fitted maps, unless plain means are better by more than chance: for reconstructions
    that are like nothing the fit expects."""
    gain = torch.tensor([f.mean - p.mean for f, p in zip(fitted, plain, strict=True)])
    clear = float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5
    return plain if clear or not bool(gain.isfinite().all()) else fitted


def _tests(
    moments: FoldMoments, pair: tuple[int, int], training: Means, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Unbiased variance maps ``(*image)`` of two folds, as precise as the others allow."""
    c = None if moments.power is None else coefficients(training, inside)
    one, two = (controlled(moments.part([k]), c)[0] for k in pair)
    return one, two


def _square(
    tests: tuple[Tensor, Tensor], variance: Tensor, image: Tensor, noisy: Tensor
) -> tuple[Tensor, float]:
    """Unbiased estimate of the squared relative error of a variance map, ``(*image)``, and a
    quarter of its mean, the squared relative error of sigma, over the voxels that count."""
    known = noisy & (variance > 0)
    safe = torch.where(known, variance, 1)
    # Ratios first: squares of small variances leave the range of single precision.
    one, two = (1 - test / safe for test in tests)
    square = torch.where(known, one * two, 0)
    counted = _counted(variance, image, noisy)
    mean = float(square[counted].double().mean()) / 4 if bool(counted.any()) else math.nan
    return square, mean


def _counted(variance: Tensor, image: Tensor, noisy: Tensor) -> Tensor:
    """Voxels with ``|x| >= 3 sigma``; if there are none, all with noise."""
    noisy = noisy & (variance > 0)
    bright = noisy & (image.abs() >= LOW_SNR * variance.clamp_min(0).sqrt())
    return bright if bool(bright.any()) else noisy


def fold_result(moments: FoldMoments, image: Tensor) -> Found:
    """The certified map, the certificate among its facts; with too few probes for one, plain
    means."""
    found = certified(moments, image)
    if found is None:
        means = moments.part(list(range(FOLDS)))
        covariance = controlled(means, None).double()
        unknown = covariance[0].sqrt() / (2 * max(moments.samples, 1)) ** 0.5
        return Found(covariance, unknown, {"certificate": None})
    facts: dict[str, Any] = asdict(found.certificate)
    if found.regions:
        facts["regions"] = {name: asdict(one) for name, one in found.regions.items()}
    return Found(found.covariance, found.standard_error, {"certificate": facts})


def _with_precision(
    found: Certificate, moments: FoldMoments, variance: Tensor, where: Tensor
) -> Certificate:
    """With what tangents in low precision leave out: the SD of a + e is within the SD of e of that
    of a (Minkowski), whatever their correlation."""
    if moments.left_out is None:
        return found
    share = moments.left_out / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    lost = float(share[where].mean().sqrt())
    return replace(found, bound=found.bound + lost, precision=lost)


def _certificate(squares: list[float], probes: int, adaptive: bool = False) -> Certificate:
    values = torch.tensor(squares, dtype=torch.float64)
    mean = float(values.mean())
    spread = float(values.std()) / len(squares) ** 0.5
    # An estimate below 0 is chance: nobody can be certain of an error smaller than its scatter.
    quantiles = T98 if adaptive else T95
    limit = max(mean, 0.0) + quantiles[min(len(squares) - 1, len(quantiles)) - 1] * spread
    return Certificate(max(mean, 0.0) ** 0.5, limit**0.5, probes)
