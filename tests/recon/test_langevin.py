"""Annealed Langevin dynamics against their exact law under Gaussian priors, and the exact
posterior; derivatives, noise maps, seeds, batches and scans of every kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from benchmarks.toy_problems import Problem, chain_law
from torch import Tensor, nn

from derivatives import check_derivatives, check_linearization
from priors import check_samples, gaussian_prior, line_mask, mixture_prior
from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise.estimate import noise_map
from snrecon.physics.jacobian import Linearization
from snrecon.physics.phantom import simulate_scan
from snrecon.recon.langevin import PUBLISHED, Langevin
from snrecon.recon.toy_priors import (
    GaussianPrior,
    MixturePrior,
    Prior,
    as_vectors,
    scan_posterior,
    toy_scan,
)

GRID = (10, 6)
QUICK = {"levels": 12, "steps": 2, "settle": 8, "at_once": 10_000}
TINY = {"levels": 6, "steps": 1, "settle": 4}


def problem(prior: Prior | None = None, gamma: float = 0.05, coils: int = 2, seed: int = 1,
            grid: tuple[int, int] = GRID) -> Problem:
    prior = gaussian_prior(grid) if prior is None else prior
    scan, scale, _ = toy_scan(prior, line_mask(grid), gamma, coils, seed)
    return Problem(prior, scan, scale, scan_posterior(prior, scan, scale))


def vectors(recon: Langevin, known: Problem, count: int) -> Tensor:
    """Samples in the prior's unit, as real vectors."""
    bound = recon.bind(known.scan)
    assert bound.sample is not None
    return as_vectors(bound.sample(known.scan.kspace, range(count))) / known.scale


class Impulses:
    """In place of random numbers: sample 0 gets zeros, every other a single one, in a place and at
    a step of its own. As the chain is affine under a Gaussian prior, sample 0 is the mean of its
    law, and the products of what the others differ by are its covariance, with nothing random."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], like: Tensor) -> None:
        self.count, self.shape, self.dtype, self.next = len(seeds), shape, like.dtype, 1

    def __call__(self) -> Tensor:
        size = math.prod(self.shape)
        drawn = torch.zeros(self.count, size, dtype=self.dtype)
        drawn[self.next : self.next + size] = torch.eye(size, dtype=self.dtype)
        self.next += size
        return drawn.reshape(self.count, *self.shape)


@pytest.mark.parametrize("options", [
    {**QUICK}, {**QUICK, "settle": 0, "denoise": False},
    {**QUICK, "sigma_min": 0.05, "step": 2e-4}, {**QUICK, "as_published": True},
], ids=["default", "not settled", "small steps", "as published"])
@pytest.mark.parametrize("stationary", [True, False])
def test_the_law_of_the_chain(
    stationary: bool, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and covariance of what comes out, far from converged, are what the recursion of affine
    steps says, to rounding."""
    monkeypatch.setattr("snrecon.recon.langevin.NormalDraws", Impulses)
    monkeypatch.setitem(PUBLISHED, "levels", 8)
    known = problem(gaussian_prior((6, 4), stationary), gamma=0.03, grid=(6, 4))
    recon = Langevin(score=known.prior, scale=known.scale, **options)
    found = vectors(recon, known, 1 + 48 * (1 + recon.schedule.total))
    law = chain_law(known, recon.schedule, recon.denoise)
    torch.testing.assert_close(found[0], law.mean, rtol=1e-8, atol=1e-8)
    apart = found[1:] - found[0]
    torch.testing.assert_close(apart.T @ apart, law.covariance, rtol=1e-6, atol=1e-8)


