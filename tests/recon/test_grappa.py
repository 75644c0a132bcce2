"""GRAPPA: exact on data that obey the kernel, linear, and quiet about what it measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.fourier import fft, grid_axes, ifft
from snrecon.recon import Grappa, Sense, ZeroFilled
from snrecon.recon.grappa_kernels import fit_weights, source_patterns


def sparse_maps(coils: int, grid: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Maps of a few low spatial harmonics, for which a small GRAPPA kernel is nearly exact."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.zeros(coils, *grid, dtype=torch.complex128)
    centre = tuple(slice(n // 2 - 1, n // 2 + 2) for n in grid)
    block = coefficients[(slice(None), *centre)]
    block.copy_(torch.randn(block.shape, dtype=torch.complex128, generator=generator))
    return ifft(coefficients, grid_axes(len(grid)))


def brainless_scan(small_scan, mask: torch.Tensor, coils: int = 6, noise: float = 1e-4):
    """Noise-free-like data of a random smooth object through known maps."""
    grid = tuple(mask.shape)
    scan = small_scan(mask, coils=coils, hole=False)
    maps = sparse_maps(coils, grid)
    generator = torch.Generator().manual_seed(5)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n).double() for n in grid], indexing="ij")
    image = torch.exp(-3 * sum(a**2 for a in axes)).to(torch.complex128)
    image = image * (1 + 0.3 * torch.randn(grid, dtype=torch.complex128, generator=generator))
    full = fft(maps * image, grid_axes(len(grid)))
    return replace(scan, kspace=full * mask, maps=maps), image


@pytest.mark.parametrize(
    "sampled",
    [
        sorted({*range(0, 48, 2), *range(16, 32)}),
        sorted({*range(1, 48, 3), *range(16, 32)}),
        sorted({0, 2, 4, 7, 9, 12, 14, *range(16, 32), 33, 35, 37, 40, 42, 45, 47}),
    ],
    ids=["R=2", "R=3", "irregular"],
)
def test_missing_lines_are_found(sampled, small_scan, lines) -> None:
    scan, image = brainless_scan(small_scan, lines((48, 40), sampled))
    found = Grappa(lamda_calibration=1e-9).bind(scan)(scan.kspace)
    zero = ZeroFilled().bind(scan)(scan.kspace)
    power = (ZeroFilled().bind(scan).maps.abs() ** 2).sum(0)
    error = float((found - image).norm() / image.norm())
    assert error < 0.12
    assert error < 0.4 * float((zero * power - image).norm() / image.norm())


def test_in_the_plane_of_a_volume(small_scan, lines) -> None:
    grid = (16, 24, 10)
    mask = lines(grid, list(range(0, 16, 2)), axis=-3) & lines(grid, list(range(0, 24, 2)), axis=-2)
    mask = mask | (lines(grid, list(range(4, 12)), -3) & lines(grid, list(range(7, 17)), -2))
    scan, image = brainless_scan(small_scan, mask, coils=10)
    bound = Grappa((2, 3), lamda_calibration=1e-9).bind(scan)
    zero = ZeroFilled().bind(scan)
    power = (zero.maps.abs() ** 2).sum(0)
    error = (bound(scan.kspace) - image).norm()
    assert error < 0.4 * (zero(scan.kspace) * power - image).norm()


def test_slices_of_a_volume_are_calibrated_apart(small_scan, lines) -> None:
    """A volume undersampled along ky only equals its slices reconstructed one by one."""
    sampled = sorted({*range(0, 24, 2), *range(8, 16)})
    scan = small_scan(lines((3, 24, 12), sampled), coils=3)
    volume = Grappa().bind(scan)(scan.kspace)
    slices = ifft(scan.kspace, (-3,))
    for z in range(3):
        one = replace(
            scan, kspace=slices[:, z], mask=scan.sampled[z], maps=scan.maps[:, z]
        )
        image = Grappa().bind(one)(one.kspace)
        assert (image - volume[z]).abs().max() < 1e-10 * volume.abs().max()


def test_fully_sampled_is_sense(small_scan, lines) -> None:
    """Nothing to fill: the measured samples are kept, and the combination is the optimal one."""
    scan = small_scan(lines((12, 10), list(range(12))), coils=3)
    expected = Sense()(scan)
    assert (Grappa()(scan) - expected).abs().max() < 1e-10 * expected.abs().max()


def test_weights_by_hand() -> None:
    """One pattern against a loop over every equation in numpy."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=(2, 1, 7, 9)) + 1j * rng.normal(size=(2, 1, 7, 9))
    offsets, taps, ridge = ((0, -1), (0, 1), (0, 3)), 3, 1e-2
    rows, targets = [], []
    for i in range(1, 4):
        for x in range(1, 8):
            rows.append([block[c, 0, i + o, x + s] for c in range(2) for _, o in offsets
                         for s in (-1, 0, 1)])
            targets.append(block[:, 0, i, x])
    a, b = np.array(rows), np.array(targets)
    normal = a.conj().T @ a
    normal += ridge * np.mean(np.diag(normal).real) * np.eye(len(normal))
    expected = np.linalg.solve(normal, a.conj().T @ b).T.reshape(2, 6, 3)
    found = fit_weights(torch.from_numpy(block), offsets, taps, ridge).numpy()
    assert np.abs(found - expected).max() < 1e-10


