"""Thermal noise of a scan against covariance matrices written in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.physics.operators import dense
from snrecon.physics.thermal import NoiseColouring
from support import random_complex

COILS = 3


def psi() -> np.ndarray:
    """Strongly correlated, complex, unequal coils."""
    root = np.array([[2, 0, 0], [0.8 - 0.9j, 1, 0], [0.5j, -0.4 + 0.2j, 0.5]])
    return root @ root.conj().T


def centred_dft(n: int) -> np.ndarray:
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


def sampled(grid: tuple[int, ...]) -> torch.Tensor:
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[..., ::2, :] = True
    mask.view(-1)[1] = True
    return mask


def wanted_covariance(grid: tuple[int, ...], spectrum: np.ndarray | None) -> np.ndarray:
    """E[n n^H] over (coil, grid): Psi, times the readout's covariance, on sampled points."""
    readout = np.eye(grid[-1], dtype=complex)
    if spectrum is not None:
        transform = centred_dft(grid[-1])
        readout = transform @ np.diag(spectrum / spectrum.mean()) @ transform.conj().T
    lines = np.eye(int(np.prod(grid[:-1])))
    mask = np.tile(sampled(grid).numpy().ravel(), COILS).astype(float)
    return mask[:, None] * np.kron(psi(), np.kron(lines, readout)) * mask[None]


@pytest.mark.parametrize("grid", [(4, 5), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("coloured", [False, True])
def test_covariance_is_the_matrix_written_in_numpy(grid: tuple[int, ...], coloured: bool) -> None:
    spectrum = np.linspace(0.2, 2.2, grid[-1]) if coloured else None
    given = None if spectrum is None else torch.from_numpy(spectrum)
    noise = NoiseModel(torch.from_numpy(psi()), given)
    matrix = dense(NoiseColouring(noise, sampled(grid))).numpy()
    wanted = wanted_covariance(grid, spectrum)
    np.testing.assert_allclose(matrix @ matrix.conj().T, wanted, atol=1e-12)
    # The transposed mixing is a different covariance: the test can tell them apart.
    assert np.abs(psi() - psi().T).max() > 0.3


@pytest.mark.parametrize("coloured", [False, True])
def test_variance_of_a_sample_is_psi_whatever_the_colour(coloured: bool) -> None:
    spectrum = torch.linspace(0.1, 4, 6, dtype=torch.float64) if coloured else None
    noise = NoiseModel(torch.from_numpy(psi()), spectrum)
    mask = torch.ones(4, 6, dtype=torch.bool)
    matrix = dense(NoiseColouring(noise, mask)).numpy()
    variance = (np.abs(matrix) ** 2).sum(1).reshape(COILS, 4, 6)
    reference = np.broadcast_to(np.diag(psi()).real[:, None, None], variance.shape)
    np.testing.assert_allclose(variance, reference, atol=1e-12)


def test_draws_are_circular_with_the_right_covariance(generator: torch.Generator) -> None:
    grid = (4, 6)
    spectrum = np.linspace(0.2, 2.2, 6)
    noise = NoiseModel(torch.from_numpy(psi()), torch.from_numpy(spectrum))
    colouring = NoiseColouring(noise, sampled(grid))
    draws = torch.stack([colouring.sample(generator) for _ in range(4000)]).flatten(1).numpy()
    wanted = wanted_covariance(grid, spectrum)
    scale = np.abs(wanted).max()
    covariance = draws.T @ draws.conj() / len(draws)
    assert np.abs(covariance - wanted).max() < 6 * scale / np.sqrt(len(draws))
    assert np.abs(draws.T @ draws / len(draws)).max() < 6 * scale / np.sqrt(len(draws))
    assert np.abs(draws[:, ~np.tile(sampled(grid).numpy().ravel(), COILS)]).max() == 0
    assert draws.dtype == np.complex128


def test_draws_are_seeded_and_take_a_precision() -> None:
    noise = NoiseModel(torch.from_numpy(psi()))
    colouring = NoiseColouring(noise, torch.ones(4, 4, dtype=torch.bool))
    first, second, third = (
        colouring.sample(torch.Generator().manual_seed(s), torch.complex64) for s in (1, 1, 2)
    )
    assert first.dtype == torch.complex64
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_noise_of_a_scan_follows_its_mask_and_model() -> None:
    kspace = random_complex(COILS, 6, 8)
    mask = sampled((6, 8))
    scan = Scan(kspace, mask, noise=NoiseModel(torch.from_numpy(psi())))
    colouring = NoiseColouring.of(scan)
    assert torch.equal(colouring.mask, mask)
    root = np.linalg.cholesky(psi())
    white = random_complex(COILS, 6, 8, seed=1)
    wanted = np.einsum("ab,byx->ayx", root, white.numpy()) * mask.numpy()
    np.testing.assert_allclose(colouring(white).numpy(), wanted, atol=1e-12)
    with pytest.raises(InputError, match="noise"):
        NoiseColouring.of(Scan(kspace, mask))


@pytest.mark.parametrize("grid", [(4, 5), (2, 3, 4)])
@pytest.mark.parametrize("coloured", [False, True])
def test_whole_lines_alone_are_what_the_mask_leaves(grid: tuple[int, ...], coloured: bool) -> None:
    """A mask of whole lines takes another path than one of points; both against numpy."""
    spectrum = np.linspace(0.2, 2.2, grid[-1]) if coloured else None
    noise = NoiseModel(torch.from_numpy(psi()),
                       None if spectrum is None else torch.from_numpy(spectrum))
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[..., ::2, :] = True
    colouring = NoiseColouring(noise, mask)
    assert colouring.lines is not None
    points = NoiseColouring(noise, mask)
    points.lines = None
    x = random_complex(2, 3, COILS, *grid)
    torch.testing.assert_close(colouring(x), points(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(colouring.H(x), points.H(x), rtol=1e-12, atol=1e-12)
    matrix = dense(colouring).numpy()
    readout = np.eye(grid[-1], dtype=complex)
    if spectrum is not None:
        transform = centred_dft(grid[-1])
        readout = transform @ np.diag(spectrum / spectrum.mean()) @ transform.conj().T
    kept = np.tile(mask.numpy().ravel(), COILS).astype(float)
    full = np.kron(psi(), np.kron(np.eye(int(np.prod(grid[:-1]))), readout))
    np.testing.assert_allclose(matrix @ matrix.conj().T, kept[:, None] * full * kept, atol=1e-12)
    assert NoiseColouring(noise, torch.ones(grid, dtype=torch.bool)).lines is None
    mask[..., 1, 1] = True
    assert NoiseColouring(noise, mask).lines is None
