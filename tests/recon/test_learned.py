"""U-Net, E2E-VarNet and MoDL bound to scans: units, bases, options, derivatives, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import networks_at_hand as nets
from derivatives import check_derivatives, check_linearization, draw
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.networks.convert import convert
from snrecon.networks.e2e_varnet import combine_coils
from snrecon.networks.regularised import SENSE_LAMBDA, sense_image
from snrecon.networks.sensitivity import calibration_samples
from snrecon.networks.store import save_weights
from snrecon.networks.unet import INITIAL_LAMBDA, complex_unet, magnitude_unet
from snrecon.noise import noise_map
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import FourierGram
from snrecon.recon import E2EVarNet, MoDL, Sense, UNet, VarNet
from snrecon.recon.forward_model import KSPACE, NOISE
from snrecon.recon.registry import load
from support import random_complex

GRID = (14, 13)


def make_scan(grid=GRID, coils: int = 3, seed: int = 1) -> Scan:
    """complex128, correlated noise, maps that are not normalised and vanish in two columns."""
    lines = torch.arange(grid[0]) % 3 == 0
    lines[grid[0] // 2 - 2 : grid[0] // 2 + 2] = True
    mask = lines[:, None].expand(grid).clone()
    maps = random_complex(coils, *grid, seed=seed)
    maps[..., :2] = 0
    root = random_complex(coils, coils, seed=seed + 1)
    return Scan(
        kspace=30 * random_complex(coils, *grid, seed=seed + 2) * mask,
        mask=mask,
        maps=2 * maps,
        noise=NoiseModel(root @ root.mH + torch.eye(coils)),
    )


VARIANTS = {
    "unet complex": lambda: UNet(nets.unet(2)),
    "unet sense": lambda: UNet(nets.unet(2, sense_steps=3)),
    "unet consistent": lambda: UNet(nets.unet(2, sense_steps=3, consistency_steps=4)),
    "unet magnitude": lambda: UNet(nets.unet(1)),
    "unet rss": lambda: UNet(nets.unet(1), combine="rss"),
    "unet published": lambda: UNet(nets.unet(1), published=True, crop=(12, 11)),
    "e2e_varnet": lambda: E2EVarNet(nets.e2e_varnet()),
    "e2e_varnet residual": lambda: E2EVarNet(nets.e2e_varnet(residual=1)),
    "e2e_varnet memory": lambda: E2EVarNet(nets.e2e_varnet(residual=1, espirit=6, memory=1)),
    "e2e_varnet rss": lambda: E2EVarNet(nets.e2e_varnet(), combine="rss"),
    "e2e_varnet published": lambda: E2EVarNet(nets.e2e_varnet(), published=True, crop=(12, 11)),
    "modl": lambda: MoDL(nets.modl()),
    "modl implicit": lambda: MoDL(nets.modl(1)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_derivatives_from_raw_kspace(name):
    scan = make_scan()
    bound = VARIANTS[name]().bind(scan)
    check_derivatives(bound.function, scan.kspace)
    image = bound(scan.kspace)
    real = "magnitude" in name or "rss" in name or "published" in name
    assert image.is_complex() is not real
    assert tuple(image.shape) == ((12, 11) if "published" in name else GRID)
    assert torch.equal(bound(scan.kspace + 100 * ~scan.sampled), image)
    assert not bound.linear
    assert bound.method == name.split()[0]
    if not ("rss" in name or "published" in name):
        assert bool((image[..., :2] == 0).all())
        assert bool((image[..., 2:].abs() > 0).all())


@pytest.mark.parametrize("name", VARIANTS)
def test_scale_of_kspace_and_noise_scales_the_image_only(name):
    scan = make_scan()
    recon = VARIANTS[name]()
    small = replace(scan, kspace=scan.kspace * 1e-6, noise=scan.noise.scaled(1e-6))
    unit = 1 if name == "e2e_varnet rss" else 1e6  # of whitened coils: no unit, the same number
    torch.testing.assert_close(recon(small) * unit, recon(scan), rtol=1e-5, atol=1e-5)
    if "rss" not in name and "published" not in name:
        larger = replace(scan, maps=scan.maps * 5)
        torch.testing.assert_close(recon(larger) * 5, recon(scan), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_single_precision_agrees_with_double(name):
    scan, recon = make_scan(), VARIANTS[name]()
    single = recon(scan.to(torch.complex64))
    double = recon(scan)
    assert single.dtype == (torch.complex64 if double.is_complex() else torch.float32)
    error = (single.to(double.dtype) - double).norm() / double.norm()
    assert float(error) < 1e-3


def matched(scan: Scan) -> tuple[torch.Tensor, torch.Tensor]:
    """Matched filter of the whitened data with normalised maps, and the maps' size."""
    white = scan.noise.whiten(scan.maps)
    size = white.abs().square().sum(0).sqrt()
    normal = torch.where(size > 0, white / size.clamp(min=1e-30), 0)
    return (normal.conj() * ifft(scan.noise.whiten(scan.kspace), (-2, -1))).sum(0), size


