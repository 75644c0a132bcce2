"""Losses and scores of reconstructions against their targets, one number a measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.networks.varnet import Gram


def nmse(answer: Tensor, target: Tensor) -> Tensor:
    """``|answer - target|^2 / |target|^2`` over the last two axes, ``(...)``."""
    error = (answer - target).abs().square().sum(dim=(-2, -1))
    # An empty target, which a strip beside the head can be, counts as 0 or as very wrong.
    return error / target.abs().square().sum(dim=(-2, -1)).clamp(min=1e-12)


def logarithmic_error(answer: Tensor, target: Tensor, support: Tensor) -> Tensor:
    """Mean of the logarithms of the mean absolute and root mean square error on the support.

    The logarithm gives measurements of every noise level and acceleration the same say: what
    counts is by how many per cent each error falls.
    """
    difference = (answer - target) * support
    power = _squares(difference)
    points = support.sum(dim=(-2, -1)).clamp(min=1)
    square = power.sum(dim=(-2, -1)) / points
    absolute = (torch.sqrt(power + 1e-8) * support).sum(dim=(-2, -1)) / points
    return 0.5 * torch.log(absolute + 1e-6) + 0.25 * torch.log(square + 1e-12)


def excess_error(answer: Tensor, wanted: Tensor, chosen: Tensor) -> Tensor:
    """Half the logarithm of the mean square misfit to noisy samples, without the noise's share.

    A perfect prediction of samples with noise of variance 1 misses them by 1 in the mean square.
    What is more than that is the prediction's own error; the logarithm is of this excess, smoothed
    where it is as small as the scatter of the mean.

    Args:
        answer: Predicted samples, ``(batch, samples)``, whitened.
        wanted: Measured ones.
        chosen: Boolean, which of them count.
    """
    count = chosen.sum(dim=1).clamp(min=1)
    excess = (_squares(answer - wanted) * chosen).sum(dim=1) / count - 1.0
    scatter = 2.0 / count.sqrt()
    return 0.5 * torch.log((excess + torch.sqrt(excess.square() + scatter.square())) / 2.0)


def normalised_error(answer: Tensor, target: Tensor) -> Tensor:
    """``|e|_2 / |t|_2 + |e|_1 / |t|_1`` of every item, complex or real, ``(batch,)``.

    The loss of Yaman et al., Magn Reson Med 84:3172 (2020), equation 4.
    """
    error, wanted = (answer - target).flatten(1), target.flatten(1)
    # Moduli as smooth functions: the derivative of |0| is not a number in either precision.
    tiny = 1e-12
    moduli = torch.sqrt(torch.stack([_squares(error), _squares(wanted)]) + tiny)
    lengths = torch.sqrt(torch.stack([_squares(error), _squares(wanted)]).sum(-1) + tiny)
    sums = moduli.sum(-1)
    return lengths[0] / lengths[1] + sums[0] / sums[1]


def _squares(x: Tensor) -> Tensor:
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def sense_nmse(b: Tensor, gram: Gram, target: Tensor, iterations: int = 20) -> Tensor:
    """NMSE of CG-SENSE with the best of several regularisations for every measurement.

    Args:
        b: ``A^H y``, ``(batch, ky, kx)``.
        gram: ``A^H A``.
        target: What it is scored against.
        iterations: Conjugate-gradient steps.
    """
    scores = []
    for weight in (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3):
        x, r, p = torch.zeros_like(b), b, b
        old = _power(r)
        for _ in range(iterations):
            q = gram(p) + weight * p
            step = old / (p.conj() * q).real.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-20)
            x, r = x + step * p, r - step * q
            new = _power(r)
            p, old = r + new / old.clamp(min=1e-20) * p, new
        scores.append(nmse(x, target))
    return torch.stack(scores).amin(dim=0)


def _power(x: Tensor) -> Tensor:
    return (x.real.square() + x.imag.square()).sum(dim=(-2, -1), keepdim=True)
