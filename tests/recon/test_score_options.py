"""Which scans, grids and options the samplers take, and what they say to others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from score_scans import AXES, COILS, GRID, error, example, mask_2d, of, smooth_prior, toy_scan
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import noise_map
from snrecon.physics.compression import compress
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.langevin import Langevin
from snrecon.recon.score import Score
from snrecon.recon.score_bind import compressed
from snrecon.recon.sense import Sense
from snrecon.recon.toy_priors import GaussianPrior
from snrecon.recon.zero_filled import matched_filter
from snrecon.uncertainty import sure


@pytest.mark.parametrize(("algorithm", "coils"), [("3", 1), ("4", 5), ("5", 5), ("dds", 1)])
def test_any_grid_and_precision(algorithm, coils) -> None:
    grid = (15, 22)
    prior = smooth_prior(grid)
    scan, _ = toy_scan(prior, mask_2d(2, grid), coils, 0.05)
    bound = of(prior, algorithm).bind(scan.to(torch.complex64))
    image = bound(scan.kspace.to(torch.complex64))
    assert image.shape == grid
    assert image.dtype == (torch.float32 if algorithm in "45" else torch.complex64)
    assert error(image, of(prior, algorithm)(scan)) < 1e-3


def test_estimated_maps_and_compression_are_frozen() -> None:
    prior = smooth_prior((24, 24))
    scan, _ = toy_scan(prior, make_mask("gaussian1d", (24, 24), 2, 8, 0).tensor, 5, 0.02)
    scan = replace(scan, maps=None)
    for algorithm in ("5", "dds"):
        bound = of(prior, algorithm, coils=3).bind(scan)
        assert bound.frozen == ("coil compression", "coil maps")
        assert bound.details["coils"] == 3
        full = of(prior, algorithm)(scan)  # the maps' common phase is another
        assert 0 < error(bound(scan.kspace).abs(), full.abs()) < 0.5
    assert of(prior, "4").bind(scan).frozen == ()


def unequal_scan(coils: int = 5) -> tuple[GaussianPrior, Scan]:
    """Noise that is correlated, and much louder in one coil."""
    prior = smooth_prior(GRID)
    scan, _ = toy_scan(prior, mask_2d(2), coils, 0.02)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(coils, coils, dtype=torch.complex128, generator=generator)
    mixing = 0.02 * (mixing / coils + torch.eye(coils))
    mixing[2] *= 50
    own = NoiseModel(mixing @ mixing.mH)
    noise = torch.randn(scan.kspace.shape, dtype=torch.complex128, generator=generator)
    return prior, replace(scan, kspace=scan.kspace + own.unwhiten(noise) * scan.sampled, noise=own)


def test_compression_weighs_the_signal_against_the_noise() -> None:
    """The receivers' gains, and which of them is loud, are no matter of the image."""
    prior, scan = unequal_scan()
    gains = torch.tensor([1, 300, 1, 0.1, 1j], dtype=torch.complex128)[:, None, None]
    turned = replace(
        scan, kspace=gains * scan.kspace, maps=gains * scan.maps,
        noise=NoiseModel(gains[:, 0] * scan.noise.covariance * gains[:, 0].mH))
    recon = of(prior, "dds", coils=3)
    assert error(recon(turned), recon(scan)) < 1e-8
    whole = of(prior, "dds")(scan)
    assert error(recon(scan), whole) < 0.5 * error(of(prior, "dds", coils=2)(scan), whole) < 0.3


def test_compression_of_noise_of_one_level_keeps_the_strongest_components() -> None:
    prior, scan, _ = example("dds", noise=0.05)
    kspace, matrix = compress(scan.kspace, 2)
    maps = torch.einsum("vc,cyx->vyx", matrix, scan.maps)
    virtual = replace(scan, kspace=kspace, maps=maps, noise=NoiseModel(0.05**2 * torch.eye(2)))
    assert error(of(prior, "dds", coils=2)(scan), of(prior, "dds")(virtual)) < 1e-6


