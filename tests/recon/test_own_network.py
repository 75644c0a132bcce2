"""Networks of one's own where a learned method takes the name of weights."""

from __future__ import annotations

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

import networks_at_hand as nets
from snrecon.errors import InputError
from snrecon.recon import E2EVarNet, MoDL, UNet, VarNet
from snrecon.recon.own_network import fitted


def test_networks_of_ones_own_go_through_torch():
    class Twice(nets.Unet):
        def forward(self, image):
            return 2 * super().forward(image)

    class Again(nets.E2EVarNet):
        pass

    scan = small_scan(irregular_mask())
    own = [UNet(Twice(2, 2, 3, 2)), UNet(Twice(1, 1, 3, 2), combine="rss")]
    own += [E2EVarNet(Again(1, 2, 2, 2, 2), combine=c) for c in ("matched", "rss")]
    for recon in own:
        assert recon.bind(scan).linearize is None


@pytest.mark.parametrize("method", [UNet, MoDL, VarNet, E2EVarNet])
def test_a_network_that_is_called_otherwise_is_refused(method):
    class Other(torch.nn.Module):
        in_chans = out_chans = 2

        def forward(self, x, y, z, last):
            return x

    with pytest.raises(InputError, match=f"^{method.name} needs a network that takes .*Other"):
        method(Other())


def test_a_network_of_ones_own_is_evaluated_not_trained():
    network = nets.unet(2)
    network.train()
    recon = UNet(network)
    assert not network.training
    scan = small_scan(irregular_mask())
    bound = recon.bind(scan)
    assert torch.equal(bound(scan.kspace), bound(scan.kspace))


def test_a_given_network_stays_what_and_where_it_is():
    network = torch.nn.Conv2d(2, 2, 3)
    network.register_buffer("window", torch.ones(3), persistent=False)
    image = torch.zeros(4, 4, dtype=torch.complex64)
    assert fitted(network, image) is network
    double = fitted(network, image.to(torch.complex128))
    assert double.weight.dtype == double.window.dtype == torch.float64
    elsewhere = fitted(network, image.to("meta"))
    assert elsewhere.weight.device.type == elsewhere.window.device.type == "meta"
    assert network.weight.device.type == "cpu"
    assert network.weight.dtype == torch.float32
