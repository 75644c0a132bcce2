"""The samplers on priors whose posterior is known, and as functions of k-space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from score_scans import AXES, COILS, FEW, GRID, error, example, mask_2d, of, smooth_prior, toy_scan
from snrecon import noise_map
from snrecon.errors import InputError
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.recon import image_diffusion
from snrecon.recon.score import Score
from snrecon.recon.score_bind import bind_coils
from snrecon.recon.sense import Sense
from snrecon.recon.toy_priors import GaussianPrior, as_vectors, scan_posterior


@pytest.mark.parametrize("algorithm", COILS)
def test_a_full_noiseless_scan_gives_its_image(algorithm) -> None:
    prior, scan, image = example(algorithm, mask=torch.ones(GRID, dtype=torch.bool))
    found = of(prior, algorithm)(scan)
    if algorithm in ("4", "5"):
        image = image.abs()  # maps of the test are normalised
    elif algorithm in ("2", "3"):
        image = image / 1e-3  # without maps the unit is the noise
    if algorithm == "2":
        image = image.real
    assert found.dtype == image.dtype
    # dds takes the noise that the scan claims, 1e-3, for real and goes a little by the prior.
    assert error(found, image) < (1e-3 if algorithm == "dds" else 1e-4)


@pytest.mark.parametrize("algorithm", ["2", "3", "4", "5"])
def test_hard_consistency_ends_consistent(algorithm) -> None:
    prior, scan, _ = example(algorithm)
    sampler = of(prior, algorithm)
    chain = bind_coils(sampler.settings, prior, scan, None).chain
    coils = chain.coil_images(scan.kspace, [4, 5])
    assert coils.is_complex() == (algorithm != "2")
    assert coils.shape == (2, COILS[algorithm], *GRID)
    spectrum = fft(coils.to(scan.kspace), AXES) * scan.sampled
    assert error(spectrum, scan.kspace.expand_as(spectrum)) < 1e-5
    if algorithm in ("2", "3"):  # and so is the image that users get
        image = sampler(scan).to(scan.kspace) * 1e-3
        assert error(fft(image, AXES) * scan.sampled, scan.kspace[0]) < 1e-5


def test_final_denoising_raises_psnr() -> None:
    """A noiseless real image; the noise of the last level is what the published step leaves in."""
    mask = mask_2d(1.5)
    prior = smooth_prior(GRID, sigma_range=(0.05, 50.0))
    gains, left = [], []
    for seed in range(4):
        scan, image = toy_scan(prior, mask, real=True, seed=seed)
        errors = []
        for published in (False, True):
            sampler = Score(prior, "real", steps=30, as_published=published, scale=1.0)
            found = sampler.bind(scan).sample(scan.kspace, range(8)) * 1e-3
            errors.append((found - image.real).square().mean())
            left.append(found)
        gains.append(10 * torch.log10(errors[1] / errors[0]))
    gain = torch.stack(gains)
    assert float(gain.mean()) > 4 * float(gain.std()) / 2  # four images


def test_as_published_keeps_the_last_noise() -> None:
    """With a score that pulls nowhere the last predictor only adds noise of SD ``sigma_min``."""

    def flat(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    flat.sigma_range = (0.2, 0.2001)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16, 16] = True
    scan, _ = toy_scan(smooth_prior((32, 32)), mask, real=True)
    options = {"steps": 1, "corrector_steps": 0, "scale": 1.0}
    power = [
        float((1e-3 * Score(flat, 2, as_published=published, **options)(scan)).var())
        for published in (False, True)
    ]
    extra = (power[1] - power[0]) / 0.2**2
    assert abs(extra - 1) < 4 * (2 / 1024 * (1 + 2 + 4)) ** 0.5


def test_published_differences() -> None:
    """Which algorithms ``as_published`` changes, and the weights of the SENSE step."""
    for algorithm, changed in [("2", True), ("3", False), ("4", True), ("5", True)]:
        prior, scan, _ = example(algorithm)
        same = torch.equal(
            of(prior, algorithm)(scan), of(prior, algorithm, as_published=True)(scan))
        assert same != changed
    prior, scan, _ = example("5")
    weights = [
        bind_coils(
            Score(prior, 5, steps=500, as_published=p).settings, prior, scan, None
        ).chain.sense_weights
        for p in (False, True)
    ]
    assert list(weights[0]) == list(weights[1]) == list(range(0, 500, 50))
    assert weights[0][0] == weights[1][0] == 1.0
    assert weights[0][450] == pytest.approx(0.2)
    assert weights[1][450] == pytest.approx(1 - 0.8 * 450 / 2000)


@pytest.mark.parametrize("algorithm", COILS)
def test_published_numbers_of_levels(algorithm) -> None:
    prior = smooth_prior(GRID, (0.01, 378.0))
    levels = Score(prior, algorithm).settings.levels
    count = {"2": 2000, "3": 2000, "4": 500, "5": 500, "dds": 50}[algorithm]
    assert len(levels) == count
    assert levels[0] == (5.0 if algorithm == "dds" else 378.0)
    assert levels[-1] == pytest.approx(0.01)


def test_evaluations_are_counted() -> None:
    for algorithm in COILS:
        prior, scan, _ = example(algorithm)
        for published in (False, True):
            if published and algorithm == "dds":
                continue
            calls = []

            def counting(x, sigma, calls=calls, prior=prior):
                calls.append(len(x))
                return prior(x, sigma)

            bound = of(counting, algorithm, corrector_steps=2, as_published=published).bind(scan)
            calls.clear()
            bound(scan.kspace)
            assert len(calls) == bound.details["evaluations"]
            assert set(calls) == {bound.details["images"]}


@pytest.mark.parametrize("algorithm", COILS)
def test_seeds(algorithm) -> None:
    """Same seed, same sample; several at once are those one by one; batches share their draws."""
    prior, scan, _ = example(algorithm, noise=0.02)
    recon = of(prior, algorithm, at_once=12)
    bound = recon.bind(scan)
    seeds = [0, 7, 8, 9, 10]
    many = bound.sample(scan.kspace, seeds)
    assert many.shape == (5, *GRID)
    for seed, sample in zip(seeds, many):
        generator = torch.Generator().manual_seed(seed)
        alone = recon.bind(scan, generator)(scan.kspace)
        assert error(alone, sample) < 1e-12
    assert error(many[1], many[2]) > 1e-3
    assert torch.equal(recon.bind(scan)(scan.kspace), bound(scan.kspace))
    other = 1.3 * scan.kspace.flip(-1) * scan.sampled
    batch = bound(torch.stack([scan.kspace, other])[:, None])
    assert batch.shape == (2, 1, *GRID)
    assert error(batch[0, 0], bound(scan.kspace)) < 1e-12
    assert error(batch[1, 0], bound(other)) < 1e-12
    assert error(of(prior, algorithm, at_once=1)(scan), bound(scan.kspace)) < 1e-12


@pytest.mark.parametrize("algorithm", COILS)
@pytest.mark.parametrize("started", [False, True])
def test_forward_derivative(algorithm, started) -> None:
    """jvp at a fixed seed against central differences; vmap and the bound's own way agree."""
    prior, scan, _ = example(algorithm, noise=0.05)
    begin = "zero_filled" if algorithm == "4" else Sense(0.1, tolerance=1e-15)
    start = {"start": begin} if started else {}
    bound = of(prior, algorithm, **start).bind(scan)
    generator = torch.Generator().manual_seed(2)
    tangents = torch.randn((2, *scan.kspace.shape), dtype=torch.complex128, generator=generator)
    tangents = tangents * scan.sampled
    h = 1e-6 * float(scan.kspace.norm() / tangents[0].norm())
    value, product = bound.linearize(scan.kspace)
    assert torch.allclose(value, bound(scan.kspace))
    pushed = product(tangents)
    for v, jv in zip(tangents, pushed):
        again, alone = torch.func.jvp(bound.function, (scan.kspace,), (v,))
        assert torch.allclose(again, value)
        assert error(jv, alone) < 1e-10
        numeric = (bound(scan.kspace + h * v) - bound(scan.kspace - h * v)) / (2 * h)
        assert error(jv, numeric) < 1e-6


