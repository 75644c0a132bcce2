"""MoDL: what its solver solves, derivatives of both forms, in the data and in lambda."""

from __future__ import annotations

import pytest
import torch

from derivatives import check_derivatives, draw
from snrecon.errors import InputError
from snrecon.networks.modl import MoDL
from snrecon.networks.varnet import root_mean_square
from snrecon.physics.gram import FourierGram
from snrecon.physics.operators import Encoding, dense


def network(implicit: int = 0, iterations: int = 5, unrolls: int = 2, seed: int = 1) -> MoDL:
    torch.manual_seed(seed)
    built = MoDL(unrolls, 4, 3, iterations, implicit).double().requires_grad_(False)
    for layer in built.cnn:
        layer.bias.normal_(std=0.1)
    built.cnn[-1].weight.normal_(std=0.1)
    return built


def problem(grid=(11, 8), seed: int = 1):
    maps = draw((3, *grid), torch.complex128, seed)
    maps[:, :, :2] = 0
    maps = maps / maps.abs().square().sum(0).sqrt().clamp(min=1e-9)
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < 0.5
    support = (maps != 0).any(0)
    b = 10 * draw(grid, torch.complex128, seed + 1) * support
    return b, maps, mask, support


@pytest.mark.parametrize("implicit", [0, 1])
@pytest.mark.parametrize("grid", [(11, 8), (9, 9)])
def test_derivatives(implicit, grid):
    b, maps, mask, support = problem(grid)
    gram = FourierGram(maps, mask)
    model = network(implicit)
    check_derivatives(lambda y: model(y, gram, support), b)
    assert bool((model(b, gram, support)[~support] == 0).all())


@pytest.mark.parametrize("implicit", [0, 1])
@pytest.mark.parametrize("full", [False, True])
def test_linearize_equals_forward_mode(implicit, full):
    b, maps, mask, support = problem((9, 7))
    gram = FourierGram(maps, mask | full)  # fully sampled data are solved in one step
    model = network(implicit, iterations=4)
    image, jvp = model.linearize(b, gram, support)
    torch.testing.assert_close(image, model(b, gram, support), rtol=1e-10, atol=1e-10)
    tangents = draw((3, *b.shape), torch.complex128, 7) * support
    kept, fast = tangents.clone(), jvp(tangents)
    assert torch.equal(tangents, kept)
    for tangent, answer in zip(tangents, fast):
        _, wanted = torch.func.jvp(lambda y: model(y, gram, support), (b,), (tangent,))
        torch.testing.assert_close(answer, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jvp(tangents), fast, rtol=0, atol=0)


def test_every_unroll_solves_its_normal_equations():
    """(A^H A + lambda) x = b + lambda z as a dense matrix."""
    b, maps, mask, support = problem()
    model = network(implicit=1, unrolls=1)
    x = model(b, FourierGram(maps, mask), support).flatten()
    matrix = dense(Encoding(maps, mask))
    size = root_mean_square(b, support)
    start = (b / size)[None]
    level = ((3 - torch.log(size)) / 2).expand(b.shape)[None, None]
    z = (model._denoise(start, level) * support).flatten()
    lamda = model.lamda
    normal = matrix.mH @ matrix + lamda * torch.eye(b.numel(), dtype=torch.float64)
    wanted = torch.linalg.solve(normal, start.flatten() + lamda * z) * size
    torch.testing.assert_close(x, wanted.flatten(), rtol=1e-9, atol=1e-9)
    many = network(implicit=0, iterations=60, unrolls=1)
    torch.testing.assert_close(
        many(b, FourierGram(maps, mask), support).flatten(), x, rtol=1e-8, atol=1e-8
    )


def test_the_count_of_iterations_is_kept():
    b, maps, mask, support = problem()
    calls = []
    gram = FourierGram(maps, mask)

    def counted(x):
        calls.append(1)
        return gram(x)

    network(implicit=0, iterations=4, unrolls=3)(b, counted, support)
    assert len(calls) == 3 * (4 + 1)  # and one for the misfit that each solve starts with


@pytest.mark.parametrize("implicit", [0, 1])
def test_lambda_is_learned_with_the_right_gradient(implicit):
    b, maps, mask, support = problem()
    gram = FourierGram(maps, mask)
    model = network(implicit)
    weight = draw(b.shape, torch.complex128, 5)

    def loss() -> torch.Tensor:
        return (weight.conj() * model(b, gram, support)).real.sum()

    parameters = [model.log_lamda, model.cnn[0].weight]
    for parameter in parameters:
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients):
        direction = draw(parameter.shape, torch.float64, 6)
        h = 1e-5
        with torch.no_grad():
            parameter += h * direction
            above = loss()
            parameter -= 2 * h * direction
            numeric = (above - loss()) / (2 * h)
            parameter += h * direction
        assert abs(float(numeric)) > 1e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_data_that_are_solved_at_once_have_finite_derivatives():
    """Fully sampled: conjugate gradients converge in a step, the others must do no harm."""
    b, maps, _, support = problem()
    gram = FourierGram(maps.to(torch.complex64), torch.ones(b.shape, dtype=torch.bool))
    model = network(implicit=0, iterations=10).float()
    x = b.to(torch.complex64)
    _, tangent = torch.func.jvp(lambda y: model(y, gram, support), (x,), (x,))
    assert bool(torch.isfinite(torch.view_as_real(tangent)).all())
    exact = network(implicit=1).float()
    _, wanted = torch.func.jvp(lambda y: exact(y, gram, support), (x,), (x,))
    torch.testing.assert_close(tangent, wanted, rtol=1e-3, atol=1e-3)


def test_zero_data_give_a_finite_image():
    b, maps, mask, support = problem()
    for implicit in (0, 1):
        image = network(implicit)(0 * b, FourierGram(maps, mask), support)
        assert bool(torch.isfinite(torch.view_as_real(image)).all())


def test_a_new_network_is_drawn_to_its_own_start():
    """With a silent CNN: x_1 = (G + lambda)^-1 (b + lambda b), whatever b's size."""
    b, maps, mask, support = problem()
    model = network(implicit=1, unrolls=1)
    for layer in model.cnn:
        layer.weight.zero_()
        layer.bias.zero_()
    gram = FourierGram(maps, mask)
    x = model(b, gram, support)
    torch.testing.assert_close(gram(x) + model.lamda * x, (1 + model.lamda) * b)


def test_choices_are_checked():
    with pytest.raises(InputError, match="at least 2 layers"):
        MoDL(layers=1)
    with pytest.raises(InputError, match="implicit"):
        MoDL(implicit=2)
