"""The sensitivity network of the end-to-end variational network, and what it is given.

Sriram et al., MICCAI 2020, arXiv:2004.06688, with the parameter names of fastMRI's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.linearized import Tangent
from snrecon.networks.norm_unet import NormUnet
from snrecon.physics.calibration import calibration_region
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes
from snrecon.physics.safe import safe_divide, safe_root
from snrecon.physics.soft_espirit import linearize_soft_espirit, soft_espirit

GRID = (-2, -1)
CALIBRATION_LIMIT = 24
"""Most calibration lines along an undersampled axis that the sensitivity network is given, so that
it sees coil images of one resolution. The published networks were given all."""


class SensitivityNetwork(nn.Module):
    """Coil maps from the calibration lines: each coil's image through the same U-Net, then divided
    by the root of the sum of squares over coils.

    Args:
        chans: Channels of the finest level.
        pools: Number of poolings.
        drop: Probability of dropping a channel while training.
        residual: Whether the U-Net's output is added to the images instead of taking their place.
        espirit: Iterations of :func:`snrecon.physics.soft_espirit.soft_espirit`, whose images take
            the place of the calibration lines'; 0: none.
    """

    def __init__(
        self, chans: int, pools: int, drop: float = 0.0, residual: bool = False, espirit: int = 0
    ) -> None:
        super().__init__()
        self.norm_unet = NormUnet(chans, pools, drop, residual)
        self.residual, self.espirit = residual, espirit

    def forward(self, kspace: Tensor, calibration: Tensor) -> Tensor:
        """``(batch, coil, ky, kx)`` to maps of that shape with ``sum |S|^2 = 1``."""
        images = self._images(kspace, calibration)
        maps: Tensor = self.norm_unet(images.flatten(0, 1)).reshape(images.shape)
        maps = maps + images if self.residual else maps
        return safe_divide(maps, _coil_norm(maps))

    def _images(self, kspace: Tensor, calibration: Tensor) -> Tensor:
        if not self.espirit:
            return ifft(kspace * calibration.unsqueeze(-3), GRID)
        blocks = calibration.expand(len(kspace), *calibration.shape[-2:])
        return soft_espirit(kspace, blocks, self.espirit)

    def _linearize_images(self, kspace: Tensor, calibration: Tensor) -> tuple[Tensor, Tangent]:
        if self.espirit:
            return linearize_soft_espirit(kspace, calibration, self.espirit)
        return ifft(kspace * calibration, GRID), lambda t: ifft(t * calibration, GRID)

    def linearize(self, kspace: Tensor, calibration: Tensor) -> tuple[Tensor, Tangent]:
        """The maps and their derivative at one k-space ``(coil, ky, kx)``, without any graph.

        Returns:
            Maps ``(coil, ky, kx)`` and a function from tangents ``(batch, coil, ky, kx)`` of
            k-space to tangents of the maps. Both without gradients.
        """
        with torch.no_grad():
            images, images_jvp = self._linearize_images(kspace, calibration)
            unscaled, norm_unet_jvp = self.norm_unet.linearize(images)
            unscaled = unscaled + images if self.residual else unscaled
            norm = _coil_norm(unscaled)
            inverse = safe_divide(torch.ones_like(norm), norm)
            maps = unscaled * inverse
            conjugate = maps.conj().resolve_conj()

        def jvp(tangents: Tensor) -> Tensor:
            with torch.no_grad():
                d_images = images_jvp(tangents)
                d_maps = norm_unet_jvp(d_images)
                if self.residual:
                    d_maps = d_maps.add_(d_images)
                d_norm = (conjugate * d_maps).real.sum(dim=-3, keepdim=True)
                return d_maps.sub_(maps * d_norm).mul_(inverse)

        return maps, jvp


def _coil_norm(maps: Tensor) -> Tensor:
    """Root of the sum of squares over coils, ``(..., 1, ky, kx)``."""
    return safe_root((maps.real**2 + maps.imag**2).sum(dim=-3, keepdim=True))


def calibration_samples(mask: Tensor, limit: int | None = CALIBRATION_LIMIT) -> Tensor:
    """The calibration samples of a mask, a block that is symmetric around the centre of k-space.

    Along an undersampled axis of which ``l`` lines before and ``r`` lines from the centre on are
    there, the central ``2 min(l, r)`` (at least 1): the count of fastMRI.

    Args:
        mask: Boolean ``(*grid)``.
        limit: Most lines along an undersampled axis (along the first axis of a full mask); None
            for all.

    Returns:
        Boolean ``(*grid)``.

    Raises:
        InputError: if the centre of k-space is not sampled.
    """
    try:
        region = list(calibration_region(mask))
    except InputError as error:
        raise InputError(
            "the sensitivity network needs calibration lines, but the centre of k-space is not "
            "sampled: use a mask with calibration lines, or a method that takes coil maps."
        ) from error
    for axis in varying_axes(mask) or ((-mask.ndim,) if limit is not None else ()):
        n, part = mask.shape[axis], region[axis]
        reach = min(n // 2 - part.start, part.stop - n // 2)
        if limit is not None:
            reach = min(reach, limit // 2)
        region[axis] = slice(n // 2 - reach, n // 2 + max(reach, 1))
    samples = torch.zeros_like(mask)
    samples[tuple(region)] = True
    return samples
