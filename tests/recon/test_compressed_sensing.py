"""Total variation and wavelets: the right minimiser, the right derivative, a useful image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch

from snrecon.errors import InputError
from snrecon.physics.phantom import simulate_scan
from snrecon.physics.proximal import group_projection, soft_threshold
from snrecon.recon import Sense, TotalVariation, WaveletL1, ZeroFilled
from snrecon.recon.forward_model import forward_model
from snrecon.recon.tangents import group_projection_tangents, soft_threshold_tangents

METHODS = {"tv": TotalVariation, "wavelet": WaveletL1}
LINES = [0, 2, 5, 6, 7, 8, 9, 12, 14]


def tv_penalty(image: np.ndarray) -> float:
    """Isotropic total variation, periodic, by hand."""
    steps = [np.roll(image, -1, axis) - image for axis in range(image.ndim)]
    return float(np.sqrt(sum(np.abs(s) ** 2 for s in steps)).sum())


def wavelet_penalty(image: np.ndarray) -> float:
    """Sum of the magnitudes of the detail coefficients, by PyWavelets."""
    filters = pywt.Wavelet("db4")
    levels = 0
    while image.shape[0] // 2 ** (levels + 1) >= filters.dec_len - 1:
        levels += 1
    parts = [
        pywt.wavedec2(part, filters, mode="periodization", level=levels)
        for part in (image.real, image.imag)
    ]
    total = 0.0
    for real, imag in zip(parts[0][1:], parts[1][1:]):
        total += sum(np.hypot(r, i).sum() for r, i in zip(real, imag))
    return float(total)


PENALTIES: dict[str, Callable[[np.ndarray], float]] = {"tv": tv_penalty, "wavelet": wavelet_penalty}


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_the_stated_objective_is_minimised(
    method, small_scan, lines, dense_encoding, white
) -> None:
    """No small change of the image lowers the objective, computed from scratch in numpy."""
    grid = (16, 16)
    scan = small_scan(lines(grid, LINES), coils=4, hole=False, normalised=True)
    lamda = 0.3
    image = METHODS[method](lamda, iterations=3000)(scan).numpy()
    a, y = dense_encoding(scan), white(scan)

    def objective(x: np.ndarray) -> float:
        misfit = a @ x.ravel() - y
        return 0.5 * float((np.abs(misfit) ** 2).sum()) + lamda * PENALTIES[method](x)

    best = objective(image)
    rng = np.random.default_rng(0)
    scale = np.abs(image).max()
    directions = [rng.normal(size=grid) + 1j * rng.normal(size=grid) for _ in range(10)]
    directions += [image, 1j * image, np.ones(grid), image - np.roll(image, 1, 0)]
    for direction in directions:
        direction = direction / np.abs(direction).max() * scale
        for step in (1e-2, 1e-3, -1e-3, -1e-2):
            assert objective(image + step * direction) > best * (1 - 1e-9)
    # And it is a minimum that says something: far below its neighbours in lambda.
    assert objective(METHODS[method](3 * lamda, iterations=1000)(scan).numpy()) > best * 1.001
    assert objective(METHODS[method](lamda / 3, iterations=1000)(scan).numpy()) > best * 1.001


@pytest.mark.parametrize("method", ["tv", "wavelet"])
@pytest.mark.parametrize("grid", [(16, 16), (4, 16, 8)])
def test_transforms(method, grid, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines(grid, LINES), coils=3)
    bound = METHODS[method](0.2, iterations=8).bind(scan)
    check_linear(bound, scan, linear=False)


@pytest.mark.parametrize("method", ["tv", "wavelet"])
@pytest.mark.parametrize("grid", [(16, 16), (4, 16, 8)])
def test_derivative(method, grid, small_scan, lines) -> None:
    """Both derivatives, of torch.func and of the side-by-side iteration, against differences."""
    scan = small_scan(lines(grid, LINES), coils=3)
    bound = METHODS[method](0.2, iterations=30).bind(scan)
    generator = torch.Generator().manual_seed(2)
    tangents = torch.randn(3, *scan.kspace.shape, dtype=torch.complex128, generator=generator)
    tangents = tangents * scan.sampled
    value, product = bound.linearize(scan.kspace)
    assert torch.allclose(value, bound(scan.kspace), rtol=1e-12)
    found = product(tangents)
    step = 1e-6
    for tangent, ours in zip(tangents, found):
        _, forward = torch.func.jvp(bound.function, (scan.kspace,), (tangent,))
        assert (forward - ours).abs().max() < 1e-10 * ours.abs().max()
        central = (bound(scan.kspace + step * tangent) - bound(scan.kspace - step * tangent)) / (
            2 * step
        )
        assert (central - ours).abs().max() < 1e-6 * ours.abs().max()


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_thresholds_with_tangents(threshold) -> None:
    x = torch.randn(4, 5, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 0

    def soft(v: torch.Tensor) -> torch.Tensor:
        return soft_threshold(v, threshold)

    def project(v: torch.Tensor) -> torch.Tensor:
        return group_projection(v, threshold, -2)

    pairs = [(soft, soft_threshold_tangents(x, threshold))]
    if threshold:
        pairs.append((project, group_projection_tangents(x, threshold, -2)))
    for function, found in pairs:
        assert torch.allclose(found[0], function(x[0]))
        for tangent, ours in zip(x[1:], found[1:]):
            expected = torch.func.jvp(function, (x[0],), (tangent,))[1]
            assert torch.allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_no_penalty_is_least_squares(method, small_scan, lines) -> None:
    scan = small_scan(lines((16, 16), list(range(16))), coils=3, normalised=True)
    image = METHODS[method](0.0, iterations=300)(scan)
    expected = Sense()(scan)
    assert (image - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.fixture(scope="module")
def brain():
    """An undersampled scan and the noise-free, fully sampled image in the same units."""
    scan = simulate_scan((96, 96), 8, acceleration=4, calibration=16, snr=25, seed=2)
    clean = simulate_scan((96, 96), 8, acceleration=1, snr=1e7, seed=2)
    model = forward_model(scan)
    scan = replace(scan, maps=scan.noise.unwhiten(model.maps))
    truth = ZeroFilled().bind(replace(clean, maps=scan.maps, noise=scan.noise))(clean.kspace)
    return scan, truth


def test_better_than_the_linear_methods(brain) -> None:
    scan, truth = brain
    head = truth.abs() > 0.1 * truth.abs().max()

    def error(recon) -> float:
        image = recon(scan)
        return float((image - truth)[head].norm() / truth[head].norm())

    errors = {m: error(METHODS[m]()) for m in METHODS}
    linear = {"zero_filled": error(ZeroFilled())}
    linear |= {f"sense {lamda}": error(Sense(lamda)) for lamda in (0.003, 0.01, 0.03, 0.1)}
    assert errors["tv"] < 0.9 * min(linear.values()), (errors, linear)
    assert errors["wavelet"] < 0.95 * min(linear.values()), (errors, linear)


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_iterations_are_enough(method, brain) -> None:
    """At the chosen number of steps the last one changes the image by less than 1e-3."""
    scan, _ = brain
    recon = METHODS[method]()
    image = recon(scan)
    longer = METHODS[method](iterations=recon.iterations + 1)(scan)
    assert float((image - longer).norm() / image.norm()) < 1e-3


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_automatic_lambda(method, brain) -> None:
    """Near the best lambda of a scan, and unchanged by the scale of the data."""
    scan, truth = brain
    bound = METHODS[method]().bind(scan)
    lamda = bound.details["lambda"]
    assert "lambda" in bound.frozen
    head = truth.abs() > 0.1 * truth.abs().max()

    def error(value: float) -> float:
        image = METHODS[method](value)(scan)
        return float((image - truth)[head].norm() / truth[head].norm())

    assert error(lamda) < 1.25 * min(error(lamda * factor) for factor in (0.25, 0.5, 2, 4))
    scaled = replace(scan, kspace=scan.kspace * 50, noise=scan.noise.scaled(50))
    # Given maps are not renormalised: the same object in units 50 times smaller.
    again = METHODS[method]().bind(replace(scaled, maps=scaled.maps * 50))
    assert again.details["lambda"] == pytest.approx(lamda, rel=1e-4)


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_settings(method, small_scan, lines) -> None:
    scan = small_scan(lines((16, 16), LINES), coils=3)
    silent = replace(scan, noise=None)
    with pytest.raises(InputError, match="noise"):
        METHODS[method]().bind(silent)
    assert METHODS[method](0.1, iterations=2)(silent).shape == (16, 16)
    with pytest.raises(InputError, match="lambda"):
        METHODS[method](-1)
    with pytest.raises(InputError, match="iteration"):
        METHODS[method](iterations=0)
    single = METHODS[method](0.1, iterations=2)(scan.to(torch.complex64))
    assert single.dtype == torch.complex64
