"""Coil compression: optimal against numpy's SVD, and white noise stays white."""

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.coils import compress


def test_keeps_as_much_as_the_best_low_rank_approximation(generator: torch.Generator) -> None:
    mixing = torch.randn(8, 4, dtype=torch.complex128, generator=generator)
    data = torch.randn(4, 12, 10, dtype=torch.complex128, generator=generator)
    kspace = torch.einsum("cv,vyx->cyx", mixing, data)
    singular = np.linalg.svd(kspace.numpy().reshape(8, -1), compute_uv=False)
    for virtual in (2, 4, 8):
        compressed, matrix = compress(kspace, virtual)
        assert compressed.shape == (virtual, 12, 10)
        assert matrix.shape == (virtual, 8)
        kept = float(compressed.abs().square().sum())
        assert kept == pytest.approx(float((singular[:virtual] ** 2).sum()), rel=1e-10)
        restored = torch.einsum("vc,vyx->cyx", matrix.conj(), compressed)
        if virtual >= 4:
            assert torch.allclose(restored, kspace)


def test_white_noise_stays_white(generator: torch.Generator) -> None:
    kspace = torch.randn(6, 16, 16, dtype=torch.complex64, generator=generator)
    kspace = kspace * torch.arange(1, 7)[:, None, None]
    _, matrix = compress(kspace, 3)
    assert torch.allclose(matrix @ matrix.mH, torch.eye(3, dtype=matrix.dtype), atol=1e-5)
    noise = torch.randn(6, 40000, dtype=torch.complex64, generator=generator)
    covariance = (matrix @ noise) @ (matrix @ noise).mH / 40000
    assert float((covariance - torch.eye(3)).abs().max()) < 0.02


def test_calibration_data_decide(generator: torch.Generator) -> None:
    calibration = torch.zeros(3, 5, dtype=torch.complex64)
    calibration[1] = 1
    kspace = torch.randn(3, 8, 8, dtype=torch.complex64, generator=generator)
    compressed, matrix = compress(kspace, 1, calibration)
    assert matrix.abs().tolist()[0] == pytest.approx([0, 1, 0], abs=1e-6)
    assert torch.allclose(compressed[0].abs(), kspace[1].abs(), atol=1e-5)


@pytest.mark.parametrize("virtual", [0, 4, -1])
def test_impossible_numbers_of_coils(virtual: int) -> None:
    with pytest.raises(InputError, match="1 to 3 virtual coils"):
        compress(torch.ones(3, 4, 4, dtype=torch.complex64), virtual)


def test_calibration_of_another_scan() -> None:
    with pytest.raises(InputError, match="2 coils"):
        compress(torch.ones(3, 4, 4, dtype=torch.complex64), 1,
                 torch.ones(2, 5, dtype=torch.complex64))
