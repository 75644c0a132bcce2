"""Conjugate gradients, and the solution of a linear system as a differentiable function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snrecon.errors import SnreconWarning
from snrecon.physics.operators import LinearOperator

Tangents = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients found, and how well."""

    value: Tensor
    """The solution ``(*batch, *domain)``."""
    iterations: Tensor
    """Steps taken by each item of the batch, ``(*batch)``."""
    residual: Tensor
    """``|b - A x| / |b|`` of each item by the recursion, ``(*batch)``; 0 where b is zero."""
    tolerance: float
    """The relative residual that was asked for."""

    @property
    def converged(self) -> bool:
        """Every item reached the tolerance."""
        return bool((self.residual <= self.tolerance).all())


def conjugate_gradient(
    operator: LinearOperator,
    b: Tensor,
    iterations: int = 100,
    tolerance: float = 1e-6,
    x0: Tensor | None = None,
    shift: float = 0.0,
) -> Solution:
    """Solve ``(A + shift) x = b`` for Hermitian positive (semi)definite A.

    Each item of the leading batch axes has its own step sizes and stops by itself. For a
    semidefinite A, b must lie in its range (normal equations always do); x then has no part in
    the null space that ``x0`` does not have.

    Truncated conjugate gradients are nonlinear in b. For derivatives use :func:`linear_solve`.
    With ``tolerance=0`` exactly ``iterations`` steps are made without looking at the data, which
    torch.func can differentiate step by step.

    Args:
        operator: A, Hermitian, positive semidefinite.
        b: ``(*batch, *domain)``.
        iterations: Most steps that are made.
        tolerance: Stop an item when ``|b - A x| <= tolerance |b|``.
        x0: Start, as b; zero when None.
        shift: Non-negative multiple of the identity added to A.

    Source: M. Hestenes and E. Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409.
    """
    axes = tuple(range(-len(operator.domain), 0))

    def apply(x: Tensor) -> Tensor:
        return operator(x) + shift * x if shift else operator(x)

    x = torch.zeros_like(b) if x0 is None else x0
    residual = b if x0 is None else b - apply(x)
    direction = residual
    size = _squared(residual, axes)
    right = _squared(b, axes)
    goal = tolerance**2 * right
    going = size > goal
    steps = torch.zeros_like(size, dtype=torch.int64)
    for _ in range(iterations):
        if tolerance > 0 and not bool(going.any()):
            break
        image = apply(direction)
        curvature = (direction.conj() * image).real.sum(dim=axes, keepdim=True)
        # Zero curvature: converged to rounding, or a zero right-hand side.
        going = going & (curvature > 0)
        alpha = torch.where(going, size / torch.where(going, curvature, 1), 0)
        x = x + alpha * direction
        residual = residual - alpha * image
        new = torch.where(going, _squared(residual, axes), size)
        beta = torch.where(going, new / torch.where(going, size, 1), 0)
        direction = residual + beta * direction
        steps = steps + going
        size = new
        going = going & (size > goal)
    relative = torch.where(right > 0, size / torch.where(right > 0, right, 1), size).sqrt()
    return Solution(x, steps.squeeze(axes), relative.squeeze(axes), tolerance)


