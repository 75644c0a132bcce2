"""The latent prior: what it finds, that it is the optimum, and the derivative of the optimum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from derivatives import check_derivatives, check_linearization
from snrecon.data import Geometry, NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.networks.autoencoder import Autoencoder
from snrecon.networks.store import save_weights
from snrecon.noise import noise_map
from snrecon.physics.fourier import fft
from snrecon.physics.operators import Encoding
from snrecon.recon.forward_model import forward_model
from snrecon.recon.latent import Latent
from snrecon.recon.latent_fit import LatentFit
from snrecon.recon.latent_image import latent_image, resampling
from snrecon.recon.zero_filled import matched_filter
from snrecon.training.simulate import coil_maps


class Bumps(nn.Module):
    """A random smooth decoder of ``latent`` numbers: positive images with a curved range."""

    def __init__(self, latent: int = 4, size: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
        knots = torch.rand(latent + 4, 2, generator=generator) * 1.2 - 0.6
        bumps = torch.stack([torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.15) for a, b in knots])
        self.latent = latent
        self.register_buffer("mix", torch.randn(latent + 4, latent, generator=generator) * 0.6)
        self.register_buffer("bumps", bumps)

    def decode(self, z: Tensor) -> Tensor:
        weights = torch.tanh(z @ self.mix.mT) + 1.2
        return torch.einsum("bk,kyx->byx", weights, self.bumps)


def in_range(
    decoder: Bumps, grid: tuple[int, int], noise: float = 1.0, snr: float = 30.0, seed: int = 1,
    every: int = 2, lacking: float = 0.0,
) -> tuple[Scan, Tensor]:
    """A scan, complex128, of an image that the decoder can make but for a share ``lacking``."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, decoder.latent, generator=generator)
    picture = decoder.decode(z)[0].double()
    side = max(grid)
    rows, columns = (resampling(n, 1 / side, picture.shape[0]) for n in grid)
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in grid)
    angle = 0.6 + 0.5 * y[:, None] - 0.3 * x
    magnitude = rows @ picture @ columns.mT
    if lacking:
        magnitude = magnitude * (1 + lacking * torch.sin(9 * y[:, None] + 7 * x))
    truth = torch.polar(torch.ones(grid, dtype=torch.float64), angle) * magnitude * snr
    maps = coil_maps(4, grid, generator).to(torch.complex128)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[::every] = True
    mask[grid[0] // 2 - 3 : grid[0] // 2 + 3] = True
    draw = torch.randn(maps.shape, generator=generator, dtype=torch.complex128)
    kspace = (fft(maps * truth, (-2, -1)) + noise * draw) * mask
    model = NoiseModel(max(noise, 1e-3) ** 2 * torch.eye(4, dtype=torch.complex128))
    return Scan(kspace=kspace, mask=mask, maps=maps, noise=model), truth


def nmse(image: Tensor, truth: Tensor) -> float:
    return float((image - truth).abs().square().sum() / truth.abs().square().sum())


FAST = {"restarts": 3, "iterations": 40}


@pytest.mark.parametrize("grid", [(16, 16), (20, 14), (15, 21)])
def test_an_image_of_the_range_comes_back_from_noisy_undersampled_data(grid):
    scan, truth = in_range(Bumps(), grid)
    image = Latent(Bumps(), refine=False, **FAST)(scan)
    assert image.shape == grid
    # About 4 numbers and a few of phase and shading of a measurement with SNR 30.
    assert nmse(image, truth) < 3e-4


def test_the_image_has_the_voxels_of_the_scan():
    """A field of view that is twice as wide as high shows the middle of the decoder's square."""
    scan, _ = in_range(Bumps(), (16, 16))
    model = forward_model(scan)
    geometry = Geometry(voxel_size=(1e-3, 1e-3, 2e-3))
    wide = latent_image(Bumps().double(), model, replace(scan, geometry=geometry), scan.kspace.real)
    square = latent_image(Bumps().double(), model, scan, scan.kspace.real)
    picture = torch.randn(16, 16, dtype=torch.float64)
    torch.testing.assert_close(square.resampled(picture), picture)
    # Along ky 16 voxels of half the size of a source voxel: every other one is one of the source.
    torch.testing.assert_close(wide.resampled(picture)[::2], picture[4:12])


def test_resampling_to_a_finer_grid_and_back_is_the_identity():
    finer, coarser = resampling(24, 1 / 24, 16), resampling(16, 1 / 16, 24)
    smooth = torch.cos(torch.arange(16, dtype=torch.float64) * 2 * torch.pi * 3 / 16)
    torch.testing.assert_close(coarser @ finer @ smooth, smooth)
    torch.testing.assert_close(resampling(15, 1 / 15, 15), torch.eye(15, dtype=torch.float64))
    assert float((finer @ smooth).max()) == pytest.approx(1.0)


def test_the_image_jacobian_is_that_of_the_image():
    scan, _ = in_range(Bumps(), (15, 12))
    image = latent_image(Bumps().double(), forward_model(scan), scan, scan.kspace.real)
    theta = torch.randn(image.parameters, dtype=torch.float64)
    value, jacobian = image.jacobian(theta)
    torch.testing.assert_close(value, image(theta[None])[0])
    wanted = torch.func.jacfwd(lambda t: torch.view_as_real(image(t[None])[0]))(theta)
    torch.testing.assert_close(jacobian, torch.view_as_complex(wanted.movedim(-1, 0).contiguous()))


class Wandering(nn.Module):
    """A narrow bump that z moves: far from its place nothing tells the way."""

    latent = 2

    def decode(self, z: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, 16, dtype=z.dtype)
        y, x = (0.6 * torch.tanh(2 * z)).unsqueeze(-1).unbind(1)
        wide = torch.exp(-((line - y)[:, :, None] ** 2 + (line - x)[:, None, :] ** 2) / 0.04)
        return wide + 0.2


def test_of_several_restarts_the_best_is_taken():
    scan, truth = in_range(Wandering(), (16, 16), seed=4)  # type: ignore[arg-type]
    options = {"lamda": 0.5, "refine": False, "iterations": 60}
    bound = Latent(Wandering(), restarts=8, **options).bind(scan)
    assert len(bound.details["restarts"]) == 8
    alone = Latent(Wandering(), restarts=1, **options)
    found = [
        nmse(alone.bind(scan, torch.Generator().manual_seed(s))(scan.kspace), truth)
        for s in range(6)]
    assert max(found) > 2 * min(found), "one start would do"
    assert nmse(bound(scan.kspace), truth) < 1.001 * min(found)


class Everything(nn.Module):
    """As many numbers as voxels, slow to make what is rough."""

    latent = 256

    def __init__(self) -> None:
        super().__init__()
        place = torch.arange(16, dtype=torch.float64)
        blur = torch.exp(-((place[:, None] - place) ** 2) / 4)
        self.register_buffer("blur", blur / blur.sum(1, keepdim=True))

    def decode(self, z: Tensor) -> Tensor:
        blur = self.blur.to(z)
        return torch.exp(blur @ z.unflatten(1, (16, 16)) @ blur.mT)


def test_a_latent_vector_as_long_as_the_image_stops_before_it_fits_the_noise():
    decoder = Everything()
    scan, truth = in_range(Bumps(), (16, 16), snr=1.0, every=1)
    recon = Latent(
        decoder, lamda=0.0, restarts=1, iterations=400, stop="held_out", refine=False)
    bound = recon.bind(scan)
    assert 0 < bound.details["steps"] < 100
    stopped = nmse(bound(scan.kspace), truth)
    fitted = Latent(decoder, lamda=1e-4, restarts=1, iterations=400, refine=False)
    assert stopped < 0.85 * nmse(fitted(scan), truth)
    check_derivatives(Latent(
        Bumps(), iterations=12, restarts=2, stop="held_out").bind(scan).function, scan.kspace)


@pytest.fixture(scope="module")
def misfitting() -> tuple[Scan, Tensor]:
    """What the decoder cannot make is 10 % of the image: second derivatives matter."""
    return in_range(Bumps(), (16, 16), lacking=0.1, seed=2)


@pytest.mark.parametrize("refine", [False, True])
def test_the_derivative_is_that_of_full_optimisations(misfitting, refine):
    scan, _ = misfitting
    bound = Latent(Bumps(), refine=refine, **FAST).bind(scan)
    check_derivatives(bound.function, scan.kspace, step=1e-5)
    check_linearization(bound.function, bound.linearize, scan.kspace)


def test_the_derivative_holds_for_optimisations_from_elsewhere(misfitting):
    """Not the warm start of the method: Levenberg-Marquardt from another place, at y +- h n."""
    scan, _ = misfitting
    model = forward_model(scan)
    image = latent_image(Bumps().double(), model, scan, scan.kspace.real)
    fit = LatentFit(image, model.encoding.gram, 3.0)
    generator = torch.Generator().manual_seed(3)
    bound = Latent(Bumps(), lamda=3.0, refine=False, **FAST).bind(scan)
    noise = torch.randn(scan.kspace.shape, generator=generator, dtype=torch.complex128)
    here = fit.optimum(_theta(bound, scan, fit), matched_filter(model, scan.kspace))
    elsewhere = here.theta + 0.1 * torch.randn(
        len(here.theta), generator=generator, dtype=torch.float64)
    h = 1e-3
    ends = [
        fit.optimum(elsewhere, matched_filter(model, scan.kspace + s * h * noise)).image
        for s in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * h)
    _, product = bound.linearize(scan.kspace)
    analytic = product(noise[None])[0]
    assert float((analytic - numeric).norm() / numeric.norm()) < 1e-5
    # The curvature of Gauss and Newton would not do.
    gauss = replace(here, factor=torch.linalg.cholesky(fit._gauss(here.theta)[1]))
    wrong = gauss.response(matched_filter(model, noise)[None])[0]
    assert float((wrong - numeric).norm() / numeric.norm()) > 1e-2


def _theta(bound, scan: Scan, fit: LatentFit) -> Tensor:
    """Some theta near the bound image's: Newton steps do the rest."""
    theta = torch.zeros(fit.image.parameters, dtype=torch.float64)
    theta[fit.image.latent] = 2 * torch.tensor(30.0).log()
    best = fit.optimum(theta, matched_filter(forward_model(scan), scan.kspace))
    torch.testing.assert_close(best.image, bound(scan.kspace), rtol=1e-6, atol=1e-6)
    return best.theta


def test_sketch_exact_rows_and_replicas_agree(misfitting):
    scan, _ = misfitting
    recon = Latent(Bumps(), **FAST)
    exact = noise_map(recon, scan, estimator="exact")
    for estimator, options in (("sketch", {}), ("replicas", {"noise_scale": 0.03})):
        found = noise_map(
            recon, scan, estimator=estimator, tolerance=0, max_passes=192, seed=5, **options)
        score = (found.sigma - exact.sigma) / found.standard_error
        assert float(score.abs().max()) < 5
        # Voxels share few degrees of freedom, so that the mean square of a map scatters.
        assert 0.3 < float(score.square().mean()) < 3
    assert "low-resolution phase" in exact.frozen
    assert "lambda" in exact.frozen


def test_a_certified_map_is_near_the_exact_one(misfitting):
    scan, _ = misfitting
    recon = Latent(Bumps(), **FAST).bind(scan)
    found = noise_map(recon, scan, estimator="certified", tolerance=0.1, seed=1)
    exact = noise_map(recon, scan, estimator="exact")
    error = ((found.sigma / exact.sigma - 1) ** 2).mean().sqrt()
    assert float(error) < 0.1


def test_what_the_decoder_cannot_make_comes_back_by_refinement(misfitting):
    scan, truth = misfitting
    plain = Latent(Bumps(), refine=False, **FAST)(scan)
    bound = Latent(Bumps(), **FAST).bind(scan)
    image, mu = bound(scan.kspace), bound.details["refinement"]
    assert nmse(image, truth) < 0.5 * nmse(plain, truth)
    model = forward_model(scan)
    gram = Encoding(model.maps, model.mask).gram
    right = matched_filter(model, scan.kspace) + mu * plain
    torch.testing.assert_close(gram(image) + mu * image, right, rtol=1e-8, atol=1e-8)
    given = Latent(Bumps(), refine=2.5, **FAST).bind(scan)
    assert given.details["refinement"] == 2.5
    assert "weight of the refinement" in bound.frozen
    assert "weight of the refinement" not in given.frozen


def test_samples_are_what_other_generators_give_and_agree_where_there_is_one_minimum(misfitting):
    scan, _ = misfitting
    recon = Latent(Bumps(), lamda=3.0, **FAST)
    bound = recon.bind(scan)
    assert bound.stochastic
    other = scan.kspace + 0.5 * scan.sampled
    samples = bound.sample(other, [3, 4])
    for seed, sample in zip((3, 4), samples, strict=True):
        alone = recon.bind(scan, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(sample, alone(other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recon.bind(scan)(other), bound(other), rtol=0, atol=0)


def test_scale_of_kspace_and_noise_scales_the_image_only(misfitting):
    scan, _ = misfitting
    recon = Latent(Bumps(), **FAST)
    image = recon(scan)
    small = replace(scan, kspace=scan.kspace * 1e-6, noise=scan.noise.scaled(1e-6))
    torch.testing.assert_close(recon(small) * 1e6, image, rtol=1e-6, atol=1e-5)
    larger = replace(scan, maps=scan.maps * 5)
    torch.testing.assert_close(recon(larger) * 5, image, rtol=1e-6, atol=1e-5)


def test_single_precision_agrees_with_double(misfitting):
    scan, _ = misfitting
    recon = Latent(Bumps(), **FAST)
    single, double = recon(scan.to(torch.complex64)), recon(scan)
    assert single.dtype == torch.complex64
    assert nmse(single.to(torch.complex128), double) < 1e-6


def test_volumes_go_plane_by_plane(misfitting):
    scan, _ = misfitting
    kspace = fft(torch.stack([scan.kspace, scan.kspace.flip(0)], dim=1), (-3,))
    volume = replace(
        scan, kspace=kspace, mask=scan.sampled.expand(2, 16, 16).clone(),
        maps=torch.stack([scan.maps, scan.maps.flip(0)], dim=1))
    recon = Latent(Bumps(), restarts=2, iterations=20)
    bound = recon.bind(volume, torch.Generator().manual_seed(1))
    planes = bound(volume.kspace)
    assert bound.stochastic
    assert planes.shape == (2, 16, 16)
    generator = torch.Generator().manual_seed(1)
    plane = recon.bind(scan, generator)(scan.kspace)
    torch.testing.assert_close(planes[0], plane, rtol=1e-6, atol=1e-6)


def test_weights_files_are_decoders(tmp_path, misfitting):
    scan, _ = misfitting
    torch.manual_seed(0)
    network = Autoencoder(features=4, latent=3, size=16)
    save_weights(network, tmp_path / "tiny.safetensors")
    bound = Latent(tmp_path / "tiny.safetensors", restarts=2, iterations=10).bind(scan)
    assert bound.details["weights"].endswith("tiny.safetensors")
    own = Latent(network.requires_grad_(False), restarts=2, iterations=10)(scan)
    torch.testing.assert_close(bound(scan.kspace), own)
    assert bound(scan.kspace).dtype == torch.complex128
    with pytest.raises(InputError, match="no autoencoder weights named 'spleen'"):
        Latent("spleen")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lamda": -1.0}, "lambda must be zero or positive"),
        ({"restarts": 0}, "at least one restart"),
        ({"iterations": 0}, "at least one restart"),
        ({"stop": "late"}, "'optimum' or by samples 'held_out'"),
        ({"refine": -2.0}, "true, false or a positive weight"),
        ({"weights": nn.Identity()}, "a method decode"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Latent(**{"weights": Bumps(), **options})


def test_unsuitable_scans_and_decoders_are_refused():
    scan, _ = in_range(Bumps(), (16, 16))
    with pytest.raises(InputError, match="noise of this scan is not known"):
        Latent(Bumps()).bind(replace(scan, noise=None))

    class Flat(Bumps):
        def decode(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(InputError, match=r"makes real images \(1, n, n\)"):
        Latent(Flat()).bind(scan)


class Idle(nn.Module):
    """A decoder that does not look at the last entry of its vector."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bumps(latent=3)
        self.latent = 4

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(z[..., :3])


def test_what_cannot_be_fitted_is_told_in_a_sentence() -> None:
    scan, _ = in_range(Bumps(), (16, 16))
    zero = replace(scan, kspace=torch.zeros_like(scan.kspace))
    with pytest.raises(InputError, match="k-space is zero"):
        Latent(Bumps()).bind(zero)
    with pytest.raises(InputError, match="lambda above 0"):
        Latent(Idle(), lamda=0.0).bind(scan)
