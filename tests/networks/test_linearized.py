"""Layers linearized by hand: every kind against torch.func, and what must not be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import networks_at_hand as nets
from derivatives import check_linearization, draw
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.linearized import halved, linearize_layers, untouched
from snrecon.networks.unet import Unet

BLOCKS = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)),
    "one channel": lambda: nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.InstanceNorm2d(1)),
    "rectifier alone": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.3)),
    "down": lambda: nets.unet(3).down_sample_layers[0],
    "up": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nets.unet(3).up_transpose_conv[-1]),
}


@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (1, 4)])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_several_items(name, grid):
    torch.manual_seed(2)
    block = BLOCKS[name]().double().requires_grad_(False)
    items = 3

    def linearize(x):
        value, tangent = linearize_layers(block, x)

        def product(tangents):
            # The first layer leaves its input alone, as every layer of the package's blocks does.
            return tangent(tangents.flatten(0, 1)).unflatten(0, (-1, items))

        return value, product

    with torch.no_grad():
        check_linearization(block, linearize, 2 + draw((items, 3, *grid), torch.float64, 1))


def test_a_constant_channel_has_the_derivative_of_torch():
    """Its variance is 0, its normalised values are exactly where the rectifier bends."""
    block = nn.Sequential(nn.InstanceNorm2d(2), nn.LeakyReLU(0.2)).double()
    x = draw((1, 2, 4, 6), torch.float64, 3)
    x[0, 1] = 0
    v = draw(x.shape, torch.float64, 4)
    wanted = torch.func.jvp(block, (x,), (v,))[1]
    torch.testing.assert_close(linearize_layers(block, x)[1](v.clone()), wanted)


@pytest.mark.parametrize("shape", [(3, 1, 6, 8), (2, 5, 7, 9), (1, 4, 2, 3), (1, 3, 8, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_halves_are_average_pools(shape, layout):
    x = draw(shape, torch.float64, 5).contiguous(memory_format=layout)
    torch.testing.assert_close(halved(x), functional.avg_pool2d(x, 2), rtol=1e-14, atol=1e-15)


class Other(Unet):
    """Somebody's own."""

    def forward(self, image):
        return 2 * super().forward(image)


def test_networks_as_built_are_untouched():
    for network in (nets.unet(1), nets.unet(2).double(), Unet(2, 2, 3, 2, drop=0.2).eval()):
        assert untouched(network, Unet)
        assert untouched(copy.deepcopy(network), Unet)
    assert untouched(nets.e2e_varnet(), E2EVarNet)
    assert untouched(E2EVarNet(1, 2, 1, 2, 1, drop=0.1).eval(), E2EVarNet)
    assert not untouched(nets.unet(), E2EVarNet)
    assert not untouched(nets.e2e_varnet(), Unet)
    assert not untouched(nn.Identity(), Unet)


def exchanged(change) -> Unet:
    network = nets.unet()
    change(network)
    return network


@pytest.mark.parametrize(
    "network",
    [
        Other(2, 2, 3, 2),
        Unet(2, 2, 3, 2, drop=0.2).train(),
        exchanged(lambda u: setattr(u, "conv", nn.Identity())),
        exchanged(lambda u: u.conv.layers.append(nn.Conv2d(12, 12, 1))),
        exchanged(lambda u: u.conv.layers.__setitem__(1, nn.InstanceNorm2d(12, affine=True))),
        exchanged(lambda u: u.conv.layers.__setitem__(2, nn.LeakyReLU(0.1))),
        exchanged(lambda u: u.conv.register_forward_hook(lambda m, x, y: 2 * y)),
        exchanged(lambda u: u.conv.register_forward_pre_hook(lambda m, x: x)),
        exchanged(lambda u: setattr(u.conv, "forward", lambda x: x)),
        exchanged(lambda u: nn.utils.parametrizations.weight_norm(u.conv.layers[0])),
    ],
)
def test_whatever_was_changed_is_not(network):
    assert not untouched(network, Unet)


def test_an_exchanged_sensitivity_network_is_seen():
    network = nets.e2e_varnet()
    network.sens_net = nn.Identity()
    assert not untouched(network, E2EVarNet)