def test_magnitudes_are_those_of_the_matched_filter_in_snr_units():
    scan, network = make_scan(), nets.unet(1)
    z, size = matched(scan)
    wanted = magnitude_unet(nets.unet(1).double(), z.abs())
    image = UNet(network)(scan)
    torch.testing.assert_close(image[:, 2:], (wanted / size)[:, 2:], rtol=1e-9, atol=1e-9)


def test_weights_for_sense_images_are_given_sense_images(tmp_path):
    scan = make_scan()
    z, size = matched(scan)
    normal = torch.where(size > 0, scan.noise.whiten(scan.maps) / size.clamp(min=1e-30), 0)
    network = nets.unet(2, sense_steps=200)
    gram = FourierGram(normal, scan.sampled)
    solved = sense_image(gram, z, 200)
    torch.testing.assert_close(gram(solved) + SENSE_LAMBDA * solved, z, rtol=1e-7, atol=1e-7)
    wanted = complex_unet(nets.unet(2).double(), solved, size > 0)
    recon = UNet(network)
    torch.testing.assert_close(recon(scan)[:, 2:], (wanted / size)[:, 2:], rtol=1e-8, atol=1e-8)
    assert recon.bind(scan).details["sense_steps"] == 200
    assert "sense_steps" not in UNet(nets.unet(2)).bind(scan).details
    save_weights(network, tmp_path / "own.safetensors")
    torch.testing.assert_close(UNet(tmp_path / "own.safetensors")(scan), recon(scan))
    for option in ("sense_steps", "consistency_steps"):
        with pytest.raises(InputError, match="two channels"):
            nets.unet(1, **{option: 2})


def test_weights_for_consistency_end_near_the_data(tmp_path):
    """Many steps solve ``(A^H A + lambda) x = A^H y + lambda u`` for the network's image u."""
    scan = make_scan()
    z, size = matched(scan)
    normal = torch.where(size > 0, scan.noise.whiten(scan.maps) / size.clamp(min=1e-30), 0)
    network = nets.unet(2, consistency_steps=200)
    before = complex_unet(nets.unet(2).double(), z, size > 0)
    recon = UNet(network)
    image = recon(scan) * size
    right = z + INITIAL_LAMBDA * before
    found = FourierGram(normal, scan.sampled)(image) + INITIAL_LAMBDA * image
    torch.testing.assert_close(found[:, 2:], right[:, 2:], rtol=1e-6, atol=1e-6)
    assert recon.bind(scan).details["consistency_steps"] == 200
    network.log_lamda.fill_(1.5)
    save_weights(network, tmp_path / "own.safetensors")
    torch.testing.assert_close(UNet(tmp_path / "own.safetensors")(scan), recon(scan))