@pytest.mark.parametrize("algorithm", ["5", "dds"])
def test_noise_map_by_sketch_and_by_replicas(algorithm) -> None:
    prior, scan, _ = example(algorithm, noise=0.05)
    recon = Score(prior, algorithm, steps=4, cg_steps=3)
    fixed = {"tolerance": 0, "max_passes": 64, "chunk": 64}
    sketch = noise_map(recon, scan, estimator="sketch", **fixed)
    replicas = noise_map(recon, scan, estimator="replicas", noise_scale=1e-3, seed=1, **fixed)
    assert sketch.details["jacobian"] == "own"
    assert sketch.frozen == ()
    spread = (sketch.standard_error.square() + replicas.standard_error.square()).sqrt()
    z = (sketch.sigma - replicas.sigma) / spread
    assert float(z.abs().max()) < 5  # of 144 voxels
    # Neighbours' errors go together: a third of the voxels' number counts.
    assert abs(float(z.mean())) < 4 / 48**0.5


def test_a_network_keeps_no_graph() -> None:
    class Network(nn.Module):
        sigma_range = (0.01, 50.0)

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, sigma):
            return -(x + 0.1 * self.conv(x.unsqueeze(1))[:, 0]) / (0.1 + sigma**2)

    network = Network()
    _, scan, _ = example("dds", noise=0.05)
    for data in (scan, scan.to(torch.complex64)):
        image = of(network, "dds")(data)
        assert not image.requires_grad
        assert image.dtype == data.kspace.dtype
    assert next(network.parameters()).requires_grad, "the user's network is left alone"
    assert next(network.parameters()).dtype == torch.float32


def white_prior(variance: float) -> GaussianPrior:
    return GaussianPrior(
        torch.zeros(8, 8, dtype=torch.float64),
        torch.full((8, 8), variance, dtype=torch.float64), sigma_range=(0.002, 50.0))


