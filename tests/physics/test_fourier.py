"""The one Fourier transform against sums written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.physics.fourier import fft, grid_axes, ifft
from support import random_complex


def centred_dft(n: int) -> np.ndarray:
    """``exp(-2 pi i k x / n) / sqrt(n)`` with both indices counted from ``n // 2``."""
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (4, 5, 6), (1, 9)])
def test_fft_is_the_centred_orthonormal_sum(shape: tuple[int, ...]) -> None:
    x = random_complex(3, *shape)
    wanted = x.numpy()
    for axis, n in enumerate(shape, start=1):
        wanted = np.moveaxis(np.tensordot(centred_dft(n), wanted, (1, axis)), 0, axis)
    found = fft(x, grid_axes(len(shape)))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
    torch.testing.assert_close(ifft(found, grid_axes(len(shape))), x)


def test_fft_over_some_axes_leaves_the_others() -> None:
    x = random_complex(2, 5, 6)
    wanted = np.einsum("ab,cbd->cad", centred_dft(5), x.numpy())
    np.testing.assert_allclose(fft(x, (-2,)).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("n", [8, 9])
def test_a_point_at_the_centre_becomes_flat_and_back(n: int) -> None:
    x = torch.zeros(n, n, dtype=torch.complex128)
    x[n // 2, n // 2] = 1
    flat = torch.full((n, n), 1 / n, dtype=torch.complex128)
    torch.testing.assert_close(fft(x, (-2, -1)), flat)
    torch.testing.assert_close(fft(flat, (-2, -1)), x)


def test_white_noise_keeps_its_variance() -> None:
    noise = random_complex(200, 16, 16)
    variance = float(fft(noise, (-2, -1)).abs().square().mean())
    assert variance == pytest.approx(1.0, abs=0.02)


def test_precision_follows_the_input() -> None:
    assert fft(random_complex(4, 4, dtype=torch.complex64), (-2, -1)).dtype == torch.complex64
