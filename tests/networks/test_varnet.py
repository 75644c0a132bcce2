"""The unrolled network: tangents, equivariance, batching."""

from __future__ import annotations

import pytest
import torch

from snrecon.networks.varnet import VarNet
from snrecon.physics.gram import FourierGram


def lively(unrolls: int = 3, features: int = 5, seed: int = 0) -> VarNet:
    """A random network whose every rectifier is open somewhere and closed elsewhere."""
    torch.manual_seed(seed)
    network = VarNet(unrolls, features).double().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "bias" in name or "leave.weight" in name:
            parameter.normal_(std=0.1)
    return network


def problem(grid: tuple[int, int], seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, *grid, generator=generator, dtype=torch.complex128)
    maps[:, :, :2] = 0
    power = maps.abs().square().sum(0).sqrt().clamp(min=1e-9)
    maps = maps / power
    mask = torch.rand(grid[0], generator=generator) < 0.5
    gram = FourierGram(maps, mask[:, None].expand(grid))
    support = (maps != 0).any(0)
    b = 10 * torch.randn(grid, generator=generator, dtype=torch.complex128) * support
    return b, gram, support, generator


@pytest.mark.parametrize("grid", [(16, 14), (15, 13)])
def test_linearize_equals_forward_mode(grid):
    network = lively()
    b, gram, support, generator = problem(grid)

    def f(x):
        return network(x, gram, support)

    image, jvp = network.linearize(b, gram, support)
    tangents = torch.randn(4, *grid, generator=generator, dtype=b.dtype) * support
    kept = tangents.clone()
    fast = jvp(tangents)
    torch.testing.assert_close(image, f(b), rtol=1e-12, atol=1e-12)
    assert torch.equal(tangents, kept)
    for tangent, answer in zip(tangents, fast):
        _, wanted = torch.func.jvp(f, (b,), (tangent,))
        torch.testing.assert_close(answer, wanted, rtol=1e-10, atol=1e-12)
    # A second call must not have been spoilt by the first one's in-place work.
    torch.testing.assert_close(jvp(tangents), fast, rtol=0, atol=0)


def test_linearize_equals_finite_differences():
    network = lively()
    b, gram, support, generator = problem((12, 10))
    tangent = torch.randn(b.shape, generator=generator, dtype=b.dtype) * support
    _, jvp = network.linearize(b, gram, support)
    h = 1e-6
    wanted = (network(b + h * tangent, gram, support) - network(b - h * tangent, gram, support)) / (
        2 * h
    )
    torch.testing.assert_close(jvp(tangent[None])[0], wanted, rtol=1e-6, atol=1e-8)


def test_normalisation_is_differentiated():
    """A network that depends on the size of b has no homogeneous output: J b differs from f(b)."""
    network = lively()
    b, gram, support, _ = problem((12, 10))
    image, jvp = network.linearize(b, gram, support)
    along = jvp(b[None])[0]
    assert (along - image).abs().max() > 1e-3 * image.abs().max()


def test_transforms_of_torch_func_agree():
    network = lively()
    b, gram, support, generator = problem((10, 9))

    def f(x):
        return network(x, gram, support)

    tangents = torch.randn(3, *b.shape, generator=generator, dtype=b.dtype)
    one = torch.stack([torch.func.jvp(f, (b,), (t,))[1] for t in tangents])
    many = torch.func.vmap(lambda t: torch.func.jvp(f, (b,), (t,))[1])(tangents)
    torch.testing.assert_close(many, one, rtol=1e-10, atol=1e-12)
    _, pull = torch.func.vjp(f, b)
    cotangent = torch.randn(b.shape, generator=generator, dtype=b.dtype)
    (gradient,) = pull(cotangent)
    left = (cotangent.conj() * one[0]).sum().real
    right = (gradient.conj() * tangents[0]).sum().real
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_batches_are_independent_and_zero_off_the_support():
    network = lively()
    b, gram, support, _ = problem((12, 10))
    together = network(torch.stack([b, 3 * b]).reshape(2, 1, 12, 10), gram, support)
    alone = network(3 * b, gram, support)
    torch.testing.assert_close(together[1, 0], alone, rtol=1e-10, atol=1e-12)
    assert bool((together[..., ~support] == 0).all())


def test_zero_data_give_a_finite_image():
    network = lively()
    b, gram, support, _ = problem((12, 10))
    assert bool(torch.isfinite(torch.view_as_real(network(0 * b, gram, support))).all())


def test_a_fresh_network_is_gradient_descent():
    """Before training the CNNs are nearly silent: what is left is Landweber's iteration."""
    network = VarNet(3, 4).double().requires_grad_(False)
    for cnn in network.cnns:
        cnn.leave.weight.zero_()
    b, gram, support, _ = problem((12, 10))
    x = b
    for _ in range(3):
        x = x - (gram(x) - b)
    torch.testing.assert_close(network(b, gram, support), x, rtol=1e-10, atol=1e-10)


def test_a_gram_operator_that_gives_its_argument_back():
    """Of a single coil with flat maps, fully sampled."""
    network, grid = lively(), (12, 10)
    support = torch.ones(grid, dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    b, tangent = (torch.randn(grid, generator=generator, dtype=torch.complex128) for _ in range(2))
    _, wanted = torch.func.jvp(lambda x: network(x, lambda z: z, support), (b,), (tangent,))
    _, jvp = network.linearize(b, lambda z: z, support)
    torch.testing.assert_close(jvp(tangent[None])[0], wanted)
