"""Derivatives of networks without any graph: what the nonlinearities met at one point, kept.

A tangent then takes the same convolutions as the image, and between them products with what was
kept. Tangents carry two leading axes, ``(batch, items)``: every item of the primal batch (a coil,
or just one image) has its own operating point, and a batch of directions shares it.

Arrays lie in memory with the channels last, in which CPUs convolve up to twice as fast. The work
between the convolutions is done on *rows* ``(items, ky, kx * channels)``, whose long last axis
keeps it fast there for a handful of channels; what belongs to a channel is repeated along them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from snrecon.physics.precision import lowered

Tangent = Callable[[Tensor], Tensor]


def untouched(network: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``network`` is of ``kind``, built as its constructor builds it, and draws nothing.

    A subclass, an exchanged or added layer or a hook may compute something else than the
    derivatives here believe.

    Args:
        network: Any network.
        kind: A class that keeps its constructor's arguments as attributes.
    """
    if type(network) is not kind:
        return False
    for module in network.modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if hooked or (isinstance(module, nn.Dropout2d) and module.training and module.p > 0):
            return False
    arguments = {name: getattr(network, name) for name in inspect.signature(kind).parameters}
    with torch.device("meta"):
        return repr(network) == repr(kind(**arguments))


def linearize_layers(block: nn.Module, x: Tensor) -> tuple[Tensor, Tangent]:
    """A block whose layers follow one another, at one input; to be called under ``no_grad``.

    Args:
        block: Of convolutions, plain or transposed, instance normalisations, leaky rectifiers and
            dropout that is not active.
        x: ``(items, channels, ky, kx)`` real.

    Returns:
        The output and a function from tangents ``(batch * items, channels, ky, kx)``, the items of
        one direction together, to tangents of the output. It overwrites tangents, except where the
        first layer is a convolution.
    """
    steps: list[Tangent] = []
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            x = layer(x)
            steps.append(_without_bias(layer))
        elif isinstance(layer, nn.InstanceNorm2d):
            x, step = _linearize_norm(layer, x)
            steps.append(step)
        elif isinstance(layer, nn.LeakyReLU):
            steps.append(_linearize_rectifier(layer, x))
            x = layer(x)

    def tangent(dx: Tensor) -> Tensor:
        for step in steps:
            dx = step(dx)
        return dx

    return x, tangent


def _without_bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tangent:
    weight = layer.weight.detach()

    def tangent(dx: Tensor) -> Tensor:
        low = lowered(dx)
        kernel = weight.to(low.dtype)
        if isinstance(layer, nn.Conv2d):
            y = functional.conv2d(low, kernel, padding=layer.padding)
        else:
            y = functional.conv_transpose2d(low, kernel, stride=layer.stride)
        return y.to(dx.dtype)

    return tangent


def _linearize_norm(layer: nn.InstanceNorm2d, x: Tensor) -> tuple[Tensor, Tangent]:
    """``dy = (dx - mean(dx) - y mean(y dx)) / s`` with ``y = (x - mean(x)) / s``; overwrites dx."""
    y = layer(x).contiguous(memory_format=torch.channels_last)
    variance = x.var(dim=(-2, -1), correction=0, keepdim=True)
    items, channels, ky, kx = x.shape
    kept = _rows(y)
    inverse = (variance + layer.eps).rsqrt().reshape(items, channels).repeat(1, kx).unsqueeze(1)

    def mean(rows: Tensor) -> Tensor:
        """Over ``(ky, kx)``; ``(batch, items, 1, kx * channels)``."""
        sums = rows.sum(dim=2).unflatten(-1, (kx, channels)).sum(dim=2) / (ky * kx)
        return sums.repeat(1, 1, kx).unsqueeze(2)

    def tangent(dx: Tensor) -> Tensor:
        rows = _rows(dx).unflatten(0, (-1, items))
        level, slope = mean(rows).mul_(inverse), mean(rows * kept).mul_(inverse)
        torch.addcmul(level.neg_(), rows, inverse, out=rows)
        return _channels(rows.addcmul_(kept, slope, value=-1), channels)

    return y, tangent


def _linearize_rectifier(layer: nn.LeakyReLU, x: Tensor) -> Tangent:
    """The slope where ``x`` is not positive; overwrites dx.

    ``x``, after a normalisation, is what that keeps anyway, and needs no memory of its own.
    """
    kept, channels, slope = _rows(x), x.shape[1], layer.negative_slope

    def tangent(dx: Tensor) -> Tensor:
        rows = _rows(dx).unflatten(0, (-1, kept.shape[0]))
        # In one pass, many times faster on a CPU than anything that reads booleans.
        torch.ops.aten.leaky_relu_backward.grad_input(rows, kept, slope, False, grad_input=rows)
        return _channels(rows, channels)

    return tangent


def _rows(x: Tensor) -> Tensor:
    """``(items, channels, ky, kx)`` to ``(items, ky, kx * channels)``, a view where the channels
    are last in memory."""
    return x.movedim(1, -1).flatten(2)


def _channels(rows: Tensor, channels: int) -> Tensor:
    """``(batch, items, ky, kx * channels)`` to ``(batch * items, channels, ky, kx)``, a view."""
    return rows.flatten(0, 1).unflatten(-1, (-1, channels)).movedim(-1, 1)


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 voxels, an odd last row or column left out; a CPU takes longer for
    ``avg_pool2d`` of few channels than for a convolution."""
    ky, kx = (n // 2 * 2 for n in x.shape[-2:])
    rows = x[..., 0:ky:2, :kx] + x[..., 1:ky:2, :kx]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)
