"""Levels, projections and the SENSE step of the diffusion samplers, each on its own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from score_scans import smooth_maps, smooth_prior, toy_scan
from snrecon.data import NoiseModel
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.recon.consistency import (
    PublishedSenseStep,
    SenseStep,
    asymmetry,
    complex_projection,
    opposite,
    real_part_projection,
    real_projection,
)
from snrecon.recon.diffusion import geometric_levels, langevin_step, reverse_step
from snrecon.recon.draws import NormalDraws
from snrecon.recon.forward_model import forward_model
from snrecon.recon.score_prior import Prior, join, split

AXES = (-2, -1)
GRIDS = [(16, 16), (15, 12)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def any_mask(grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Points at random, so that some are sampled without their opposites."""
    return torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_levels_are_geometric() -> None:
    levels = geometric_levels(378.0, 0.01, 2000)
    assert len(levels) == 2000
    assert levels[0] == 378.0
    assert levels[-1] == pytest.approx(0.01, rel=1e-12)
    ratios = {round(b / a, 12) for a, b in itertools.pairwise(levels)}
    assert len(ratios) == 1
    assert geometric_levels(3.0, 0.01, 1) == [3.0]


@pytest.mark.parametrize("grid", GRIDS)
def test_opposite_is_the_spectrum_of_the_conjugate_image(grid) -> None:
    image = torch.complex(normal(*grid), normal(*grid, seed=1))
    found = opposite(fft(image, AXES)).conj()
    assert torch.allclose(found, fft(image.conj(), AXES), atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_real_projection(grid) -> None:
    """Real, consistent, the same when repeated, and nearest: what it adds has no part in images
    that the data do not see."""
    mask = any_mask(grid)
    truth, x = normal(*grid), normal(1, 1, *grid, seed=1)
    kspace = (fft(truth.to(torch.complex128), AXES) * mask)[None]
    project = real_projection(kspace, mask)
    image = project(x)
    assert not image.is_complex()
    assert float((fft(image[0, 0].to(kspace), AXES) * mask - kspace[0]).abs().max()) < 1e-12
    assert torch.allclose(project(image), image, atol=1e-12)
    unseen = project(normal(1, 1, *grid, seed=2)) - project(normal(1, 1, *grid, seed=3))
    assert float(unseen.norm()) > 0.1
    assert abs(float(((image - x) * unseen).sum())) < 1e-10
    # The published step leaves the data, except where opposite points were both sampled.
    halved = real_part_projection(kspace, mask)(x)
    apart = (fft(halved[0, 0].to(kspace), AXES) - kspace[0]) * mask
    assert float(apart.norm() / kspace.norm()) > 0.05


def test_real_projection_of_noisy_data_is_least_squares() -> None:
    """The image comes as near to noisy samples as a real image can."""
    grid = (8, 7)
    mask = any_mask(grid, 3)
    kspace = (torch.complex(normal(*grid), normal(*grid, seed=1)) * mask)[None]
    image = real_projection(kspace, mask)(torch.zeros(1, 1, *grid, dtype=torch.float64))
    eye = torch.eye(56, dtype=torch.float64).reshape(56, *grid)
    columns = (fft(eye.to(kspace), AXES) * mask).flatten(1).mT
    matrix = torch.cat([columns.real, columns.imag])
    data = torch.cat([kspace.flatten().real, kspace.flatten().imag])
    expected = torch.linalg.pinv(matrix, rcond=1e-10) @ data
    assert torch.allclose(image.flatten(), expected, atol=1e-10)


def test_asymmetry() -> None:
    mask = torch.ones(12, 12, dtype=torch.bool)
    real = normal(12, 12).to(torch.complex128)
    assert asymmetry(fft(real, AXES)[None], mask) < 1e-20
    assert asymmetry(fft(1j * real, AXES)[None], mask) == pytest.approx(1)
    assert asymmetry(fft(real, AXES)[None], torch.zeros_like(mask)) == 0


def test_complex_projection() -> None:
    mask = any_mask((9, 8))
    kspace = torch.complex(normal(3, 9, 8), normal(3, 9, 8, seed=1)) * mask
    x = split(torch.complex(normal(3, 9, 8, seed=2), normal(3, 9, 8, seed=3)))
    image = join(complex_projection(kspace, mask)(x))
    spectrum = fft(image, AXES)
    assert torch.allclose(spectrum * mask, kspace, atol=1e-12)
    assert torch.allclose(spectrum * ~mask, fft(join(x), AXES) * ~mask, atol=1e-12)


def correlated(coils: int) -> NoiseModel:
    mixing = torch.complex(normal(coils, coils), normal(coils, coils, seed=1))
    eye = torch.eye(coils, dtype=torch.complex128)
    return NoiseModel(0.01 * (mixing @ mixing.mH + coils * eye))


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_sense_step_leaves_an_exact_solution(strength) -> None:
    """With correlated noise and maps that are not normalised; the published step moves it."""
    mask = make_mask("gaussian1d", (16, 16), 3, 4, 0).tensor
    scan, image = toy_scan(smooth_prior((16, 16)), mask, coils=4)
    scan = replace(scan, noise=correlated(4), maps=strength * scan.maps)
    coils = scan.maps * image
    kspace = fft(coils, AXES) * mask
    model = forward_model(scan)
    step = SenseStep(model)
    after = step(coils, step.data(kspace), 0.7)
    assert float((after - coils).norm() / coils.norm()) < 1e-5
    published = PublishedSenseStep(model)
    moved = published(coils, published.data(kspace), 1.0)
    assert float((moved - coils).norm() / coils.norm()) > 0.3


def test_sense_step_lowers_the_misfit() -> None:
    mask = make_mask("gaussian1d", (16, 16), 3, 4, 0).tensor
    scan, image = toy_scan(smooth_prior((16, 16)), mask, coils=4)
    scan = replace(scan, noise=correlated(4))
    model = forward_model(scan)
    step = SenseStep(model)
    data = step.data(scan.kspace)
    start = scan.maps * (image + 0.3 * normal(16, 16, seed=5))

    def misfit(coils: torch.Tensor) -> float:
        seen = fft(step.maps * step.combined(coils), AXES) * mask
        return float((seen - model.whiten(scan.kspace)).norm())

    after = [misfit(step(start, data, weight)) for weight in (0.0, 0.2, 1.0)]
    assert after[2] < after[1] < after[0]


def test_predictor_and_corrector_formulas() -> None:
    score = smooth_prior((8, 8))
    prior = Prior(score, torch.zeros(1, dtype=torch.complex128), at_once=3)
    x, z = normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1)
    level = torch.tensor(0.5, dtype=torch.float64)
    slope = score(x, level)
    mean, spread = reverse_step(x, prior, 0.5, 0.3)
    assert spread == pytest.approx(0.4)
    assert torch.allclose(mean, x + 0.16 * slope)
    assert torch.allclose(reverse_step(x, prior, 0.5, 0.0)[0], prior.denoised(x, 0.5))
    moved, mean = langevin_step(x, prior, 0.5, 0.16, z)
    for index in [(0, 0), (1, 0)]:  # every image by its own norms
        eps = 2 * (0.16 * z[index].norm() / slope[index].norm()) ** 2
        assert torch.allclose(mean[index], x[index] + eps * slope[index])
        assert torch.allclose(moved[index], mean[index] + (2 * eps).sqrt() * z[index])


def test_draws_do_not_depend_on_company_or_precision() -> None:
    like = torch.zeros((), dtype=torch.float64)
    both, alone = NormalDraws([3, 9], (2, 4), like), NormalDraws([9], (2, 4), like)
    single = NormalDraws([9], (2, 4), like.float())
    for _ in range(2):
        pair, one, low = both(), alone(), single()
        assert torch.equal(pair[1], one[0])
        assert torch.equal(one.float(), low)
        assert not torch.equal(pair[0], pair[1])
    inside = torch.vmap(lambda x: x + NormalDraws([9], (2, 4), like)()[0])(torch.zeros(2, 2, 4))
    assert torch.equal(inside[0], inside[1])


def test_maps_of_the_tests_are_normalised() -> None:
    power = smooth_maps(3, (9, 8)).abs().square().sum(dim=0)
    assert torch.allclose(power, torch.ones_like(power))