def test_the_stationary_law_of_one_level() -> None:
    """Unadjusted Langevin dynamics at one level: mean ``P^-1 b``, which has no bias, covariance
    ``P^-1 (1 - a P / 2)^-1``, with the P of the blurred prior and the widened noise."""
    sigma, known = 0.1, problem()
    recon = Langevin(score=known.prior, scale=known.scale, levels=1, steps=60, settle=0,
                     sigma_min=sigma, denoise=False, at_once=10_000)
    count = known.law.mean.shape[0]
    eye = torch.eye(count, dtype=torch.float64)
    prior = torch.block_diag(*[known.prior.covariance()] * 2)
    likelihood = torch.linalg.inv(known.law.covariance) - torch.linalg.inv(prior)  # A^H A / gamma^2
    noise = 0.5 / known.scale**2
    inner = torch.linalg.inv(prior + sigma**2 * eye)
    precision = inner + likelihood * noise / (noise + sigma**2)
    centre = known.prior.mean.flatten().repeat(2)
    data = torch.linalg.solve(prior, known.law.mean - centre) + likelihood @ known.law.mean
    right = inner @ centre + data * noise / (noise + sigma**2)
    (level,) = set(recon.schedule)
    a = float(recon.schedule.step_size(level, torch.tensor(noise).double()))
    assert a == pytest.approx(1 / (1 / sigma**2 + 1 / (noise + sigma**2)))
    inflated = torch.linalg.inv(precision @ (eye - a / 2 * precision))
    law = chain_law(known, recon.schedule, False)
    torch.testing.assert_close(law.mean, torch.linalg.solve(precision, right), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(law.covariance, inflated, rtol=1e-4, atol=1e-6)
    assert float((inflated / torch.linalg.inv(precision)).diagonal().min()) > 1.05
    check_samples(vectors(recon, known, 1500), law)


@pytest.mark.parametrize("gamma", [0.005, 0.02, 0.1])
def test_the_defaults_against_the_exact_posterior(gamma: float) -> None:
    """By the exact law of the chain, along the principal axes of the exact covariance: SD and mean
    to a few per cent of the SD. Without the last steps, what was measured with noise below the
    score's smallest level (0.01) spreads far too widely, however many steps are made."""
    known = problem(gamma=gamma)
    variances, axes = torch.linalg.eigh(known.law.covariance)

    def gap(**options: object) -> tuple[Tensor, Tensor]:
        recon = Langevin(score=known.prior, scale=known.scale, **options)
        law = chain_law(known, recon.schedule, recon.denoise)
        along = (axes.T @ law.covariance @ axes).diagonal()
        return axes.T @ (law.mean - known.law.mean) / variances.sqrt(), (along / variances).sqrt()

    bias, ratio = gap()
    assert float(bias.square().mean().sqrt()) < 0.06
    assert float(ratio.min()) > 0.96
    assert float(ratio.max()) < 1.06
    plain = gap(settle=0, denoise=False)[1]
    assert float(plain.max()) > {0.005: 2.4, 0.02: 1.15, 0.1: 1.02}[gamma]


def test_samples_by_default_against_the_exact_posterior() -> None:
    """The whole thing with no law in between: 300 samples, a bias of at most 2 % allowed."""
    known = problem(gamma=0.1, grid=(6, 6))
    found = vectors(Langevin(score=known.prior, scale=known.scale, at_once=600), known, 300)
    standard = (found - known.law.mean) / known.law.covariance.diagonal().sqrt()
    assert float(standard.mean(0).abs().max()) < 0.02 + 4 / 300**0.5
    assert float((standard.var(0).mean() - 1).abs()) < 0.04 + 4 * (2 / (300 * 36)) ** 0.5


def test_a_mixture_is_sampled_in_its_proportions() -> None:
    """Two modes apart in their constant part, of which the data say nothing: they keep the prior's
    probabilities, and around each the spread is that of the posterior."""
    grid = (4, 4)
    one = gaussian_prior(grid, True, 0.1, 0.0)
    other = GaussianPrior(one.mean + 0.7, one.variance, stationary=True)
    prior = MixturePrior([one, other], [0.65, 0.35])
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[0] = True
    scan, scale, _ = toy_scan(prior, mask, 0.1, 1, seed=2)
    scan = replace(scan, maps=scan.noise.unwhiten(torch.ones_like(scan.maps)))
    law = scan_posterior(prior, scan, scale)
    pairs = torch.tensor([0.65**2, 0.65 * 0.35, 0.65 * 0.35, 0.35**2], dtype=torch.float64)
    torch.testing.assert_close(law.weights, pairs)
    count = 500
    known = Problem(prior, scan, scale, law)
    found = vectors(Langevin(score=prior, scale=scale, at_once=10_000), known, count)
    for part in (found[:, :16], found[:, 16:]):
        level = part.mean(1)
        assert abs(float((level > 0.35).double().mean()) - 0.35) < 4 * (0.65 * 0.35 / count) ** 0.5
        spread = float(one.variance[2, 2] / 16) ** 0.5  # the constant part is not measured
        error = float(((level[level > 0.35] - 0.7) / spread).square().mean())
        assert abs(error - 1) < 4 * (2 / (0.35 * count)) ** 0.5 + 0.03


def test_seeds_and_batches() -> None:
    known = problem(mixture_prior(GRID))
    recon = Langevin(score=known.prior, **QUICK)
    bound, kspace = recon.bind(known.scan), known.scan.kspace
    samples = bound.sample(kspace, [3, 4, 3])
    assert torch.equal(samples[0], samples[2])
    assert float((samples[0] - samples[1]).abs().max()) > 1e-2
    for seed, one in zip((3, 4), samples):
        alone = recon.bind(known.scan, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(alone(kspace), one, rtol=1e-9, atol=1e-9)
    again = recon.bind(known.scan)
    assert torch.equal(bound(kspace), again(kspace))
    assert bound.stochastic
    batch = torch.stack([kspace, 0.5 * kspace, kspace]).reshape(3, 1, *kspace.shape)
    together = bound(batch)
    assert together.shape == (3, 1, *GRID)
    torch.testing.assert_close(together[2, 0], together[0, 0])
    torch.testing.assert_close(together[1, 0], bound(0.5 * kspace), rtol=1e-9, atol=1e-9)
    single = Langevin(score=known.prior, **QUICK).bind(known.scan.to(torch.complex64))
    assert single(kspace.to(torch.complex64)).dtype == torch.complex64
    error = (single(kspace.to(torch.complex64)) - bound(kspace)).abs().max()
    assert float(error) < 1e-3 * float(bound(kspace).abs().max())


def test_derivatives() -> None:
    """Through the scale, the draws and a nonlinear score; forward mode also by its own way."""
    known = problem(mixture_prior((5, 4)), grid=(5, 4))
    bound = Langevin(score=known.prior, **TINY).bind(known.scan)
    check_derivatives(bound.function, known.scan.kspace)
    assert bound.linearize is not None
    check_linearization(bound.function, bound.linearize, known.scan.kspace)
    linearization = Linearization(bound.function, known.scan.kspace, own=bound.linearize)
    linearization.jvp(known.scan.kspace[None])
    assert linearization.strategy == "own"


def test_scaled_data_are_a_scaled_image() -> None:
    """k-space and its noise in another unit: the same sample in that unit."""
    known = problem(mixture_prior(GRID))
    recon = Langevin(score=known.prior, **QUICK)
    other = replace(known.scan, kspace=7 * known.scan.kspace, noise=known.scan.noise.scaled(7))
    torch.testing.assert_close(recon(other), 7 * recon(known.scan))


def test_noise_map_at_a_fixed_seed() -> None:
    """Under a Gaussian prior and at a given scale the sample is affine in the data, with a matrix
    that the steps give: sketch and replicas are both estimates of its noise."""
    known = problem(gamma=0.1, grid=(6, 6))
    recon = Langevin(score=known.prior, scale=known.scale, **QUICK)
    bound = recon.bind(known.scan)
    basis = torch.eye(2 * known.scan.kspace.numel(), dtype=torch.float64)
    pairs = basis.reshape(-1, *known.scan.kspace.shape, 2)
    white = torch.view_as_complex(pairs) * known.scan.sampled
    noise = torch.einsum("ab,nbyx->nayx", known.scan.noise.cholesky, white) / 2**0.5
    columns = bound(known.scan.kspace + noise) - bound(known.scan.kspace)
    image = bound(known.scan.kspace)
    along = (columns * image.conj() / image.abs()).real
    exact = along.square().sum(0).sqrt()
    for estimator in ("sketch", "replicas"):
        found = noise_map(
            recon, known.scan, estimator=estimator, tolerance=0, max_passes=128, chunk=64)
        torch.testing.assert_close(found.image, image)
        apart = (found.sigma - exact) / found.standard_error
        assert float(apart.abs().max()) < 4
        assert abs(float((found.sigma / exact).square().mean()) - 1) < 4 * (2 / 128) ** 0.5 / 4


def test_noise_map_of_a_nonlinear_sampler() -> None:
    """Sketch against replicas of noise scaled down, where first order is exact."""
    known = problem(mixture_prior((6, 6)), gamma=0.1, grid=(6, 6))
    recon = Langevin(score=known.prior, **QUICK)
    options = {"tolerance": 0, "max_passes": 128, "chunk": 64}
    sketched = noise_map(recon, known.scan, estimator="sketch", **options)
    replicas = noise_map(recon, known.scan, estimator="replicas", noise_scale=1e-3, seed=1,
                         **options)
    error = (sketched.standard_error**2 + replicas.standard_error**2).sqrt()
    apart = (sketched.sigma - replicas.sigma) / error
    assert float(apart.abs().max()) < 4
    ratio = sketched.sigma.square().sum() / replicas.sigma.square().sum()
    assert abs(float(ratio) - 1) < 4 * (2 * 2 / 128) ** 0.5 / 2


def test_data_without_noise_are_met() -> None:
    """Fully sampled, noise far below the image: the sample is the object to within the noise that
    is stated, and not to less."""
    prior = gaussian_prior(GRID, sigma_range=(0.001, 378.0))
    scan, scale, truth = toy_scan(prior, torch.ones(GRID, dtype=torch.bool), 0.002, 2, seed=3)
    image = truth * scale
    maps = scan.noise.whiten(scan.maps)
    clean = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(
        maps * image, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    quiet = replace(scan, kspace=scan.noise.unwhiten(clean))
    found = Langevin(score=prior).bind(quiet).sample(quiet.kspace, range(30))
    # In units of the noise of a component, 1 / sqrt(2), the posterior's SD is all but 1.
    error = as_vectors(found - image) * 2**0.5
    assert float(error.square().mean().sqrt()) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("grid", [(9, 12), (8, 5), (1, 6)])
@pytest.mark.parametrize("coils", [1, 3])
def test_any_grid_and_any_number_of_coils(grid: tuple[int, int], coils: int) -> None:
    scan, _, _ = toy_scan(gaussian_prior(grid), line_mask(grid), 0.05, coils)
    image = Langevin(score=gaussian_prior(grid), **TINY)(scan)
    assert image.shape == grid
    assert bool(torch.isfinite(torch.view_as_real(image)).all())


def test_a_prospective_scan() -> None:
    """No maps and no mask given: both come from the data; outside the maps there is no image."""
    simulated = simulate_scan((32, 32), 4, 2, 12, "random")
    scan = Scan(simulated.kspace, None, None, simulated.noise)
    assert torch.equal(scan.sampled, simulated.sampled)
    bound = Langevin(score=gaussian_prior((32, 32)), **QUICK).bind(scan)
    image = bound(scan.kspace)
    assert bound.frozen == ("coil maps",)
    assert torch.equal(image == 0, ~(bound.maps != 0).any(0))
    assert bound.details["scale"] > 0
    assert bound.details["evaluations"] == 33


class SmallScore(nn.Module):
    """A Gaussian prior with a parameter that asks for gradients."""

    sigma_range = (0.02, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == self.variance.dtype
        return -x / (self.variance + sigma**2)


def test_networks_are_constants() -> None:
    """In the precision of the data, at the levels they know, and without a graph of all steps."""
    known = problem()
    network = SmallScore()
    recon = Langevin(score=network, **QUICK)
    assert recon.weights == "SmallScore"
    assert (recon.schedule.sigma_max, recon.schedule.sigma_min) == (0.5, 0.02)
    image = recon(known.scan)
    assert image.dtype == torch.complex128
    assert not image.requires_grad
    assert network.variance.requires_grad


def test_progress_sees_every_step() -> None:
    known = problem()
    seen: list[tuple[int, int, Tensor]] = []
    recon = Langevin(score=known.prior, progress=lambda *now: seen.append(now), **QUICK)
    image = recon(known.scan)
    assert [now[0] for now in seen] == list(range(1, 33))
    assert {now[1] for now in seen} == {32}
    assert seen[-1][2].shape == (1, *GRID)
    assert float((seen[-1][2] - image).norm()) < 0.1 * float(image.norm())  # but for denoising
    assert float((seen[0][2] - image).norm()) > float(image.norm())
    seen.clear()
    bound = recon.bind(known.scan)
    bound.linearize(known.scan.kspace)[1](known.scan.kspace[None])
    assert not seen


def test_as_published() -> None:
    recon = Langevin(score=gaussian_prior(), as_published=True)
    assert recon.schedule.total == 3468
    assert recon.schedule.step == PUBLISHED["step"] == 5e-5
    assert not recon.denoise
    levels = list(recon.schedule)
    # The spacing of 2311 levels from 232 to 0.0066.
    published = (0.0066 / 232) ** (1 / 2310)
    assert levels[3].sigma / levels[0].sigma == pytest.approx(published, rel=1e-4)
    small = torch.tensor(1e-8, dtype=torch.float64)
    for level in levels[::300]:
        assert float(recon.schedule.step_size(level, small)) == pytest.approx(
            5e-5 * (level.sigma / 0.01) ** 2, rel=1e-3)
    assert recon.schedule.limited(1e-8) == 0


def test_steps_that_overshoot_are_held() -> None:
    known = problem()
    with pytest.warns(SnreconWarning, match="overshoots at 32 of 32 steps"):
        bound = Langevin(score=known.prior, step=1.0, **QUICK).bind(known.scan)
    assert bound.details["steps_limited"] == 32
    free = Langevin(score=known.prior, **QUICK).bind(known.scan)
    torch.testing.assert_close(bound(known.scan.kspace), free(known.scan.kspace))


def test_bad_input() -> None:
    prior = gaussian_prior()
    for options, words in (
        ({"levels": 0}, "levels .* at least 1"), ({"settle": -1}, "settle .* at least 0"),
        ({"steps": 1.0}, "steps .* whole"), ({"levels": "a"}, "levels .* whole .* 'a'"),
        ({"levels": 2.5}, "whole"), ({"at_once": 0}, "at_once .* at least 1"),
        ({"step": 0.0}, "step of langevin must be positive"), ({"step": "a"}, "step .* finite"),
        ({"sigma_min": 1e-3}, "0.01 and 378"), ({"sigma_min": 400.0}, "levels that the score"),
        ({"sigma_max": -1.0}, "sigma_max of langevin must be positive"),
        ({"sigma_max": float("nan")}, "sigma_max of langevin must be a finite"),
        ({"scale": 0.0}, "scale of langevin must be positive"), ({"score": 3}, "callable"),
    ):
        with pytest.raises(InputError, match=words):
            Langevin(**{"score": prior, **options})
    known = problem()
    with pytest.raises(InputError, match="noise of this scan is not known"):
        Langevin(score=known.prior).bind(replace(known.scan, noise=None))
    volume = Scan(torch.ones(1, 4, 4, 4, dtype=torch.complex64), maps=torch.ones(1, 4, 4, 4),
                  noise=known.scan.noise.__class__(torch.eye(1)))
    with pytest.raises(InputError, match="2D"):
        Langevin(score=known.prior).bind(volume)
