"""Networks for planes on 3D scans: the same as plane by plane, in value, derivative and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import covariance_maps, difference_matrix
from benchmarks.small_problems import small_scan

import networks_at_hand as nets
from derivatives import check_derivatives, draw
from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import linearity_check, noise_map, roi
from snrecon.physics.fourier import fft
from snrecon.physics.memory import peak_bytes
from snrecon.recon import E2EVarNet, ImageModule, KspaceModule, MoDL, UNet, VarNet, planes
from snrecon.recon.base import Reconstructor

PLANE = (8, 7)
METHODS: dict[str, Callable[[], Reconstructor]] = {
    "varnet": lambda: VarNet(nets.varnet()),
    "modl": lambda: MoDL(nets.modl()),
    "modl implicit": lambda: MoDL(nets.modl(1)),
    "unet complex": lambda: UNet(nets.unet(2)),
    "unet magnitude": lambda: UNet(nets.unet(1)),
    "unet published": lambda: UNet(nets.unet(1), published=True, crop=(8, 6)),
    "e2e_varnet": lambda: E2EVarNet(nets.e2e_varnet()),
    "e2e_varnet rss": lambda: E2EVarNet(nets.e2e_varnet(), combine="rss"),
    "own network": lambda: ImageModule(nets.unet(2)),
    "own network of k-space": lambda: KspaceModule(
        torch.nn.Identity(), ("kspace",), "kspace", pairs=False
    ),
}
AXES = (-3, -2, -1)
EVERYWHERE = [
    *(("varnet", axis) for axis in AXES),
    *(("unet published", axis) for axis in AXES),
    *((name, -1) for name in METHODS if name not in ("varnet", "unet published")),
]
"""Two of the methods along every axis, the others along the readout."""


def plane_mask(axis: int) -> torch.Tensor:
    """Lines; over both axes of the plane where the readout is sliced."""
    mask = torch.zeros(PLANE, dtype=torch.bool)
    mask[::3] = True
    if axis == -1:
        mask[:, ::3] = True
    mask[2:6, 1:6] = True
    if axis != -1:
        mask[2:6] = True
    return mask


def slices(axis: int, count: int = 3, coloured: bool = False) -> list[Scan]:
    mask = plane_mask(axis)
    return [small_scan(mask, coloured=coloured, seed=seed) for seed in range(count)]


def volume(parts: list[Scan], axis: int) -> Scan:
    """The 3D scan whose planes along ``axis`` are ``parts``, with the noise of the first."""
    return Scan(
        kspace=fft(torch.stack([one.kspace for one in parts]).movedim(0, axis), (axis,)),
        mask=torch.stack([one.sampled for one in parts]).movedim(0, axis),
        maps=torch.stack([one.maps for one in parts]).movedim(0, axis),
        noise=parts[0].noise,
    )


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())
    )


@pytest.mark.parametrize(("name", "axis"), EVERYWHERE)
def test_images_are_those_of_the_planes(name, axis):
    recon, parts = METHODS[name](), slices(axis)
    scan = volume(parts, axis)
    bound = recon.bind(scan)
    wanted = torch.stack([recon(one) for one in parts], dim=axis)
    close(recon(scan), wanted)
    assert bound.details["sliced"] == f"along {('kz', 'ky', 'kx')[axis]}"
    single = recon(scan.to(torch.complex64))
    assert float((single - wanted).abs().max() / wanted.abs().max()) < 2e-4
    both = bound(torch.stack([scan.kspace, 2 * scan.kspace]))
    close(both[0], wanted)
    close(both[1], bound(2 * scan.kspace))


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("varnet", -3),
        ("varnet", -2),
        ("varnet", -1),
        ("modl", -3),
        ("unet magnitude", -2),
        ("e2e_varnet", -1),
    ],
)
def test_noise_maps_are_those_of_the_planes(name, axis):
    recon, parts = METHODS[name](), slices(axis, 2)
    whole = noise_map(recon, volume(parts, axis), estimator="exact")
    each = [noise_map(recon, one, estimator="exact") for one in parts]
    for quantity in ("sigma", "sigma_complex", "snr", "g_factor", "sigma_phase"):
        values = [getattr(one, quantity) for one in each]
        if values[0] is None:
            assert getattr(whole, quantity) is None
        else:
            close(getattr(whole, quantity), torch.stack(values, dim=axis), 1e-9)
    assert whole.details["sliced"] == f"along {('kz', 'ky', 'kx')[axis]}"
    assert (whole.units, whole.frozen) == (each[0].units, each[0].frozen)


@pytest.mark.parametrize("axis", AXES)
def test_coloured_noise_of_the_readout(axis):
    recon = VarNet(nets.varnet())
    parts = slices(axis, 2, coloured=axis != -1)
    scan = volume(parts, axis)
    if axis == -1:  # the planes lie along the readout, each with a noise level of its own
        levels = torch.tensor([0.5, 1.5], dtype=torch.float64)
        scan = replace(scan, noise=replace(scan.noise, spectrum=levels))
        parts = [
            replace(one, noise=one.noise.scaled(float(level) ** 0.5))
            for one, level in zip(parts, levels)
        ]
    whole = noise_map(recon, scan, estimator="exact")
    each = [noise_map(recon, one, estimator="exact") for one in parts]
    for quantity in ("image", "sigma", "g_factor"):
        values = [getattr(one, quantity) for one in each]
        close(getattr(whole, quantity), torch.stack(values, dim=axis), 1e-9)


@pytest.fixture(scope="module")
def dense() -> tuple[Reconstructor, Scan, np.ndarray]:
    """A VarNet on a 3 x 8 x 7 scan with a plane outside the head, and its dense noise."""
    recon, parts = METHODS["varnet"](), slices(-3)
    parts[1] = replace(parts[1], maps=torch.zeros_like(parts[1].maps))
    scan = volume(parts, -3)
    bound = recon.bind(scan)
    matrix = difference_matrix(bound.function, scan)
    return recon, scan, covariance_maps(matrix, scan, bound(scan.kspace))


def test_exact_rows_equal_the_dense_matrix(dense):
    recon, scan, wanted = dense
    result = noise_map(recon, scan, estimator="exact")
    scale = np.abs(wanted[:2]).max()
    np.testing.assert_allclose(result.covariance.numpy(), wanted, rtol=0, atol=1e-6 * scale)
    some = torch.zeros(scan.grid, dtype=torch.bool)
    some[0, 3, 4] = some[2, 5, 2] = True
    few = noise_map(recon, scan, estimator="exact", voxels=some)
    torch.testing.assert_close(few.sigma[some], result.sigma[some])
    assert bool((few.sigma[~some] == 0).all())


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
def test_sampling_estimators_agree_within_their_error_bars(dense, estimator):
    recon, scan, wanted = dense
    result = noise_map(
        recon, scan, estimator=estimator, tolerance=0, max_passes=400, noise_scale=0.005
    )
    sigma = np.sqrt(wanted[0])
    noisy = sigma > 1e-6 * sigma.max()
    deviation = (result.sigma.numpy() - sigma)[noisy] / result.standard_error.numpy()[noisy]
    assert 0.5 < np.mean(deviation**2) < 1.7
    assert abs(np.mean(deviation)) < 0.6
    if estimator == "sketch":
        assert result.details["jacobian"] == "own"
    for quantity in ("image", "sigma", "snr", "g_factor", "standard_error"):
        values = getattr(result, quantity)
        assert bool(torch.isfinite(values).all())
        assert bool((values[1] == 0).all()), "nothing outside the head"


def test_first_order_holds_for_small_noise(dense):
    recon, scan, _ = dense
    assert linearity_check(recon, scan, draws=2, noise_scale=1e-4).overall < 1e-2
    region = torch.zeros(scan.grid, dtype=torch.bool)
    region[0, 2:5, 2:5] = region[2, 2:5, 2:5] = True
    found = roi(recon, scan, region)
    assert found.sd > 0
    assert float(found.attribution.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("name", "axis"), EVERYWHERE)
def test_derivatives(name, axis):
    scan = volume(slices(axis, 2), axis)
    bound = METHODS[name]().bind(scan)
    # A small step: some plane is within 1e-6 of a rectifier's kink.
    check_derivatives(bound.function, scan.kspace, step=1e-8)


@pytest.mark.parametrize("room", [0, 2**40], ids=["none kept", "all kept"])
@pytest.mark.parametrize("name", ["varnet", "modl", "unet complex", "own network"])
def test_linearisations_that_are_kept_or_made_again_give_the_same(name, room, monkeypatch):
    monkeypatch.setattr(planes, "available_bytes", lambda device: room)
    scan = volume(slices(-3), -3)
    bound = METHODS[name]().bind(scan)
    image, products = bound.linearize(scan.kspace)
    close(image, bound(scan.kspace))
    tangents = draw((2, *scan.kspace.shape), scan.kspace.dtype, 5)
    h = 1e-6
    for _ in range(2):
        for tangent, product in zip(tangents, products(tangents)):
            numeric = bound(scan.kspace + h * tangent) - bound(scan.kspace - h * tangent)
            assert float((product - numeric / (2 * h)).norm() / product.norm()) < 1e-6


def test_only_planes_with_tangents_of_their_own_are_kept(monkeypatch):
    made = []
    linearized = planes._linearized
    monkeypatch.setattr(planes, "_linearized", lambda *a: made.append(1) or linearized(*a))
    scan = volume(slices(-3), -3)
    tangents = draw((2, *scan.kspace.shape), scan.kspace.dtype, 5)
    for name, wanted in (("varnet", 3), ("own network", 6)):
        made.clear()
        _, products = METHODS[name]().bind(scan).linearize(scan.kspace)
        assert not made, "nothing is linearised before a product is asked for"
        products(tangents)
        products(tangents)
        assert len(made) == wanted


def test_memory_of_reverse_mode_is_that_of_one_plane():
    network = nets.varnet().__class__(2, 32).requires_grad_(False)
    peaks = []
    for count in (2, 8):
        scan = volume(slices(-3, count), -3)
        bound = VarNet(network).bind(scan)
        _, pull = torch.func.vjp(bound.function, scan.kspace)
        cotangent = torch.ones(scan.grid, dtype=scan.kspace.dtype)
        peaks.append(peak_bytes(lambda p=pull, c=cotangent: p(c)[0])[1])
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("name", ["varnet", "modl", "unet complex", "unet magnitude", "e2e_varnet"])
def test_planes_without_support_are_zero_and_stay_so(name):
    parts = slices(-3)
    parts[0] = replace(parts[0], maps=torch.zeros_like(parts[0].maps))
    nowhere = [replace(one, maps=torch.zeros_like(one.maps)) for one in parts]
    for scan, live in ((volume(parts, -3), True), (volume(nowhere, -3), False)):
        bound = METHODS[name]().bind(scan)
        tangents = draw((2, *scan.kspace.shape), scan.kspace.dtype, 3)
        image, products = bound.linearize(scan.kspace)
        pushed = torch.func.jvp(bound.function, (scan.kspace,), (tangents[0],))[1]
        pulled = torch.func.vjp(bound.function, scan.kspace)[1](torch.ones_like(image))[0]
        for values in (image, pushed, pulled, products(tangents)):
            assert bool(torch.isfinite(values).all())
            assert bool(values.any()) is live
        assert not bool(image[0].any())
        assert not bool(pushed[0].any())
        assert not bool(products(tangents)[:, 0].any())


def test_maps_are_estimated_plane_by_plane_and_frozen():
    lines = torch.zeros(24, 24, dtype=torch.bool)
    lines[::2] = True
    lines[6:18] = True
    parts = [small_scan(lines, seed=seed) for seed in range(2)]
    recon = VarNet(nets.varnet())
    scan = replace(volume(parts, -3), maps=None)
    bound = recon.bind(scan)
    assert bound.frozen == ("coil maps",)
    assert bound.details["maps"].startswith("ESPIRiT")
    close(
        bound(scan.kspace), torch.stack([recon(replace(one, maps=None)) for one in parts]), 1e-6
    )
    parts[1] = replace(parts[1], kspace=torch.zeros_like(parts[1].kspace))
    scan = replace(volume(parts, -3), maps=None)
    bound = recon.bind(scan)
    close(bound(scan.kspace)[0], recon(replace(parts[0], maps=None)), 1e-6)
    assert not bool(bound(scan.kspace)[1].any())
    assert not bool(bound.maps[:, 1].any())
    with pytest.raises(InputError, match="no signal"):
        recon.bind(replace(scan, kspace=torch.zeros_like(scan.kspace)))


@pytest.mark.parametrize("name", ["varnet", "modl", "unet complex", "e2e_varnet", "own network"])
def test_masks_that_leave_no_plane_are_refused(name):
    generator = torch.Generator().manual_seed(0)
    scan = volume(slices(-3, 8), -3)
    mask = scan.sampled & (torch.rand(scan.grid, generator=generator) < 0.7)
    mask[4] = scan.sampled[4]
    with pytest.raises(InputError, match="an axis along which the mask does not change"):
        METHODS[name]().bind(scan.undersample(mask))


def test_networks_that_leave_torch_are_measured_by_replicas():
    class Numpy(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.abs(x.numpy()))

    scan = volume(slices(-1, 2), -1)
    recon = ImageModule(Numpy())
    with pytest.warns(SnreconWarning, match=r"using replicas: .* numpy"):
        result = noise_map(recon, scan, tolerance=0, max_passes=4)
    assert result.estimator == "replicas"
    with pytest.raises(InputError, match=r"no reverse mode .* 'replicas'"):
        noise_map(recon, scan, estimator="exact")
