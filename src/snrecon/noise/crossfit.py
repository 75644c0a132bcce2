"""A variance map from folds of probes: control variate, prior, shrinkage; all fitted to training
folds only, so that the folds that were held out can say how wrong it is.

For every voxel the sketch's mean product ``E[a a]`` is unbiased but noisy. In three steps, each of
which leaves the map consistent:

1. *Control variate.* Of the surrogate's answer ``f`` to the same probes the variance is known. With
   ``c`` from a regression of ``a`` on ``f`` over the neighbourhood, ``a^2 - (c f)^2`` scatters less
   than ``a^2``, and the exact variance of ``c f`` is added back: unbiased whatever ``c``, as long
   as it is of other probes.
2. *Prior.* A log-linear model of the variance in features of image and surrogate, fitted to the
   probes at hand (gamma likelihood): what is typical for a voxel like this.
3. *Shrinkage.* The ratio of map to prior is split in bands of spatial detail; each is kept by as
   much as two independent halves of the probes agree on it (James-Stein); and no voxel is taken
   further from its own mean product than chance would have it (limited translation, Efron and
   Morris, JASA 67:130, 1972), so that what is unlike its surroundings is found all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.noise.blur import blur
from snrecon.noise.folds import PLAIN, Means

NEIGHBOURHOOD = 0.7
"""SD in voxels of the window in which the control variate is fitted."""
RIDGE = 0.02
BANDS = (0.5, 0.8, 1.3, 2.5, 6.0)
"""SDs in voxels between the bands of detail."""
LOCAL = 6.0
"""SD in voxels of the window in which agreement on a band is judged."""
STEPS = 8
CHANCE = 3.0
"""Distance from a voxel's own mean, in SDs of a normal deviate, that chance is allowed."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the fit knows besides the probes."""

    features: Tensor
    """``(number, *image)`` real: columns of the log-linear prior, the first one constant."""
    inside: Tensor
    """Boolean ``(*image)``: voxels to fit; elsewhere the map is the plain mean."""


def coefficients(means: Means, inside: Tensor) -> Tensor:
    """Regression of ``a`` and ``b`` on ``(r, i)`` around every voxel, ``(2, 2, *image)``."""
    p, power = means.products, means.power
    assert power is not None
    scale = torch.where(inside & (power > 0), 1 / power.clamp_min(torch.finfo(power.dtype).tiny), 0)
    weight = (inside & (power > 0)).to(power.dtype)
    names = ("rr", "ri", "ii", "ar", "ai", "br", "bi")
    stacked = blur(torch.stack([p[name] * scale for name in names]), NEIGHBOURHOOD, weight)
    rr, ri, ii, *cross = stacked
    ridge = RIDGE * (rr + ii) / 2
    rr, ii = rr + ridge, ii + ridge
    det = (rr * ii - ri**2).clamp_min(torch.finfo(power.dtype).tiny)
    result = []
    for x, y in (cross[:2], cross[2:]):
        result.append(torch.stack([(ii * x - ri * y) / det, (rr * y - ri * x) / det]))
    # What the surrogate is said to explain of a voxel is at most what there can be: a voxel that is
    # quieter than its surroundings by far would drown in the surrogate's noise.
    most = torch.stack([p["aa"], p["bb"]]) / _limits(means.count)[0]
    fitted = torch.stack(result) * weight
    explained = fitted.square().sum(1) * power
    share = (most / explained.clamp_min(torch.finfo(power.dtype).tiny)).clamp_max(1).sqrt()
    return fitted * share[:, None]


def controlled(means: Means, c: Tensor | None) -> Tensor:
    """``(Var a, Var b, Cov)`` of the samples, ``(3, *image)``; with ``c`` of other samples, each
    product less the surrogate's and plus its expectation."""
    p = means.products
    plain = torch.stack([p[name] for name in PLAIN])
    if c is None:
        return plain
    power = means.power
    assert power is not None

    def fluctuation(u: Tensor, w: Tensor) -> Tensor:
        sample = (u[0] * w[0] * p["rr"] + u[1] * w[1] * p["ii"]
                  + (u[0] * w[1] + u[1] * w[0]) * p["ri"])
        return sample - power * (u[0] * w[0] + u[1] * w[1])

    a, b = c
    return plain - torch.stack([fluctuation(a, a), fluctuation(b, b), fluctuation(a, b)])


