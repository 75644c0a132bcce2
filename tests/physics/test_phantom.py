"""The simulated brain scan."""

from __future__ import annotations

import math

import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.fourier import ifft
from snrecon.physics.phantom import (
    FLUID,
    SCALP,
    WHITE,
    brain_phantom,
    coil_maps,
    noise_covariance,
    simulate_scan,
)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_head_other_seed_other_head() -> None:
    first, again = brain_phantom((64, 48), seeded()), brain_phantom((64, 48), seeded())
    assert torch.equal(first, again)
    assert not torch.allclose(first.abs(), brain_phantom((64, 48), seeded(4)).abs(), atol=0.1)


def test_it_is_a_head() -> None:
    image = brain_phantom((128, 128), seeded()).abs()
    assert image.shape == (128, 128)
    assert float(image[:4].max()) < 1e-3  # air around
    assert float(image[:, :4].max()) < 1e-3
    assert float(image.max()) < 1.25 * SCALP
    brain = image[30:100, 40:90]
    # White matter and fluid are both there, in plausible shares.
    assert 0.2 < float(((brain - WHITE).abs() < 0.12).float().mean()) < 0.8
    assert 0.03 < float((brain < FLUID + 0.15).float().mean()) < 0.4


def test_the_head_does_not_depend_on_the_matrix() -> None:
    coarse = brain_phantom((48, 48), seeded(), supersampling=4)
    fine = brain_phantom((96, 96), seeded(), supersampling=2)
    shrunk = fine.reshape(48, 2, 48, 2).mean(dim=(1, 3))
    assert float((coarse - shrunk).abs().max()) < 1e-2


def test_a_volume_shrinks_towards_the_top() -> None:
    volume = brain_phantom((12, 48, 48), seeded()).abs()
    size = (volume > 0.5).sum(dim=(1, 2))
    assert volume.shape == (12, 48, 48)
    assert int(size[0]) < int(size[6])
    assert int(size[-1]) < int(size[6])


def test_bad_shapes() -> None:
    with pytest.raises(InputError, match="shape"):
        brain_phantom((8,), seeded())
    with pytest.raises(InputError, match="coil"):
        coil_maps(0, (8, 8))


def test_coil_maps_follow_biot_savart() -> None:
    """Against the field of two wires written out with real vectors."""
    maps = coil_maps(4, (16, 16))
    line = (torch.arange(16).double() + 0.5) / 8 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle, half = 2 * math.pi * 0.5 / 4, 2.2 / 4
    field = torch.zeros(16, 16, dtype=torch.complex128)
    for sign, turn in ((1, -half), (-1, half)):
        ax, ay = 1.15 * math.cos(angle + turn), 1.15 * math.sin(angle + turn)
        dx, dy = x - ax, y - ay
        r2 = dx**2 + dy**2
        # B = I (-dy, dx) / r^2 of a wire along z; the rotating part is Bx - i By.
        bx, by = -dy / r2, dx / r2
        field += sign * torch.complex(bx, -by)
    ratio = maps[0].to(torch.complex128) / field
    assert float((ratio / ratio[8, 8] - 1).abs().max()) < 1e-4


def test_maps_are_scaled_and_distinct() -> None:
    maps = coil_maps(8, (32, 32))
    assert maps.dtype == torch.complex64
    assert float((maps[:, 16, 16].abs() ** 2).sum()) == pytest.approx(1, abs=1e-5)
    gram = torch.einsum("axy,bxy->ab", maps[:, 8:24, 8:24].conj(), maps[:, 8:24, 8:24])
    assert int((torch.linalg.eigvalsh(gram) > 1e-3 * gram.abs().max()).sum()) >= 5


def test_covariance_is_correlated_and_complex() -> None:
    noise = noise_covariance(8, seeded(), level=2.0)
    psi = noise.covariance
    assert float(psi.diagonal().real.mean()) == pytest.approx(4, rel=1e-5)
    assert float(psi.imag.abs().max()) > 0.1
    assert 0.3 < float((noise.correlation() - torch.eye(8)).max()) < 0.4


def test_a_scan_has_the_noise_it_says() -> None:
    """Fully sampled: what is left after taking the noiseless k-space away has the covariance."""
    noisy = simulate_scan((96, 96), coils=4, acceleration=1, seed=5)
    clean = simulate_scan((96, 96), coils=4, acceleration=1, seed=5, snr=1e9)
    left = (noisy.kspace - clean.kspace).flatten(1).to(torch.complex128)
    found = left @ left.mH / left.shape[1]
    psi = noisy.require_noise().covariance.to(torch.complex128)
    assert float(torch.linalg.norm(found - psi) / torch.linalg.norm(psi)) < 0.05


def test_a_scan_is_undersampled_and_shows_the_head() -> None:
    scan = simulate_scan((64, 64), acceleration=1, with_maps=True)
    assert scan.maps is not None
    assert scan.acceleration == 1
    coils = ifft(scan.kspace, (-2, -1))
    image = (scan.maps.conj() * coils).sum(0) / (scan.maps.abs() ** 2).sum(0)
    truth = brain_phantom((64, 64), seeded(0))
    assert float(torch.linalg.norm(image - truth) / torch.linalg.norm(truth)) < 0.05
    faster = simulate_scan((64, 64), acceleration=4, calibration=12, mask="equispaced_fraction")
    assert 3 < faster.acceleration < 5
    assert bool((faster.kspace[:, ~faster.sampled] == 0).all())
