"""The noise model against numpy and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.data import NoiseModel
from snrecon.errors import InputError

PSI = torch.tensor(
    [[2.0, 0.3 + 0.4j, 0.1], [0.3 - 0.4j, 1.0, -0.2j], [0.1, 0.2j, 0.5]], dtype=torch.complex128
)


def test_factor_on_the_left_of_the_coil_axis() -> None:
    """``n = L w`` has covariance Psi; the transposed factor has another one."""
    lower = NoiseModel(PSI).cholesky.numpy()
    np.testing.assert_allclose(lower @ lower.conj().T, PSI.numpy(), atol=1e-14)
    np.testing.assert_allclose(lower, np.linalg.cholesky(PSI.numpy()), atol=1e-14)
    assert np.abs(lower.T @ lower.conj() - PSI.numpy()).max() > 0.1


def test_whitening() -> None:
    model = NoiseModel(PSI)
    white = model.whitening_matrix.numpy()
    np.testing.assert_allclose(white @ PSI.numpy() @ white.conj().T, np.eye(3), atol=1e-13)
    data = torch.randn(3, 4, 5, 6, dtype=torch.complex128, generator=torch.Generator())
    expected = np.einsum("ab,bxyz->axyz", np.linalg.inv(np.linalg.cholesky(PSI.numpy())), data)
    np.testing.assert_allclose(model.whiten(data).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(model.unwhiten(model.whiten(data)), data)


def test_whitened_samples_are_white() -> None:
    model = NoiseModel(PSI)
    generator = torch.Generator().manual_seed(1)
    noise = model.unwhiten(torch.randn(3, 50_000, dtype=torch.complex128, generator=generator))
    measured = noise @ noise.mH / noise.shape[1]
    torch.testing.assert_close(measured, PSI, atol=0.03, rtol=0)
    white = model.whiten(noise)
    torch.testing.assert_close(
        white @ white.mH / noise.shape[1], torch.eye(3).to(PSI), atol=0.03, rtol=0
    )
    assert float(white.real.var()) == pytest.approx(0.5, abs=0.01)


def test_the_spectrum_gets_mean_one() -> None:
    model = NoiseModel(PSI, torch.tensor([1.0, 2.0, 3.0, 2.0]))
    assert model.spectrum is not None
    assert model.spectrum.tolist() == [0.5, 1.0, 1.5, 1.0]
    assert model.spectrum.dtype == torch.float64


def test_scaling_and_precision() -> None:
    model = NoiseModel(PSI, torch.ones(4))
    assert torch.equal(model.scaled(-3.0).covariance, 9 * model.covariance)
    single = model.to(torch.complex64)
    assert single.covariance.dtype == torch.complex64
    assert single.spectrum is not None
    assert single.spectrum.dtype == torch.float32
    assert NoiseModel(torch.eye(2)).covariance.dtype == torch.complex64
    assert NoiseModel(torch.eye(2).double()).covariance.dtype == torch.complex128


def test_correlation() -> None:
    found = NoiseModel(PSI).correlation()
    assert float(found[0, 1]) == pytest.approx(0.5 / np.sqrt(2))
    assert torch.allclose(found.diagonal(), torch.ones(3).double())


def test_rounding_errors_of_hermitian_input_are_removed() -> None:
    noisy = PSI.clone()
    noisy[0, 1] += 1e-8
    model = NoiseModel(noisy)
    assert torch.equal(model.covariance, model.covariance.mH)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(2, 3), "matrix"),
        (torch.ones(3), "matrix"),
        (torch.ones(0, 0), "matrix"),
        (torch.eye(2) * float("nan"), "NaN or infinite"),
        (torch.eye(2) * float("inf"), "NaN or infinite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not Hermitian"),
        (torch.tensor([[1.0, 1j], [1j, 1.0]]), "not Hermitian"),
        (torch.ones(2, 2), "not positive definite"),
        (-torch.eye(2), "not positive definite"),
        (torch.zeros(2, 2), "not positive definite"),
        (torch.diag(torch.tensor([1.0, 0.0])), "not positive definite"),
    ],
)
def test_bad_covariances(covariance: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseModel(covariance)


@pytest.mark.parametrize(
    "spectrum",
    [
        torch.ones(2, 2),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.ones(4, dtype=torch.complex64),
    ],
)
def test_bad_spectra(spectrum: torch.Tensor) -> None:
    with pytest.raises(InputError, match="spectrum"):
        NoiseModel(PSI, spectrum)
