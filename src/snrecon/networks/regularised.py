"""``A^H A + lambda`` of a network's Gram operator, and what a few steps of its solver give: the
SENSE image, and an image drawn to the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.networks.varnet import Gram
from snrecon.physics.operators import LinearOperator
from snrecon.physics.solvers import conjugate_gradient, linearized_steps

SENSE_LAMBDA = 0.005
"""Weight of ``|x|^2`` in :func:`sense_image`; fully sampled data have weight 1."""


class Regularised(LinearOperator):
    """``A^H A + lambda`` from a function; ``lamda=None`` is ``A^H A`` alone."""

    def __init__(self, gram: Gram, grid: tuple[int, ...], lamda: Tensor | float | None) -> None:
        self.domain = self.range = tuple(grid)
        self.gram_of, self.lamda = gram, lamda

    def _forward(self, x: Tensor) -> Tensor:
        y = self.gram_of(x)
        return y if self.lamda is None else y + self.lamda * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)


def sense_image(gram: Gram, b: Tensor, steps: int) -> Tensor:
    """So many steps of conjugate gradients from zero towards the SENSE image, ``b`` for none.

    Few steps regularise too, which is why lambda is small. Nearly linear in ``b``: the step
    lengths depend on it.

    Args:
        gram: ``A^H A`` on ``(..., ky, kx)``.
        b: ``A^H y``, ``(..., ky, kx)``.
        steps: Their number, always all of them.
    """
    if steps == 0:
        return b
    operator = Regularised(gram, b.shape[-2:], SENSE_LAMBDA)
    return conjugate_gradient(operator, b, steps, tolerance=0).value


def linearize_sense_image(
    gram: Gram, b: Tensor, steps: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """:func:`sense_image` of one ``b`` ``(ky, kx)`` and its derivative, a function from tangents
    ``(batch, ky, kx)`` to the same. Both without gradients."""
    if steps == 0:
        return b, lambda tangents: tangents
    with torch.no_grad():
        operator = Regularised(gram, b.shape[-2:], SENSE_LAMBDA)
        image, tangent = linearized_steps(operator, b.unsqueeze(0), steps)

    def jvp(tangents: Tensor) -> Tensor:
        with torch.no_grad():
            return tangent(tangents)

    return image.squeeze(0), jvp


def consistent_image(
    gram: Gram, b: Tensor, image: Tensor, lamda: Tensor | float, steps: int
) -> Tensor:
    """``image`` drawn to the data: so many steps of conjugate gradients, begun at the image,
    towards the minimum of ``|A x - y|^2 + lambda |x - image|^2``.

    Args:
        gram: ``A^H A`` on ``(..., ky, kx)``.
        b: ``A^H y``, ``(..., ky, kx)``.
        image: ``(..., ky, kx)``.
        lamda: Weight of the image; fully sampled data have weight 1.
        steps: Their number, always all of them; 0 leaves the image as it is.
    """
    if steps == 0:
        return image
    operator = Regularised(gram, b.shape[-2:], lamda)
    return image + conjugate_gradient(operator, b - gram(image), steps, tolerance=0).value


def linearize_consistent_image(
    gram: Gram, b: Tensor, image: Tensor, lamda: Tensor | float, steps: int
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """:func:`consistent_image` of one ``b`` and image ``(ky, kx)`` and its derivative, a function
    from tangents ``(batch, ky, kx)`` of both to the same. Both without gradients."""
    if steps == 0:
        return image, lambda d_b, d_image: d_image
    with torch.no_grad():
        operator = Regularised(gram, b.shape[-2:], lamda)
        step, tangent = linearized_steps(operator, (b - gram(image)).unsqueeze(0), steps)

    def jvp(d_b: Tensor, d_image: Tensor) -> Tensor:
        with torch.no_grad():
            return d_image + tangent(d_b - gram(d_image))

    return image + step.squeeze(0), jvp