def test_convolution_by_hand(small_scan, lines) -> None:
    """The whole reconstruction against the k-space sum, written as loops."""
    sampled = sorted({*range(0, 12, 2), *range(4, 9)})
    scan = small_scan(lines((12, 8), sampled), coils=2, hole=False)
    y = np.einsum(
        "ab,bkx->akx",
        np.linalg.inv(np.linalg.cholesky(scan.noise.covariance.numpy())),
        scan.kspace.numpy(),
    )
    plane = scan.sampled[:, :1].T
    patterns = source_patterns(plane, (1, 5), 1, 2 * 3, 6)
    full = y.copy()
    block = torch.from_numpy(y[:, None, 4:9])
    for pattern in patterns:
        weights = fit_weights(block, pattern.offsets, 3, 1e-3).numpy().reshape(2, 2, -1, 3)
        for target in pattern.targets.tolist():
            for x in range(8):
                for s, (_, o) in enumerate(pattern.offsets):
                    for t in (-1, 0, 1):
                        source = y[:, target + o, (x + t) % 8]
                        full[:, target, x] += weights[:, :, s, t + 1] @ source
    images = np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(full, axes=(1, 2)), norm="ortho"), axes=(1, 2)
    )
    maps = np.einsum(
        "ab,bkx->akx",
        np.linalg.inv(np.linalg.cholesky(scan.noise.covariance.numpy())),
        scan.maps.numpy(),
    )
    expected = (maps.conj() * images).sum(0) / (np.abs(maps) ** 2).sum(0)
    found = Grappa((2, 3), lamda_calibration=1e-3).bind(scan)(scan.kspace).numpy()
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("grid", [(12, 8), (2, 12, 6)])
def test_linear(grid, small_scan, lines, check_linear) -> None:
    scan = small_scan(lines(grid, sorted({*range(0, 12, 3), *range(3, 9)})), coils=3)
    bound = Grappa().bind(scan)
    check_linear(bound, scan)
    assert bound.frozen == ("GRAPPA kernel",)


def test_masks_it_cannot_do(small_scan, lines) -> None:
    with pytest.raises(InputError, match="calibration"):
        Grappa().bind(small_scan(lines((12, 8), list(range(0, 12, 2)))))
    both = lines((3, 12, 8), [0, 2], -3) & lines((3, 12, 8), [0, 2], -2)
    scan = small_scan(both & lines((3, 12, 8), [0, 2, 4], -1))
    with pytest.raises(InputError, match="fully sampled axis"):
        Grappa().bind(scan)
    with pytest.raises(InputError, match="kernel"):
        Grappa(kernel=4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kernel"):
        Grappa(kernel=(0, 5))


@pytest.mark.parametrize("kernel", [(5, 5), (1, 5), (4.5, 5), (4, 4.5)])
def test_a_kernel_has_lines_on_both_sides(kernel: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="even number of lines"):
        Grappa(kernel=kernel)
