"""The variational autoencoder and what it is taught with."""

from __future__ import annotations

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.autoencoder import Autoencoder
from snrecon.networks.store import load_weights, save_weights
from snrecon.training.autoencoder import autoencoder_loss


def tiny(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(features=4, latent=6, size=32)


def pictures(count: int = 8, size: int = 32) -> torch.Tensor:
    """Ellipses of random size and brightness with a spot, ``(count, size, size)``."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    u = torch.rand(count, 5, 1, 1, generator=generator)
    heads = ((y / (0.5 + 0.4 * u[:, 0])) ** 2 + (x / (0.5 + 0.4 * u[:, 1])) ** 2 < 1).float()
    spots = torch.exp(-((y - u[:, 2] + 0.5) ** 2 + (x - u[:, 3] + 0.5) ** 2) / 0.05)
    return heads * (0.4 + 0.3 * u[:, 4]) + 0.3 * heads * spots


def test_shapes_and_positive_images():
    network = tiny()
    mean, spread = network.encode(pictures())
    assert mean.shape == spread.shape == (8, 6)
    images = network.decode(3 * mean)
    assert images.shape == (8, 32, 32)
    assert bool((images > 0).all())
    torch.testing.assert_close(network(pictures()), network.decode(mean))


def test_items_of_a_batch_do_not_meet():
    network = tiny().double()
    z = torch.randn(3, 6, dtype=torch.float64)
    together, images = network.decode(z), pictures(3).double()
    encoded = network.encode(images)[0]
    for item in range(3):
        torch.testing.assert_close(network.decode(z[item : item + 1])[0], together[item])
        torch.testing.assert_close(network.encode(images[item : item + 1])[0][0], encoded[item])


def test_the_decoder_has_second_derivatives_in_both_modes():
    network = tiny().double().requires_grad_(False)
    weights = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def height(z: torch.Tensor) -> torch.Tensor:
        return (weights * network.decode(z[None])[0]).sum()

    z, v = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[2]
    slope = torch.func.grad(height)
    _, forward = torch.func.jvp(slope, (z,), (v,))
    (reverse,) = torch.func.vjp(slope, z)[1](v)
    numeric = (slope(z + 1e-5 * v) - slope(z - 1e-5 * v)) / 2e-5
    assert float(numeric.norm()) > 1e-3
    torch.testing.assert_close(forward, numeric, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(reverse, forward, rtol=1e-9, atol=1e-11)
    several = torch.vmap(lambda t: torch.func.jvp(slope, (z,), (t,))[1])(torch.stack([v, 2 * v]))
    torch.testing.assert_close(several[1], 2 * forward)


def test_weights_come_back_with_their_arguments(tmp_path):
    network = tiny(3)
    save_weights(network, tmp_path / "tiny.safetensors")
    loaded = load_weights("autoencoder", tmp_path / "tiny.safetensors")
    z = torch.randn(2, 6)
    assert torch.equal(loaded.decode(z), network.decode(z))  # type: ignore[operator]


def test_the_default_is_small_enough_to_be_shipped():
    assert sum(p.numel() * 4 for p in Autoencoder().parameters()) < 3.5e6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((8, 4, 40), "multiple of 16"), ((8, 4, 0), "multiple of 16"), ((6, 4, 32), "multiple of 4")],
)
def test_other_sizes_are_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Autoencoder(*arguments)


def test_the_loss_is_the_stated_bound():
    network, images = tiny().double(), pictures(3).double()
    loss = autoencoder_loss(network, images, torch.Generator().manual_seed(5), beta=0.3)
    mean, spread = network.encode(images)
    draw = torch.randn(
        3, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = network.decode(mean + torch.exp(spread / 2) * draw)
    prior = torch.distributions.Normal(torch.zeros(3, 6), torch.ones(3, 6))
    posterior = torch.distributions.Normal(mean, torch.exp(spread / 2))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(1)
    for item in range(3):
        share = (found[item] - images[item]).norm() ** 2 / images[item].norm() ** 2
        wanted = 0.5 * torch.log(share + 1e-5) + 0.3 * divergence[item] / 1024
        torch.testing.assert_close(loss[item], wanted)


def test_the_loss_does_not_see_how_bright_images_are_but_in_the_encoder():
    network, images = tiny(), pictures(2)
    network.encode = lambda _: (torch.zeros(2, 6), torch.zeros(2, 6))  # type: ignore[method-assign]
    plain = network.decode
    one = autoencoder_loss(network, images, torch.Generator().manual_seed(5))
    network.decode = lambda z: 7 * plain(z)  # type: ignore[method-assign]
    torch.testing.assert_close(
        autoencoder_loss(network, 7 * images, torch.Generator().manual_seed(5)), one)


def test_training_makes_images_recognisable():
    network, images = tiny(), pictures()
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def error() -> float:
        with torch.no_grad():
            return float((network(images) - images).square().sum() / images.square().sum())

    before = error()
    for _ in range(150):
        loss = autoencoder_loss(network, images, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.15 * before
    assert error() < 0.6 * _error_of_the_mean(images), "it learned the mean image only"


def _error_of_the_mean(images: torch.Tensor) -> float:
    return float((images.mean(0) - images).square().sum() / images.square().sum())
