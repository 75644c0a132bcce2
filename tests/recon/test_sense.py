"""SENSE against an independent dense pseudo-inverse and against sigpy."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import noise_map, roi
from snrecon.physics.operators import Encoding, dense
from snrecon.recon import Sense
from snrecon.recon.lattice import regular_lattice


def regularised(a: np.ndarray, y: np.ndarray, lamda: float) -> np.ndarray:
    """Minimiser by the pseudo-inverse of the augmented system."""
    if lamda == 0:
        return np.linalg.pinv(a, rcond=1e-11) @ y
    whole = np.concatenate([a, np.sqrt(lamda) * np.eye(a.shape[1])])
    return np.linalg.lstsq(whole, np.concatenate([y, np.zeros(a.shape[1])]), rcond=None)[0]


def sheared(grid: tuple[int, int]) -> torch.Tensor:
    y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    return (y % 2 == 1) & ((x + y // 2) % 2 == 0)


REGULAR = [1, 3, 5, 7]
IRREGULAR = [0, 2, 3, 4, 5, 8, 11]


@pytest.mark.parametrize("lamda", [0.0, 0.3])
@pytest.mark.parametrize(
    ("solver", "grid", "sampled"),
    [
        ("unfold", (8, 8), REGULAR),
        ("unfold", (9, 8), [0, 3, 6]),
        ("unfold", (3, 8, 4), REGULAR),
        ("unfold", (8, 8), list(range(8))),
        ("lines", (8, 8), REGULAR),
        ("lines", (12, 9), IRREGULAR),
        ("lines", (3, 12, 4), IRREGULAR),
        ("cg", (8, 8), REGULAR),
        ("cg", (12, 9), IRREGULAR),
        ("auto", (12, 9), IRREGULAR),
    ],
)
def test_dense_pseudo_inverse(
    solver, grid, sampled, lamda, small_scan, lines, dense_encoding, white
) -> None:
    scan = small_scan(lines(grid, sampled), coils=4)
    bound = Sense(lamda, solver=solver, iterations=2000, tolerance=1e-13).bind(scan)
    expected = regularised(dense_encoding(scan), white(scan), lamda).reshape(grid)
    image = bound(scan.kspace).numpy()
    assert np.abs(image - expected).max() < 1e-8 * np.abs(expected).max()
    assert (image[(slice(0, 2),) * len(grid)] == 0).all()


@pytest.mark.parametrize("grid", [(8, 8), (8, 8, 4)])
def test_two_dimensional_lattices(grid, small_scan, dense_encoding, white) -> None:
    mask = sheared(grid[:2])
    if len(grid) == 3:
        mask = mask.unsqueeze(-1).expand(grid).clone()
    lattice = regular_lattice(mask)
    assert lattice is not None
    assert lattice.acceleration == 4
    scan = small_scan(mask, coils=5)
    bound = Sense(solver="unfold").bind(scan)
    expected = regularised(dense_encoding(scan), white(scan), 0).reshape(grid)
    assert np.abs(bound(scan.kspace).numpy() - expected).max() < 1e-8 * np.abs(expected).max()
    assert Sense().bind(scan).details["solver"] == "unfold"


@pytest.mark.parametrize("solver", ["unfold", "lines", "cg"])
def test_more_unknowns_than_coils(solver, small_scan, lines, dense_encoding, white) -> None:
    """The minimum-norm image, when four voxels fold onto two coils."""
    scan = small_scan(lines((8, 6), [0, 4]), coils=2)
    bound = Sense(solver=solver, iterations=500, tolerance=1e-13).bind(scan)
    expected = regularised(dense_encoding(scan), white(scan), 0).reshape(8, 6)
    assert np.abs(bound(scan.kspace).numpy() - expected).max() < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("solver", ["unfold", "lines", "cg"])
def test_linear(solver, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines((8, 6), REGULAR), coils=4)
    bound = Sense(0.1, solver=solver, iterations=500, tolerance=1e-14).bind(scan)
    check_linear(bound, scan, tolerance=1e-9)


@pytest.mark.parametrize("solver", ["unfold", "lines", "cg"])
def test_linear_3d(solver, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines((2, 6, 4), [0, 2, 4]), coils=3)
    bound = Sense(0.1, solver=solver, iterations=500, tolerance=1e-14).bind(scan)
    check_linear(bound, scan, tolerance=1e-9)


def test_lattice_detection(lines) -> None:
    assert regular_lattice(lines((12, 4), [2, 5, 8, 11])).acceleration == 3
    assert regular_lattice(lines((12, 4), list(range(12)))).acceleration == 1
    assert regular_lattice(lines((12, 4), [0, 3, 6, 10])) is None
    assert regular_lattice(lines((12, 4), [0, 3, 5, 6, 9])) is None
    assert regular_lattice(lines((10, 4), [0, 4, 8])) is None
    assert regular_lattice(lines((8, 4), [0, 1])) is None
    both = lines((8, 4), REGULAR) & lines((8, 4), [0, 2], axis=-1)
    assert regular_lattice(both).acceleration == 4


@pytest.mark.parametrize("solver", ["auto", "cg"])
def test_single_precision_agrees_with_double(solver, small_scan, lines) -> None:
    """Also where the normal equations are too ill conditioned for single precision."""
    scan = small_scan(lines((32, 16), [0, 3, 7, 10, *range(13, 19), 22, 26, 29]), coils=6)
    exact = Sense(1e-3, solver=solver, iterations=1000).bind(scan)(scan.kspace)
    single = scan.to(torch.complex64)
    image = Sense(1e-3, solver=solver, iterations=1000).bind(single)(single.kspace)
    assert image.dtype == torch.complex64
    assert (image - exact).abs().max() < 1e-4 * exact.abs().max()


def test_sigpy(small_scan, lines) -> None:
    app = pytest.importorskip("sigpy.mri.app")
    scan = small_scan(lines((16, 12), [0, 2, 5, 7, 8, 9, 11, 14]), coils=4)
    whitener = np.linalg.inv(np.linalg.cholesky(scan.noise.covariance.numpy()))
    y = np.einsum("ab,byx->ayx", whitener, scan.kspace.numpy())
    maps = np.einsum("ab,byx->ayx", whitener, scan.maps.numpy())
    weights = scan.sampled.numpy().astype(float)
    lamda = 0.05
    reference = app.SenseRecon(
        y, maps, lamda=lamda, weights=weights, max_iter=500, tol=1e-12, show_pbar=False
    ).run()
    for solver in ("lines", "cg"):
        bound = Sense(lamda, solver=solver, iterations=500, tolerance=1e-12).bind(scan)
        image = bound(scan.kspace).numpy()
        assert np.abs(image - reference).max() < 1e-4 * np.abs(reference).max()


def test_noise_of_regular_undersampling(small_scan, lines, dense_encoding) -> None:
    """Noise in, closed-form standard deviation out, within the sampling error of the draws."""
    from snrecon.physics.thermal import NoiseColouring

    scan = small_scan(lines((8, 8), REGULAR), coils=4)
    bound = Sense().bind(scan)
    colouring, generator = NoiseColouring.of(scan), torch.Generator().manual_seed(1)
    draws = torch.stack([colouring.sample(generator) for _ in range(4000)])
    measured = bound(draws).abs().square().mean(0).sqrt().numpy()
    variance = np.linalg.pinv(dense_encoding(scan).conj().T @ dense_encoding(scan), rcond=1e-12)
    expected = np.sqrt(variance.diagonal().real.clip(min=0)).reshape(8, 8)
    inside = expected > 1e-6 * expected.max()
    assert np.abs(measured[inside] / expected[inside] - 1).max() < 5 / np.sqrt(2 * 4000) * 1.5
    assert abs((measured[inside] / expected[inside]).mean() - 1) < 0.01


def test_one_coil_without_maps(lines) -> None:
    from snrecon.data import Scan

    mask = lines((8, 8), [1, 3, 4, 5, 7])
    scan = Scan(torch.randn(1, 8, 8, dtype=torch.complex128) * mask, mask)
    bound = Sense().bind(scan)
    assert torch.allclose(bound.maps, torch.ones_like(bound.maps))
    assert bound.frozen == ()


def test_bad_options(small_scan, lines) -> None:
    with pytest.raises(InputError, match="lambda"):
        Sense(-1)
    with pytest.raises(InputError, match="lambda"):
        Sense(float("nan"))
    with pytest.raises(InputError, match="solver"):
        Sense(solver="lu")
    scan = small_scan(lines((8, 8), [0, 1, 4]))
    with pytest.raises(InputError, match="regular"):
        Sense(solver="unfold").bind(scan)
    scan = small_scan(lines((8, 8), [0, 1, 4]) & lines((8, 8), [0, 1, 4], axis=-1))
    with pytest.raises(InputError, match="one axis"):
        Sense(solver="lines").bind(scan)


def test_ill_conditioned_sense_says_so(small_scan) -> None:
    mask = torch.zeros(12, 10, dtype=torch.bool)
    mask[[0, 5, 6, 7]] = True  # gaps that three coils cannot bridge
    scan = small_scan(mask, coils=3)
    with pytest.warns(SnreconWarning, match="ill-conditioned"):
        Sense().bind(scan)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SnreconWarning)
        Sense(lamda=1.0).bind(scan)


def test_regions_that_reach_into_air(small_scan) -> None:
    """Cotangents outside the range of the normal equations: there is no noise where maps are 0."""
    generator = torch.Generator().manual_seed(3)
    scan = small_scan(torch.rand(12, 10, generator=generator) < 0.6)
    maps = scan.maps.clone()
    maps[..., :3] = 0
    scan = replace(scan, maps=maps)
    region, head = torch.zeros(12, 10, dtype=torch.bool), torch.zeros(12, 10, dtype=torch.bool)
    region[4:7], head[4:7, 3:] = True, True
    whole, inside = (roi(Sense(solver="cg"), scan, one.double() / region.sum())
                     for one in (region, head))
    assert 0 < whole.sd < 10
    assert whole.sd == pytest.approx(inside.sd, rel=1e-6)


@pytest.mark.parametrize("coils", [1, 2])
def test_exact_rows_where_too_little_is_sampled(coils: int) -> None:
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(12, 10, generator=generator) < 0.3
    maps = torch.randn(coils, 12, 10, dtype=torch.complex128, generator=generator)
    kspace = torch.randn(coils, 12, 10, dtype=torch.complex128, generator=generator) * mask
    scan = Scan(kspace, mask, maps, NoiseModel(torch.eye(coils, dtype=torch.complex128)))
    recon = Sense(solver="cg")
    exact = noise_map(recon, scan, estimator="exact").sigma
    inverse = np.linalg.pinv(dense(Encoding(maps, mask)).numpy(), rcond=1e-10)
    wanted = np.sqrt((np.abs(inverse) ** 2).sum(1) / 2).reshape(12, 10)
    np.testing.assert_allclose(exact.numpy(), wanted, rtol=1e-5, atol=1e-8)


def test_more_iterations_do_not_run_away_in_single_precision(small_scan) -> None:
    generator = torch.Generator().manual_seed(5)
    scan = small_scan(torch.rand(16, 14, generator=generator) < 0.35, coils=2,
                      dtype=torch.complex64)
    region = torch.zeros(16, 14, dtype=torch.bool)
    region[8] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)
        few, many = (roi(Sense(solver="cg", iterations=n, tolerance=1e-7), scan, region).sd
                     for n in (500, 5000))
    assert many == pytest.approx(few, rel=0.2)
