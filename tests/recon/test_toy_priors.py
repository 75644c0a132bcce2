"""Priors in closed form and their posteriors, against automatic differentiation, numerical
integration and dense formulas; exact draws against the exact posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from derivatives import check_derivatives
from priors import check_samples, gaussian_prior, line_mask, mixture_prior
from snrecon.errors import InputError
from snrecon.recon.gaussian_posterior import GaussianPosterior
from snrecon.recon.toy_priors import (
    GaussianMixture,
    GaussianPrior,
    MixturePrior,
    Prior,
    as_vectors,
    posterior_law,
    scan_posterior,
    toy_scan,
)


@pytest.mark.parametrize("prior", [
    gaussian_prior((5, 6)), gaussian_prior((5, 6), stationary=False), mixture_prior((5, 6)),
], ids=["stationary", "diagonal", "mixture"])
def test_the_score_is_the_gradient_of_the_log_density(prior: Prior) -> None:
    x = torch.rand(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)
    components = [prior] if isinstance(prior, GaussianPrior) else list(prior.components)
    weights = [1.0] if isinstance(prior, GaussianPrior) else list(prior.weights)

    def density(x: Tensor) -> Tensor:
        logs = []
        for weight, one in zip(weights, components):
            for k in range(3):
                covariance = one.covariance() + sigma[k] ** 2 * torch.eye(30).double()
                law = torch.distributions.MultivariateNormal(one.mean.flatten(), covariance)
                logs.append(math.log(weight) + law.log_prob(x[k].flatten()))
        return torch.logsumexp(torch.stack(logs).reshape(-1, 3), 0).sum()

    wanted = torch.func.grad(density)(x)
    torch.testing.assert_close(prior(x, sigma), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior(x[:1], sigma[0]), wanted[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("complex_image", [True, False])
def test_draws_follow_the_prior(complex_image: bool) -> None:
    prior = mixture_prior((4, 5))
    images = prior.draw(4000, torch.Generator().manual_seed(1), complex_image)
    vectors = as_vectors(images) if complex_image else images.flatten(1)
    nothing = torch.zeros(1, 20, dtype=torch.complex128)
    law = posterior_law(prior, nothing, nothing[:, 0], 1.0, complex_image)
    torch.testing.assert_close(law.weights[0], torch.tensor(0.36 if complex_image else 0.6,
                                                            dtype=torch.float64))
    # The statistics of the check are those of Gaussian samples; a mixture's squares spread more.
    apart = (vectors.mean(0) - law.mean) / law.covariance.diagonal().sqrt() * 4000**0.5
    assert float(apart.abs().max()) < 4
    centred = vectors - law.mean
    products = centred[:, :, None] * centred[:, None]
    error = products.std(0) / 4000**0.5
    assert float(((products.mean(0) - law.covariance) / error).abs().max()) < 4.5


def test_posterior_by_numerical_integration() -> None:
    """Two voxels, a real image, a mixture: moments and evidence on a fine grid."""
    one = torch.ones(1, 2, dtype=torch.float64)
    prior = MixturePrior([GaussianPrior(0.1 * one, 0.3 * one**2),
                          GaussianPrior(torch.tensor([[0.9, -0.4]]).double(), 0.05 * one)],
                         [0.7, 0.3])
    matrix = torch.tensor([[0.8 + 0.3j, -0.5j]], dtype=torch.complex128)
    data = torch.tensor([0.6 + 0.3j], dtype=torch.complex128)
    law = posterior_law(prior, matrix, data, 0.04, complex_image=False)
    axis = torch.linspace(-4, 4, 1201, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    zero = torch.zeros((), dtype=torch.float64)
    logs = torch.stack([math.log(w) + c.log_density(x.reshape(-1, 1, 2), zero)
                        for w, c in zip(prior.weights, prior.components)])
    likelihood = -(x.to(matrix) @ matrix[0] - data).abs().square() / (2 * 0.04)
    weight = torch.softmax(torch.logsumexp(logs, 0) + likelihood, 0)
    mean = weight @ x
    torch.testing.assert_close(law.mean, mean, rtol=1e-8, atol=1e-8)
    centred = x - mean
    covariance = torch.einsum("n,na,nb->ab", weight, centred, centred)
    torch.testing.assert_close(law.covariance, covariance, rtol=1e-7, atol=1e-8)
    assert 0.05 < float(law.weights[0]) < 0.95


def test_the_posterior_of_a_complex_image_by_the_information_form() -> None:
    """``P = C^-1 + A^H A / gamma^2`` in real coordinates, written apart from the code."""
    prior = gaussian_prior((4, 5))
    scan, scale, truth = toy_scan(prior, line_mask((4, 5)), 0.1, coils=2, seed=3)
    law = scan_posterior(prior, scan, scale)
    assert scale == pytest.approx(1 / (2**0.5 * 0.1))
    maps = scan.noise.whiten(scan.maps)
    eye = torch.eye(40, dtype=torch.float64)
    images = torch.complex(eye[:, :20], eye[:, 20:]).reshape(40, 1, 4, 5)
    forward = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(
        maps * images, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)) * scan.sampled
    columns = torch.view_as_real(forward).reshape(40, -1).T
    data = torch.view_as_real(scan.noise.whiten(scan.kspace) / scale).flatten()
    inverse = torch.linalg.inv(torch.block_diag(prior.covariance(), prior.covariance()))
    precision = inverse + columns.T @ columns / 0.01
    mean = prior.mean.flatten().repeat(2)
    right = inverse @ mean + columns.T @ data / 0.01
    torch.testing.assert_close(law.mean, torch.linalg.solve(precision, right))
    torch.testing.assert_close(law.covariance, torch.linalg.inv(precision))
    spread = torch.linalg.cholesky(law.covariance)
    apart = torch.linalg.solve_triangular(
        spread, (as_vectors(truth) - law.mean)[:, None], upper=False)
    assert abs(float(apart.square().sum()) - 40) < 4 * 80**0.5  # the truth is one more sample


@pytest.mark.parametrize("stationary", [True, False])
def test_exact_draws(stationary: bool) -> None:
    """Perturb and solve has the posterior's mean and covariance, by single draws and batches."""
    grid = (6, 7)
    prior = gaussian_prior(grid, stationary)
    scan, scale, _ = toy_scan(prior, line_mask(grid), 0.05, coils=2, seed=4)
    recon = GaussianPosterior(prior, scale)
    bound = recon.bind(scan)
    assert bound.stochastic
    assert bound.sample is not None
    samples = bound.sample(scan.kspace, range(1500))
    check_samples(as_vectors(samples) / scale, scan_posterior(prior, scan, scale))
    alone = recon.bind(scan, torch.Generator().manual_seed(7))(scan.kspace)
    torch.testing.assert_close(alone, samples[7], rtol=1e-9, atol=1e-9)
    assert float((samples[7] - samples[8]).abs().max()) > 1e-3


