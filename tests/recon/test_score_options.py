"""Which scans, grids and options the samplers take, and what they say to others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from score_scans import AXES, COILS, GRID, error, example, mask_2d, of, smooth_prior, toy_scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.recon.score import Score


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
    ],
)
def test_settings(options, words) -> None:
    with pytest.raises(InputError, match=words):
        Score(**{"weights": smooth_prior(GRID), **options})


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
