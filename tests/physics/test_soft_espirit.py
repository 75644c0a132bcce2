"""ESPIRiT without thresholds: near the true maps, near ESPIRiT, differentiable."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from derivatives import check_derivatives, check_linearization, draw
from snrecon.physics import soft_espirit as module
from snrecon.physics.espirit import espirit_eigen
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.phantom import brain_phantom, coil_maps
from snrecon.physics.soft_espirit import linearize_soft_espirit, soft_espirit


def lines(grid: tuple[int, int], count: int) -> Tensor:
    """Boolean mask of the central lines."""
    rows = (torch.arange(grid[0]) - grid[0] // 2 + count // 2).unsqueeze(1)
    return ((rows >= 0) & (rows < count)).expand(grid)


def simulated(grid: tuple[int, int], coils: int, snr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened k-space, true maps of unit norm and where the object is."""
    generator = torch.Generator().manual_seed(5)
    image = brain_phantom(grid, generator, supersampling=1).to(torch.complex64)
    maps = coil_maps(coils, grid)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    head = image.abs() > 0.15
    kspace = fft(maps * image, (-2, -1)) * snr / image.abs()[head].mean()
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return kspace + noise, maps, head


def lost(images: Tensor, truth: Tensor, inside: Tensor) -> float:
    """Mean share of the signal's energy that maps of these images miss."""
    maps = images / torch.linalg.vector_norm(images, dim=0)
    return 1 - float((maps.conj() * truth).sum(0).abs().square()[inside].mean())


@pytest.mark.parametrize(("count", "snr"), [(10, 50.0), (16, 50.0), (24, 10.0)])
def test_is_near_the_true_maps_and_near_espirit(count: int, snr: float) -> None:
    grid = (96, 96)
    kspace, truth, head = simulated(grid, 8, snr)
    calibration = lines(grid, count)
    low = ifft(kspace * calibration, (-2, -1))
    ours = lost(soft_espirit(kspace, calibration, 24), truth, head)
    block = kspace[:, calibration[:, 0]]
    hard = lost(espirit_eigen(block, grid, noise_variance=1.0)[0], truth, head)
    assert ours < 0.012
    assert ours < 1.5 * hard + 1e-3
    assert ours < 0.5 * lost(low, truth, head)


def test_keeps_the_length_and_the_phase_of_the_calibration_images() -> None:
    grid = (48, 40)
    kspace, _, head = simulated(grid, 5, 40.0)
    calibration = lines(grid, 12)
    low = ifft(kspace * calibration, (-2, -1))
    turned = soft_espirit(kspace, calibration, 16)
    lengths = [torch.linalg.vector_norm(x, dim=0) for x in (turned, low)]
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-4, atol=1e-3)
    overlap = (turned.conj() * low).sum(0)[head]
    assert float((overlap.imag.abs() / overlap.abs()).mean()) < 0.02
    assert bool((overlap.real > 0).all())


def test_sees_the_calibration_lines_only() -> None:
    grid = (24, 20)
    kspace, _, _ = simulated(grid, 3, 30.0)
    calibration = lines(grid, 8)
    other = torch.where(calibration, kspace, 3 * kspace + 1)
    assert torch.equal(
        soft_espirit(kspace, calibration, 4), soft_espirit(other, calibration, 4))


@pytest.mark.parametrize("count", [1, 5, 10])
@pytest.mark.parametrize("square", [False, True])
def test_derivatives(count: int, square: bool) -> None:
    grid = (14, 11)
    calibration = lines(grid, count)
    if square:
        calibration = calibration & lines((11, 14), count).T
    kspace = 5 * draw((3, *grid), torch.complex128, 2)
    check_derivatives(lambda y: soft_espirit(y, calibration, 6), kspace, batched=False)
    check_linearization(
        lambda y: soft_espirit(y, calibration, 6),
        lambda y: linearize_soft_espirit(y, calibration, 6), kspace)


