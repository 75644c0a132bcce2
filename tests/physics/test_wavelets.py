"""The wavelet transform against PyWavelets, sigpy, and its own definition of unitarity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.operators import dense
from snrecon.physics.wavelets import Wavelet
from support import check_linear_operator, check_transforms, random_complex

pywt = pytest.importorskip("pywt")


@pytest.mark.parametrize("name", ["haar", "db4", "sym4", "coif1"])
@pytest.mark.parametrize(("shape", "levels"), [((64, 64), 3), ((32, 128), 2), ((16, 32, 64), 1)])
def test_coefficients_are_those_of_pywavelets(
    name: str, shape: tuple[int, ...], levels: int
) -> None:
    x = random_complex(*shape)
    theirs = pywt.wavedecn(x.numpy(), name, mode="periodization", level=levels)
    array, _ = pywt.coeffs_to_array(theirs)
    operator = Wavelet(shape, name, levels)
    np.testing.assert_allclose(operator(x).numpy(), array, atol=1e-12)
    corner = operator(x)[operator.approximation].numpy()
    np.testing.assert_allclose(corner, theirs[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(128, 128), (320, 320), (230, 180), (96, 96), (256, 64)])
@pytest.mark.parametrize("name", ["haar", "db4"])
def test_default_number_of_levels_is_that_of_pywavelets(shape: tuple[int, int], name: str) -> None:
    wanted = tuple(pywt.dwt_max_level(n, name) for n in shape)
    assert Wavelet(shape, name).levels == wanted


def test_haar_coefficients_are_those_of_sigpy() -> None:
    sigpy = pytest.importorskip("sigpy")
    x = random_complex(32, 64)
    theirs = sigpy.linop.Wavelet((32, 64), wave_name="db1", level=3) * x.numpy()
    np.testing.assert_allclose(Wavelet((32, 64), "db1", 3)(x).numpy(), theirs, atol=1e-6)


def test_db4_coefficients_are_those_of_sigpy_away_from_the_boundary() -> None:
    """sigpy pads with zeros and starts its decimation one sample apart; an object that does not
    reach the boundary has the same coefficients then."""
    sigpy = pytest.importorskip("sigpy")
    x = torch.zeros(64, 64, dtype=torch.complex128)
    x[16:48, 16:48] = random_complex(32, 32)
    ours = Wavelet((64, 64), "db4", 1)(x.roll((1, 1), (0, 1))).numpy()
    theirs = sigpy.linop.Wavelet((64, 64), wave_name="db4", level=1) * x.numpy()
    n = theirs.shape[0] // 2  # 35: bands of sigpy are longer by the filter
    for row in (0, 1):
        for column in (0, 1):
            band = theirs[row * n + 1 :, column * n + 1 :][:32, :32]
            mine = ours[32 * row :, 32 * column :][:32, :32]
            np.testing.assert_allclose(mine, band, atol=1e-6)
            assert np.abs(band).max() > 0.1


@pytest.mark.parametrize(
    "shape", [(320, 320), (230, 180), (96, 96), (15, 21), (33, 47, 19), (1, 16)]
)
@pytest.mark.parametrize("levels", [None, 2, 9])
def test_parseval_and_inverse_for_any_size(shape: tuple[int, ...], levels: int | None) -> None:
    operator = Wavelet(shape, "db4", levels)
    x = random_complex(*shape)
    y = operator(x)
    assert y.shape == x.shape
    assert float((y.norm() - x.norm()).abs()) <= 1e-12 * float(x.norm())
    assert float((operator.H(y) - x).norm()) <= 1e-12 * float(x.norm())


@pytest.mark.parametrize(("shape", "levels"), [((8, 8), 2), ((7, 5), 2), ((4, 5, 6), 1)])
def test_wavelet_is_unitary_and_passes_torch_func(shape: tuple[int, ...], levels: int) -> None:
    operator = Wavelet(shape, "db4", levels)
    check_linear_operator(operator)
    check_transforms(operator)
    matrix = dense(operator)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    torch.testing.assert_close(matrix.mH @ matrix, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ matrix.mH, eye, rtol=0, atol=1e-12)


def test_smooth_images_become_sparse_for_odd_sizes_too() -> None:
    y, x = torch.meshgrid(torch.linspace(-3, 3, 95), torch.linspace(-3, 3, 77), indexing="ij")
    image = torch.exp(-(x**2 + y**2)).to(torch.complex128)
    coefficients = Wavelet((95, 77), "db4", 3)(image).abs().flatten().sort(descending=True).values
    energy = coefficients.square().cumsum(0) / coefficients.square().sum()
    assert float(energy[150]) > 0.9999  # of 7315


def test_use_in_inference_mode_does_not_spoil_later_gradients() -> None:
    operator = Wavelet((8, 8), "db2", 1)
    with torch.inference_mode():
        operator(random_complex(8, 8))
    x = random_complex(8, 8).requires_grad_()
    operator(x).abs().square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=1e-10, atol=1e-10)


def test_real_images_have_real_coefficients() -> None:
    x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = Wavelet((16, 12))
    torch.testing.assert_close(operator(x), operator(x + 0j).real)


@pytest.mark.parametrize("name", ["bior2.2", "no such", "mexh", "dmey"])
def test_wavelets_that_are_not_orthogonal_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="not an orthogonal wavelet"):
        Wavelet((16, 16), name)


def test_negative_levels_are_refused() -> None:
    with pytest.raises(InputError, match="levels"):
        Wavelet((16, 16), levels=-1)
