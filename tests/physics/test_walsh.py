"""Walsh's maps against a dense eigen-decomposition and known sensitivities."""

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics import walsh as module
from snrecon.physics.coils import estimate_maps
from snrecon.physics.fourier import fft
from snrecon.physics.phantom import brain_phantom, coil_maps
from snrecon.physics.walsh import walsh


def test_agrees_with_a_dense_eigendecomposition_in_numpy(generator: torch.Generator) -> None:
    images = torch.randn(3, 7, 9, dtype=torch.complex128, generator=generator)
    maps = walsh(images, smoothing=1, window="box").numpy()
    data = images.numpy()
    for y in range(7):
        for x in range(9):
            patch = data[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].reshape(3, -1)
            values, vectors = np.linalg.eigh(patch @ patch.conj().T)
            if values[-2] < 0.9 * values[-1]:
                assert abs(np.vdot(vectors[:, -1], maps[:, y, x])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(48, 40), (6, 32, 32)])
@pytest.mark.parametrize("window", ["gaussian", "box"])
def test_recovers_known_maps(
    shape: tuple[int, ...], window: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = brain_phantom(shape, torch.Generator().manual_seed(1), supersampling=1)
    truth = coil_maps(5, shape)
    images = truth * image.to(torch.complex64)
    maps = walsh(images, smoothing=1.0, window=window)
    truth = truth / torch.linalg.vector_norm(truth, dim=0)
    inside = image.abs() > 0.3
    overlap = (maps.conj() * truth).sum(0).abs()[inside]
    assert float((1 - overlap**2).mean()) < 0.006
    norm = maps.abs().square().sum(0)
    assert torch.allclose(norm[inside], torch.ones_like(norm[inside]), atol=1e-4)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # one row at a time, with its neighbours
    assert torch.allclose(walsh(images, smoothing=1.0, window=window)[:, inside],
                          maps[:, inside], atol=1e-3)


def test_zero_where_there_is_nothing_and_through_estimate_maps() -> None:
    images = torch.zeros(3, 24, 24, dtype=torch.complex64)
    images[:, :6] = torch.tensor([1.0, 2.0, 2.0j])[:, None, None] / 3
    maps = walsh(images, smoothing=1, window="box")
    assert bool((maps[:, 8:] == 0).all())
    assert float((maps[:, :6].abs() - images[:, :6].abs()).abs().max()) < 1e-5
    estimated, source = estimate_maps(
        fft(images, (-2, -1)), torch.ones(24, 24, dtype=torch.bool), method="walsh"
    )
    assert "Walsh" in source
    assert float((estimated[:, 2:4].abs() - images[:, 2:4].abs()).abs().max()) < 1e-3


def test_bad_window() -> None:
    with pytest.raises(InputError, match="gaussian or a box"):
        walsh(torch.ones(2, 4, 4, dtype=torch.complex64), window="hat")
