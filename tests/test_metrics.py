"""Scores against fastMRI's definitions, scikit-image where it is, and loops where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.metrics import score, similarity_map


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A volume ``(3, 18, 23)`` and a worse copy, float32."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 18), torch.linspace(-1, 1, 23), indexing="ij")
    head = ((x**2 + y**2) < 0.7).float() * (1 + 0.5 * torch.sin(7 * x + 3 * y))
    reference = torch.stack([head, 2.5 * head, 0.1 + head.flip(0)])
    noise = torch.randn(reference.shape, generator=generator)
    return (reference + 0.15 * noise).abs(), reference


def window_ssim(p: np.ndarray, g: np.ndarray, top: float) -> float:
    """SSIM of two 7 x 7 windows, sample covariances."""
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    covariance = np.cov(p.ravel(), g.ravel())
    a, b = p.mean(), g.mean()
    return ((2 * a * b + c1) * (2 * covariance[0, 1] + c2)) / (
        (a**2 + b**2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2))


def test_scores_are_those_of_the_definitions(pair: tuple[Tensor, Tensor]) -> None:
    image, reference = pair
    p, g = image.double().numpy(), reference.double().numpy()
    top = g.max()
    slices = [
        np.mean([window_ssim(p[s, y : y + 7, x : x + 7], g[s, y : y + 7, x : x + 7], top)
                 for y in range(12) for x in range(17)])
        for s in range(3)
    ]
    found = score(image, reference)
    assert found.ssim == pytest.approx(np.mean(slices), abs=1e-9)
    assert found.nmse == pytest.approx(np.linalg.norm(g - p) ** 2 / np.linalg.norm(g) ** 2)
    assert found.psnr == pytest.approx(10 * np.log10(top**2 / np.mean((p - g) ** 2)))
    assert found.scale == pytest.approx((p * g).sum() / (p * p).sum())


def test_scores_agree_with_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    """As fastMRI calls it, on float32, a slice at a time with the volume's maximum."""
    metrics = pytest.importorskip("skimage.metrics")
    image, reference = pair
    p, g = image.numpy(), reference.numpy()
    ssim = np.mean([metrics.structural_similarity(g[s], p[s], data_range=g.max())
                    for s in range(3)])
    found = score(image, reference)
    assert found.ssim == pytest.approx(ssim, abs=1e-4)
    psnr = metrics.peak_signal_noise_ratio(g, p, data_range=g.max())
    assert found.psnr == pytest.approx(psnr, abs=1e-4)
    _, full = metrics.structural_similarity(
        g[1].astype(float), p[1].astype(float), data_range=2.0, full=True)
    ours = similarity_map(image[1].double(), reference[1].double(), 2.0)
    np.testing.assert_allclose(ours.numpy(), full, atol=1e-10)  # to the very edge


def test_region_limits_every_score(pair: tuple[Tensor, Tensor]) -> None:
    image, reference = pair
    region = torch.zeros(reference.shape, dtype=torch.bool)
    region[0, 5:9, 6:12] = True
    found = score(image, reference, region)
    p, g = (x.double()[region] for x in (image, reference))
    assert found.nmse == pytest.approx(float(((p - g) ** 2).sum() / (g**2).sum()))
    mse = float(((p - g) ** 2).mean())
    assert found.psnr == pytest.approx(10 * np.log10(float(g.max()) ** 2 / mse))
    ssim = similarity_map(image.double(), reference.double(), float(g.max()))[region].mean()
    assert found.ssim == pytest.approx(float(ssim))
    outside = torch.where(region, image, torch.zeros(()))
    assert score(outside, reference, region).nmse == found.nmse


def test_magnitudes_are_scored_and_nothing_is_rescaled(pair: tuple[Tensor, Tensor]) -> None:
    _, reference = pair
    turned = torch.polar(reference, torch.full_like(reference, 0.7))
    perfect = score(turned, reference)
    assert perfect.nmse == pytest.approx(0, abs=1e-12)
    assert perfect.ssim == pytest.approx(1)
    half = score(reference / 2, reference)
    assert half.nmse == pytest.approx(0.25)
    assert half.scale == pytest.approx(2)
    assert score(reference, reference).psnr == float("inf")


def test_similarity_can_be_a_loss(generator: torch.Generator) -> None:
    """Batched, with a range for each image, and its gradient that of finite differences."""
    g = torch.rand(2, 9, 8, generator=generator, dtype=torch.float64)
    p = torch.rand(2, 9, 8, generator=generator, dtype=torch.float64).requires_grad_()
    top = g.amax(dim=(-2, -1), keepdim=True)
    values = similarity_map(p, g, top)
    torch.testing.assert_close(values[1], similarity_map(p[1], g[1], float(top[1])))
    assert torch.autograd.gradcheck(lambda x: similarity_map(x, g, top), (p,))


def test_what_cannot_be_scored() -> None:
    good = torch.ones(8, 8)
    with pytest.raises(InputError, match=r"\(8, 8\).*\(8, 9\)"):
        score(good, torch.ones(8, 9))
    with pytest.raises(InputError, match="zero everywhere"):
        score(good, torch.zeros(8, 8))
    with pytest.raises(InputError, match="7 x 7"):
        score(good[:6], good[:6])