def _squared(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return (x.conj() * x).real.sum(dim=axes, keepdim=True)


def linear_solve(
    operator: LinearOperator,
    b: Tensor,
    shift: float | Tensor = 0.0,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """``(A + shift)^-1 b`` as a function that torch.func can differentiate in ``b`` and ``shift``.

    Solved by conjugate gradients to ``tolerance``. Its derivative is not that of the iteration
    but of the solution: another converged solve, for jvp and for vjp (A is Hermitian); under vmap
    the batch is solved at once. The operator is a constant.

    Args:
        operator: A, Hermitian, positive semidefinite; see :func:`conjugate_gradient`.
        b: ``(*batch, *domain)``.
        shift: Non-negative multiple of the identity added to A; a real scalar tensor is
            differentiated too.
        iterations: Most steps that are made.
        tolerance: Relative residual to reach; derivatives are accurate to the same degree.

    Returns:
        x, as ``b``. An SnreconWarning is issued when the tolerance was not reached.
    """
    if isinstance(shift, Tensor):
        varied: Tensor = _ShiftedSolve.apply(b, shift, operator, iterations, tolerance)
        return varied

    def solve(right: Tensor) -> Tensor:
        return _converged(operator, right, shift, iterations, tolerance)

    solved: Tensor = _Linear.apply(b, solve, solve)
    return solved


def least_squares(
    operator: LinearOperator, y: Tensor, iterations: int = 1000, tolerance: float = 1e-6,
    gram: LinearOperator | None = None,
) -> Tensor:
    """``A^+ y``, of all that minimise ``|A x - y|`` the smallest, as a function that torch.func can
    differentiate.

    Solved by conjugate gradients on ``A^H A``, whose right-hand side ``A^H y`` lies in its range.
    Cotangents need not: where ``A^H A`` has a null space (voxels without maps, too few samples),
    conjugate gradients on them would run away. For the adjoint ``A (A^H A)^+ u`` the residual is
    minimised instead (conjugate residuals), and A takes away what lies in the null space.

    Args:
        operator: A.
        y: ``(*batch, *range)``.
        iterations: Most steps that are made.
        tolerance: Relative residual to reach, here and in derivatives.
        gram: ``A^H A``, if it is at hand.

    Returns:
        x, ``(*batch, *domain)``. An SnreconWarning is issued when the tolerance was not reached.
    """
    product = gram or operator.gram

    def inverse(data: Tensor) -> Tensor:
        return _converged(product, operator.H(data), 0.0, iterations, tolerance)

    def adjoint(u: Tensor) -> Tensor:
        return operator(_told(_conjugate_residuals(product, u, iterations, tolerance), iterations))

    solved: Tensor = _Linear.apply(y, inverse, adjoint)
    return solved


def _conjugate_residuals(
    gram: LinearOperator, u: Tensor, iterations: int, tolerance: float
) -> Solution:
    """``x`` that makes ``A^H A x`` nearest to ``u``, which need not lie in its range; any part of x
    in the null space is arbitrary. The residual that is told is that of ``A u``.

    Source: E. Stiefel, Comment. Math. Helv. 29 (1955) 157.
    """
    axes = tuple(range(-len(gram.domain), 0))

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).real.sum(dim=axes, keepdim=True)

    x, residual, image = torch.zeros_like(u), u, gram(u)
    direction, turned = residual, image
    size = right = inner(residual, image)
    going = size > 0
    steps = torch.zeros_like(size, dtype=torch.int64)
    for _ in range(iterations):
        if not bool(going.any()):
            break
        curvature = _squared(turned, axes)
        going = going & (curvature > 0)
        alpha = torch.where(going, size / torch.where(going, curvature, 1), 0)
        x = x + alpha * direction
        residual = residual - alpha * turned
        image = gram(residual)
        new = torch.where(going, inner(residual, image), size)
        steps = steps + going
        # Reached, or below zero: what is left is rounding.
        going = going & (new > tolerance**2 * right)
        beta = torch.where(going, new / torch.where(going, size, 1), 0)
        direction, turned = residual + beta * direction, image + beta * turned
        size = new
    relative = (size.clamp_min(0) / torch.where(right > 0, right, 1)).sqrt()
    return Solution(x, steps.squeeze(axes), relative.squeeze(axes), tolerance)


def _converged(
    operator: LinearOperator, b: Tensor, shift: float, iterations: int, tolerance: float
) -> Tensor:
    """The solution, with a warning where it is none."""
    return _told(conjugate_gradient(operator, b, iterations, tolerance, shift=shift), iterations)


def _told(solution: Solution, iterations: int) -> Tensor:
    tolerance = solution.tolerance
    if tolerance > 0 and not solution.converged:
        warnings.warn(
            f"conjugate gradients stopped after {iterations} iterations at a relative residual "
            f"of {float(solution.residual.max()):.1e} (wanted: {tolerance:.1e}); allow more "
            "iterations or regularise.",
            SnreconWarning,
            stacklevel=5,
        )
    return solution.value


class _Linear(torch.autograd.Function):
    """A linear function of b, given with its adjoint: its derivative is itself."""

    @staticmethod
    def forward(b: Tensor, function: Tangents, adjoint: Tangents) -> Tensor:
        return function(b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pair = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        function, adjoint = ctx.pair
        return _Linear.apply(gradients[0], adjoint, function), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        moved: Tensor = _Linear.apply(tangents[0], *ctx.pair)
        return moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], b: Tensor, *pair: Tangents) -> Any:
        if in_dims[0] is None:
            return _Linear.apply(b, *pair), None
        return _Linear.apply(b.movedim(in_dims[0], 0), *pair), 0


