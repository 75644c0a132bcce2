"""A smooth relative spectrum of the noise along the readout, if it is not white."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGNIFICANCE = 6.0
"""Standard deviations of the homogeneity statistic above which noise counts as coloured."""
RELEVANCE = 0.04
"""Smallest relative standard deviation of the spectrum over the readout that is worth a model."""
LARGEST_GAP = 0.6
"""Widest stretch of the readout without background that the spectrum may bridge."""
BRIDGE_WEIGHT = 0.2
"""Weight of interpolated levels in a gap, relative to measured ones."""
MOST_TERMS = 16
"""Most cosine terms of the logarithm of the spectrum."""


def fit_spectrum(energy: Tensor, count: Tensor, weight: float) -> tuple[Tensor | None, str]:
    """Fit the noise variance along the readout.

    The energies are gamma distributed; the logarithm of their mean is a sum of cosines, as many as
    the Bayesian information criterion asks for, fitted by maximum likelihood. Where the object
    leaves no background the level is interpolated between the positions beside the gap, as the
    pass band of a receiver is flat.

    Args:
        energy: ``(readout,)`` mean noise energy at each position, any where ``count`` is 0.
        count: ``(readout,)`` number of pixels behind it.
        weight: Independent complex samples per pixel (coils times sampled fraction).

    Returns:
        Variance ``(readout,)`` in the units of ``energy``, or None when the noise is white as far
        as can be told; and a sentence about the finding.
    """
    seen = count > 0
    shape = count.double() * weight  # of the gamma distribution
    values = energy.double()
    mean = (values * shape)[seen].sum() / shape[seen].sum()
    deviation = ((values / mean - 1) ** 2 * shape)[seen].sum()
    freedom = int(seen.sum()) - 1
    if freedom < 4:
        return None, "white assumed: too little background to tell"
    excess = float((deviation - freedom) / shape[seen].sum())
    score = float(deviation - freedom) / math.sqrt(2 * freedom)
    relative = math.sqrt(max(excess, 0.0))
    if score < SIGNIFICANCE or relative < RELEVANCE:
        return None, f"white along the readout (variation {relative:.1%})"
    gap = _largest_gap(seen)
    if gap > LARGEST_GAP * len(seen):
        return None, (
            f"white assumed: variation {relative:.1%} along the readout, but no background over "
            f"{gap / len(seen):.0%} of it"
        )
    values, shape = _bridge(values, shape, seen)
    terms = max(2, min(MOST_TERMS, freedom // 3))
    basis = _cosines(len(seen), terms)
    best: Tensor | None = None
    lowest = math.inf
    for size in range(2, terms + 1):
        fitted = _gamma_fit(basis[:, :size], values, shape)
        loss = float((shape * (fitted.log() + values / fitted)).sum())
        criterion = 2 * loss + size * math.log(float(shape.sum()))
        if criterion < lowest:
            best, lowest = fitted, criterion
    bridged = f", interpolated over {gap / len(seen):.0%}" if gap > 0.1 * len(seen) else ""
    return best, f"coloured along the readout (variation {relative:.1%}), spectrum fitted{bridged}"


def _cosines(n: int, terms: int) -> Tensor:
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.cos(math.pi * x[:, None] * torch.arange(terms, dtype=torch.float64))


def _bridge(values: Tensor, shape: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Fill positions without background by interpolation of the logarithm, at a small weight."""
    places = seen.nonzero()[:, 0]
    reach = max(3, len(seen) // 25)
    filled, weight = values.clone(), shape.clone()
    for position in (~seen).nonzero()[:, 0].tolist():
        left, right = places[places < position][-reach:], places[places > position][:reach]
        sides = [
            (float(side.double().mean()), math.log(_average(values, shape, side)))
            for side in (left, right)
            if len(side)
        ]
        (a, low), (b, high) = sides[0], sides[-1]
        share = (position - a) / (b - a) if b > a else 0.0
        filled[position] = math.exp(low + share * (high - low))
        weight[position] = BRIDGE_WEIGHT * float(shape[seen].mean())
    return filled, weight


def _average(values: Tensor, shape: Tensor, places: Tensor) -> float:
    return float((values * shape)[places].sum() / shape[places].sum())


def _gamma_fit(basis: Tensor, values: Tensor, shape: Tensor) -> Tensor:
    """Generalised linear model with logarithmic link, by Fisher scoring; mean ``(readout,)``."""
    root = shape.sqrt()[:, None]
    target = values.clamp_min(float(values.mean()) * 1e-3).log()[:, None]
    coefficients = torch.linalg.lstsq(basis * root, target * root).solution
    for _ in range(25):
        linear = basis @ coefficients
        working = linear + (values[:, None] / linear.exp() - 1).clamp(-3, 3)
        coefficients = torch.linalg.lstsq(basis * root, working * root).solution
    return (basis @ coefficients)[:, 0].exp()


def _largest_gap(seen: Tensor) -> int:
    longest = run = 0
    for present in seen.tolist():
        run = 0 if present else run + 1
        longest = max(longest, run)
    return longest
