"""Derivatives of a network: forward mode, reverse mode, batches and vmap must tell one story."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def draw(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, seed: int) -> Tensor:
    """Gaussian array."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def check_derivatives(
    function: Function, x: Tensor, *, batched: bool = True, step: float = 1e-6
) -> None:
    """JVP against central differences to 1e-6, adjoint consistency to 1e-10, vmap, batches.

    Args:
        function: ``(*shape)`` to an image, with leading batch axes if ``batched``.
        x: A point in double precision.
        batched: Whether batches are compared.
        step: Of the differences, relative to the point's size.
    """
    value, pull = torch.func.vjp(function, x)
    tangents = [draw(x.shape, x.dtype, seed) for seed in (11, 12)]
    cotangents = [draw(value.shape, value.dtype, seed) for seed in (13, 14)]
    h = step * float(x.norm() / tangents[0].norm())
    pushed = []
    for v in tangents:
        again, jv = torch.func.jvp(function, (x,), (v,))
        torch.testing.assert_close(again, value, rtol=1e-10, atol=1e-10)
        numeric = (function(x + h * v) - function(x - h * v)) / (2 * h)
        assert float(numeric.norm()) > 0
        error = float((jv - numeric).norm() / numeric.norm())
        assert error < 1e-6, f"jvp differs from central differences by {error:.1e}"
        pushed.append(jv)
    for u in cotangents:
        back = pull(u)[0]
        for v, jv in zip(tangents, pushed):
            left, right = _inner(u, jv), _inner(back, v)
            size = u.norm() * jv.norm() + back.norm() * v.norm()
            assert abs(left - right) < 1e-10 * size, "jvp and vjp are not adjoint"
            assert abs(left) > 1e-8 * size, "products of zero would pass"
    scale = float(pushed[0].abs().max())
    same = {"rtol": 1e-9, "atol": 1e-11 * scale}
    many = torch.vmap(lambda v: torch.func.jvp(function, (x,), (v,))[1])(torch.stack(tangents))
    torch.testing.assert_close(many, torch.stack(pushed), **same)
    rows = torch.vmap(lambda u: pull(u)[0])(torch.stack(cotangents))
    torch.testing.assert_close(rows[1], pull(cotangents[1])[0], rtol=1e-9, atol=1e-12)
    stack = torch.stack([x, 1.7 * x + 0.1 * tangents[0]])
    alone = torch.stack([function(one) for one in stack])
    near = {"rtol": 1e-10, "atol": 1e-11 * float(alone.abs().max())}
    torch.testing.assert_close(torch.vmap(function)(stack), alone, **near)
    if batched:
        together = function(stack.unsqueeze(1))
        torch.testing.assert_close(together[:, 0], alone, **near)


def check_linearization(
    function: Function, linearize: Callable[[Tensor], tuple[Tensor, Function]], x: Tensor
) -> None:
    """``linearize(x)``, a value and a function of batches of tangents, against torch.func to 1e-10
    and against central differences to 1e-6.

    Args:
        function: What is linearized; without batch axes.
        linearize: Its fast path.
        x: A point in double precision.
    """
    value, product = linearize(x)
    assert not value.requires_grad
    scale = float(value.abs().max())
    torch.testing.assert_close(value, function(x), rtol=1e-10, atol=1e-11 * scale)
    tangents = torch.stack([draw(x.shape, x.dtype, seed) for seed in (21, 22, 23)])
    kept = tangents.clone()
    pushed = product(tangents)
    assert not pushed.requires_grad
    assert torch.equal(tangents, kept), "tangents were overwritten"
    assert torch.equal(product(tangents), pushed), "a product spoils the next"
    h = 1e-6 * float(x.norm() / tangents[0].norm())
    for v, jv in zip(tangents, pushed, strict=True):
        wanted = torch.func.jvp(function, (x,), (v,))[1]
        assert float(wanted.norm()) > 0
        assert jv.shape == wanted.shape
        assert float((jv - wanted).norm() / wanted.norm()) < 1e-10
        alone = product(v.unsqueeze(0))[0]
        assert float((alone - jv).norm() / jv.norm()) < 1e-12
        numeric = (function(x + h * v) - function(x - h * v)) / (2 * h)
        assert float((jv - numeric).norm() / numeric.norm()) < 1e-6


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).sum().real)
