"""Small scans with correlated noise, and the measurement as a numpy matrix written from scratch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from snrecon.data import NoiseModel, Scan


def dft(n: int) -> np.ndarray:
    """Centred orthonormal DFT matrix from its definition."""
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


def encoding_matrix(scan: Scan) -> np.ndarray:
    """Whitened ``A``, ``(coil * points, voxels)``, for whitened data in the same order."""
    transform = np.ones((1, 1))
    for n in scan.grid:
        transform = np.kron(transform, dft(n))
    transform = transform * scan.sampled.numpy().reshape(-1, 1)
    maps = scan.maps.numpy().reshape(scan.coils, -1)
    white = np.linalg.inv(np.linalg.cholesky(scan.noise.covariance.numpy())) @ maps
    return np.concatenate([transform * row for row in white])


def white_data(scan: Scan, kspace: torch.Tensor | None = None) -> np.ndarray:
    """``L_Psi^-1 y`` as a vector."""
    y = (scan.kspace if kspace is None else kspace).numpy().reshape(scan.coils, -1)
    lower = np.linalg.cholesky(scan.noise.covariance.numpy())
    return np.linalg.solve(lower, y).reshape(-1)


def make_small_scan(
    mask: torch.Tensor,
    coils: int = 4,
    seed: int = 0,
    normalised: bool = False,
    hole: bool = True,
    dtype: torch.dtype = torch.complex128,
) -> Scan:
    """Random smooth maps (zero in one corner), random data, correlated complex covariance."""
    rng = np.random.default_rng(seed)
    grid = tuple(mask.shape)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid], indexing="ij")
    maps = []
    for _ in range(coils):
        centre = rng.uniform(-1.2, 1.2, len(grid))
        distance = sum((a - c) ** 2 for a, c in zip(axes, centre))
        slope = rng.uniform(-1.5, 1.5, len(grid))
        maps.append(np.exp(-0.8 * distance + 1j * sum(a * s for a, s in zip(axes, slope))))
    maps = np.array(maps)
    if hole:
        maps[(slice(None), *(slice(0, 2),) * len(grid))] = 0
    mixing = rng.normal(size=(coils, coils)) + 1j * rng.normal(size=(coils, coils))
    psi = 0.02 * (mixing @ mixing.conj().T + coils * np.eye(coils))
    if normalised:
        white = np.linalg.solve(np.linalg.cholesky(psi), maps.reshape(coils, -1))
        power = np.sqrt((np.abs(white) ** 2).sum(0))
        maps = maps / np.where(power > 0, power, 1).reshape(grid)
    data = rng.normal(size=(coils, *grid)) + 1j * rng.normal(size=(coils, *grid))
    return Scan(
        kspace=torch.from_numpy(data).to(dtype) * mask,
        mask=mask,
        maps=torch.from_numpy(maps).to(dtype),
        noise=NoiseModel(torch.from_numpy(psi).to(dtype)),
    )


def line_mask(grid: tuple[int, ...], lines: list[int], axis: int = -2) -> torch.Tensor:
    """Boolean mask with the given lines along an axis."""
    profile = torch.zeros(grid[axis], dtype=torch.bool)
    profile[lines] = True
    shape = [1] * len(grid)
    shape[axis] = -1
    return profile.reshape(shape).expand(grid).clone()


@pytest.fixture
def small_scan() -> Callable[..., Scan]:
    return make_small_scan


@pytest.fixture
def lines() -> Callable[..., torch.Tensor]:
    return line_mask


@pytest.fixture
def dense_encoding() -> Callable[[Scan], np.ndarray]:
    return encoding_matrix


@pytest.fixture
def white() -> Callable[..., np.ndarray]:
    return white_data


@pytest.fixture
def check_linear() -> Callable[..., None]:
    """Checks that a bound reconstruction is real-linear and behaves under torch.func."""

    def check(bound, scan: Scan, tolerance: float = 1e-10, linear: bool = True) -> None:
        rng = torch.Generator().manual_seed(3)

        def draw() -> torch.Tensor:
            y = torch.randn(scan.kspace.shape, dtype=scan.kspace.dtype, generator=rng)
            return y * scan.sampled

        y, v, w = draw(), draw(), draw()
        image = bound(y)
        assert image.shape == scan.grid
        scale = image.abs().max()
        stacked = bound(torch.stack([y, v, w]).unsqueeze(1))
        assert stacked.shape == (3, 1, *scan.grid)
        single = torch.stack([bound(y), bound(v), bound(w)])
        assert (stacked[:, 0] - single).abs().max() < tolerance * scale
        mapped = torch.vmap(bound.function)(torch.stack([y, v, w]))
        assert (mapped - single).abs().max() < tolerance * scale
        value, tangent = torch.func.jvp(bound.function, (y,), (v,))
        assert (value - image).abs().max() < tolerance * scale
        batch = torch.vmap(lambda t: torch.func.jvp(bound.function, (y,), (t,))[1])(
            torch.stack([v, w])
        )
        assert (batch[0] - tangent).abs().max() < tolerance * scale
        output, pull = torch.func.vjp(bound.function, y)
        cotangent = torch.randn(output.shape, dtype=output.dtype, generator=rng)
        back = pull(cotangent)[0]
        left = (cotangent.conj() * tangent).sum().real
        right = (back.conj() * v).sum().real
        assert abs(left - right) < tolerance * max(1.0, float(left.abs())) * 10
        assert bound.linear is linear
        if linear:
            both = bound(2.5 * v - w)
            assert (both - 2.5 * bound(v) + bound(w)).abs().max() < tolerance * scale * 10
            assert (tangent - bound(v)).abs().max() < tolerance * scale * 10
        if scan.grid and bound.maps is not None:
            off = ~(scan.maps != 0).any(0)
            assert (image[off] == 0).all()
        unmeasured = torch.randn(scan.kspace.shape, dtype=scan.kspace.dtype, generator=rng)
        assert torch.equal(bound(y + unmeasured * ~scan.sampled), image)

    return check
