"""Networks of one's own where a learned method takes the name of weights."""

from __future__ import annotations

import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan

import networks_at_hand as nets
from snrecon.errors import InputError
from snrecon.noise.problem import Problem
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


class TwiceVarNet(nets.VarNet):
    def forward(self, b, gram, support):
        return 2 * super().forward(b, gram, support)


class TwiceMoDL(nets.MoDL):
    def forward(self, b, gram, support):
        return 2 * super().forward(b, gram, support)


def dilated() -> nets.MoDL:
    network = nets.modl()
    network.cnn[1] = torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2).requires_grad_(False)
    return network


def hooked(network, part):
    part(network).register_forward_hook(lambda module, x, y: 2 * y)
    return network


@pytest.mark.parametrize("make", [
    lambda: (VarNet, TwiceVarNet(2, 3).requires_grad_(False)),
    lambda: (VarNet, hooked(nets.varnet(), lambda network: network.cnns[0])),
    lambda: (MoDL, TwiceMoDL(2, 4, 3, 4).requires_grad_(False)),
    lambda: (MoDL, dilated()),
    lambda: (MoDL, hooked(nets.modl(), lambda network: network.cnn[0])),
], ids=["varnet subclass", "varnet hook", "modl subclass", "modl dilated", "modl hook"])
def test_an_altered_unrolled_network_has_the_image_and_noise_of_what_it_computes(make):
    method, network = make()
    bound = method(network).bind(scan := small_scan(irregular_mask()))
    assert bound.linearize is None
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(scan.kspace.shape, dtype=scan.kspace.dtype, generator=generator)
    problem = Problem.of(method(network), scan)
    torch.testing.assert_close(problem.image, bound(scan.kspace))
    _, wanted = torch.func.jvp(bound.function, (scan.kspace,), (v,))
    torch.testing.assert_close(problem.linearization.jvp(v[None])[0], wanted)


@pytest.mark.parametrize(("method", "network"), [(VarNet, nets.varnet), (MoDL, nets.modl)])
def test_unrolled_networks_as_built_have_derivatives_of_their_own(method, network):
    assert method(network()).bind(small_scan(irregular_mask())).linearize is not None


def test_a_derivative_that_somebody_wrote_is_used():
    class Own(nets.VarNet):
        def forward(self, b, gram, support):
            return 2 * super().forward(b, gram, support)

        def linearize(self, b, gram, support):
            image, jvp = super().linearize(b, gram, support)
            return 2 * image, lambda tangents: 2 * jvp(tangents)

    scan = small_scan(irregular_mask())
    bound = VarNet(Own(2, 3).requires_grad_(False)).bind(scan)
    image, _ = bound.linearize(scan.kspace)
    torch.testing.assert_close(image, bound(scan.kspace))


def test_a_network_within_another_object_keeps_its_derivative():
    """As torch.compile hands on what it does not know."""
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, b, gram, support):
            return self.inner(b, gram, support)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    scan = small_scan(irregular_mask())
    assert VarNet(Wrapped(nets.varnet())).bind(scan).linearize is not None
    altered = hooked(nets.varnet(), lambda network: network.cnns[0])
    assert VarNet(Wrapped(altered)).bind(scan).linearize is None


@pytest.mark.parametrize("mask", [plane_mask(), torch.ones_like(plane_mask())])
def test_a_traced_network_repeats_nothing_and_changes_nothing(mask):
    """With a Gram operator by Fourier transforms."""
    scan = small_scan(mask)
    problem = Problem.of(MoDL(TwiceMoDL(2, 4, 3, 4).requires_grad_(False)), scan)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(scan.kspace.shape, dtype=scan.kspace.dtype, generator=generator)
    _, wanted = torch.func.jvp(problem.bound.function, (scan.kspace,), (v,))
    for _ in range(3):
        torch.testing.assert_close(problem.linearization.jvp(v[None])[0], wanted)
    assert problem.linearization.strategy == "linearize"