def test_the_published_unet_sees_the_cropped_rss_of_raw_coils_with_the_readout_in_rows():
    scan = make_scan()
    coils = ifft(scan.kspace, (-2, -1))
    rss = coils.abs().square().sum(0).sqrt()
    seen = {}

    class Spy(torch.nn.Module):
        in_chans = out_chans = 1

        def forward(self, x):
            seen["x"] = x
            return 2 * x

    image = UNet(Spy(), published=True, crop=(12, 10))(scan)
    top, left = (14 - 12) // 2, (13 - 10) // 2
    cropped = rss[top : top + 12, left : left + 10]
    normal = (cropped - cropped.mean()) / cropped.std()
    torch.testing.assert_close(seen["x"][0, 0], normal.T)
    torch.testing.assert_close(image, 2 * normal * cropped.std() + cropped.mean())
    unknown = replace(scan, noise=None, maps=None)
    torch.testing.assert_close(UNet(Spy(), published=True, crop=(12, 10))(unknown), image)


def test_the_published_varnet_sees_raw_kspace_with_the_readout_in_rows():
    scan, network = make_scan(), nets.e2e_varnet().double()
    mask = scan.sampled
    k, _ = network.predict(scan.kspace.mT, mask.mT, calibration_samples(mask, None).mT)
    rss = ifft(k, (-2, -1)).abs().square().sum(0).sqrt().T
    image = E2EVarNet(nets.e2e_varnet(), published=True, crop=(12, 13))(scan)
    torch.testing.assert_close(image, rss[1:13], rtol=1e-9, atol=1e-9)


