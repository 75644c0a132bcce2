"""Roots and quotients at zero, and of what is not a number."""

from __future__ import annotations

import math

import torch

from snrecon.physics.safe import safe_divide, safe_root

X = torch.tensor([0.0, 4.0, math.nan, math.inf], dtype=torch.float64)
ONE = torch.ones_like(X)


def test_only_zero_is_replaced() -> None:
    expected = torch.tensor([0.0, 2.0, math.nan, math.inf], dtype=torch.float64)
    torch.testing.assert_close(safe_root(X), expected, equal_nan=True)
    expected = torch.tensor([0.0, 0.25, math.nan, 0.0], dtype=torch.float64)
    torch.testing.assert_close(safe_divide(ONE, X), expected, equal_nan=True)
    assert safe_root(torch.tensor(-1e-9)) == 0  # rounding of what cannot be negative


def test_derivatives_at_zero_are_zero_in_every_transform() -> None:
    x = X[:2]
    for function, slopes in ((safe_root, [0.0, 0.25]), (lambda x: safe_divide(ONE[:2], x),
                                                        [0.0, -1 / 16])):
        expected = torch.tensor(slopes, dtype=torch.float64)
        _, forward = torch.func.jvp(function, (x,), (torch.ones_like(x),))
        _, back = torch.func.vjp(function, x)
        torch.testing.assert_close(forward, expected)
        torch.testing.assert_close(back(torch.ones_like(x))[0], expected)
        many = torch.vmap(lambda v: torch.func.jvp(function, (x,), (v,))[1])  # noqa: B023
        torch.testing.assert_close(many(torch.eye(2, dtype=torch.float64)).sum(0), expected)
