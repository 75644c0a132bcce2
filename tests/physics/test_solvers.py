"""Solvers against dense numpy solutions and optimality conditions, and their derivatives."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.errors import SnreconWarning
from snrecon.physics.differences import Gradient
from snrecon.physics.operators import Encoding, LinearOperator, dense
from snrecon.physics.solvers import (
    conjugate_gradient,
    fista,
    group_projection,
    group_threshold,
    least_squares,
    linear_solve,
    pdhg,
    power_iteration,
    soft_threshold,
)
from snrecon.physics.wavelets import Wavelet
from support import check_jvp, random_complex

GRID, COILS = (8, 10), 4
POINTS = 80


class Dense(LinearOperator):
    """A matrix on arrays of a given shape."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        self.matrix, self.domain, self.range = matrix, shape, shape

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(-len(self.domain)).unsqueeze(-1)
        return (self.matrix.to(x.dtype) @ flat).squeeze(-1).reshape(x.shape)

    _adjoint = _forward


def dft(n: int) -> np.ndarray:
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


@pytest.fixture(scope="module")
def measurement() -> tuple[Encoding, np.ndarray]:
    """An undersampled measurement, and its Gram matrix written in numpy."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((COILS, *GRID)) + 1j * rng.standard_normal((COILS, *GRID))
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    mask = np.zeros(GRID, bool)
    mask[::2] = mask[4] = mask[5, 3] = True
    fourier = np.kron(dft(GRID[0]), dft(GRID[1]))
    rows = [np.diag(mask.ravel().astype(float)) @ fourier @ np.diag(s.ravel()) for s in maps]
    matrix = np.concatenate(rows)
    operator = Encoding(torch.from_numpy(maps), torch.from_numpy(mask))
    return operator, matrix.conj().T @ matrix


def test_cg_agrees_with_a_dense_solve(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, gram = measurement
    b = random_complex(2, 3, *GRID)
    solution = conjugate_gradient(operator.gram, b, 500, 1e-12, shift=0.05)
    flat = b.reshape(6, -1).numpy().T
    wanted = np.linalg.solve(gram + 0.05 * np.eye(POINTS), flat).T.reshape(2, 3, *GRID)
    np.testing.assert_allclose(solution.value.numpy(), wanted, atol=1e-10 * np.abs(wanted).max())
    assert solution.converged
    assert solution.iterations.shape == solution.residual.shape == (2, 3)


def test_cg_items_stop_by_themselves_as_if_alone() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((12, 12)) + 1j * rng.standard_normal((12, 12)))[0]
    values = np.concatenate([np.full(6, 3.0), np.linspace(0.1, 5, 6)])
    operator = Dense(torch.from_numpy((basis * values) @ basis.conj().T), (12,))
    easy = torch.from_numpy(basis[:, 0])  # an eigenvector: one step
    hard = random_complex(12)
    b = torch.stack([easy, torch.zeros_like(easy), 1e8 * hard, 1e-8 * hard])
    solution = conjugate_gradient(operator, b, 100, 1e-10)
    assert solution.iterations[0] == 1
    assert solution.iterations[1] == 0
    assert solution.iterations[2] == solution.iterations[3] > 3
    assert bool((solution.value[1] == 0).all())
    assert bool((solution.residual <= 1e-10).all())
    for item, value in zip(b, solution.value):
        alone = conjugate_gradient(operator, item, 100, 1e-10).value
        torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)
    wanted = np.linalg.solve(operator.matrix.numpy(), b.numpy().T).T
    np.testing.assert_allclose(solution.value[2:].numpy(), wanted[2:], rtol=1e-8)


def test_cg_start_and_singular_systems(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, gram = measurement
    start = random_complex(*GRID, seed=3)
    b = operator.gram(random_complex(*GRID, seed=4))
    solution = conjugate_gradient(operator.gram, b, 300, 1e-11, x0=start, shift=0.1)
    wanted = np.linalg.solve(gram + 0.1 * np.eye(POINTS), b.flatten().numpy())
    np.testing.assert_allclose(solution.value.flatten().numpy(), wanted, atol=1e-9)
    # One coil and missing lines: singular, but normal equations are consistent.
    maps, mask = operator.maps[:1], operator.mask
    alone = Encoding(maps, mask)
    y = alone(random_complex(*GRID, seed=5))
    result = conjugate_gradient(alone.gram, alone.H(y), 300, 1e-10)
    assert result.converged
    fourier = np.kron(dft(GRID[0]), dft(GRID[1]))
    matrix = fourier[mask.numpy().ravel()] @ np.diag(maps[0].numpy().ravel())
    least = np.linalg.pinv(matrix) @ y[0].numpy()[mask.numpy()]
    np.testing.assert_allclose(result.value.flatten().numpy(), least, atol=1e-7)


def test_cg_tells_when_it_did_not_converge(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, _ = measurement
    b = random_complex(*GRID)
    solution = conjugate_gradient(operator.gram, b, 3, 1e-10, shift=1e-3)
    assert not solution.converged
    assert int(solution.iterations) == 3
    true = b - operator.gram(solution.value) - 1e-3 * solution.value
    assert float(solution.residual) == pytest.approx(float(true.norm() / b.norm()), rel=1e-8)
    with pytest.warns(SnreconWarning, match="stopped after 3 iterations"):
        linear_solve(operator.gram, b, 1e-3, 3, 1e-10)
    # Right-hand sides outside the range have no solution: no NaN, and no claim to have one.
    flat = conjugate_gradient(Dense(torch.diag(torch.tensor([1.0, 0.0]) + 0j), (2,)), b[0, :2], 50)
    nothing = conjugate_gradient(Dense(torch.zeros(2, 2) + 0j, (2,)), b[0, :2], 50)
    assert not flat.converged
    assert float(nothing.residual) == 1
    assert bool((nothing.value == 0).all())


def test_cg_in_single_precision(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, gram = measurement
    single = Encoding(operator.maps.to(torch.complex64), operator.mask)
    b = random_complex(*GRID, dtype=torch.complex64)
    x = linear_solve(single.gram, b, 0.05, tolerance=1e-6)
    assert x.dtype == torch.complex64
    wanted = np.linalg.solve(gram + 0.05 * np.eye(POINTS), b.flatten().numpy())
    np.testing.assert_allclose(x.flatten().numpy(), wanted, atol=1e-4)


def test_fixed_cg_steps_are_differentiable(measurement: tuple[Encoding, np.ndarray]) -> None:
    gram = measurement[0].gram
    check_jvp(
        lambda b: conjugate_gradient(gram, b, 3, 0.0, shift=0.1).value, random_complex(*GRID)
    )
    # Going on far beyond convergence does no harm.
    b = torch.stack([random_complex(*GRID), torch.zeros(GRID, dtype=torch.complex128)])
    value = conjugate_gradient(gram, b, 400, 0.0, shift=0.1).value
    torch.testing.assert_close(value, linear_solve(gram, b, 0.1, tolerance=1e-12))


def test_derivatives_of_the_solve_are_the_dense_inverse(
    measurement: tuple[Encoding, np.ndarray],
) -> None:
    operator, gram = measurement
    shift = 0.02
    inverse = np.linalg.inv(gram + shift * np.eye(POINTS))
    solve = partial(linear_solve, operator.gram, shift=shift, iterations=2000, tolerance=1e-12)
    b, batch = random_complex(*GRID), random_complex(5, *GRID, seed=2)
    wanted = torch.from_numpy((inverse @ batch.reshape(5, -1).numpy().T).T.reshape(5, *GRID))
    same = {"rtol": 0, "atol": 1e-9 * float(wanted.abs().max())}
    value, pushed = torch.func.jvp(solve, (b,), (batch[0],))
    reference = (inverse @ b.flatten().numpy()).reshape(GRID)
    torch.testing.assert_close(value, torch.from_numpy(reference), **same)
    torch.testing.assert_close(pushed, wanted[0], **same)
    _, pull = torch.func.vjp(solve, b)
    torch.testing.assert_close(pull(batch[0])[0], wanted[0], **same)
    many = torch.func.vmap(lambda v: torch.func.jvp(solve, (b,), (v,))[1])(batch)
    torch.testing.assert_close(many, wanted, **same)
    torch.testing.assert_close(torch.func.vmap(lambda u: pull(u)[0])(batch), wanted, **same)
    torch.testing.assert_close(torch.func.vmap(solve)(batch), wanted, **same)
    moved = torch.func.vmap(solve, in_dims=1, out_dims=1)(batch.movedim(0, 1))
    torch.testing.assert_close(moved, wanted.movedim(0, 1), **same)
    leaf = b.clone().requires_grad_()
    (solve(leaf) * batch[1].conj()).sum().real.backward()
    torch.testing.assert_close(leaf.grad, wanted[1], **same)


def test_least_squares_and_its_adjoint_where_the_system_is_singular() -> None:
    generator = torch.Generator().manual_seed(8)
    maps = random_complex(2, 6, 5, seed=9)
    maps[:, :, 0] = 0
    mask = torch.rand(6, 5, generator=generator) < 0.4
    encoding = Encoding(maps, mask)
    inverse = np.linalg.pinv(dense(encoding).numpy(), rcond=1e-10)
    assert np.linalg.matrix_rank(inverse) < 25  # of 25 voxels with maps
    y, u = random_complex(3, 2, 6, 5, seed=10), random_complex(3, 6, 5, seed=11)
    wanted = y.reshape(3, -1).numpy() @ inverse.T
    solve = partial(least_squares, encoding, tolerance=1e-12)
    found, vjp = torch.func.vjp(solve, y)
    np.testing.assert_allclose(found.reshape(3, -1).numpy(), wanted, atol=1e-9)
    back = u.reshape(3, -1).numpy() @ inverse.conj()
    np.testing.assert_allclose(vjp(u)[0].reshape(3, -1).numpy(), back, atol=1e-9)
    _, single = torch.func.vjp(solve, y[0])
    rows = torch.func.vmap(lambda v: single(v)[0])(u)
    np.testing.assert_allclose(rows.reshape(3, -1).numpy(), back, atol=1e-9)
    _, moved = torch.func.jvp(solve, (y[0],), (y[1],))
    np.testing.assert_allclose(moved.flatten().numpy(), wanted[1], atol=1e-9)
    both = torch.func.vmap(lambda t: torch.func.jvp(solve, (y[0],), (t,))[1])(y)
    np.testing.assert_allclose(both.reshape(3, -1).numpy(), wanted, atol=1e-9)


def test_derivatives_inside_a_nonlinear_function(measurement: tuple[Encoding, np.ndarray]) -> None:
    gram = measurement[0].gram

    def network(b: Tensor) -> Tensor:
        x = linear_solve(gram, b, 0.1, tolerance=1e-13)
        return linear_solve(gram, b + x * torch.tanh(x.abs()), 0.1, tolerance=1e-13)

    check_jvp(network, random_complex(*GRID))


def test_a_recorded_solve_is_refused(measurement: tuple[Encoding, np.ndarray]) -> None:
    """torch.func.linearize would freeze the number of iterations: it must fail, not go wrong."""
    gram = measurement[0].gram
    with pytest.raises(RuntimeError, match="data-dependent"):
        torch.func.linearize(lambda b: linear_solve(gram, b, 0.1), random_complex(*GRID))


def test_soft_threshold_is_the_proximal_map() -> None:
    x = torch.tensor([3 + 4j, 0.3 - 0.4j, 0, -2.0, 1j], dtype=torch.complex128)
    wanted = torch.tensor([2.4 + 3.2j, 0, 0, -1.0, 0], dtype=torch.complex128)
    torch.testing.assert_close(soft_threshold(x, 1.0), wanted)
    torch.testing.assert_close(soft_threshold(x, 0.0), x)
    real = torch.tensor([3.0, -0.5, 0.0, -2.0], dtype=torch.float64)
    np.testing.assert_allclose(soft_threshold(real, 1.0).numpy(), [2, 0, 0, -1])
    each = soft_threshold(x, torch.tensor([5.0, 0.1, 0.0, 1.0, 2.0], dtype=torch.float64))
    np.testing.assert_allclose(each.numpy(), [0, 0.24 - 0.32j, 0, -1, 0], atol=1e-12)


def test_group_threshold_shortens_vectors() -> None:
    x = random_complex(2, 6, 5)
    length = np.sqrt((np.abs(x.numpy()) ** 2).sum(0))
    wanted = x.numpy() * np.maximum(1 - 0.8 / length, 0)
    np.testing.assert_allclose(group_threshold(x, 0.8, 0).numpy(), wanted, atol=1e-12)
    projected = group_projection(x, 0.8, 0)
    assert float(projected.abs().square().sum(0).sqrt().max()) <= 0.8 + 1e-12
    assert 0 < (length < 0.8).sum() < length.size


@pytest.mark.parametrize(
    "function",
    [
        partial(soft_threshold, threshold=0.7),
        partial(group_threshold, threshold=0.7, axis=0),
        partial(group_projection, radius=0.7, axis=0),
    ],
)
def test_thresholds_differentiate_without_nan_at_zero(function: object) -> None:
    assert callable(function)
    x = random_complex(3, 40)
    x[:, :5] = 0
    x[:, 5:10] *= 1e-3
    check_jvp(function, x, step=1e-7)
    zero = torch.zeros(3, 4, dtype=torch.complex128)
    v = random_complex(3, 4)
    inside = 1.0 if getattr(function, "func", None) is group_projection else 0.0
    _, pushed = torch.func.jvp(function, (zero,), (v,))
    torch.testing.assert_close(pushed, inside * v)
    torch.testing.assert_close(torch.func.vjp(function, zero)[1](v)[0], inside * v)


def test_zero_threshold_is_the_identity_with_its_derivative() -> None:
    x = torch.tensor([0, 1 + 1j], dtype=torch.complex128)
    v = random_complex(2)
    torch.testing.assert_close(torch.func.jvp(lambda t: soft_threshold(t, 0.0), (x,), (v,))[1], v)
    torch.testing.assert_close(
        torch.func.jvp(lambda t: group_threshold(t[None], 0.0, 0)[0], (x,), (v,))[1], v
    )


LAMDA = 0.3


def wavelet_image(gram: LinearOperator, rhs: Tensor, iterations: int = 1500) -> Tensor:
    wavelet = Wavelet(GRID, "db2", 2)
    return fista(
        gram,
        rhs,
        lambda v, step: wavelet.H(soft_threshold(wavelet(v), step * LAMDA)),
        1.0,
        iterations,
    )


def test_fista_meets_the_optimality_conditions(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, gram = measurement
    rhs = operator.H(random_complex(2, COILS, *GRID))
    images = wavelet_image(operator.gram, rhs)
    wavelet = Wavelet(GRID, "db2", 2)
    for x, b in zip(images, rhs):
        slope = gram @ x.flatten().numpy() - b.flatten().numpy()
        slope = wavelet(torch.from_numpy(slope.reshape(GRID))).numpy()
        z = wavelet(x).numpy()
        on = np.abs(z) > 1e-9
        assert 5 < on.sum() < z.size - 5
        np.testing.assert_allclose(slope[on], -LAMDA * z[on] / np.abs(z[on]), atol=1e-6)
        assert np.abs(slope[~on]).max() <= LAMDA * (1 + 1e-6)


def test_pdhg_agrees_with_a_dense_admm(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, gram = measurement
    truth = torch.zeros(GRID, dtype=torch.complex128)
    truth[2:6, 3:8] = 4
    rhs = operator.H(operator(truth) + 0.5 * random_complex(2, COILS, *GRID))
    ours = pdhg(operator.gram, rhs, Gradient(GRID), LAMDA, 1.0, 2000).reshape(2, -1).numpy()
    eye = np.eye(POINTS).reshape(POINTS, *GRID)
    steps = [(np.roll(eye, -1, a) - eye).reshape(POINTS, -1).T for a in (1, 2)]
    matrix = np.concatenate(steps)
    inverse = np.linalg.inv(gram + matrix.T @ matrix)
    for x, b in zip(ours, rhs.reshape(2, -1).numpy()):
        z, u = np.zeros(2 * POINTS, complex), np.zeros(2 * POINTS, complex)
        for _ in range(4000):
            image = inverse @ (b + matrix.T @ (z - u))
            point = (matrix @ image + u).reshape(2, -1)
            length = np.sqrt((np.abs(point) ** 2).sum(0))
            z = (point * np.maximum(1 - LAMDA / np.maximum(length, 1e-300), 0)).ravel()
            u = u + matrix @ image - z
        np.testing.assert_allclose(x, image, atol=3e-4 * np.abs(image).max())
        costs = [
            (v.conj() @ gram @ v).real / 2
            - (b.conj() @ v).real
            + LAMDA * np.sqrt((np.abs((matrix @ v).reshape(2, -1)) ** 2).sum(0)).sum()
            for v in (x, image, np.zeros_like(x))
        ]
        assert costs[0] - costs[1] < 5e-6 * (costs[2] - costs[1])
        flat = np.sqrt((np.abs((matrix @ image).reshape(2, -1)) ** 2).sum(0)) < 1e-5
        assert 3 < flat.sum() < POINTS - 3


def test_pdhg_scales_with_the_data(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, _ = measurement
    rhs = operator.H(random_complex(COILS, *GRID))
    once = pdhg(operator.gram, rhs, Gradient(GRID), 0.1, 1.0, 20)
    many = pdhg(operator.gram, 1e4 * rhs, Gradient(GRID), 1e3, 1.0, 20)
    torch.testing.assert_close(many, 1e4 * once)


def test_iterations_differentiate_through(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, _ = measurement
    y = 3 * random_complex(COILS, *GRID)
    gram = operator.gram
    check_jvp(lambda k: wavelet_image(gram, operator.H(k), 8), y, step=1e-6)
    gradient = Gradient(GRID)
    check_jvp(lambda k: pdhg(gram, operator.H(k), gradient, LAMDA, 1.0, 8), y, step=1e-6)
    zero = torch.zeros_like(y)
    for solve in (
        lambda k: wavelet_image(gram, operator.H(k), 5),
        lambda k: pdhg(gram, operator.H(k), gradient, LAMDA, 1.0, 5),
    ):
        value, pushed = torch.func.jvp(solve, (zero,), (y,))
        assert bool(torch.isfinite(torch.view_as_real(pushed)).all())
        assert bool((value == 0).all())
        (pulled,) = torch.func.vjp(solve, zero)[1](y[0])
        assert bool(torch.isfinite(torch.view_as_real(pulled)).all())


def test_iterations_can_be_recorded_by_linearize(measurement: tuple[Encoding, np.ndarray]) -> None:
    operator, _ = measurement
    gram = operator.gram  # looks at the mask, which belongs to setting up
    y, v = random_complex(COILS, *GRID), random_complex(COILS, *GRID, seed=1)

    def solve(k: Tensor) -> Tensor:
        image = pdhg(gram, operator.H(k), Gradient(GRID), LAMDA, 1.0, 2)
        return soft_threshold(image, 0.1)

    value, product = torch.func.linearize(solve, y)
    torch.testing.assert_close(value, solve(y))
    torch.testing.assert_close(product(v), torch.func.jvp(solve, (y,), (v,))[1])


def test_power_iteration_bounds_the_largest_eigenvalue(
    measurement: tuple[Encoding, np.ndarray],
) -> None:
    operator, gram = measurement
    largest = np.linalg.eigvalsh(gram)[-1]
    found = power_iteration(operator.gram, operator.maps, 200, seed=1)
    assert largest <= found <= 1.02 * largest
    assert found == power_iteration(operator.gram, operator.maps, 200, seed=1)
    nothing = Dense(torch.zeros(3, 3, dtype=torch.complex128), (3,))
    assert power_iteration(nothing, operator.maps) == 0


def test_converged_solves_do_not_warn(measurement: tuple[Encoding, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_solve(measurement[0].gram, random_complex(*GRID), 0.1)