def white_scan(prior: GaussianPrior):
    """Undersampled, noise 0.2: 5 in SNR units is 1 in the prior's, and the exact posterior."""
    scan, _ = toy_scan(prior, make_mask("gaussian2d", (8, 8), 2, 3, seed=2).tensor, 3, 0.2)
    return scan, scan_posterior(prior, scan, 5.0)


def test_dds_mean_where_its_assumption_holds(monkeypatch) -> None:
    """Under a white prior of the variance that it assumes, dds knows what is open at each level:
    without draws it gives the posterior mean, but for what is left of its first image."""
    prior = white_prior(image_diffusion.PRIOR_VARIANCE)
    scan, exact = white_scan(prior)
    monkeypatch.setattr(
        image_diffusion.NormalDraws, "__call__",
        lambda self: torch.zeros((len(self.streams), *self.shape), dtype=self.dtype))
    errors = []
    for begin in (0.5, 5.0, 50.0):
        recon = Score(prior, steps=60, scale=5.0, cg_steps=20, eta=0.0, start_sigma=begin)
        errors.append(error(as_vectors(recon(scan)), exact.mean))
    assert errors[0] > 0.1
    assert errors[2] < 0.005
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.3)  # the share left of the first image


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dds_spread_where_its_assumption_holds(eta) -> None:
    """The same for the covariance: too small by an error of first order in the step, which two
    numbers of steps take out."""
    prior = white_prior(image_diffusion.PRIOR_VARIANCE)
    scan, exact = white_scan(prior)
    factor = torch.linalg.cholesky(exact.covariance)
    power = []
    for steps in (25, 50):
        recon = Score(prior, steps=steps, scale=5.0, cg_steps=12, eta=eta, at_once=1000)
        samples = as_vectors(recon.bind(scan).sample(scan.kspace, range(200)))
        white = torch.linalg.solve_triangular(factor, (samples - exact.mean).T, upper=False)
        power.append(white.square().mean(dim=0))  # of each sample; 1 if exact
    assert float(power[0].mean()) < float(power[1].mean()) < 1
    found = 2 * power[1] - power[0]
    assert abs(float(found.mean()) - 1) < 4 * float(found.std()) / 200**0.5


@pytest.mark.parametrize("algorithm", COILS)
def test_units_follow_the_data(algorithm) -> None:
    """k-space and noise in another unit: the same image in that unit."""
    prior, scan, _ = example(algorithm, noise=0.05)
    scan = replace(scan, noise=scan.noise.scaled(0.7))
    scaled = replace(scan, kspace=40 * scan.kspace, noise=scan.noise.scaled(40))
    image, again = of(prior, algorithm)(scan), of(prior, algorithm)(scaled)
    # Without maps one coil's unit is the noise, which grew as well.
    factor = 1 if algorithm in ("2", "3") else 40
    assert error(again, factor * image) < 1e-9


def test_starts() -> None:
    """Fewer levels, from the level asked for; what is begun from decides where it is nearly all."""
    prior, scan, _ = example("dds", noise=0.05)
    for algorithm, name in [("dds", "tv"), ("dds", "zero_filled"), ("4", "tv"),
                            ("5", "zero_filled")]:
        bound = Score(prior, algorithm, start=name).bind(scan)
        assert bound.details["start"] == name
        assert bound.details["levels"] == pytest.approx((0.2, 0.01))
        whole = len(Score(prior, algorithm).settings.levels)
        assert 2 < bound.details["steps"] < whole
        assert torch.isfinite(bound(scan.kspace)).all()
    # A score that knows nothing, hardly any noise, and data that weigh nothing beside it.
    tiny = GaussianPrior(prior.mean, 1e6 * torch.ones(GRID), sigma_range=(1e-5, 50.0))
    begun = Sense(0.1)
    kept = Score(tiny, start=begun, start_sigma=1e-5, steps=1, scale=1.0)(scan)
    assert error(kept, begun(scan)) < 1e-3
    with pytest.raises(InputError, match="draws"):
        Score(prior, start=Score(prior)).bind(scan)
    with pytest.raises(InputError, match="phase"):
        Score(prior, start="zero_filled:rss").bind(scan)


def test_progress() -> None:
    for algorithm in ("2", "5", "dds"):
        prior, scan, _ = example(algorithm, noise=0.05)
        seen = []
        recon = of(prior, algorithm, progress=lambda *step: seen.append(step))  # noqa: B023
        bound = recon.bind(scan)
        image = bound(scan.kspace)
        steps = FEW[algorithm]
        assert [(i, n) for i, n, _ in seen] == [(i + 1, steps) for i in range(steps)]
        assert torch.equal(seen[-1][2], image)
        seen.clear()
        torch.func.jvp(bound.function, (scan.kspace,), (scan.kspace,))
        torch.vmap(bound.function)(scan.kspace[None])
        bound(scan.kspace[None])
        bound.linearize(scan.kspace)[1](scan.kspace[None])
        assert not seen
