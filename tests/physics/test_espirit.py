"""ESPIRiT against sigpy, against known sensitivities, and on real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics import espirit as module
from snrecon.physics.coils import estimate_maps
from snrecon.physics.espirit import (
    espirit,
    espirit_eigen,
    fill_holes,
    kernel_widths,
    principal_eigenvector,
    reference_combination,
)
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.masks import make_mask
from snrecon.physics.noise_estimation import covariance_from_background
from snrecon.physics.phantom import brain_phantom, coil_maps


def simulated(shape: tuple[int, ...], coils: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Noisy k-space ``(coil, *grid)`` and true normalised maps."""
    generator = torch.Generator().manual_seed(5)
    image = brain_phantom(shape, generator, supersampling=1).to(torch.complex64)
    maps = coil_maps(coils, shape)
    axes = tuple(range(-len(shape), 0))
    kspace = fft(maps * image, axes)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return kspace, maps / torch.linalg.vector_norm(maps, dim=0)


def misfit(maps: Tensor, truth: Tensor) -> Tensor:
    """Distance per voxel after the best phase, relative to unit maps."""
    overlap = (maps.conj() * truth).sum(0)
    aligned = maps * (overlap / overlap.abs().clamp_min(1e-12))
    return torch.linalg.vector_norm(aligned - truth, dim=0)