def test_maps_of_virtual_coils_are_those_of_all_coils() -> None:
    """What takes the image back to k-space of the scan needs maps of the scan's coils, and they say
    of the image what those of the virtual coils say."""
    prior, scan = unequal_scan()
    virtual = compressed(scan, 3, white=True)
    own = forward_model(virtual.scan)
    bound = of(prior, "dds", coils=3).bind(scan)
    all_coils = ForwardModel(scan.noise.whitening_matrix, bound.maps, scan.sampled, "given")
    torch.testing.assert_close(
        matched_filter(all_coils, scan.kspace), matched_filter(own, virtual.scan.kspace))
    image = bound(scan.kspace)
    torch.testing.assert_close(all_coils.encoding.gram(image), own.encoding.gram(image))
    torch.testing.assert_close(
        virtual.scan.noise.covariance, torch.eye(3, dtype=torch.complex128))
    # Virtual noise is what the matrix makes of the scan's.
    made = virtual.matrix @ scan.noise.covariance @ virtual.matrix.mH
    torch.testing.assert_close(made, virtual.scan.noise.covariance)
    risk = sure(of(prior, "dds", coils=3), scan, probes=4)
    assert 0 < risk.risk < 1
    assert noise_map(of(prior, "dds", coils=3), scan, max_passes=2, tolerance=0).g_factor.isfinite(
        ).all()


def test_compression_to_all_coils_changes_nothing_in_the_data() -> None:
    """Virtual coils carry the same signal: the root sum of squares of a full scan stays."""
    full = torch.ones(GRID, dtype=torch.bool)
    prior = smooth_prior(GRID)
    scan, image = toy_scan(prior, full, 3)
    assert error(of(prior, "4", coils=2)(scan), image.abs()) > 1e-3
    assert error(of(prior, "4", coils=3)(scan), image.abs()) < 1e-4


def test_an_image_that_is_not_real_is_noticed() -> None:
    prior, scan, _ = example("3")
    with pytest.warns(SnreconWarning, match="real image"):
        of(prior, "2").bind(scan)
    mapped = replace(scan, maps=torch.full_like(scan.kspace, 1j))
    with pytest.raises(InputError, match="phase"):
        of(prior, "2").bind(mapped)
    found = of(prior, "3")(mapped)
    assert error(fft(1j * found, AXES) * scan.sampled, scan.kspace[0]) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "6"}, "algorithm"),
        ({"steps": 0}, "steps"),
        ({"corrector_steps": -1}, "corrector_steps"),
        ({"m": 0}, "m of score"),
        ({"snr": 0.0}, "snr"),
        ({"eta": 1.5}, "eta"),
        ({"lambda_end": 2.0}, "lambda_end"),
        ({"start_sigma": 1000.0}, "start_sigma"),
        ({"scale": -1.0}, "scale"),
        ({"coils": 0}, "coils"),
        ({"as_published": True}, "as_published"),
        ({"start": 3}, "start"),
        ({"start": "sens"}, "sense"),
        ({"weights": 5}, "callable"),
        *(({name: value}, f"{name} of score must be a whole number of at least")
          for name in ("steps", "m", "corrector_steps", "cg_steps", "coils", "at_once")
          for value in (2.0, "8", "abc", float("nan"), float("inf"), True)),
        *(({name: value}, f"{name} of score must be a finite number")
          for name in ("snr", "scale", "start_sigma", "lambda_start", "lambda_end", "eta")
          for value in ("a", float("nan"), float("inf"), True)),
    ],
)
def test_settings(options, words) -> None:
    with pytest.raises(InputError, match=words):
        Score(**{"weights": smooth_prior(GRID), **options})


def test_numbers_of_numpy_are_numbers() -> None:
    _, scan, _ = example("dds", noise=0.05)
    prior = smooth_prior(GRID)
    plain = Score(prior, steps=3, cg_steps=2, eta=0.5)
    numpy = Score(prior, steps=np.int32(3), cg_steps=np.int64(2), eta=np.float32(0.5))
    assert torch.equal(numpy(scan), plain(scan))


def test_scans_that_do_not_fit() -> None:
    prior, scan, _ = example("4")
    for algorithm in ("2", "3"):
        with pytest.raises(InputError, match=r"4 .ssos.*5 .hybrid"):
            of(prior, algorithm).bind(scan)
    with pytest.raises(InputError, match="noise"):
        of(prior, "dds").bind(replace(scan, noise=None))
    assert of(prior, "4")(replace(scan, noise=None)).shape == GRID
    with pytest.raises(InputError, match="virtual coils"):
        of(prior, "4", coils=9).bind(scan)
    volume = replace(
        scan, kspace=scan.kspace[:, None].expand(-1, 2, -1, -1).clone(), maps=None, mask=None)
    with pytest.raises(InputError, match="2D"):
        of(prior, "4").bind(volume)


def gaussian_score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return -x / (0.1 + sigma**2)


