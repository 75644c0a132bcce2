"""Simulated motion: lines of k-space measured in shots, each with its own pose and phase.

The patient's pose is fixed within a shot and changes between shots. A translation is a linear phase
over k-space; a rotation turns k-space by the same angle and is done by three shears, each a
translation of the lines of one axis (Larkin et al., Opt Commun 139:99, 1997). All steps are
unitary, so white noise stays white, and the inverse motion undoes them exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.fourier import fft, ifft


@dataclass(frozen=True, eq=False)
class Motion:
    """Poses of the shots."""

    translations: Tensor
    """``(shot, 2)``: the object's displacement along ky's and kx's image axes, voxels."""
    angles: Tensor
    """``(shot,)``: rotation about the grid's centre from the first image axis to the second,
    radians; voxels must be square."""
    phases: Tensor
    """``(shot,)``: constant phase error, radians."""

    def __post_init__(self) -> None:
        shots = self.angles.shape[0]
        shapes = (tuple(self.translations.shape), tuple(self.angles.shape),
                  tuple(self.phases.shape))
        if shapes != ((shots, 2), (shots,), (shots,)):
            raise InputError(f"the poses of {shots} shots have shapes {shapes}, not (shot, 2), "
                             "(shot,), (shot,).")

    @property
    def shots(self) -> int:
        """Number of shots."""
        return int(self.angles.shape[0])

    def relative_to(self, shot: int) -> Motion:
        """The motion as seen from one shot, whose pose becomes the reference."""
        angle = -self.angles[shot]
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                            torch.stack([angle.sin(), angle.cos()])])
        moved = (self.translations - self.translations[shot]) @ turn.T
        return Motion(moved, self.angles - self.angles[shot], self.phases - self.phases[shot])


def draw_motion(
    shots: int, seed: int, translation: float = 2.0, angle: float = 0.05, phase: float = 0.5
) -> Motion:
    """Random poses, independent between shots and uniform up to the given sizes.

    Args:
        shots: How many.
        seed: Same seed, same motion.
        translation: Largest displacement along each axis, voxels.
        angle: Largest rotation, radians.
        phase: Largest phase error, radians.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = 2 * torch.rand(shots, 4, generator=generator) - 1
    return Motion(translation * draw[:, :2], angle * draw[:, 2], phase * draw[:, 3])


def shot_of_line(lines: int, shots: int, order: str = "interleaved") -> Tensor:
    """Which shot measures each ky line, ``(ky,)``.

    Args:
        lines: Number of ky lines.
        shots: Number of shots.
        order: ``interleaved`` (every ``shots``-th line) or ``sequential`` (blocks of lines).

    Raises:
        InputError: for another order, or more shots than lines.
    """
    if not 1 <= shots <= lines:
        raise InputError(f"{lines} lines can be measured in 1 to {lines} shots, not {shots}.")
    place = torch.arange(lines)
    if order == "interleaved":
        return place % shots
    if order == "sequential":
        return place * shots // lines
    raise InputError(f"shots are 'interleaved' or 'sequential', not {order!r}.")


def move_shots(kspace: Tensor, shot: Tensor, motion: Motion) -> Tensor:
    """K-space as it is measured while the object moves between shots.

    The coil images are moved, that is the coils move with the object. That is exact for
    translations and rotations of a single uniform coil; with real coils it is what augmentations
    commonly do, good for motions that are small against the coils.

    Args:
        kspace: ``(..., ky, kx)`` of the object at rest, complex.
        shot: ``(ky,)``, the shot of every line.
        motion: Pose of every shot.

    Raises:
        InputError: if lines and shots do not fit.
    """
    if shot.shape != kspace.shape[-2:-1] or int(shot.max()) >= motion.shots or int(shot.min()) < 0:
        raise InputError(
            f"{kspace.shape[-2]} lines were given {shot.numel()} shots of {motion.shots} poses."
        )
    moved = torch.empty_like(kspace)
    for number in shot.unique().tolist():
        lines = shot == number
        posed = rotate(kspace, float(motion.angles[number]))
        moved[..., lines, :] = translate(posed, motion.translations[number])[..., lines, :]
    turn = motion.phases.to(kspace.real.dtype)[shot].to(kspace.device)
    return moved * torch.polar(torch.ones_like(turn), turn)[:, None]


def translate(kspace: Tensor, shift: Tensor) -> Tensor:
    """K-space ``(..., ky, kx)`` of the image displaced by ``shift`` ``(2,)`` voxels."""
    for axis in (-2, -1):
        kspace = kspace * _ramp(kspace, axis, shift[axis].reshape(1).to(kspace.real))
    return kspace


def rotate(kspace: Tensor, angle: float) -> Tensor:
    """K-space ``(..., ky, kx)`` of the image turned about its centre voxel, from the first axis to
    the second; what leaves the field of view comes in again on the other side.

    Raises:
        InputError: for angles above a right angle, of which the shears are too large.
    """
    if abs(angle) > math.pi / 2:
        raise InputError(f"rotations are limited to a right angle, {angle:g} rad is more.")
    if angle == 0:
        return kspace
    image = ifft(kspace, (-2, -1))
    outer, inner = math.tan(angle / 2), -math.sin(angle)
    for axis, size in ((-2, -outer), (-1, -inner), (-2, -outer)):
        image = _shear(image, axis, size)
    return fft(image, (-2, -1))


def _shear(image: Tensor, axis: int, size: float) -> Tensor:
    """Displace every line along ``axis`` by ``size`` times its place on the other axis."""
    other = -3 - axis
    place = _place(image, other) * size
    return ifft(fft(image, (axis,)) * _ramp(image, axis, place), (axis,))


def _ramp(array: Tensor, axis: int, shift: Tensor) -> Tensor:
    """``exp(-2 pi i k shift / n)`` along ``axis``, with one shift for every place on the other."""
    n = array.shape[axis]
    k = _place(array, axis)
    phase = -2 * torch.pi / n * shift[:, None] * k
    wave = torch.polar(torch.ones_like(phase), phase)  # (other, axis)
    return wave.mT if axis == -2 else wave


def _place(array: Tensor, axis: int) -> Tensor:
    n = array.shape[axis]
    return torch.arange(n, device=array.device, dtype=array.real.dtype) - n // 2