def test_e2e_works_on_whitened_data_and_takes_units_from_given_maps_only():
    scan, network = make_scan(), nets.e2e_varnet().double()
    white = scan.noise.whiten(scan.kspace)
    mask = scan.sampled
    k, maps = network.predict(white, mask, calibration_samples(mask))
    recon = E2EVarNet(nets.e2e_varnet())
    without = replace(scan, maps=None)
    bound = recon.bind(without)
    torch.testing.assert_close(bound(scan.kspace), combine_coils(k, maps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bound.maps, maps, rtol=1e-9, atol=1e-9)
    _, size = matched(scan)
    with_maps = recon.bind(scan)
    expected = torch.where(size > 0, combine_coils(k, maps) / size.clamp(min=1e-30), 0)
    torch.testing.assert_close(with_maps(scan.kspace), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(with_maps.maps, scan.noise.whiten(scan.maps))
    # Without known noise the coils are taken as they are.
    plain = recon.bind(replace(without, noise=None))
    k, maps = network.predict(scan.kspace, mask, calibration_samples(mask))
    torch.testing.assert_close(plain(scan.kspace), combine_coils(k, maps), rtol=1e-9, atol=1e-9)
    assert plain.maps is None


def test_modl_sees_the_whitened_adjoint():
    scan, network = make_scan(), nets.modl().double()
    white = scan.noise.whiten(scan.maps)
    z, size = matched(scan)
    normal = torch.where(size > 0, white / size.clamp(min=1e-30), 0)
    wanted = network(z, FourierGram(normal, scan.sampled), size > 0)
    image = MoDL(nets.modl())(scan)
    torch.testing.assert_close(image[:, 2:], (wanted / size)[:, 2:], rtol=1e-8, atol=1e-9)


def test_modl_can_be_told_to_solve_exactly():
    scan, network = make_scan(), nets.modl(0)
    exact = MoDL(network, implicit=True)
    torch.testing.assert_close(exact(scan), MoDL(nets.modl(1))(scan))
    assert network.implicit == 0, "the user's network is left alone"
    assert not torch.allclose(exact(scan), MoDL(network)(scan), rtol=1e-6)

    class Other(torch.nn.Module):
        def forward(self, b, gram, support):
            return b

    with pytest.raises(InputError, match="no choice"):
        MoDL(Other(), implicit=True)


def test_what_is_frozen():
    grid = (24, 24)
    scan = replace(make_scan(grid), maps=None)
    assert UNet(nets.unet(2)).bind(scan).frozen == ("coil maps",)
    assert MoDL(nets.modl()).bind(scan).frozen == ("coil maps",)
    assert MoDL(nets.modl()).bind(make_scan()).frozen == ()
    for recon in (E2EVarNet(nets.e2e_varnet()), UNet(nets.unet(1), combine="rss")):
        assert recon.bind(scan).frozen == ()


def test_results_of_cropped_real_images_are_saved(tmp_path):
    result = noise_map(
        VARIANTS["e2e_varnet published"](), make_scan(), tolerance=0, max_passes=8,
        estimator="sketch",
    )  # fmt: skip
    assert result.image.shape == (12, 11)
    assert result.sigma_phase is None
    torch.testing.assert_close(result.sigma, result.sigma_complex)
    assert bool((result.sigma > 0).all())
    result.save(tmp_path / "r.h5")


@pytest.mark.parametrize("method", ["unet", "e2e_varnet", "modl"])
def test_names_and_files(method, tmp_path):
    from snrecon.networks.store import shipped_weights

    listed = ", ".join(shipped_weights(method)) or "none"
    with pytest.raises(InputError, match=f"no {method} weights named 'knee'; known: {listed}"):
        load(f"{method}:knee")
    with pytest.raises(InputError, match="no such weights file"):
        load(f"{method}:missing.safetensors")
    network = {"unet": nets.unet, "e2e_varnet": nets.e2e_varnet, "modl": nets.modl}[method]()
    path = tmp_path / "own.safetensors"
    save_weights(network, path)
    recon = load(f"{method}:{path}")
    assert recon.name == method
    scan = make_scan()
    bound = recon.bind(scan)
    assert bound.details["weights"] == str(path)
    torch.testing.assert_close(bound(scan.kspace), type(recon)(network)(scan))


def test_published_files_are_used_as_published(tmp_path):
    network = nets.e2e_varnet()
    path = tmp_path / "published.pt"
    torch.save(network.state_dict(), path)
    scan = make_scan()
    recon = load(f"e2e_varnet:{path}")
    assert recon.published
    torch.testing.assert_close(recon(scan), E2EVarNet(network, published=True)(scan))
    own = E2EVarNet(path, published=False)
    torch.testing.assert_close(own(scan), E2EVarNet(network)(scan))
    torch.save(nets.unet(1).state_dict(), path)
    recon = load(f"unet:{path}", crop=(12, 12))
    wanted = UNet(nets.unet(1), published=True, crop=(12, 12))(scan)
    torch.testing.assert_close(recon(scan), wanted)
    with pytest.raises(InputError, match="only for unet, e2e_varnet and"):
        load(f"modl:{path}")


@pytest.mark.parametrize(("method", "network"), [
    (E2EVarNet, nets.e2e_varnet()), (UNet, nets.unet(1))])
def test_converted_networks_are_used_as_published(method, network):
    converted = convert(method.name, network.state_dict())
    recon = method(converted, crop=(12, 12))
    assert (recon.published, recon.combine) == (True, "rss")
    scan = make_scan()
    torch.testing.assert_close(recon(scan), method(network, published=True, crop=(12, 12))(scan))
    assert not method(converted, published=False).published


def test_images_carry_no_graph_and_slices_at_fault_are_named():
    scan = make_scan()
    image = VarNet(nets.varnet())(scan)
    assert not image.requires_grad
    stack = replace(scan, kspace=torch.stack([scan.kspace, 0 * scan.kspace]), maps=None,
                    layout="stack", source="brain.h5")
    with pytest.raises(InputError, match=r"^brain\.h5, slice 1: "):
        Sense()(stack)


def test_what_they_cannot_do_is_a_sentence():
    scan = make_scan()
    for recon in (UNet(nets.unet(2)), MoDL(nets.modl())):
        with pytest.raises(InputError, match="noise of this scan is not known"):
            recon.bind(replace(scan, noise=None))
    deep = nets.Unet(2, 2, 2, 4)
    with pytest.raises(InputError, match="14x13 voxels is too small"):
        UNet(deep).bind(scan)
    with pytest.raises(InputError, match="14x13 voxels is too small"):
        E2EVarNet(nets.E2EVarNet(1, 2, 4, 2, 2)).bind(scan)
    with pytest.raises(InputError, match="needs calibration lines"):
        E2EVarNet(nets.e2e_varnet()).bind(
            replace(scan, mask=(torch.arange(14) == 3)[:, None].expand(GRID))
        )
    for options, message in [
        ({"combine": "sum"}, "'matched' or 'rss', not 'sum'"),
        ({"crop": (8, 8)}, "combine='rss' only"),
        ({"crop": 8, "combine": "rss"}, "crops to .rows, columns., not 8"),
        ({"published": True}, "takes complex images"),
    ]:
        with pytest.raises(InputError, match=message):
            UNet(nets.unet(2), **options)
    with pytest.raises(InputError, match="in_chans"):
        UNet(nets.Unet(1, 2, 2, 2))
    with pytest.raises(InputError, match="in_chans"):
        UNet(torch.nn.Identity())
    with pytest.raises(InputError, match="combine='rss' only"):
        E2EVarNet(nets.e2e_varnet(), crop=(8, 8))
    with pytest.raises(InputError, match="no centre of 20x8"):
        E2EVarNet(nets.e2e_varnet(), combine="rss", crop=(20, 8)).bind(scan)


def test_the_sensitivity_network_counts():
    """J differs from that with the maps frozen, in calibration samples and only there."""
    scan, network = make_scan(), nets.e2e_varnet().double()
    mask, calibration = scan.sampled, calibration_samples(scan.sampled)
    white = scan.noise.whiten(scan.kspace)
    _, maps = network.predict(white, mask, calibration)

    class Frozen(torch.nn.Module):
        def forward(self, measured, calibration):
            return maps.unsqueeze(0)

    frozen = nets.e2e_varnet().double()
    frozen.sens_net = Frozen()
    full, held = E2EVarNet(network).bind(scan), E2EVarNet(frozen).bind(scan)
    torch.testing.assert_close(full(scan.kspace), held(scan.kspace))

    def products(tangent):
        return [torch.func.jvp(b.function, (scan.kspace,), (tangent,))[1] for b in (full, held)]

    tangent = draw(scan.kspace.shape, torch.complex128, 5) * mask
    a, b = products(tangent * calibration)
    assert float((a - b).norm() / b.norm()) > 0.05
    a, b = products(tangent * ~calibration)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


FAST = [name for name in VARIANTS if "modl" not in name]


@pytest.mark.parametrize("name", FAST)
def test_fast_tangents_equal_forward_mode_from_raw_kspace(name):
    scan = make_scan()
    bound = VARIANTS[name]().bind(scan)
    check_linearization(bound.function, bound.linearize, scan.kspace)


@pytest.mark.parametrize("name", ["unet complex", "e2e_varnet"])
def test_the_noise_map_is_that_of_torch(name):
    """The same probes through both, to the rounding of single precision; of two variants, for
    torch traces for seconds."""
    scan = make_scan().to(torch.complex64)
    bound = VARIANTS[name]().bind(scan)
    slow = replace(bound, linearize=None)
    fast, wanted = (
        noise_map(b, scan, estimator="sketch", tolerance=0, max_passes=8) for b in (bound, slow)
    )
    assert fast.details["jacobian"] == "own"
    assert wanted.details["jacobian"] == "linearize"
    error = (fast.sigma - wanted.sigma).norm() / wanted.sigma.norm()
    assert float(error) < 1e-4


def test_networks_with_espirit_need_to_know_the_noise():
    network = nets.e2e_varnet(espirit=4)
    with pytest.raises(InputError, match="noise of this scan is not known"):
        E2EVarNet(network).bind(replace(make_scan(), noise=None))
    with pytest.raises(InputError, match="whitened k-space"):
        E2EVarNet(network, published=True).bind(make_scan())


def test_a_root_sum_of_squares_of_whitened_coils_is_in_units_of_the_noise():
    scan = make_scan()
    recon = E2EVarNet(nets.e2e_varnet(), combine="rss")
    assert recon.bind(scan).units == NOISE
    assert recon.bind(replace(scan, noise=None)).units == KSPACE
    assert E2EVarNet(nets.e2e_varnet(), published=True).bind(scan).units == KSPACE