def head(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    image = brain_phantom(shape, torch.Generator().manual_seed(5), supersampling=1)
    return fill_holes(image.abs() > 0.15)


def test_agrees_with_sigpy() -> None:
    mr = pytest.importorskip("sigpy.mri")
    kspace, _ = simulated((80, 72), 8, noise=0.01)
    reference, values = mr.app.EspiritCalib(
        kspace.numpy(), calib_width=24, thresh=0.02, kernel_width=6, crop=0.0, max_iter=400,
        output_eigenvalue=True, show_pbar=False,
    ).run()
    block = kspace[:, 80 // 2 - 12 : 80 // 2 + 12, 72 // 2 - 12 : 72 // 2 + 12]
    maps, found = espirit_eigen(block, (80, 72), kernel=6, threshold=0.02)
    values = torch.from_numpy(np.abs(np.squeeze(values)))
    inside = values > 0.95
    assert 0.2 < float(inside.float().mean()) < 0.95
    assert float((found - values)[inside].abs().max()) < 1e-3
    error = misfit(maps, torch.from_numpy(reference))[inside]
    assert float(error.square().mean().sqrt()) < 1e-3
    assert float(error.quantile(0.99)) < 1e-2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_unit_norm_on_the_support_and_zero_off_it(dtype: torch.dtype) -> None:
    kspace, _ = simulated((48, 40), 4)
    maps = espirit(kspace[:, 12:36, 8:32].to(dtype), (48, 40), crop=0.9)
    assert maps.dtype == dtype
    norm = maps.abs().square().sum(0)
    support = norm > 0.5
    assert 0.3 < float(support.float().mean()) < 1
    assert torch.allclose(norm[support], torch.ones_like(norm[support]), atol=1e-4)
    assert bool((maps[:, ~support] == 0).all())


@pytest.mark.parametrize("calibration", [24, 12, 8])
def test_recovers_known_maps_from_an_undersampled_scan(calibration: int) -> None:
    shape = (96, 96)
    kspace, truth = simulated(shape, 8, noise=0.01)
    mask = make_mask("equispaced", shape, 4, calibration=calibration, seed=0).tensor
    maps, source = estimate_maps(kspace * mask, mask)
    assert "ESPIRiT" in source
    inside = head(maps, shape)
    covered = (maps != 0).any(0)[inside].float().mean()
    assert float(covered) > 0.995
    good = inside & (maps != 0).any(0)
    lost = 1 - (maps.conj() * truth).sum(0).abs()[good] ** 2
    assert float(lost.mean()) < {24: 0.003, 12: 0.005, 8: 0.01}[calibration]


def test_uses_the_calibration_lines_only() -> None:
    kspace, _ = simulated((64, 64), 4)
    mask = make_mask("equispaced", (64, 64), 4, calibration=12, seed=0).tensor
    region = slice(32 - 6, 32 + 6)
    other = kspace.clone()
    outside = mask.clone()
    outside[region] = False
    other[:, outside] *= 1.3
    first, _ = estimate_maps(kspace * mask, mask, calibration=12)
    second, _ = estimate_maps(other * mask, mask, calibration=12)
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_principal_eigenvector_against_eigh(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 5, 5, dtype=torch.complex128, generator=generator)
    matrices = root @ root.mH * torch.logspace(-20, 4, 50, dtype=torch.float64)[:, None, None]
    values, vectors = np.linalg.eigh(matrices.numpy())
    clear = values[:, -2] < 0.93 * values[:, -1]
    found, norm = principal_eigenvector(matrices.to(dtype))
    overlap = np.abs(np.einsum("nc,nc->n", vectors[:, :, -1].conj(), found.numpy()))
    assert np.allclose(overlap[clear], 1, atol=1e-5)
    assert np.allclose(norm.numpy()[clear] / values[clear, -1], 1, atol=1e-5)
    assert clear.sum() > 30


def test_3d_maps_and_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (12, 32, 32)
    kspace, truth = simulated(shape, 6)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, ::2] = True
    mask[:, 10:22] = True
    maps, _ = estimate_maps(kspace * mask, mask)
    inside = head(maps, shape)
    assert float((maps != 0).any(0)[inside].float().mean()) > 0.98
    lost = 1 - (maps.conj() * truth).sum(0).abs()[inside & (maps != 0).any(0)] ** 2
    assert float(lost.mean()) < 0.01
    monkeypatch.setattr(module, "BLOCK_BYTES", 6 * 6 * 32 * 8 * 3)  # three rows at a time
    blocks, _ = estimate_maps(kspace * mask, mask)
    assert torch.allclose(blocks, maps, atol=1e-5)


def test_the_phase_is_relative_to_a_combination_without_nulls() -> None:
    first, second = torch.eye(2, dtype=torch.complex64)
    between = (first + 1j * second) / 2**0.5
    places = torch.stack([*[first] * 9, between, second], dim=1)  # the principal one is the first
    reference = reference_combination(places)
    assert float((reference.conj() @ between).abs()) == pytest.approx(1, abs=1e-6)
    assert float((reference.conj() @ places).abs().min()) > 0.7


@pytest.mark.real_data
def test_phase_has_no_vortex_and_is_reproducible(real_data: Path) -> None:
    # The principal coil combination of this array has a null in the middle of the brain.
    kspace = torch.from_numpy(
        np.load(real_data / "mripy_brain8" / "kspace.npz")["kspace"].astype(np.complex64)
    )
    full = torch.ones(kspace.shape[1:], dtype=torch.bool)
    kspace = covariance_from_background(kspace, full).whiten(kspace)[:, 64:192, 64:192]
    shape = (128, 128)
    block = kspace[:, 52:76, 52:76]
    maps = espirit(block, shape)
    assert torch.equal(maps, espirit(block, shape))
    kspace[:, :32] = kspace[:, 96:] = kspace[:, :, :32] = kspace[:, :, 96:] = 0  # less noise
    image = (maps.conj() * ifft(kspace, (-2, -1))).sum(0)
    y, x = torch.meshgrid(torch.arange(127) - 64, torch.arange(127) - 64, indexing="ij")
    inside = y**2 + x**2 < 35**2
    phase = torch.angle(image)
    # Round every loop of four voxels in the head the phase must return to where it was.
    corner = phase[:-1, :-1], phase[:-1, 1:], phase[1:, 1:], phase[1:, :-1]
    circulation = torch.zeros_like(corner[0])
    for a, b in zip(corner, (*corner[1:], corner[0]), strict=True):
        circulation += torch.remainder(b - a + torch.pi, 2 * torch.pi) - torch.pi
    assert int((circulation.abs() > 3)[inside].sum()) == 0


def test_low_snr_keeps_noise_out_of_the_kernels() -> None:
    shape = (80, 80)
    clean, truth = simulated(shape, 8)
    noise = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(0))
    noisy = clean + 0.4 * noise
    block = (slice(None), slice(28, 52), slice(28, 52))
    inside = head(clean, shape)

    def lost(maps: Tensor) -> float:
        return float((1 - (maps.conj() * truth).sum(0).abs() ** 2)[inside].mean())

    aware, _ = espirit_eigen(noisy[block], shape, noise_variance=0.16)
    naive, _ = espirit_eigen(noisy[block], shape)
    assert lost(aware) < 0.5 * lost(naive)


