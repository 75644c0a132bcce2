"""A decoder at a converged optimum, and how the optimum moves with the data.

The iterations of a fit that is stopped early have no derivative worth the name. A minimum has one,
by the implicit function theorem, if it is a minimum: reached to rounding, and isolated. The
objective of a decoder alone has none that is (normalisation makes the weights' size immaterial, and
there are more weights than data), so the weights are tethered to given ones ``w0``:

``Phi(w) = 1/2 sum |K(w) - y|^2 / s^2 + t/2 |w - w0|^2``.

With whitened data ``s`` is the size of the noise in the unit of y, and ``1/t`` the variance that
weights are granted about ``w0``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snrecon.physics.conjugate_gradient import conjugate_gradient
from snrecon.physics.operators import LinearOperator

Kspace = Callable[[Tensor], Tensor]
"""Weights ``(weight,)`` to k-space ``(coil, ky, kx)``."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """A stationary point of ``Phi``."""

    kspace: Kspace
    """The decoder's k-space as a function of its weights."""
    weights: Tensor
    """``(weight,)``."""
    value: Tensor
    """k-space there, ``(coil, ky, kx)``."""
    residual: float
    """``|grad Phi|`` over ``|K'^T y| / s^2``, its size if the decoder gave nothing."""
    hessian: LinearOperator
    """Of ``Phi``."""
    seen: Tensor
    """Boolean ``(ky, kx)``: samples that count."""
    size: float
    """``s``."""

    def derivative(
        self, tangent: Tensor, iterations: int = 2000, tolerance: float = 1e-8
    ) -> tuple[Tensor, bool]:
        """``dK(w*(y)) / dy`` applied to ``(coil, ky, kx)``, by ``H dw = K'^T M dy / s^2``.

        Args:
            tangent: ``dy``.
            iterations: Most steps of conjugate gradients.
            tolerance: Of their relative residual.

        Returns:
            The tangent of the k-space, and whether conjugate gradients reached the tolerance,
            which they do not where the Hessian has directions of negative curvature.
        """
        back = torch.func.vjp(self.kspace, self.weights)[1]
        right = back((tangent * self.seen / self.size**2).to(self.value.dtype))[0]
        solution = conjugate_gradient(self.hessian, right, iterations, tolerance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own rules
            moved = torch.func.jvp(self.kspace, (self.weights,), (solution.value,))[1]
        return moved, solution.converged


def flat_weights(network: nn.Module) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """All weights as one vector, and what makes them the network's again."""
    parts = {name: value.detach() for name, value in network.named_parameters()}
    sizes = [value.numel() for value in parts.values()]

    def named(flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split(sizes)
        return {
            name: piece.reshape(value.shape)
            for piece, (name, value) in zip(pieces, parts.items(), strict=True)
        }

    return torch.cat([value.flatten() for value in parts.values()]), named


def optimum(
    network: nn.Module,
    measure: Callable[[Tensor], Tensor],
    target: Tensor,
    seen: Tensor,
    *,
    size: float,
    tether: float,
    iterations: int = 2000,
    tolerance: float = 1e-9,
) -> Optimum:
    """Minimise ``Phi`` from the network's weights, which are also ``w0``.

    In double precision, by L-BFGS and then Newton's method with conjugate gradients, which
    converges where L-BFGS crawls.

    Args:
        network: A decoder; left as it is.
        measure: Its channels to k-space ``(coil, ky, kx)``.
        target: ``y``.
        seen: Boolean ``(ky, kx)``: samples that count.
        size: ``s``.
        tether: ``t``, positive.
        iterations: Most steps of L-BFGS.
        tolerance: Of the relative size of the gradient.
    """
    network = copy.deepcopy(network).double()
    start, named = flat_weights(network)

    def kspace(flat: Tensor) -> Tensor:
        return measure(torch.func.functional_call(network, named(flat), ()))

    def objective(flat: Tensor) -> Tensor:
        gap = (kspace(flat) - target)[:, seen]
        data = (gap.real**2 + gap.imag**2).sum() / size**2
        return (data + tether * ((flat - start) ** 2).sum()) / 2

    back = torch.func.vjp(kspace, start)[1](target * seen / size**2)[0]
    goal = tolerance * float(back.norm())
    weights = _lbfgs(objective, start, goal, iterations)
    weights, slope = _newton(objective, weights, goal)
    with torch.no_grad():
        value = kspace(weights)
    relative = float(slope / back.norm())
    hessian = _Hessian(objective, weights)
    return Optimum(kspace, weights, value, relative, hessian, seen, size)


def _lbfgs(
    objective: Callable[[Tensor], Tensor], start: Tensor, goal: float, iterations: int
) -> Tensor:
    weights = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=iterations,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=goal / weights.numel() ** 0.5,
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(weights)
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def _newton(
    objective: Callable[[Tensor], Tensor], weights: Tensor, goal: float, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """Newton steps while they make the gradient smaller; the weights and its size."""
    gradient = torch.func.grad(objective)(weights)
    size = gradient.norm()
    for _ in range(steps):
        if float(size) <= goal:
            break
        step = conjugate_gradient(_Hessian(objective, weights), gradient, 500, 1e-8).value
        share = 1.0
        while share > 1e-3:
            trial = weights - share * step
            slope = torch.func.grad(objective)(trial)
            if slope.norm() < size:
                break
            share /= 2
        else:
            break
        weights, gradient, size = trial, slope, slope.norm()
    return weights, size


class _Hessian(LinearOperator):
    """Second derivatives of a function of real weights."""

    def __init__(self, objective: Callable[[Tensor], Tensor], weights: Tensor) -> None:
        self.domain = self.range = tuple(weights.shape)
        self._weights = weights.detach().clone().requires_grad_(True)
        (self._gradient,) = torch.autograd.grad(
            objective(self._weights), self._weights, create_graph=True)

    def _forward(self, x: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            self._gradient, self._weights, grad_outputs=x, retain_graph=True)
        return product

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)