def test_exact_draws_are_affine_in_the_data() -> None:
    """One matrix for all seeds: that of the posterior mean."""
    prior = gaussian_prior((6, 6))
    scan, scale, _ = toy_scan(prior, line_mask((6, 6)), 0.1, coils=2, seed=4)
    one, other = (GaussianPosterior(prior, scale).bind(scan, torch.Generator().manual_seed(s))
                  for s in (1, 2))
    check_derivatives(one.function, scan.kspace, step=1e-3)
    step = torch.randn(scan.kspace.shape, dtype=torch.complex128,
                       generator=torch.Generator().manual_seed(6))
    first = one(scan.kspace + step) - one(scan.kspace)
    torch.testing.assert_close(other(scan.kspace + step) - other(scan.kspace), first)
    moved = scan_posterior(prior, type(scan)(
        scan.kspace + step * scan.sampled, scan.sampled, scan.maps, scan.noise), scale).mean
    mean = scan_posterior(prior, scan, scale).mean
    torch.testing.assert_close(as_vectors(first) / scale, moved - mean)


def test_moments_of_a_mixture_by_its_draws() -> None:
    law = GaussianMixture(torch.tensor([0.25, 0.75]).double(),
                          torch.tensor([[0.0, 1.0], [2.0, -1.0]]).double(),
                          torch.stack([torch.eye(2), 0.5 * torch.eye(2)]).double())
    torch.testing.assert_close(law.mean, torch.tensor([1.5, -0.5]).double())
    # Within: 0.25 + 0.75 / 2; between: 0.25 * 0.75 * (2, -2)(2, -2)^T.
    wanted = torch.tensor([[0.625 + 0.75, -0.75], [-0.75, 0.625 + 0.75]]).double()
    torch.testing.assert_close(law.covariance, wanted)
    drawn = law.draw(20000, torch.Generator().manual_seed(2))
    assert float(((drawn.mean(0) - law.mean) / wanted.diagonal().sqrt()).abs().max()) < 4 / 141
    assert float((torch.cov(drawn.T) - wanted).abs().max()) < 4 * 2**0.5 * 1.375 / 141


def test_bad_input() -> None:
    mean = torch.zeros(4, 4)
    with pytest.raises(InputError, match="positive"):
        GaussianPrior(mean, torch.zeros(4, 4))
    with pytest.raises(InputError, match="opposite"):
        GaussianPrior(mean, torch.arange(1.0, 17.0).reshape(4, 4), stationary=True)
    with pytest.raises(InputError, match="shape"):
        GaussianPrior(mean, torch.ones(4, 5))
    with pytest.raises(InputError, match="weight"):
        MixturePrior([GaussianPrior(mean, torch.ones(4, 4))], [0.5, 0.5])
    large = torch.zeros(1, 2048, dtype=torch.complex128)
    with pytest.raises(InputError, match="too large"):
        posterior_law(gaussian_prior((4, 4)), large, large[:, 0], 1.0)
    prior = gaussian_prior((6, 6))
    scan, scale, _ = toy_scan(prior, line_mask((6, 6)), 0.1)
    with pytest.raises(InputError, match="grid"):
        GaussianPosterior(gaussian_prior((6, 7)), scale).bind(scan)
    with pytest.raises(InputError, match="scale"):
        GaussianPosterior(prior, 0.0)