def fitted_prior(target: Tensor, setting: Setting) -> Tensor:
    """``exp(features . beta)`` for a target ``(*image)`` of mean products, never negative.

    Maximum of the gamma likelihood ``-sum(target / prior + log prior)`` by Newton's method.
    """
    inside = setting.inside
    x = setting.features[:, inside].double()
    y = target[inside].double().clamp_min(0)
    mean = y.mean().clamp_min(torch.finfo(torch.float64).tiny)
    y = y / mean
    beta = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    eye = torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    count = x.shape[1]

    def loss(b: Tensor) -> Tensor:
        eta = (b @ x).clamp(-30, 30)
        return (y * torch.exp(-eta) + eta).mean()

    # Fisher's information, in which the ratio has its mean, 1, is positive whatever the data.
    information = x @ x.T / count + 1e-6 * eye
    for _ in range(STEPS):
        eta = (beta @ x).clamp(-30, 30)
        ratio = y * torch.exp(-eta)
        gradient = x @ (1 - ratio) / count
        step = torch.linalg.solve(information, gradient)
        before, size = loss(beta), 1.0
        while size > 1e-3 and loss(beta - size * step) > before:
            size /= 2
        if size <= 1e-3:
            break
        beta = beta - size * step
    prior = torch.zeros_like(target)
    prior[inside] = (torch.exp((beta @ x).clamp(-30, 30)) * mean).to(target.dtype)
    return prior


def bands(ratio: Tensor, weight: Tensor) -> list[Tensor]:
    """Bands of detail of ``(..., *image)``, finest first, the last one what is smooth."""
    rest, result = ratio, []
    for scale in BANDS:
        smooth = blur(ratio, scale, weight)
        result.append(rest - smooth)
        rest = smooth
    return [*result, rest]


def shrunk(first: Tensor, second: Tensor, share: float, prior: Tensor, inside: Tensor) -> Tensor:
    """The average of two independent maps, less detail that they do not share.

    Args:
        first: ``(3, *image)``, unbiased, of about half of the probes.
        second: The same of the others.
        share: Of the probes in ``first``.
        prior: ``(*image)``, positive inside.
        inside: Boolean ``(*image)``.
    """
    weight = inside.to(first.dtype)
    scale = torch.where(inside, 1 / prior.clamp_min(torch.finfo(prior.dtype).tiny), 0)
    both = torch.stack([_turned(first), _turned(second)]) * scale
    result = torch.zeros_like(first)
    parts = bands(both, weight)
    for number, (one, two) in enumerate(parts):
        whole = share * one + (1 - share) * two
        if number < len(parts) - 1:
            agreed, energy = blur(torch.stack([one * two, whole**2]), LOCAL, weight)
            tiny = torch.finfo(energy.dtype).tiny
            whole = whole * (agreed / energy.clamp_min(tiny)).clamp(0, 1)
        result = result + whole
    return _turned(result * prior)


def _turned(maps: Tensor) -> Tensor:
    """``(a, b, ab)`` to ``((a + b), (a - b), sqrt(2) ab) / sqrt(2)`` and back: the total is known
    better than its parts, whose difference is small and smooth where noise is nearly circular."""
    a, b, ab = maps
    return torch.stack([(a + b) / 2**0.5, (a - b) / 2**0.5, ab])


def fitted_map(halves: tuple[Means, Means], setting: Setting) -> Tensor:
    """``(Var a, Var b, Cov)`` of two halves of the training probes, ``(3, *image)``."""
    one, two = halves
    total = one.count + two.count
    share = one.count / total
    with_surrogate = one.power is not None
    first = controlled(one, coefficients(two, setting.inside) if with_surrogate else None)
    second = controlled(two, coefficients(one, setting.inside) if with_surrogate else None)
    plain = plain_mean(halves)
    prior = fitted_prior(plain[0], setting)
    fitted = limited(shrunk(first, second, share, prior, setting.inside), plain, total)
    return torch.where(setting.inside, fitted, plain)


def plain_mean(halves: tuple[Means, Means]) -> Tensor:
    """Mean products of both halves together, ``(3, *image)``."""
    one, two = halves
    share = one.count / (one.count + two.count)
    return share * controlled(one, None) + (1 - share) * controlled(two, None)


def limited(fitted: Tensor, plain: Tensor, count: int) -> Tensor:
    """A map ``(Var a, Var b, Cov)`` within what ``count`` probes allow.

    The covariance follows the variances.
    """
    low, high = _limits(count)
    bounded = torch.minimum(torch.maximum(fitted[:2], plain[:2] / high), plain[:2] / low)
    tiny = torch.finfo(fitted.dtype).tiny
    change = torch.where(fitted[:2] > 0, bounded / fitted[:2].clamp_min(tiny), 0)
    return torch.cat([bounded, (fitted[2] * change.prod(0).sqrt())[None]])


def _limits(count: int) -> tuple[float, float]:
    """Between what a mean of ``count`` Gaussian squares lies, relative to its expectation, as far
    as chance is allowed: chi-square quantiles after Wilson and Hilferty (1931)."""
    spread = 2 / (9 * max(count, 1))
    low, high = (max(1 - spread + sign * CHANCE * spread**0.5, 0.05) ** 3 for sign in (-1, 1))
    return low, high
