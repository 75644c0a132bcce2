"""The solution of (A + s) x = b as a function of b and of s."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from derivatives import draw
from snrecon.physics.operators import Encoding
from snrecon.physics.solvers import linear_solve

GRID = (5, 4)


@cache
def operator():
    mask = torch.rand(GRID, generator=torch.Generator().manual_seed(2)) < 0.6
    return Encoding(draw((2, *GRID), torch.complex128, 1), mask).gram


def solve(b, s):
    return linear_solve(operator(), b, s, tolerance=1e-13)


def test_a_tensor_shift_solves_the_same_system():
    b = draw((3, *GRID), torch.complex128, 3)
    s = torch.tensor(0.3, dtype=torch.float64)
    x = solve(b, s)
    torch.testing.assert_close(operator()(x) + 0.3 * x, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x, linear_solve(operator(), b, 0.3, tolerance=1e-13))


def test_forward_and_reverse_mode_in_both():
    b, db = draw(GRID, torch.complex128, 4), draw(GRID, torch.complex128, 5)
    s, ds = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    h = 1e-5
    numeric = (solve(b + h * db, s + h * ds) - solve(b - h * db, s - h * ds)) / (2 * h)
    _, pushed = torch.func.jvp(solve, (b, s), (db, ds))
    torch.testing.assert_close(pushed, numeric, rtol=1e-7, atol=1e-8)
    u = draw(GRID, torch.complex128, 6)
    _, pull = torch.func.vjp(solve, b, s)
    back_b, back_s = pull(u)
    left = (u.conj() * pushed).real.sum()
    right = (back_b.conj() * db).real.sum() + back_s * ds
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    _, only_s = torch.func.jvp(lambda t: solve(b, t), (s,), (ds,))
    _, only_b = torch.func.jvp(lambda y: solve(y, s), (b,), (db,))
    torch.testing.assert_close(only_s + only_b, pushed, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)])
def test_vmap_over_either(dims):
    s = torch.tensor([0.2, 0.5], dtype=torch.float64)
    b = draw((2, *GRID), torch.complex128, 7)
    operator()
    inputs = (b if dims[0] == 0 else b[0], s if dims[1] == 0 else s[0])
    found = torch.vmap(solve, in_dims=dims)(*inputs)
    wanted = [
        solve(b[i if dims[0] == 0 else 0], s[i if dims[1] == 0 else 0]) for i in range(2)
    ]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-9, atol=1e-10)
