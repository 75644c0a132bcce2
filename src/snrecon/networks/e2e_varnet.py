"""The end-to-end variational network, with the parameter names of fastMRI's published weights.

Sriram et al., MICCAI 2020, arXiv:2004.06688. Everything is made from k-space: a sensitivity network
turns the calibration lines into coil maps ``S``, and every cascade updates k-space by
``k <- k - eta M (k - k0) - F S U(sum conj(S) F^-1 k)``. The paper writes the last term with a plus;
the published weights were trained with this minus.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.linearized import Tangent
from snrecon.networks.norm_unet import MULTIPLE, NormUnet
from snrecon.networks.unet import Unet
from snrecon.physics.calibration import calibration_region
from snrecon.physics.fourier import fft, ifft
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


class Cascade(nn.Module):
    """One update of k-space.

    Args:
        chans: Channels of the finest level of its U-Net.
        pools: Number of poolings.
        drop: Probability of dropping a channel while training.
        residual: See :class:`NormUnet`.
        memory: Whether the cascades keep an image ``x`` of what they have added to k-space, descend
            its SENSE gradient ``g = A^H (A x - y)``, and show both to the U-Net:
            ``x <- x - step g - U(sum conj(S) F^-1 k, g, x)``, and k-space changes by ``F S`` of
            that. Without, only the U-Net knows how coils unfold an image.
    """

    def __init__(
        self, chans: int, pools: int, drop: float = 0.0, residual: bool = False,
        memory: bool = False,
    ) -> None:
        super().__init__()
        self.model = NormUnet(chans, pools, drop, residual, 2 if memory else 0)
        self.memory = memory
        self.dc_weight = nn.Parameter(torch.ones(1))
        if memory:
            self.step = nn.Parameter(torch.ones(1))

    def forward(
        self, kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """K-space ``(batch, coil, ky, kx)`` to the next one, and the kept image
        ``(batch, ky, kx)`` likewise (not made without memory)."""
        sampled = mask.unsqueeze(-3)
        image = combine_coils(kspace, maps)
        if self.memory:
            wrong = fft(maps * kept.unsqueeze(1), GRID) * sampled - measured
            gradient = combine_coils(wrong, maps)
            change = self.step * gradient + self.model(image, gradient, kept)
            kept = kept - change
        else:
            change = self.model(image)
        pull = self.dc_weight * (kspace - measured) * sampled
        return kspace - pull - fft(maps * change.unsqueeze(1), GRID), kept

    def linearize(
        self, kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor, kept: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Callable[..., tuple[Tensor, Tensor]]]:
        """The next k-space and kept image and their derivatives at one ``(coil, ky, kx)``, without
        any graph.

        Returns:
            Both, and a function from tangents ``(batch, coil, ky, kx)`` of k-space, measured data
            and maps and ``(batch, ky, kx)`` of the kept image to tangents of both. Without
            gradients.
        """
        with torch.no_grad():
            image, combine_jvp = linearize_combine_coils(kspace, maps)
            before, others = kept, []
            if self.memory:
                wrong = fft(maps * before, GRID) * mask - measured
                gradient, gradient_jvp = linearize_combine_coils(wrong, maps)
                others = [gradient.unsqueeze(0), before.unsqueeze(0)]
            change, model_jvp = self.model.linearize(image.unsqueeze(0), *others)
            if self.memory:
                change = change + self.step * gradient
                kept = kept - change[0]
            pull = self.dc_weight * mask
            following = kspace - pull * (kspace - measured) - fft(maps * change, GRID)

        def jvp(
            d_kspace: Tensor, d_measured: Tensor, d_maps: Tensor, d_kept: Tensor
        ) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                d_image = combine_jvp(d_kspace, d_maps)
                d_others: list[Tensor] = []
                if self.memory:
                    d_wrong = fft((maps * d_kept.unsqueeze(1)).add_(d_maps * before), GRID)
                    d_gradient = gradient_jvp(d_wrong.mul_(mask).sub_(d_measured), d_maps)
                    d_others = [d_gradient.unsqueeze(1), d_kept.unsqueeze(1)]
                d_change = model_jvp(d_image.unsqueeze(1), *d_others)
                if self.memory:
                    d_change = d_change + self.step * d_gradient.unsqueeze(1)
                    d_kept = d_kept - d_change[:, 0]
                step = (d_kspace - d_measured).mul_(pull)
                step.add_(fft((maps * d_change).add_(d_maps * change), GRID))
                return d_kspace - step, d_kept

        return (following, kept), jvp


def combine_coils(kspace: Tensor, maps: Tensor) -> Tensor:
    """``sum conj(S) F^-1 k``, ``(..., coil, ky, kx)`` to ``(..., ky, kx)``."""
    return (maps.conj() * ifft(kspace, GRID)).sum(dim=-3)


def linearize_combine_coils(
    kspace: Tensor, maps: Tensor
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """:func:`combine_coils` and its derivative at one k-space and maps ``(coil, ky, kx)``.

    Returns:
        The image ``(ky, kx)`` and a function from tangents ``(batch, coil, ky, kx)`` of k-space and
        maps to tangents ``(batch, ky, kx)`` of the image.
    """
    images, conjugate = ifft(kspace, GRID), maps.conj().resolve_conj()
    image = (conjugate * images).sum(dim=-3)
    # Conjugated once here, and after the sum, instead of all coils of all tangents.
    images = images.conj().resolve_conj()

    def jvp(d_kspace: Tensor, d_maps: Tensor) -> Tensor:
        moved = (conjugate * ifft(d_kspace, GRID)).sum(dim=-3)
        return moved.add_((images * d_maps).sum(dim=-3).conj())

    return image, jvp


class E2EVarNet(nn.Module):
    """Sensitivity network and cascades, from k-space to k-space.

    The normalisations make the network homogeneous: a factor on k-space is a factor on the image.
    All of it is differentiable in k-space, the coil maps included.

    Args:
        unrolls: Number of cascades.
        chans: Channels of the cascades' U-Nets at their finest level.
        pools: Poolings of those U-Nets.
        sens_chans: Channels of the sensitivity network.
        sens_pools: Its poolings.
        drop: Probability of dropping a channel while training; no part of stored weights.
        residual: 0: as published. 1: the sensitivity network corrects the images of the
            calibration lines, every U-Net's output is a correction without the mean of its input,
            and starts as next to nothing: an untrained network is the zero-filled image with maps
            of the calibration lines, from where training is much shorter.
        memory: 0: as published. 1: beside k-space the cascades keep an image and descend its SENSE
            gradient, see :class:`Cascade`; an untrained residual network is then so many steps of
            gradient descent instead of the zero-filled image.
        espirit: 0: the sensitivity network is given the images of the calibration lines, as
            published. Above: those after so many iterations of
            :func:`snrecon.physics.soft_espirit.soft_espirit`, which are nearly coil maps already
            and are differentiated as everything else is. K-space must then be whitened, and a
            factor on it is no longer exactly one on the image.

    Raises:
        InputError: for ``residual`` or ``memory`` other than 0 and 1.
    """

    def __init__(
        self,
        unrolls: int = 12,
        chans: int = 18,
        pools: int = 4,
        sens_chans: int = 8,
        sens_pools: int = 4,
        drop: float = 0.0,
        residual: int = 0,
        espirit: int = 0,
        memory: int = 0,
    ) -> None:
        super().__init__()
        for name, flag in (("residual", residual), ("memory", memory)):
            if flag not in (0, 1):
                raise InputError(f"{name} must be 0 or 1, not {flag}.")
        self.residual, self.memory, self.espirit = int(residual), int(memory), espirit
        self.unrolls, self.chans, self.pools = unrolls, chans, pools
        self.sens_chans, self.sens_pools, self.drop = sens_chans, sens_pools, drop
        self.sens_net = SensitivityNetwork(
            sens_chans, sens_pools, drop, bool(residual), espirit)
        self.cascades = nn.ModuleList(
            Cascade(chans, pools, drop, bool(residual), bool(memory)) for _ in range(unrolls))
        if residual:
            for part in self.modules():
                if isinstance(part, Unet):
                    part.start_small()

    def fits(self, grid: tuple[int, ...]) -> bool:
        """Whether images ``(ky, kx)``, with their padding, are large enough for the poolings."""
        coarsest = [-(-n // MULTIPLE) * MULTIPLE >> max(self.pools, self.sens_pools) for n in grid]
        return min(coarsest) >= 1 and math.prod(coarsest) >= 2

    def predict(
        self, kspace: Tensor, mask: Tensor, calibration: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The predicted full k-space and the coil maps.

        Args:
            kspace: Measured, ``(..., coil, ky, kx)`` complex; only samples on the mask are used.
            mask: Boolean ``(ky, kx)`` (or with batch axes): sampled points.
            calibration: Boolean, as ``mask``: see :func:`calibration_samples`.

        Returns:
            Both ``(..., coil, ky, kx)``.
        """
        shape = kspace.shape
        measured = (kspace * mask.unsqueeze(-3)).reshape(-1, *shape[-3:])
        mask, calibration = (_flat(part, shape) for part in (mask, calibration))
        maps = self.sens_net(measured, calibration)
        current, kept = measured, torch.zeros_like(measured[:, 0])
        for cascade in self.cascades:
            current, kept = cascade(current, measured, mask, maps, kept)
        return current.reshape(shape), maps.reshape(shape)

    def linearize(
        self, kspace: Tensor, mask: Tensor, calibration: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """:meth:`predict` and its derivative at one k-space, without any graph.

        Equal to ``torch.func.jvp``, dropout left out, at the cost of one forward pass for each
        tangent: see :mod:`snrecon.networks.linearized`.

        Args:
            kspace: Measured, ``(coil, ky, kx)`` complex.
            mask: Boolean ``(ky, kx)``.
            calibration: Boolean ``(ky, kx)``.

        Returns:
            K-space and maps, both ``(coil, ky, kx)``, and a function from tangents
            ``(batch, coil, ky, kx)`` of ``kspace`` to tangents of both. All without gradients.
        """
        steps = []
        with torch.no_grad():
            measured = kspace * mask
            maps, maps_jvp = self.sens_net.linearize(measured, calibration)
            current, kept = measured, torch.zeros_like(measured[0])
            for cascade in self.cascades:
                assert isinstance(cascade, Cascade)
                (current, kept), step = cascade.linearize(
                    current, measured, mask, maps, kept)
                steps.append(step)

        def jvp(tangents: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                d_measured = tangents * mask
                d_maps = maps_jvp(d_measured)
                d_current, d_kept = d_measured, torch.zeros_like(d_measured[:, 0])
                for step in steps:
                    d_current, d_kept = step(d_current, d_measured, d_maps, d_kept)
                return d_current, d_maps

        return (current, maps), jvp

    def forward(self, kspace: Tensor, mask: Tensor, calibration: Tensor) -> Tensor:
        """The image ``sum conj(S) F^-1 k``, ``(..., ky, kx)`` complex; see :meth:`predict`."""
        return combine_coils(*self.predict(kspace, mask, calibration))


def _flat(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask ``(..., ky, kx)`` with the one batch axis that k-space of ``shape`` gets."""
    if mask.ndim == 2:
        return mask
    return mask.expand(*shape[:-3], *shape[-2:]).reshape(-1, *shape[-2:])


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
