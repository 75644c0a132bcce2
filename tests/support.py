"""Batteries that many tests share: adjointness, and behaviour under torch.func."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.operators import LinearOperator


def random_complex(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128
) -> Tensor:
    """Circular Gaussian array with unit variance."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``<a, b>`` = sum conj(a) b over everything."""
    return (a.conj() * b).sum()


def check_linear_operator(operator: LinearOperator, batch: tuple[int, ...] = (2, 3)) -> None:
    """Shapes, batching, linearity and adjointness of an operator in double precision."""
    x = random_complex(*batch, *operator.domain, seed=1)
    y = random_complex(*batch, *operator.range, seed=2)
    forward, adjoint = operator(x), operator.H(y)
    assert tuple(forward.shape) == (*batch, *operator.range)
    assert tuple(adjoint.shape) == (*batch, *operator.domain)
    for index in [(0,) * len(batch), tuple(n - 1 for n in batch)]:
        torch.testing.assert_close(operator(x[index]), forward[index], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.H(y[index]), adjoint[index], rtol=1e-12, atol=1e-12)
    left, right = inner(y, forward), inner(adjoint, x)
    scale = y.norm() * forward.norm() + adjoint.norm() * x.norm()
    assert bool((left - right).abs() <= 1e-10 * scale)
    assert bool(left.abs() > 1e-6 * scale), "an operator that is zero would pass for any adjoint"
    factor = 0.3 - 1.7j
    torch.testing.assert_close(
        operator(factor * x[0] + x[1]), factor * forward[0] + forward[1], rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(
        operator.gram(x), operator.H(operator(x)), rtol=1e-10, atol=1e-10
    )


def check_transforms(operator: LinearOperator) -> None:
    """jvp, vjp and vmap of a linear operator are the operator and its adjoint."""
    x, v = (random_complex(*operator.domain, seed=s) for s in (3, 4))
    u = random_complex(*operator.range, seed=5)
    tangents = random_complex(3, *operator.domain, seed=6)
    cotangents = random_complex(3, *operator.range, seed=7)
    same = {"rtol": 1e-10, "atol": 1e-10}
    value, pushed = torch.func.jvp(operator, (x,), (v,))
    torch.testing.assert_close(value, operator(x), **same)
    torch.testing.assert_close(pushed, operator(v), **same)
    _, pull = torch.func.vjp(operator, x)
    torch.testing.assert_close(pull(u)[0], operator.H(u), **same)
    torch.testing.assert_close(torch.func.vmap(operator)(tangents), operator(tangents), **same)
    many = torch.func.vmap(lambda t: torch.func.jvp(operator, (x,), (t,))[1])(tangents)
    torch.testing.assert_close(many, operator(tangents), **same)
    back = torch.func.vmap(lambda c: pull(c)[0])(cotangents)
    torch.testing.assert_close(back, operator.H(cotangents), **same)


def check_jvp(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tolerance: float = 1e-6,
    step: float = 1e-5,
    seed: int = 8,
) -> None:
    """jvp against central differences; vjp, vmap(jvp) and vmap(vjp) against the jvp.

    Uses the real inner product ``Re <u, J v> = Re <J^T u, v>``: functions need only be real-linear.
    """
    tangents = torch.stack([random_complex(*x.shape, seed=seed + i).to(x.dtype) for i in range(3)])
    pushed = []
    for v in tangents:
        _, jv = torch.func.jvp(function, (x,), (v,))
        numeric = (function(x + step * v) - function(x - step * v)) / (2 * step)
        error = float((jv - numeric).norm() / numeric.norm())
        assert error <= tolerance, f"jvp differs from central differences by {error}"
        pushed.append(jv)
    expected = torch.stack(pushed)
    same = {"rtol": 1e-8, "atol": 1e-9 * float(expected.abs().max())}
    batched = torch.func.vmap(lambda v: torch.func.jvp(function, (x,), (v,))[1])(tangents)
    torch.testing.assert_close(batched, expected, **same)
    value, pull = torch.func.vjp(function, x)
    cotangents = torch.stack(
        [random_complex(*value.shape, seed=seed + 10 + i).to(value.dtype) for i in range(3)]
    )
    rows = torch.func.vmap(lambda u: pull(u)[0])(cotangents)
    torch.testing.assert_close(rows[1], pull(cotangents[1])[0], **same)
    left = torch.einsum("ai,bi->ab", cotangents.flatten(1).conj(), expected.flatten(1)).real
    right = torch.einsum("ai,bi->ab", rows.flatten(1).conj(), tangents.flatten(1)).real
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8 * float(left.abs().max()))
