"""The calibration region against masks whose block is known by construction."""

import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.calibration import (
    calibration_lines,
    calibration_region,
    cap_region,
    low_resolution,
    peripheral_energy,
)
from snrecon.physics.coils import estimate_maps
from snrecon.physics.masks import make_mask


def lines(n: int, kept: list[int], width: int = 16) -> torch.Tensor:
    mask = torch.zeros(n, width, dtype=torch.bool)
    mask[kept] = True
    return mask


@pytest.mark.parametrize(
    ("kept", "block"),
    [
        (list(range(28, 36)), (28, 36)),
        (list(range(28, 37)), (28, 37)),
        (list(range(24, 33)), (24, 33)),  # one-sided: the centre, 32, is the last line
        ([*range(30, 34), 35, 28], (30, 34)),
        (list(range(0, 40)), (0, 40)),  # partial Fourier
    ],
)
def test_block_of_a_line_mask_is_found(kept: list[int], block: tuple[int, int]) -> None:
    region = calibration_region(lines(64, kept))
    assert region == (slice(*block), slice(0, 16))
    assert calibration_lines(lines(64, kept)) == (block[1] - block[0],)


def test_fully_sampled_scan_is_all_calibration() -> None:
    assert calibration_region(torch.ones(6, 7, dtype=torch.bool)) == (slice(0, 6), slice(0, 7))
    assert calibration_lines(torch.ones(6, 7, dtype=torch.bool)) == ()


def test_block_of_a_plane_mask_and_full_readout_in_3d() -> None:
    mask = torch.zeros(20, 24, 10, dtype=torch.bool)
    mask[::2, ::2] = True
    mask[8:13, 9:15] = True
    assert calibration_region(mask) == (slice(8, 13), slice(9, 15), slice(0, 10))
    assert calibration_lines(mask) == (5, 6)


def test_block_of_a_plane_mask_is_the_best_of_all(generator: torch.Generator) -> None:
    for _ in range(20):
        mask = torch.rand(9, 8, generator=generator) < 0.8
        mask[4, 4] = True
        best = max(
            (b - a) * (d - c)
            for a in range(5) for b in range(5, 10) for c in range(5) for d in range(5, 9)
            if bool(mask[a:b, c:d].all())
        )
        region = calibration_region(mask)
        assert bool(mask[region].all())
        assert mask[region].numel() == best


def test_square_is_preferred_to_a_long_line() -> None:
    mask = torch.zeros(256, 64, dtype=torch.bool)
    mask[:, 31:34] = True
    mask[118:138, 22:42] = True
    assert calibration_region(mask) == (slice(118, 138), slice(22, 42))


def test_every_sample_of_the_region_is_sampled_for_real_masks() -> None:
    for kind, calibration in (("random", 12), ("equispaced", 12), ("poisson", 10)):
        mask = make_mask(kind, (64, 48), 3.0, calibration=calibration, seed=3).tensor
        region = calibration_region(mask)
        assert bool(mask[region].all())
        for part, n, count in zip(region, mask.shape, calibration_lines(mask), strict=False):
            assert part.start <= n // 2 < part.stop
            assert count >= calibration


@pytest.mark.parametrize("kept", [[0, 8, 16, 24], [31, 33], [32], [31, 32, 33]])
def test_too_few_lines_are_refused_with_advice(kept: list[int]) -> None:
    with pytest.raises(InputError, match="--maps FILE"):
        calibration_region(lines(64, kept), minimum=4)
    kspace = torch.ones(2, 64, 16, dtype=torch.complex64)
    with pytest.raises(InputError, match="calibration lines"):
        estimate_maps(kspace, lines(64, kept))


def test_cap_is_centred_and_inside() -> None:
    grid = (64, 64, 10)
    region = (slice(0, 64), slice(30, 60), slice(0, 10))
    capped = cap_region(region, grid, 24)
    assert capped == (slice(20, 44), slice(30, 54), slice(0, 10))


def test_low_resolution_keeps_only_the_region_and_tapers() -> None:
    kspace = torch.ones(2, 16, 8, dtype=torch.complex128)
    low = low_resolution(kspace, (slice(4, 12), slice(0, 8)))
    assert bool((low[:, :4] == 0).all() and (low[:, 12:] == 0).all())
    assert torch.allclose(low[:, 8], torch.ones(2, 8, dtype=torch.complex128))
    assert float(low[0, 4, 0].real) < 0.2


def test_peripheral_energy_of_noise_is_its_variance(generator: torch.Generator) -> None:
    noise = 3 * torch.randn(8, 64, 64, dtype=torch.complex64, generator=generator)
    mask = make_mask("random", (64, 64), 4.0, calibration=10, seed=0).tensor
    assert peripheral_energy(noise * mask, mask) == pytest.approx(9.0, rel=0.1)