@pytest.mark.parametrize(
    "answer",
    [
        lambda found: found[:, None],  # a channel axis, which would be taken for another batch
        lambda found: found.transpose(-1, -2)[:, :-1],
        lambda found: found + 0j,
        lambda found: found.numpy(),
        lambda found: found.round().long(),
        lambda found: None,
    ],
)
def test_what_a_score_returns_is_looked_at(answer) -> None:
    _, scan, _ = example("dds", noise=0.05)
    for recon in (
        Score(lambda x, sigma: answer(gaussian_score(x, sigma)), steps=2),
        Langevin(lambda x, sigma: answer(gaussian_score(x, sigma)), levels=1, steps=1, settle=0),
    ):
        with pytest.raises(InputError, match=r"real tensor of the shape \(batch, ky, kx\)"):
            recon(scan)


def test_a_score_in_another_precision() -> None:
    _, scan, _ = example("dds", noise=0.05)
    for data in (scan, scan.to(torch.complex64)):
        single = Score(lambda x, sigma: gaussian_score(x.float(), sigma.float()), steps=2)
        double = Score(lambda x, sigma: gaussian_score(x.double(), sigma.double()), steps=2)
        assert single(data).dtype == double(data).dtype == data.kspace.dtype
        assert error(single(data), double(data)) < 1e-4


@pytest.mark.parametrize("method", [Score, Langevin])
def test_callables_that_are_no_scores(method) -> None:
    for wrong in (lambda x: x, torch.nn.Conv2d(1, 1, 3), lambda x, sigma, more: x):
        with pytest.raises(InputError, match=r"called with \(x, sigma\)"):
            method(wrong)

    def stated(levels: object) -> object:
        def score(x, sigma):
            return gaussian_score(x, sigma)

        score.sigma_range = levels
        return score

    for levels in (3, (0.1,), (0.1, 1.0, 2.0), "ab", ("a", 1), None, lambda: (0.1, 1.0)):
        with pytest.raises(InputError, match="sigma_range of a score must be a pair"):
            method(stated(levels))
    for levels in ((1.0, 0.1), (0.0, 1.0), (0.1, float("nan")), (0.1, float("inf"))):
        with pytest.raises(InputError, match="0 < low < high"):
            method(stated(levels))


@pytest.mark.parametrize("algorithm", COILS)
def test_a_score_that_fails_is_seen_in_the_image(algorithm) -> None:
    _, scan, _ = example(algorithm)
    image = Score(lambda x, sigma: torch.nan * x, algorithm, steps=2)(scan)
    assert image.isnan().all()


def test_all_zero_data_gives_finite_images() -> None:
    for algorithm in COILS:
        prior, scan, _ = example(algorithm)
        empty = replace(scan, kspace=torch.zeros_like(scan.kspace))
        assert torch.isfinite(of(prior, algorithm)(empty)).all()


@pytest.mark.parametrize("white", [True, False])
def test_maps_of_virtual_coils_stand_for_whitened_maps_of_all(white) -> None:
    """Unequal noise: what is orthonormal are the virtual coils after whitening, not before."""
    _, scan = unequal_scan(3)
    found = compressed(scan, 2, white)
    assert found.scan.noise is not None
    assert scan.noise is not None
    back = found.back
    torch.testing.assert_close(back.mH @ back, torch.eye(2, dtype=back.dtype))
    # White noise of all coils, seen by the virtual ones and whitened there, is what `back` says.
    mixing = torch.linalg.inv(scan.noise.whitening_matrix)
    seen = found.scan.noise.whitening_matrix @ found.matrix @ mixing
    torch.testing.assert_close(seen, back.mH)


def test_a_score_of_ones_own_is_evaluated_not_trained() -> None:
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            return -self.drop(x)

    score = Dropping().train()
    _, scan = unequal_scan()
    recon = Score(weights=score, steps=3, scale=1.0)
    assert not score.training
    assert torch.equal(recon(scan), recon(scan))


def test_a_magnitude_is_no_start() -> None:
    """Nor one in the units of coil maps."""
    class Magnitude(Sense):
        def bind(self, scan, generator=None):
            bound = super().bind(scan)
            return replace(bound, function=lambda kspace: bound.function(kspace).abs(),
                           linear=False, linearize=None)

    prior, scan, _ = example("dds", noise=0.1)
    with pytest.raises(InputError, match="lost the coils' phase"):
        of(prior, "dds", start=Magnitude(lamda=0.1), start_sigma=1.0)(scan)
