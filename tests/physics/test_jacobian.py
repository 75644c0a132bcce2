"""Jacobian products by every strategy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snrecon.physics.jacobian import Linearization, NotDifferentiableError


def smooth(y: Tensor) -> Tensor:
    return torch.tanh(y.real.sum(-3)) + 1j * (y.imag**2).sum(-3)


@pytest.fixture
def point(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator)


@pytest.fixture
def tangents(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 2, 4, 3, dtype=torch.complex128, generator=generator)


def test_products_equal_differences_and_each_other(point: Tensor, tangents: Tensor) -> None:
    lin = Linearization(smooth, point)
    products = lin.jvp(tangents)
    step = 1e-6
    numeric = torch.stack(
        [(smooth(point + step * v) - smooth(point - step * v)) / (2 * step) for v in tangents]
    )
    torch.testing.assert_close(products, numeric, rtol=1e-8, atol=1e-8)
    assert lin.strategy == "linearize"
    cotangent = torch.ones(1, 4, 3, dtype=torch.complex128) * (1 - 2j)
    row = lin.vjp(cotangent)[0]
    left = (cotangent[0].conj() * products[0]).sum().real
    right = (row.conj() * tangents[0]).sum().real
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_every_strategy_gives_the_same(point: Tensor, tangents: Tensor) -> None:
    lin = Linearization(smooth, point)
    expected = lin.jvp(tangents)
    names = []
    for name, make in lin._strategies():
        torch.testing.assert_close(make()(tangents), expected, rtol=1e-12, atol=1e-12)
        names.append(name)
    assert names == ["linearize", "jvp", "jvp loop", "double vjp"]


class NoForwardMode(torch.autograd.Function):
    """x^2 elementwise on the real part, with reverse mode only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.real**2

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return (2 * x.real * grad).to(x.dtype)


def test_reverse_mode_twice_where_forward_mode_is_missing(point: Tensor, tangents: Tensor) -> None:
    lin = Linearization(NoForwardMode.apply, point)
    torch.testing.assert_close(lin.jvp(tangents), 2 * point.real * tangents.real)
    assert lin.strategy == "double vjp"


def test_data_dependent_control_flow_is_followed_at_the_point(
    point: Tensor, tangents: Tensor
) -> None:
    def f(y: Tensor) -> Tensor:
        return y * 3 if float(y.real.sum()) > -1e9 else y

    torch.testing.assert_close(Linearization(f, point).jvp(tangents), 3 * tangents)


def test_linear_functions_are_applied_to_the_tangents(point: Tensor, tangents: Tensor) -> None:
    lin = Linearization(lambda y: y.sum(-3) * 2j, point, linear=True, batched=True)
    torch.testing.assert_close(lin.jvp(tangents), tangents.sum(1) * 2j)
    assert lin.strategy == "linear"


def test_an_own_linearisation_is_used(point: Tensor, tangents: Tensor) -> None:
    lin = Linearization(smooth, point, own=lambda y: (smooth(y), lambda v: 7 * v[:, 0]))
    torch.testing.assert_close(lin.jvp(tangents), 7 * tangents[:, 0])
    assert lin.strategy == "own"


def test_what_leaves_torch_is_not_differentiable(point: Tensor, tangents: Tensor) -> None:
    def f(y: Tensor) -> Tensor:
        return torch.from_numpy(y.numpy() * 2)

    with pytest.raises(NotDifferentiableError, match="cannot be differentiated"):
        Linearization(f, point).jvp(tangents)
    with pytest.raises(NotDifferentiableError, match="no reverse mode"):
        Linearization(f, point).vjp(tangents)


@pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU])
def test_layers_that_work_in_place(layer: type[nn.Module], generator: torch.Generator) -> None:
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.InstanceNorm2d(6), layer(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6), layer(inplace=True),
        nn.Conv2d(6, 2, 1),
    ).double().requires_grad_(False)

    def f(y: Tensor) -> Tensor:
        return network(torch.stack([y.real, y.imag])[None])[0, 0]

    point = torch.randn(8, 9, dtype=torch.complex128, generator=generator)
    tangents = torch.randn(3, 8, 9, dtype=torch.complex128, generator=generator)
    step = 1e-6
    numeric = torch.stack(
        [(f(point + step * v) - f(point - step * v)) / (2 * step) for v in tangents])
    torch.testing.assert_close(Linearization(f, point).jvp(tangents), numeric, rtol=1e-6, atol=1e-7)


def test_constants_that_are_changed_in_place(generator: torch.Generator) -> None:
    """torch.func.linearize folds a constant before it is changed; its products are not used."""
    maps = torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator)

    def f(y: Tensor) -> Tensor:
        conjugate = torch.view_as_real(maps).clone()
        conjugate[..., 1] = -conjugate[..., 1]
        return (torch.view_as_complex(conjugate) * y).sum(-3) ** 2

    point = torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator)
    tangents = torch.randn(5, 2, 4, 3, dtype=torch.complex128, generator=generator)
    inner = (maps.conj() * point).sum(-3)
    wanted = 2 * inner * (maps.conj() * tangents).sum(-3)
    lin = Linearization(f, point)
    torch.testing.assert_close(lin.jvp(tangents), wanted, rtol=1e-10, atol=1e-10)
    assert lin.strategy == "jvp"


def test_products_do_not_change_when_the_point_is_written_to(point: Tensor, tangents: Tensor):
    def written(y: Tensor) -> Tensor:
        y = y.clone()
        y *= 2
        return y * y.abs()

    products = Linearization(written, point)
    first = products.jvp(tangents)
    for _ in range(2):
        torch.testing.assert_close(products.jvp(tangents), first)
    wanted = Linearization(lambda y: 4 * y * y.abs(), point).jvp(tangents)
    torch.testing.assert_close(first, wanted)


def test_parameters_that_require_gradients_do_not_collect_them(point: Tensor) -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    lin = Linearization(lambda y: weight * y.sum(-3), point)
    assert not lin.value.requires_grad
    assert not lin.jvp(point[None]).requires_grad
    assert not lin.vjp(point[None, 0]).requires_grad
