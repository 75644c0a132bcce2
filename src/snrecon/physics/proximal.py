"""Proximal maps and the first-order methods of compressed sensing.

Both methods minimise ``1/2 |A x - y|^2 + R(x)`` and see the data only through ``A^H A`` and
``A^H y``, so that the fastest form of the Gram operator serves. They make a fixed number of
iterations and never look at values to decide: torch.func differentiates through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.differences import Gradient
from snrecon.physics.operators import LinearOperator

RELAXATION = 1.4
"""Over-relaxation of :func:`pdhg`; with its step sizes anything below 1.5 converges."""


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """``x max(1 - t / |x|, 0)``: the proximal map of ``t |x|_1`` for complex or real x.

    Keeps the phase. Its derivative is 0 where ``|x| < t``, also at exactly 0.

    Args:
        x: Any shape.
        threshold: t, non-negative; a tensor must broadcast against x.
    """
    size = x.abs()
    kept = size >= threshold
    # The divisor is safe on the branch not taken as well: a NaN there would reach the derivative.
    divisor = torch.where(kept & (size > 0), size, 1)
    return x * torch.where(kept, 1 - threshold / divisor, 0)


def group_threshold(x: Tensor, threshold: float | Tensor, axis: int) -> Tensor:
    """Soft threshold of vectors along ``axis`` by their length: proximal map of ``t |x|_{2,1}``."""
    return x - group_projection(x, threshold, axis)


def group_projection(x: Tensor, radius: float | Tensor, axis: int) -> Tensor:
    """Projection of the vectors along ``axis`` onto the ball of ``radius``."""
    squared = (x.conj() * x).real.sum(dim=axis, keepdim=True)
    outside = squared >= radius**2
    size = torch.where(outside & (squared > 0), squared, 1).sqrt()
    return x * torch.where(outside, radius / size, 1)


def fista(
    gram: LinearOperator,
    rhs: Tensor,
    prox: Callable[[Tensor, float], Tensor],
    step: float,
    iterations: int,
    x0: Tensor | None = None,
) -> Tensor:
    """Minimise ``1/2 |A x - y|^2 + R(x)`` by accelerated proximal gradient steps.

    Args:
        gram: ``A^H A``.
        rhs: ``A^H y``, ``(*batch, *domain)``.
        prox: ``(v, step)`` to the minimiser of ``1/2 |x - v|^2 + step R(x)``.
        step: At most 1 over the largest eigenvalue of the Gram operator, which for ``A = M F S``
            is at most the maximum over voxels of ``sum |S|^2``.
        iterations: Number of steps.
        x0: Start; zero when None.

    Source: A. Beck and M. Teboulle, SIAM J. Imaging Sci. 2 (2009) 183, FISTA with constant step.
    """
    x = torch.zeros_like(rhs) if x0 is None else x0
    point, t = x, 1.0
    for _ in range(iterations):
        new = prox(point - step * (gram(point) - rhs), step)
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        point = new + ((t - 1) / following) * (new - x)
        x, t = new, following
    return x


def pdhg(
    gram: LinearOperator,
    rhs: Tensor,
    gradient: Gradient,
    lamda: float | Tensor,
    lipschitz: float,
    iterations: int,
    x0: Tensor | None = None,
    project: Callable[[Tensor, float | Tensor, int], Tensor] = group_projection,
) -> Tensor:
    """Minimise ``1/2 |A x - y|^2 + lamda |G x|_{2,1}`` (isotropic total variation).

    Primal-dual hybrid gradient with the data term taken by gradient steps, in the
    predictor-corrector form: it needs no inner solve, and both step sizes follow from the norms
    of A and G, ``tau = 1 / |A|^2`` and ``sigma = 1 / (tau |G|^2)``, so that nothing depends on
    the scale of the data.

    Args:
        gram: ``A^H A``.
        rhs: ``A^H y``, ``(*batch, *grid)``.
        gradient: G.
        lamda: Weight, in units of the image.
        lipschitz: A bound on the largest eigenvalue of ``A^H A`` (see :func:`fista`).
        iterations: Number of steps.
        x0: Start; zero when None.
        project: ``(z, lamda, axis)``, :func:`group_projection` or a version of it that carries
            tangents along; everything else here is linear in ``rhs``.

    Source: I. Loris and C. Verhoeven, Inverse Problems 27 (2011) 125007; over-relaxation as in
    L. Condat, J. Optim. Theory Appl. 158 (2013) 460.
    """
    tau = 1 / lipschitz
    sigma = 1 / (tau * max(gradient.norm_squared, 1.0))
    axis = -1 - len(gradient.domain)
    x = torch.zeros_like(rhs) if x0 is None else x0
    dual = gradient(torch.zeros_like(x))
    back = torch.zeros_like(x)  # G^H dual, followed by its linearity instead of computed again
    for _ in range(iterations):
        descended = x - tau * (gram(x) - rhs)
        predicted = descended - tau * back
        new_dual = project(dual + sigma * gradient(predicted), lamda, axis)
        new_back = gradient.H(new_dual)
        x = torch.lerp(x, descended - tau * new_back, RELAXATION)
        dual = torch.lerp(dual, new_dual, RELAXATION)
        back = torch.lerp(back, new_back, RELAXATION)
    return x


def power_iteration(
    operator: LinearOperator, like: Tensor, iterations: int = 50, seed: int = 0
) -> float:
    """Largest eigenvalue of a Hermitian positive semidefinite operator, from above.

    A set-up computation outside of any derivative. Power iteration approaches the eigenvalue from
    below; the residual ``|A v - theta v|`` is added, so that the result serves as a Lipschitz
    constant.

    Args:
        operator: Hermitian, positive semidefinite.
        like: Any tensor with the wanted (complex) precision and device.
        iterations: Number of applications.
        seed: Seed of the start vector.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(*operator.domain, dtype=like.dtype, generator=generator)
    with torch.no_grad():
        v = start.to(like.device)
        v = v / torch.linalg.vector_norm(v)
        theta, residual = 0.0, 0.0
        for _ in range(iterations):
            image = operator(v)
            theta = float((v.conj() * image).real.sum())
            residual = float(torch.linalg.vector_norm(image - theta * v))
            norm = torch.linalg.vector_norm(image)
            if float(norm) == 0:
                return 0.0
            v = image / norm
    return theta + residual
