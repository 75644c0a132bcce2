"""The score network: what it answers at the ends, any size, derivatives, storage."""

from __future__ import annotations

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.ncsnpp import DATA_SD, NCSNpp
from snrecon.networks.resample import doubled, halved
from snrecon.networks.score import Score, sigma_range
from snrecon.networks.store import load_weights, save_weights


def network(preconditioned: int = 1, patch: int = 1, **more) -> NCSNpp:
    """A small one whose weights are all at work (new ones answer nearly 0)."""
    torch.manual_seed(3)
    net = NCSNpp(8, 12, 1, patch, preconditioned, **more)
    with torch.no_grad():
        for weights in net.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("preconditioned", [0, 1])
@pytest.mark.parametrize("grid", [(16, 16), (15, 22), (3, 9)])
def test_any_size_any_batch(grid, preconditioned, patch):
    net = network(preconditioned, patch)
    x = torch.randn(3, *grid, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.02, 0.5, 20.0])
    together = net(x, sigma)
    assert together.shape == x.shape
    for one, level, whole in zip(x, sigma, together, strict=True):
        torch.testing.assert_close(net(one[None], level)[0], whole, rtol=1e-4, atol=1e-4)


def test_new_preconditioned_network_is_the_score_of_white_images():
    """Before it has learned anything its images are white noise of SD ``DATA_SD``."""
    net = NCSNpp(8, 12, 1, 1, 1)
    x = torch.randn(2, 16, 16)
    for level in (0.01, 0.3, 50.0):
        wanted = -x / (level**2 + DATA_SD**2)
        torch.testing.assert_close(net(x, level), wanted, rtol=1e-2, atol=1e-3)


def test_denoised_is_the_score_in_other_words():
    net = network().double()
    x, level = torch.randn(2, 16, 16, dtype=torch.float64), torch.tensor([0.1, 2.0]).double()
    denoised = x + level[:, None, None] ** 2 * net(x, level)
    torch.testing.assert_close(denoised, net.denoised(x, level))


@pytest.mark.parametrize("preconditioned", [0, 1])
def test_jvp_is_the_difference_quotient(preconditioned):
    net = network(preconditioned).double()
    x, direction = torch.randn(2, 2, 12, 10, dtype=torch.float64).unbind()
    sigma = torch.tensor(0.4, dtype=torch.float64)

    def f(x):
        return net(x, sigma)

    _, slope = torch.func.jvp(f, (x,), (direction,))
    h = 1e-5
    wanted = (f(x + h * direction) - f(x - h * direction)) / (2 * h)
    assert (slope - wanted).norm() < 1e-6 * wanted.norm()
    _, back = torch.func.vjp(f, x)
    other = torch.randn_like(x)
    torch.testing.assert_close((other * slope).sum(), (back(other)[0] * direction).sum(),
                               rtol=1e-10, atol=0)
    many = torch.stack([direction, 2 * x])
    mapped = torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(many)
    torch.testing.assert_close(mapped[0], slope)


def test_resampling_keeps_constants_inside_and_is_adjoint():
    flat = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    assert torch.allclose(halved(flat)[..., 1:-1, 1:-1], torch.ones(()).double())
    assert torch.allclose(doubled(flat)[..., 1:-1, 1:-1], torch.ones(()).double())
    x, y = torch.randn(1, 2, 8, 8).double(), torch.randn(1, 2, 4, 4).double()
    torch.testing.assert_close((halved(x) * y).sum() * 4, (x * doubled(y)).sum(),
                               rtol=1e-12, atol=0)


def test_kept_and_loaded_with_its_noise_levels(tmp_path):
    net = network(low=0.02, high=40.0)
    save_weights(net, tmp_path / "s.safetensors")
    again = load_weights("ncsnpp", tmp_path / "s.safetensors")
    assert isinstance(again, NCSNpp)
    assert isinstance(again, Score)
    assert sigma_range(again) == pytest.approx((0.02, 40.0))
    x = torch.randn(1, 16, 16)
    assert torch.equal(net(x, 0.3), again(x, 0.3))


def test_a_users_callable_has_the_published_range():
    assert sigma_range(lambda x, sigma: -x / sigma**2) == (0.01, 378.0)


def test_a_level_without_channels():
    with pytest.raises(InputError, match="one digit from 1 to 9"):
        NCSNpp(8, 102)
