"""VarNet bound to scans: units, noise basis, tangents, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from networks_at_hand import varnet as lively
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.physics.masks import make_mask
from snrecon.physics.operators import Encoding
from snrecon.recon.varnet import VarNet
from snrecon.training.simulate import simulate_scan


def correlated_scan(grid=(14, 12), kind="random", seed=3) -> Scan:
    """complex128, correlated noise, maps that are not normalised and vanish in two columns."""
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(kind, grid, 2, seed=1).tensor
    scan, _ = simulate_scan(torch.rand(grid, generator=generator) + 0.5, 4, 20, mask, seed)
    root = torch.randn(4, 4, generator=generator, dtype=torch.complex128)
    scan = scan.to(torch.complex128)
    maps = 3.0 * scan.maps
    maps[..., :2] = 0
    return replace(scan, maps=maps, noise=NoiseModel(root @ root.mH + torch.eye(4)))


@pytest.mark.parametrize(
    ("grid", "kind"), [((14, 12), "random"), ((15, 13), "random"), ((13, 12), "gaussian2d")]
)
def test_the_network_sees_the_whitened_adjoint(grid, kind):
    scan = correlated_scan(grid, kind)
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, b, gram, support):
            seen.update(b=b, gram=gram(b), support=support)
            return b

    bound = VarNet(Spy()).bind(scan)
    image = bound(scan.kspace)
    white = scan.noise.whiten(scan.maps)
    power = white.abs().square().sum(0).sqrt()
    support = power > 0
    normal = torch.where(support, white / power.clamp(min=1e-30), 0)
    encoding = Encoding(normal, scan.sampled)
    wanted = encoding.H(scan.noise.whiten(scan.kspace))
    torch.testing.assert_close(seen["b"], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(seen["gram"], encoding.H(encoding(wanted)), rtol=1e-10, atol=1e-10)
    assert torch.equal(seen["support"], support)
    torch.testing.assert_close(image[support], (wanted / power.clamp(min=1e-30))[support])
    assert bool((image[~support] == 0).all())


def test_fast_tangents_equal_forward_mode_from_raw_kspace():
    scan = correlated_scan()
    bound = VarNet(lively()).bind(scan)
    generator = torch.Generator().manual_seed(0)
    tangents = torch.randn(3, *scan.kspace.shape, generator=generator, dtype=scan.kspace.dtype)
    image, jvp = bound.linearize(scan.kspace)
    torch.testing.assert_close(image, bound(scan.kspace), rtol=1e-12, atol=1e-12)
    wanted = torch.stack(
        [torch.func.jvp(bound.function, (scan.kspace,), (t,))[1] for t in tangents]
    )
    torch.testing.assert_close(jvp(tangents), wanted, rtol=1e-10, atol=1e-12)


def test_scale_of_kspace_and_noise_scales_the_image_only():
    scan = correlated_scan()
    recon = VarNet(lively())
    image = recon(scan)
    small = replace(scan, kspace=scan.kspace * 1e-6, noise=scan.noise.scaled(1e-6))
    torch.testing.assert_close(recon(small) * 1e6, image, rtol=1e-9, atol=1e-9)
    larger_maps = replace(scan, maps=scan.maps * 5)
    torch.testing.assert_close(recon(larger_maps) * 5, image, rtol=1e-9, atol=1e-9)


def test_values_off_the_mask_do_not_matter():
    scan = correlated_scan()
    bound = VarNet(lively()).bind(scan)
    junk = scan.kspace + 100 * (~scan.sampled)
    torch.testing.assert_close(bound(junk), bound(scan.kspace))


def test_single_precision_agrees_with_double():
    scan = correlated_scan()
    recon = VarNet(lively())
    single = scan.to(torch.complex64)
    assert recon(single).dtype == torch.complex64
    torch.testing.assert_close(
        recon(single).to(torch.complex128), recon(scan), rtol=1e-3, atol=1e-3
    )


def test_shipped_weights_beat_zero_filling_and_sense():
    """Held-out kind of object: overlapping random ellipses, R = 4."""
    from snrecon.recon.sense import Sense

    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    image = torch.zeros(96, 96)
    generator = torch.Generator().manual_seed(4)
    for _ in range(12):
        u = torch.rand(5, generator=generator)
        cy, cx, a, b = 0.6 * (u[0] - 0.5), 0.6 * (u[1] - 0.5), 0.1 + 0.5 * u[2], 0.1 + 0.5 * u[3]
        image += u[4] * (((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1)
    mask = make_mask("random", (96, 96), 4, calibration=8, seed=2).tensor
    scan, truth = simulate_scan(image, 8, 25, mask, 6)

    def error(image):
        return float((image - truth).abs().square().sum() / truth.abs().square().sum())

    best = min(error(Sense(lamda)(scan)) for lamda in (0.01, 0.03, 0.1, 0.3))
    zero = error(Encoding(scan.maps, mask).H(scan.kspace))
    learnt = error(VarNet("brain")(scan))
    assert learnt < 0.7 * best
    assert learnt < 0.7 * zero


def test_what_it_cannot_do_is_a_sentence():
    scan = correlated_scan()
    with pytest.raises(InputError, match="noise of this scan is not known"):
        VarNet(lively()).bind(replace(scan, noise=None))
    with pytest.raises(InputError, match="known: brain"):
        VarNet("knee")


def test_it_says_what_it_is():
    scan = correlated_scan()
    bound = VarNet("brain").bind(scan)
    assert bound.method == "varnet"
    assert not bound.linear
    assert bound.frozen == ()
    assert bound.details["weights"] == "brain"
    assert repr(VarNet()) == "VarNet(weights='brain')"