def test_single_coil_gets_ones_without_calibration() -> None:
    kspace = torch.ones(1, 16, 16, dtype=torch.complex64)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[::3] = True
    maps, source = estimate_maps(kspace * mask, mask)
    assert bool((maps == 1).all())
    assert "single coil" in source


def test_holes_are_filled_but_not_bays() -> None:
    support = torch.zeros(9, 9, dtype=torch.bool)
    support[2:7, 2:7] = True
    support[4, 4] = False  # hole
    support[2:4, 5] = False  # open to the outside
    filled = fill_holes(support)
    assert bool(filled[4, 4])
    assert not bool(filled[2, 5])
    assert int(filled.sum()) == int(support.sum()) + 1


def test_kernels_shrink_for_few_lines_and_many_coils() -> None:
    assert kernel_widths(8, (24, 24)) == (6, 6)
    assert kernel_widths(8, (8, 24)) == (4, 6)
    assert kernel_widths(8, (24, 1)) == (6, 1)
    assert kernel_widths(16, (24, 24, 24)) == (5, 5, 5)
    assert 128 * np.prod(kernel_widths(128, (24, 24, 24))) <= 2048


@pytest.mark.parametrize(
    ("block", "grid", "message"),
    [((4, 24), (64, 64), "smaller than the kernel"), ((24, 24), (8, 64, 64), "do not fit")],
)
def test_bad_shapes(block: tuple[int, int], grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        espirit(torch.ones(2, *block, dtype=torch.complex64), grid)


def test_no_signal_and_unknown_method() -> None:
    with pytest.raises(InputError, match="no signal"):
        espirit(torch.zeros(2, 12, 12, dtype=torch.complex64), (16, 16))
    with pytest.raises(InputError, match="espirit or walsh"):
        estimate_maps(torch.ones(2, 16, 16, dtype=torch.complex64),
                      torch.ones(16, 16, dtype=torch.bool), method="magic")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "key"), [("pulseq_brain16", "brain_head16"), ("mripy_brain8", "kspace")]
)
@pytest.mark.parametrize("calibration", [24, 8])
def test_real_scans_keep_their_signal(
    real_data: Path, folder: str, key: str, calibration: int
) -> None:
    kspace = torch.from_numpy(
        np.load(real_data / folder / "kspace.npz")[key].astype(np.complex64)
    )
    full = torch.ones(kspace.shape[1:], dtype=torch.bool)
    white = covariance_from_background(kspace, full).whiten(kspace)
    mask = make_mask("equispaced", tuple(full.shape), 4, calibration=calibration, seed=0).tensor
    maps, _ = estimate_maps(white * mask, mask)
    images = ifft(white, (-2, -1))
    signal = images.abs().square().sum(0) - len(images)  # without the noise's share
    smooth = torch.nn.functional.avg_pool2d(signal[None, None], 5, 1, 2)[0, 0]
    inside = fill_holes(smooth > 60)
    combined = (maps.conj() * images).sum(0).abs().square() - (maps != 0).any(0).float()
    assert float((maps != 0).any(0)[inside].float().mean()) > 0.985
    lost = 1 - float(combined[inside].sum() / signal[inside].sum())
    assert abs(lost) < 0.006
