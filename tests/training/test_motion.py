"""Motion between shots: translations, rotations, and that nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.fourier import fft, ifft
from snrecon.training.motion import (
    Motion,
    draw_motion,
    move_shots,
    rotate,
    shot_of_line,
    translate,
)
from support import random_complex

PLANE = (-2, -1)


def bump(shape: tuple[int, int], y: float, x: float, width: float = 2.0) -> Tensor:
    """A smooth blob ``y``, ``x`` voxels from the centre voxel."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    squared = (rows[:, None] - y) ** 2 + (columns - x) ** 2
    return torch.exp(-squared / (2 * width**2)).to(torch.complex128)


def still(shots: int) -> Motion:
    zero = torch.zeros(shots, dtype=torch.float64)
    return Motion(torch.zeros(shots, 2, dtype=torch.float64), zero, zero)


@pytest.mark.parametrize("shape", [(24, 24), (25, 32)])
def test_translation_moves_the_object(shape: tuple[int, int]) -> None:
    kspace = fft(bump(shape, 1, -2), PLANE)
    moved = ifft(translate(kspace, torch.tensor([2.5, -1.25])), PLANE)
    torch.testing.assert_close(moved, bump(shape, 3.5, -3.25), atol=3e-4, rtol=0)
    whole = ifft(translate(kspace, torch.tensor([3.0, 1.0])), PLANE)
    torch.testing.assert_close(whole, bump(shape, 1, -2).roll((3, 1), (0, 1)))


@pytest.mark.parametrize("shape", [(40, 40), (41, 48)])
@pytest.mark.parametrize("angle", [0.3, -0.7])
def test_rotation_turns_from_the_first_axis_to_the_second(
    shape: tuple[int, int], angle: float
) -> None:
    y, x = 7.0, 2.0
    turned = ifft(rotate(fft(bump(shape, y, x), PLANE), angle), PLANE)
    c, s = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(turned, bump(shape, c * y - s * x, s * y + c * x), atol=1e-4, rtol=0)


def test_motion_is_unitary_and_undone_by_its_inverse() -> None:
    kspace = random_complex(3, 20, 18)
    turned = rotate(kspace, 0.4)
    assert float(turned.norm()) == pytest.approx(float(kspace.norm()), rel=1e-12)
    torch.testing.assert_close(rotate(turned, -0.4), kspace)
    shift = torch.tensor([0.3, -2.2], dtype=torch.float64)
    torch.testing.assert_close(translate(translate(kspace, shift), -shift), kspace)


def test_shots_are_lines_of_the_moved_object() -> None:
    """Every line is that of the object in its shot's pose: rotated, then displaced."""
    kspace = random_complex(2, 12, 10)
    motion = Motion(torch.tensor([[0.0, 0.0], [1.5, -0.5]], dtype=torch.float64),
                    torch.tensor([0.0, 0.2], dtype=torch.float64),
                    torch.tensor([0.0, 0.9], dtype=torch.float64))
    shot = shot_of_line(12, 2)
    moved = move_shots(kspace, shot, motion)
    torch.testing.assert_close(moved[:, ::2], kspace[:, ::2])
    other = translate(rotate(kspace, 0.2), motion.translations[1])[:, 1::2]
    turn = complex(math.cos(0.9), math.sin(0.9))
    torch.testing.assert_close(moved[:, 1::2], turn * other)
    torch.testing.assert_close(move_shots(kspace, shot, still(2)), kspace)
    batch = move_shots(torch.stack([kspace, 2 * kspace]), shot, motion)
    torch.testing.assert_close(batch[1], 2 * moved)


def test_white_noise_keeps_its_level() -> None:
    noise = random_complex(4, 64, 64, seed=3)
    moved = move_shots(noise, shot_of_line(64, 4), draw_motion(4, seed=1))
    assert float(moved.abs().square().mean()) == pytest.approx(1, abs=0.03)


def test_poses_are_seeded_and_bounded() -> None:
    one, same, other = (draw_motion(30, seed, 3.0, 0.1, 0.4) for seed in (1, 1, 2))
    assert torch.equal(one.translations, same.translations)
    assert not torch.equal(one.angles, other.angles)
    for values, limit in ((one.translations, 3.0), (one.angles, 0.1), (one.phases, 0.4)):
        assert 0.5 * limit < float(values.abs().max()) <= limit


def test_one_shot_can_be_the_reference() -> None:
    """Relative to a shot the others move as they did, seen from its pose."""
    motion = draw_motion(3, seed=5, translation=2.0, angle=0.3)
    seen = motion.relative_to(1)
    assert not bool(seen.translations[1].any()) or float(seen.translations[1].abs().max()) < 1e-6
    kspace = fft(bump((48, 48), 3, 2), PLANE)

    def pose(k: Tensor, of: Motion, shot: int) -> Tensor:
        return translate(rotate(k, float(of.angles[shot])), of.translations[shot].double())

    # Undo the pose of shot 1 in what shot 2 sees: the relative motion.
    absolute = pose(kspace, motion, 2)
    undone = rotate(translate(absolute, -motion.translations[1].double()),
                    -float(motion.angles[1]))
    torch.testing.assert_close(ifft(undone, PLANE), ifft(pose(kspace, seen, 2), PLANE),
                               atol=1e-4, rtol=0)


def test_orders_of_lines() -> None:
    assert shot_of_line(6, 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert shot_of_line(6, 3, "sequential").tolist() == [0, 0, 1, 1, 2, 2]
    assert set(shot_of_line(7, 3, "sequential").tolist()) == {0, 1, 2}


def test_what_does_not_fit() -> None:
    kspace = random_complex(2, 12, 10)
    with pytest.raises(InputError, match="12 lines"):
        move_shots(kspace, shot_of_line(10, 2), still(2))
    with pytest.raises(InputError, match="2 poses"):
        move_shots(kspace, shot_of_line(12, 3), still(2))
    with pytest.raises(InputError, match="right angle"):
        rotate(kspace, 2.0)
    with pytest.raises(InputError, match="1 to 4 shots"):
        shot_of_line(4, 5)
    with pytest.raises(InputError, match="interleaved"):
        shot_of_line(4, 2, "random")
    with pytest.raises(InputError, match="poses of 2 shots"):
        Motion(torch.zeros(3, 2), torch.zeros(2), torch.zeros(2))
