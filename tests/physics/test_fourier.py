"""The one Fourier transform against sums written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.physics import fourier
from snrecon.physics.fourier import Centring, fft, grid_axes, ifft
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


@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,), (1, 3), (-3, -1), (0, 1, 2, 3)])
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (3, 4, 5, 8), (2, 5, 6, 7)])
def test_equals_the_transform_of_shifted_arrays(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    x = random_complex(*shape)
    shifted = torch.fft.ifftshift(x, dim=axes)
    wanted = torch.fft.fftshift(torch.fft.fftn(shifted, dim=axes, norm="ortho"), dim=axes)
    torch.testing.assert_close(fft(x, axes), wanted)
    torch.testing.assert_close(fft(x.real, axes) + 1j * fft(x.imag, axes), wanted)
    torch.testing.assert_close(ifft(wanted, axes), x)
    torch.testing.assert_close(fft(x.conj(), axes), ifft(x, axes).conj())


@pytest.mark.parametrize("shape", [(4, 6), (5, 6)])
def test_is_its_own_derivative_and_takes_batches(shape: tuple[int, ...]) -> None:
    x, change = random_complex(3, *shape), random_complex(3, *shape)
    wanted = fft(change, (-2, -1))
    _, tangent = torch.func.jvp(lambda part: fft(part, (-2, -1)), (x,), (change,))
    torch.testing.assert_close(tangent, wanted)
    torch.testing.assert_close(torch.func.vmap(lambda part: fft(part, (-2, -1)))(change), wanted)
    _, pull = torch.func.vjp(lambda part: fft(part, (-2, -1)), x)
    torch.testing.assert_close(pull(wanted)[0], change)


def test_masks_and_counts_are_numbers() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
    wanted = fft(mask.to(torch.complex64), (-2, -1))
    for kind in (torch.bool, torch.uint8, torch.int64):
        torch.testing.assert_close(fft(mask.to(kind), (-2, -1)), wanted)


@pytest.mark.parametrize("transform", ["jvp", "vjp", "vmap", "linearize"])
def test_signs_first_needed_inside_a_transform_serve_outside(transform: str) -> None:
    x = random_complex(3, 6, 8)
    wanted = fft(x, (-2, -1))
    fourier._kept.cache_clear()

    def f(y: torch.Tensor) -> torch.Tensor:
        return fft(y, (-2, -1))

    if transform == "jvp":
        torch.func.jvp(f, (x,), (x,))
    elif transform == "vjp":
        torch.func.vjp(f, x)[1](wanted)
    elif transform == "vmap":
        torch.func.vmap(lambda y: torch.func.jvp(f, (y,), (y,))[1])(x)
    else:
        torch.func.linearize(f, x)[1](x)
    assert fourier._kept.cache_info().currsize > 0
    torch.testing.assert_close(fft(x, (-2, -1)), wanted)
    fft(x.clone().requires_grad_(), (-2, -1)).abs().sum().backward()
    torch.testing.assert_close(torch.func.vmap(f)(x), wanted)


def test_transforms_after_one_in_inference_mode_have_gradients() -> None:
    x = random_complex(10, 14)
    with torch.inference_mode():
        fft(x, (-2, -1))
    fft(x.requires_grad_(), (-2, -1)).abs().sum().backward()
    assert x.grad is not None


def test_signs_of_large_grids_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_complex(12, 22)
    wanted = fft(x, (-2, -1))
    fourier._kept.cache_clear()
    monkeypatch.setattr(fourier, "LARGEST_KEPT", 100)
    torch.testing.assert_close(fft(x, (-2, -1)), wanted)
    assert fourier._kept.cache_info().currsize == 0


@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (1, 3)])
@pytest.mark.parametrize("shape", [(3, 4, 6, 10), (3, 4, 6, 5), (3, 5, 6, 8)])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_transform_between_its_signs(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = random_complex(*shape, dtype=dtype)
    centring = Centring.of(x, axes)
    forward = centring.on_kspace(centring.forward(centring.on_image(x)))
    torch.testing.assert_close(forward, fft(x, axes))
    inverse = centring.on_image(centring.inverse(centring.on_kspace(x)))
    torch.testing.assert_close(inverse, ifft(x, axes))
    for signs in (centring.on_image, centring.on_kspace):
        assert torch.equal(signs(signs(x)), x)
    assert centring.even == all(shape[axis] % 2 == 0 for axis in axes)