@pytest.mark.parametrize("kept", [0, 10**9])
def test_blocks_of_rows_do_not_matter(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (14, 11)
    calibration = lines(grid, 6)
    kspace, v = (draw((3, *grid), torch.complex128, seed) for seed in (3, 4))
    whole, jvp = linearize_soft_espirit(kspace, calibration, 6)
    wanted = jvp(v[None])
    monkeypatch.setattr(module, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    torch.testing.assert_close(soft_espirit(kspace, calibration, 6), whole)
    again, jvp = linearize_soft_espirit(kspace, calibration, 6)
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(jvp(v[None]), wanted)


def test_many_iterations_and_no_signal_stay_finite() -> None:
    """Where all eigenvalues are small, single precision must not underflow."""
    grid = (32, 32)
    calibration = lines(grid, 10)
    kspace, _, _ = simulated(grid, 4, 30.0)
    kspace[1] = 0  # a dead coil
    for point in (kspace, 1e-3 * kspace, 0 * kspace):
        image, jvp = linearize_soft_espirit(point, calibration, 64)
        tangent = jvp(draw((2, *kspace.shape), torch.complex64, 7))
        assert bool(torch.isfinite(torch.view_as_real(image)).all())
        assert bool(torch.isfinite(torch.view_as_real(tangent)).all())
    assert bool((image == 0).all())


@pytest.mark.parametrize("count", [4, 7, 16])
def test_next_to_no_signal_is_turned_as_in_double_precision(count: int) -> None:
    """Its eigenvalues are of the order of 1e-10, whose fourth power single precision does not
    know."""
    grid = (32, 32)
    calibration = lines(grid, 10)
    kspace = 1e-2 * draw((4, *grid), torch.complex128, 3)
    wanted = soft_espirit(kspace, calibration, count)
    found = soft_espirit(kspace.to(torch.complex64), calibration, count)
    error = torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted)
    assert float(error) < 1e-2
    image, _ = linearize_soft_espirit(kspace.to(torch.complex64), calibration, count)
    torch.testing.assert_close(image, found, rtol=1e-3, atol=1e-5)


def test_noise_of_the_maps_is_predicted() -> None:
    """Standard deviation of the images over replicas against the derivative's, mean over voxels of
    the head, to three standard errors."""
    grid, coils, count = (24, 20), 3, 400
    kspace, _, head = simulated(grid, coils, 100.0)
    calibration = lines(grid, 10)
    noise = draw((count, *kspace.shape), torch.complex64, 9)
    replicas = torch.stack([soft_espirit(kspace + n, calibration, 16) for n in noise])
    _, jvp = linearize_soft_espirit(kspace, calibration, 16)
    pushed = jvp(draw(noise.shape, torch.complex64, 10))
    sd = [x.var(dim=0).mean(dim=0)[head].mean().sqrt() for x in (replicas, pushed)]
    # Voxels are correlated: the error of the mean is taken from independent batches of draws.
    parts = [x.unflatten(0, (10, -1)).var(dim=1).mean(dim=1)[:, head].mean(dim=1).sqrt()
             for x in (replicas, pushed)]
    error = sum(float(p.var() / len(p)) for p in parts) ** 0.5
    assert abs(float(sd[0] - sd[1])) < 3 * error + 0.01 * float(sd[1])
    assert error < 0.02 * float(sd[1])


def test_a_batch_is_its_items() -> None:
    """Blocks of several sizes, two of them with the same kernel."""
    grid = (20, 16)
    kspace = 5 * draw((4, 3, *grid), torch.complex128, 3)
    blocks = torch.stack([lines(grid, count) for count in (12, 3, 14, 6)])
    together = soft_espirit(kspace, blocks, 5)
    alone = torch.stack([soft_espirit(k, b, 5) for k, b in zip(kspace, blocks, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_a_batch_returns_where_the_number_of_threads_was_set() -> None:
    """There a batched LU factorisation never does (PyTorch issue 142815): in a process that can be
    stopped."""
    script = """
import torch
from snrecon.physics.soft_espirit import soft_espirit
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(1)
kspace = torch.randn(2, 8, 32, 32, dtype=torch.complex64, generator=generator)
mask = torch.zeros(2, 32, 32, dtype=torch.bool)
mask[:, 10:22] = True
both = soft_espirit(kspace, mask, 4)
images, vjp = torch.func.vjp(lambda k: soft_espirit(k, mask[0], 4), kspace[0])
rows, = torch.func.vmap(vjp)(both)
assert (images - both[0]).norm() < 1e-4 * images.norm()
assert rows.shape == kspace.shape
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)