class _ShiftedSolve(torch.autograd.Function):
    """``x = (A + s)^-1 b`` in b and s: ``dx = (A + s)^-1 (db - ds x)``."""

    @staticmethod
    def forward(
        b: Tensor, shift: Tensor, operator: LinearOperator, iterations: int, tolerance: float
    ) -> Tensor:
        return _converged(operator, b, float(shift.detach()), iterations, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.settings = inputs[2:]
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        shift, x = ctx.saved_tensors
        solved = _ShiftedSolve.apply(gradients[0], shift, *ctx.settings)
        slope = -(solved.conj() * x).real.sum().to(shift) if ctx.needs_input_grad[1] else None
        return solved, slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        shift, x = ctx.saved_tensors
        right = torch.zeros_like(x) if tangents[0] is None else tangents[0]
        if tangents[1] is not None:
            right = right - tangents[1] * x
        solved: Tensor = _ShiftedSolve.apply(right, shift, *ctx.settings)
        return solved

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], b: Tensor, shift: Tensor, *rest: Any
    ) -> Any:
        if in_dims[1] is not None:  # a system of its own for every item
            items = [b if in_dims[0] is None else b.select(in_dims[0], i)
                     for i in range(info.batch_size)]
            shifts = shift.unbind(in_dims[1])
            solved = [_ShiftedSolve.apply(one, s, *rest) for one, s in zip(items, shifts)]
            return torch.stack(solved), 0
        if in_dims[0] is None:
            return _ShiftedSolve.apply(b, shift, *rest), None
        return _ShiftedSolve.apply(b.movedim(in_dims[0], 0), shift, *rest), 0


def linearized_steps(
    operator: LinearOperator, b: Tensor, iterations: int
) -> tuple[Tensor, Tangents]:
    """Exactly ``iterations`` steps at one ``b``, and their derivative in it.

    The value is that of :func:`conjugate_gradient` with ``tolerance=0``. The derivative repeats the
    steps on tangents with the directions, images and residuals of the value, which are kept: three
    arrays a step. No gradients pass through either.

    Args:
        operator: A, Hermitian, positive semidefinite.
        b: ``(1, *domain)``.
        iterations: Steps.

    Returns:
        x, as ``b``, and a function from tangents ``(batch, *domain)`` of b to those of x.
    """
    axes = tuple(range(-len(operator.domain), 0))

    def inner(a: Tensor, c: Tensor) -> Tensor:
        if not a.is_complex():
            return (a * c).sum(dim=axes, keepdim=True)
        # As pairs of real numbers: half the work of a complex product's real part.
        parts = (torch.view_as_real(a) * torch.view_as_real(c)).flatten(-2)
        return parts.sum(dim=axes, keepdim=True)

    def combine(a: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
        for factor, array in terms:
            a = torch.addcmul(a, factor, array)
        return a

    x, residual, direction = torch.zeros_like(b), b, b
    size = _squared(residual, axes)
    kept = []
    for _ in range(iterations):
        image = operator(direction)
        curvature = inner(direction, image)
        going = (size > 0) & (curvature > 0)
        divisor, scale = torch.where(going, curvature, 1), torch.where(going, size, 1)
        alpha = torch.where(going, size / divisor, 0)
        after = residual - alpha * image
        new = torch.where(going, _squared(after, axes), size)
        beta = torch.where(going, new / scale, 0)
        kept.append((direction, image, after, alpha, beta, divisor, scale, going))
        x = x + alpha * direction
        residual, size = after, new
        direction = residual + beta * direction

    def tangent(db: Tensor) -> Tensor:
        dx, dr, dp = torch.zeros_like(db), db, db
        d_size = 2 * inner(b, db)
        for p, q, r, alpha, beta, curvature, scale, going in kept:
            # The operator is Hermitian: the derivative of <p, A p> is 2 Re <A p, dp>.
            d_alpha = torch.where(going, (d_size - 2 * alpha * inner(q, dp)) / curvature, 0)
            dx = combine(dx, (alpha, dp), (d_alpha, p))
            dr = combine(dr, (-alpha, operator(dp)), (-d_alpha, q))
            d_new = torch.where(going, 2 * inner(r, dr), d_size)
            d_beta = torch.where(going, (d_new - beta * d_size) / scale, 0)
            dp = combine(dr, (beta, dp), (d_beta, p))
            d_size = d_new
        return dx

    return x, tangent
