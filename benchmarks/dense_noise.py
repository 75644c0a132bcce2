"""The noise of a small reconstruction as dense numpy matrices, written from the definitions.

Nothing here uses automatic differentiation or the package's operators: linear methods are matrices
built from the DFT's definition (or, for GRAPPA and partial Fourier, from the method's response to
every unit impulse), nonlinear ones are differentiated by central differences.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan


def dft(n: int) -> np.ndarray:
    """Centred orthonormal DFT matrix."""
    index = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)


def fourier(grid: tuple[int, ...]) -> np.ndarray:
    """DFT over all axes of the grid, ``(points, points)``."""
    matrix = np.ones((1, 1))
    for n in grid:
        matrix = np.kron(matrix, dft(n))
    return matrix


def noise_factor(scan: Scan) -> np.ndarray:
    """``L_w`` with ``n = L_w w``, ``(coil points, coil points)``."""
    assert scan.noise is not None
    points = int(np.prod(scan.grid))
    lower = np.linalg.cholesky(scan.noise.covariance.numpy())
    readout = scan.grid[-1]
    colour = np.eye(readout, dtype=complex)
    if scan.noise.spectrum is not None:
        f = dft(readout)
        colour = f @ np.diag(np.sqrt(scan.noise.spectrum.numpy())) @ f.conj().T
    lines = np.kron(np.eye(points // readout), colour)
    sampled = np.diag(scan.sampled.numpy().ravel().astype(float))
    return np.kron(lower, sampled @ lines)


def whitened_encoding(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """``A`` for whitened data, ``(coil points, voxels)``, and the whitening of stacked data."""
    assert scan.noise is not None
    assert scan.maps is not None
    points = int(np.prod(scan.grid))
    inverse = np.linalg.inv(np.linalg.cholesky(scan.noise.covariance.numpy()))
    maps = inverse @ scan.maps.numpy().reshape(scan.coils, points)
    transform = scan.sampled.numpy().reshape(-1, 1) * fourier(scan.grid)
    a = np.concatenate([transform * row for row in maps])
    return a, np.kron(inverse, np.eye(points))


def linear_matrix(name: str, scan: Scan, lamda: float = 0.0) -> np.ndarray:
    """The reconstruction ``zero_filled`` or ``sense`` as a matrix from data to image."""
    a, whitening = whitened_encoding(scan)
    if name == "zero_filled":
        return a.conj().T @ whitening
    # Voxels off the support of the maps are left at zero by the pseudo-inverse.
    normal = a.conj().T @ a
    support = np.diag(normal).real > 0
    inverse = np.zeros_like(normal)
    block = normal[np.ix_(support, support)] + lamda * np.eye(int(support.sum()))
    inverse[np.ix_(support, support)] = np.linalg.pinv(block, rcond=1e-12, hermitian=True)
    return inverse @ a.conj().T @ whitening


def impulse_matrix(f: Callable[[Tensor], Tensor], scan: Scan) -> np.ndarray:
    """Real matrix ``(2 voxels, 2 coil points)`` of a real-linear f, from unit impulses."""
    size = scan.kspace.numel()
    eye = torch.eye(size, dtype=torch.complex128).reshape(size, *scan.kspace.shape)
    columns = [np.concatenate([_parts(f(part)) for part in (eye, 1j * eye)])]
    return np.concatenate(columns).T


def difference_matrix(
    f: Callable[[Tensor], Tensor], scan: Scan, step: float = 1e-7
) -> np.ndarray:
    """Real Jacobian ``(2 voxels, 2 coil points)`` of f at the scan, by central differences."""
    y = scan.kspace
    size = y.numel()
    h = step * float(y.abs().max())
    columns = []
    for unit in (1.0, 1.0j):
        for start in range(0, size, 64):
            stop = min(start + 64, size)
            probe = torch.zeros(stop - start, size, dtype=y.dtype)
            probe[torch.arange(stop - start), torch.arange(start, stop)] = unit * h
            probe = probe.reshape(-1, *y.shape)
            columns.append(_parts((f(y + probe) - f(y - probe)) / (2 * h)))
    return np.concatenate(columns).T


def covariance_maps(matrix: np.ndarray, scan: Scan, image: Tensor) -> np.ndarray:
    """``(Var a, Var b, Cov ab)`` of the components along and across the image's phase.

    ``matrix`` is complex ``(voxels, coil points)`` or real ``(2 voxels, 2 coil points)``.
    """
    factor = noise_factor(scan)
    if np.iscomplexobj(matrix):
        matrix = _real(matrix)
    noise = matrix @ _real(factor) / np.sqrt(2)  # white noise has variance 1/2 per component
    voxels = noise.shape[0] // 2
    x = image.numpy().ravel()
    u = np.where(np.abs(x) > 0, x / np.maximum(np.abs(x), 1e-300), 1)
    real, imaginary = noise[:voxels], noise[voxels:]
    along = u.real[:, None] * real + u.imag[:, None] * imaginary
    across = u.real[:, None] * imaginary - u.imag[:, None] * real
    maps = [(along**2).sum(1), (across**2).sum(1), (along * across).sum(1)]
    return np.stack(maps).reshape(3, *image.shape)


def _real(matrix: np.ndarray) -> np.ndarray:
    return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])


def _parts(images: Tensor) -> np.ndarray:
    """Images ``(batch, *grid)`` as real rows ``(batch, 2 voxels)``."""
    flat = images.detach().reshape(images.shape[0], -1).numpy()
    return np.concatenate([flat.real, flat.imag], axis=1)


def reference(name: str, f: Callable[[Tensor], Tensor], scan: Scan, lamda: float) -> np.ndarray:
    """Dense ``(Var a, Var b, Cov ab)`` of a small problem, by the means its method allows."""
    image = f(scan.kspace).detach()
    if name in ("zero_filled", "partial_fourier:zero_filled", "sense"):
        matrix = linear_matrix("sense" if name == "sense" else "zero_filled", scan, lamda)
    elif name in ("grappa", "partial_fourier:homodyne", "partial_fourier:pocs"):
        matrix = impulse_matrix(f, scan)
    else:
        matrix = difference_matrix(f, scan)
    return covariance_maps(matrix, scan, image)
