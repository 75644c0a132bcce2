"""Images that a decoder can make: a magnitude from a few numbers, with a smooth phase and shading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.calibration import calibration_region, cap_region, low_resolution
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.zero_filled import matched_filter

PHASE_LINES = 32
"""Most lines around the centre of k-space along each axis that the phase is taken from."""
FEWEST_LINES = 4
"""With fewer fully sampled lines, whatever was sampled around the centre has to do."""
SHADING, SHADING_SIZE = 4, 0.5
"""Cosines along each axis of the logarithmic shading, and the SD of its slowest wave."""
TURN, TURN_SIZE = 6, 0.5
"""The same of what the phase may differ from the low-resolution one, radians."""
TOGETHER = 16
"""Derivatives of the decoder that are made at once."""


class Decoder(Protocol):
    """What makes images of latent vectors; :class:`snrecon.networks.autoencoder.Autoencoder` is
    one."""

    latent: int
    """Length of a latent vector, whose prior is N(0, I)."""

    def decode(self, z: Tensor) -> Tensor:
        """Latent vectors ``(batch, latent)`` to square magnitude images ``(batch, n, n)``, twice
        differentiable."""


@dataclass(frozen=True, eq=False)
class LatentImage:
    """``x(theta) = exp(s + i p) u R G(z)`` with ``theta = (z, c_s, c_p)``.

    ``G`` is the decoder, ``R`` band-limited resampling to the grid, ``u`` a fixed unit phase, zero
    off the maps' support. ``s`` (logarithm of scale and shading) and ``p`` (correction of the
    phase) are sums of the slowest cosines along both axes, so scaled that every entry of theta has
    the prior N(0, 1), but the constant of s, whose prior is flat.
    """

    decode: Callable[[Tensor], Tensor]
    latent: int
    unit: Tensor
    """u, complex ``(ky, kx)``."""
    rows: Tensor
    """Resampling, ``(ky, n)``."""
    columns: Tensor
    """Resampling, ``(kx, n)``."""
    shading: Tensor
    """Waves of s, ``(waves, ky, kx)``; the first is constant."""
    turning: Tensor
    """Waves of p, ``(waves, ky, kx)``."""

    @property
    def parameters(self) -> int:
        """Length of theta."""
        return self.latent + len(self.shading) + len(self.turning)

    @property
    def prior(self) -> Tensor:
        """Inverse prior variances of theta, ``(parameters,)``: 1, and 0 where it is flat."""
        weights = torch.ones(self.parameters, dtype=self.rows.dtype, device=self.rows.device)
        weights[self.latent] = 0
        return weights

    def __call__(self, theta: Tensor) -> Tensor:
        """Complex images ``(batch, ky, kx)`` of ``(batch, parameters)``."""
        z, shading, turning = self.split(theta)
        return self.resampled(self.decode(z)) * self._factor(shading, turning)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z and the coefficients of s and p."""
        z, shading, turning = theta.split(
            [self.latent, len(self.shading), len(self.turning)], dim=-1)
        return z, shading, turning

    def resampled(self, pictures: Tensor) -> Tensor:
        """Decoded images ``(..., n, n)`` on the grid, ``(..., ky, kx)``."""
        return self.rows @ pictures @ self.columns.mT

    def _factor(self, shading: Tensor, turning: Tensor) -> Tensor:
        size = torch.einsum("bk,kyx->byx", shading, self.shading).exp()
        angle = torch.einsum("bk,kyx->byx", turning, self.turning)
        return torch.complex(size * angle.cos(), size * angle.sin()) * self.unit

    def jacobian(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(ky, kx)`` and derivatives ``(parameters, ky, kx)`` at ``theta``
        ``(parameters,)``."""
        z, shading, turning = self.split(theta)
        factor = self._factor(shading[None], turning[None])[0]

        def decode(one: Tensor) -> Tensor:
            return self.decode(one[None])[0]

        eye = torch.eye(self.latent, dtype=z.dtype, device=z.device)
        pictures = torch.vmap(
            lambda t: torch.func.jvp(decode, (z,), (t,))[1], chunk_size=TOGETHER)(eye)
        image = self.resampled(decode(z)) * factor
        return image, torch.cat([
            self.resampled(pictures) * factor, image * self.shading, 1j * image * self.turning])


def latent_image(decoder: Decoder, model: ForwardModel, scan: Scan, like: Tensor) -> LatentImage:
    """The images on the grid of a 2D scan.

    The decoder's square covers the longer side of the field of view, with square voxels if the scan
    does not know their sizes; the shorter side shows its middle.

    Args:
        decoder: On the device and in the precision of ``like``.
        model: Of the scan.
        scan: Gives the phase and, where known, the size of a voxel.
        like: Real tensor of the device and precision.

    Raises:
        InputError: if the decoder does not make square images of its latent vectors.
    """
    z = torch.zeros(1, decoder.latent, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        picture = decoder.decode(z)
    if picture.ndim != 3 or picture.shape[0] != 1 or picture.shape[1] != picture.shape[2] or (
            picture.is_complex()):
        raise InputError(
            f"the decoder makes arrays {tuple(picture.shape)} of one latent vector; give one that "
            "makes real images (1, n, n).")
    n = int(picture.shape[1])
    grid = (int(scan.grid[0]), int(scan.grid[1]))
    sizes = (1.0, 1.0) if scan.geometry is None else scan.geometry.voxel_size[1:]
    side = max(points * size for points, size in zip(grid, sizes, strict=True))
    rows, columns = (
        resampling(points, size / side, n).to(like)
        for points, size in zip(grid, sizes, strict=True))
    unit = smooth_phase(model, scan.kspace) * model.support
    unit = unit.to(torch.promote_types(unit.dtype, like.dtype))
    return LatentImage(
        decoder.decode, decoder.latent, unit, rows, columns,
        _waves(grid, SHADING, SHADING_SIZE).to(like), _waves(grid, TURN, TURN_SIZE).to(like))


def resampling(points: int, spacing: float, source: int) -> Tensor:
    """Band-limited interpolation from ``source`` voxels of a field of view to others.

    Frequencies that either grid cannot hold are left out, as cutting or zero-filling k-space does;
    the same grid gives the identity.

    Args:
        points: Voxels wanted, around the same centre (``n // 2``).
        spacing: Their distance over the source's field of view.
        source: Voxels of the source.

    Returns:
        ``(points, source)`` float64.
    """
    place = (torch.arange(points, dtype=torch.float64) - points // 2) * spacing
    origin = (torch.arange(source, dtype=torch.float64) - source // 2) / source
    frequency = torch.arange(source // 2 + 1, dtype=torch.float64)
    highest = min(source / 2, 0.5 / spacing)
    weight = torch.where(frequency > 0, 2.0, 1.0)
    weight = torch.where((frequency - highest).abs() < 1e-6, 1.0, weight)  # its own mirror image
    weight = torch.where(frequency > highest + 1e-6, 0.0, weight).to(torch.float64)
    distance = place[:, None] - origin
    return (torch.cos(2 * torch.pi * distance[..., None] * frequency) @ weight) / source


def smooth_phase(model: ForwardModel, kspace: Tensor) -> Tensor:
    """Unit phase ``exp(i arg x)`` ``(ky, kx)`` of the low-resolution matched-filter image.

    From the fully sampled centre of k-space (at most 32 lines along each axis, Hann window); where
    there is none, from what was sampled near the centre. 1 where the image is zero.

    Args:
        model: Of the scan.
        kspace: ``(coil, ky, kx)`` in the scan's coils.
    """
    grid = tuple(model.mask.shape)
    try:
        region = calibration_region(model.mask, minimum=min(FEWEST_LINES, *grid))
    except InputError:
        region = tuple(slice(0, n) for n in grid)
    region = cap_region(region, grid, PHASE_LINES)
    image = matched_filter(model, low_resolution(kspace * model.mask, region))
    size = image.abs()
    return torch.where(size > 0, image / torch.where(size > 0, size, 1), 1)


def _waves(grid: tuple[int, int], count: int, size: float) -> Tensor:
    """Cosines ``(count^2, ky, kx)`` float64, of SD ``size / (1 + (j^2 + k^2) / 4)``, the constant
    first."""
    order = torch.arange(count, dtype=torch.float64)
    y, x = (
        torch.cos(torch.pi * order[:, None] * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        for n in grid)
    scale = size / (1 + (order[:, None] ** 2 + order**2) / 4)
    return torch.einsum("jk,jy,kx->jkyx", scale, y, x).flatten(0, 1)
