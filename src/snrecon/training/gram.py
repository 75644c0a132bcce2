"""``A^H A`` for a batch of measurements that each have their own maps and mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snrecon.networks.varnet import Gram


def batch_gram(maps: Tensor, mask: Tensor) -> Gram:
    """The Gram operator of every measurement of a batch.

    Args:
        maps: ``(batch, coil, ky, kx)``.
        mask: Boolean ``(batch, ky, kx)``.

    Returns:
        A function on ``(batch, ky, kx)``, differentiable once in reverse mode with respect to the
        image. Being self-adjoint it is its own derivative, so nothing is stored for it.
    """
    planar = bool((mask != mask[..., :1]).any())
    axes = (-2, -1) if planar else (-1,)
    # Works on (kx, ky): transforms along the last axis in memory are several times faster.
    # Centring shifts the image circularly, which commutes with the sampling of k-space.
    sampled = torch.fft.ifftshift(mask, dim=(-2, -1)) if planar else (
        torch.fft.ifftshift(mask[..., :1], dim=(-2,)))
    sampled = sampled.mT.unsqueeze(1).to(maps.dtype)
    turned = maps.mT.contiguous()
    conjugate = turned.conj().resolve_conj()

    def apply(x: Tensor) -> Tensor:
        images = turned * x.mT.unsqueeze(1)
        spectrum = torch.fft.fftn(images, dim=axes).mul_(sampled)
        return torch.fft.ifftn(spectrum, dim=axes).mul_(conjugate).sum(dim=1).mT.contiguous()

    return lambda x: _SelfAdjoint.apply(x, apply)


class _SelfAdjoint(torch.autograd.Function):
    """A self-adjoint linear map, whose vector-Jacobian product is the map itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Gram) -> Tensor:
        ctx.operator = apply
        return apply(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.operator(gradient), None
