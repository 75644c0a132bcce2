"""How far from linear a network is over the noise of its own measurement, as a term of the loss.

A noise map of first order says what the network does to noise much smaller than the measured one.
It describes the measured noise as far as ``f`` is straight over the distance of that noise, which
is a property of the weights and can be asked for in training.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snrecon.training.batch import Batch

LEAST = 0.02
"""Smallest noise SD that is tried, relative to the root mean square of the zero-filled image: where
the measured noise is weaker, rounding would be most of what a network in bfloat16 shows."""


def around(batch: Batch, generator: torch.Generator) -> Batch:
    """The measurements, the same with fresh noise added, and with that noise subtracted:
    ``(3 * batch)``, in this order.

    The noise is white on the sampled points, of SD 1 (that of the measurements), or of ``LEAST``
    times the root mean square of ``b`` on the support where this is more.
    """
    noise = torch.randn(batch.kspace.shape, generator=generator, dtype=batch.kspace.dtype)
    noise = noise.to(batch.kspace.device) * batch.mask.unsqueeze(1)
    noise = noise * (LEAST * batch.size).clamp(min=1).reshape(-1, 1, 1, 1)
    moved = [replace(batch, kspace=batch.kspace + sign * noise).with_adjoint() for sign in (1, -1)]
    parts = [part.tensors() for part in (batch, *moved)]
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def curvature(images: Tensor, support: Tensor) -> Tensor:
    """Power of the even part of the answer to noise over that of its odd part, ``(batch,)``.

    ``|(f(y + n) + f(y - n)) / 2 - f(y)|^2 / |(f(y + n) - f(y - n)) / 2|^2``, 0 where ``f`` is
    linear. The denominator is a constant to the gradient: amplifying noise is no way to make this
    small.

    Args:
        images: Of the measurements of :func:`around`, ``(3 * batch, ky, kx)``.
        support: Boolean ``(batch, ky, kx)``.
    """
    here, plus, minus = images.chunk(3)
    even, odd = (plus + minus) / 2 - here, (plus - minus) / 2
    even_power, odd_power = (
        (part.abs().square() * support).sum(dim=(-2, -1)) for part in (even, odd))
    return even_power / odd_power.detach().clamp(min=1e-12)


def limited(curvature: Tensor, limit: float) -> Tensor:
    """``c / (1 + c / limit)``; ``c`` for a limit of 0. Its slope falls fourfold at the limit."""
    return curvature / (1 + curvature / limit) if limit else curvature
