"""Partial Fourier against hand formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.fourier import fft, grid_axes
from snrecon.recon import PartialFourier, Sense, ZeroFilled
from snrecon.recon.partial_fourier import asymmetric_sampling


def test_detection(lines) -> None:
    found = asymmetric_sampling(lines((16, 6), list(range(5, 16))))
    assert (found.axis, found.half_width) == (-2, 3)
    found = asymmetric_sampling(lines((4, 12, 6), list(range(9)), axis=-2))
    assert (found.axis, found.half_width) == (-2, 2)
    found = asymmetric_sampling(lines((16, 4, 6), list(range(4, 16)), axis=-3))
    assert (found.axis, found.half_width) == (-3, 4)
    # Zero padding on the far side as well.
    assert asymmetric_sampling(lines((16, 6), list(range(5, 15)))).half_width == 3


@pytest.mark.parametrize(
    "sampled",
    [
        list(range(16)),
        list(range(4, 13)),
        list(range(1, 16)),
        [*range(5, 12), 13, 15],
        list(range(8, 16)),
        list(range(3)),
    ],
)
def test_other_masks_are_refused(sampled, small_scan, lines) -> None:
    scan = small_scan(lines((16, 6), sampled))
    with pytest.raises(InputError, match="partial_fourier needs"):
        PartialFourier().bind(scan)


def test_two_axes_are_refused(small_scan, lines) -> None:
    mask = lines((16, 6), list(range(5, 16))) & lines((16, 6), list(range(1, 6)), axis=-1)
    with pytest.raises(InputError, match="2 axes"):
        PartialFourier().bind(small_scan(mask))


@pytest.mark.parametrize("kind", ["ramp", "step"])
@pytest.mark.parametrize(
    ("n", "first", "last"), [(16, 5, 15), (16, 0, 10), (15, 4, 14), (16, 5, 14)]
)
def test_weights_of_partners_add_to_two(kind, n, first, last, lines) -> None:
    sampling = asymmetric_sampling(lines((n, 4), list(range(first, last + 1))))
    weights = sampling.weights(kind).flatten().tolist()
    centre = n // 2
    for i, weight in enumerate(weights):
        partner = (2 * centre - i) % n
        if first <= i <= last or first <= partner <= last:
            assert weight + weights[partner] == pytest.approx(2)
        if not first <= i <= last:
            assert weight == 0


@pytest.mark.parametrize("kind", ["homodyne", "pocs"])
@pytest.mark.parametrize("grid", [(32, 16), (4, 32, 6)])
def test_an_object_of_known_phase_comes_back(kind, grid, small_scan, lines) -> None:
    """Noise-free data of a positive object with the given phase. Homodyne is exact when the phase
    does not change along the cut axis, and an approximation otherwise; POCS does not mind."""
    sampled = list(range(12, 32))
    scan = small_scan(lines(grid, sampled), coils=1, hole=False, normalised=True)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n).double() for n in grid], indexing="ij")
    magnitude = torch.exp(-3 * sum(a**2 for a in axes)) * (1.2 + torch.cos(9 * axes[-2]))
    phase = 0.4 * axes[-1] ** 2 + (0.7 * axes[-2] if kind == "pocs" else 0.2)
    flat = replace(scan, maps=torch.ones_like(scan.maps), noise=None)
    image = torch.polar(magnitude, phase)
    data = fft(image, grid_axes(len(grid))).unsqueeze(0) * scan.sampled
    recon = PartialFourier(kind, iterations=100, phase=phase)
    found = recon.bind(flat)(data)
    zero = ZeroFilled().bind(flat)(data)
    error = (found - image).abs().max() / image.abs().max()
    assert error < 3e-3
    assert error < 0.1 * (zero - image).abs().max() / image.abs().max()


def test_homodyne_formula(small_scan, lines, dense_encoding) -> None:
    """The whole map as a numpy matrix, step weights and given phase."""
    grid = (12, 5)
    scan = small_scan(lines(grid, list(range(4, 12))), coils=3)
    phase = torch.randn(grid, dtype=torch.float64)
    bound = PartialFourier("homodyne", weighting="step", phase=phase).bind(scan)
    weights = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2.0])
    white = np.linalg.solve(
        np.linalg.cholesky(scan.noise.covariance.numpy()), scan.kspace.numpy().reshape(3, -1)
    )
    weighted = (white.reshape(3, *grid) * weights[:, None]).ravel()
    combined = (dense_encoding(scan).conj().T @ weighted).reshape(grid)
    u = np.exp(1j * phase.numpy())
    expected = u * (u.conj() * combined).real
    assert np.abs(bound(scan.kspace).numpy() - expected).max() < 1e-12 * np.abs(expected).max()
    assert bound.frozen == ()


def test_zero_filled_noise_is_the_root_of_the_fraction(small_scan, lines, dense_encoding) -> None:
    from snrecon.physics.thermal import NoiseColouring

    grid = (16, 8)
    scan = small_scan(lines(grid, list(range(5, 16))), coils=3, normalised=True, hole=False)
    bound = PartialFourier("zero_filled").bind(scan)
    assert torch.equal(bound(scan.kspace), ZeroFilled()(scan))
    a = dense_encoding(scan)
    variance = (np.abs(a.conj().T) ** 2).sum(1)
    assert np.allclose(variance, 11 / 16)
    # Homodyne: sigma^2 = mean(w^2) / 2, along the phase only.
    generator = torch.Generator().manual_seed(0)
    colouring = NoiseColouring.of(scan)
    draws = torch.stack([colouring.sample(generator) for _ in range(2000)])
    homodyne = PartialFourier("homodyne", weighting="step").bind(scan)
    unit = homodyne(scan.kspace)
    unit = unit / unit.abs()
    noise = unit.conj() * homodyne(draws)
    weights = np.array([0] * 5 + [1] * 7 + [2] * 4)
    assert float(noise.imag.abs().max()) < 1e-12
    expected = np.sqrt((weights**2).mean() / 2)
    assert float(noise.real.std()) == pytest.approx(expected, rel=0.01)


def test_pocs_converges_to_the_best_image_of_that_phase(small_scan, lines, dense_encoding, white):
    """With several coils the alternation solves min |A u r - y|^2 over real r."""
    grid = (12, 5)
    scan = small_scan(lines(grid, list(range(4, 12))), coils=3, normalised=True)
    phase = 0.3 * torch.randn(grid, dtype=torch.float64)
    bound = PartialFourier("pocs", iterations=4000, phase=phase).bind(scan)
    a = dense_encoding(scan) * np.exp(1j * phase.numpy().ravel())
    real = np.concatenate([a.real, a.imag])
    y = white(scan)
    solution = np.linalg.pinv(real, rcond=1e-10) @ np.concatenate([y.real, y.imag])
    expected = solution.reshape(grid) * np.exp(1j * phase.numpy())
    image = bound(scan.kspace).numpy()
    assert np.abs(image - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["homodyne", "pocs", "zero_filled"])
@pytest.mark.parametrize("grid", [(16, 6), (3, 16, 4)])
def test_linear(kind, grid, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines(grid, list(range(5, 16))), coils=3)
    bound = PartialFourier(kind, iterations=5).bind(scan)
    check_linear(bound, scan)
    assert ("low-resolution phase" in bound.frozen) == (kind != "zero_filled")


@pytest.mark.parametrize("kind", ["homodyne", "pocs"])
def test_live_phase(kind, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines((16, 6), list(range(5, 16))), coils=3)
    bound = PartialFourier(kind, iterations=4, freeze_phase=False).bind(scan)
    check_linear(bound, scan, linear=False)
    assert bound.frozen == ()
    frozen = PartialFourier(kind, iterations=4).bind(scan)
    assert torch.allclose(frozen(scan.kspace), bound(scan.kspace))
    v = torch.randn_like(scan.kspace)
    _, tangent = torch.func.jvp(bound.function, (scan.kspace,), (v,))
    step = 1e-6
    central = (bound(scan.kspace + step * v) - bound(scan.kspace - step * v)) / (2 * step)
    assert (tangent - central).abs().max() < 1e-6 * tangent.abs().max()


def test_full_sampling_limit(small_scan, lines) -> None:
    """Several coils: close to SENSE of the full scan (coil phases vary, so it is not exact)."""
    grid = (32, 12)
    full = small_scan(lines(grid, list(range(32))), coils=3, normalised=True)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n).double() for n in grid], indexing="ij")
    image = torch.polar(torch.exp(-4 * (axes[0] ** 2 + axes[1] ** 2)), 0.5 * axes[1])
    scan = replace(full, kspace=fft(full.maps * image, (-2, -1)))
    part = scan.undersample(lines(grid, list(range(11, 32))))
    expected = Sense()(scan)
    found = PartialFourier("homodyne")(part)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_bad_options(small_scan, lines) -> None:
    with pytest.raises(InputError, match="homodyne, pocs"):
        PartialFourier("half")
    with pytest.raises(InputError, match="ramp"):
        PartialFourier(weighting="hann")
    with pytest.raises(InputError, match="radians"):
        PartialFourier(phase=torch.ones(4, dtype=torch.complex64))
    scan = small_scan(lines((16, 6), list(range(5, 16))))
    with pytest.raises(InputError, match="shape"):
        PartialFourier(phase=torch.zeros(3, 3)).bind(scan)
    with pytest.raises(InputError, match="shape"):
        PartialFourier(phase=np.zeros((3, 3))).bind(scan)
