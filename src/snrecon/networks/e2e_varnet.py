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
from snrecon.networks.sensitivity import GRID, SensitivityNetwork
from snrecon.networks.unet import Unet
from snrecon.physics.fourier import Centring, ifft

State = tuple[Tensor, Tensor, Tensor]
"""What goes from cascade to cascade: k-space ``(..., coil, ky, kx)``, with memory the kept image
``(..., ky, kx)`` and its full k-space ``F S x`` of all coils. Without, the latter are zeros that
nobody looks at, ``(..., ky, kx)``."""


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

    def forward(self, state: State, measured: Tensor, mask: Tensor, maps: Tensor) -> State:
        """The next state. Everything is between the signs of :class:`Centring`.

        Args:
            state: See :data:`State`, with a batch axis in front.
            measured: ``(batch, coil, ky, kx)``.
            mask: ``(ky, kx)``, or with a batch axis.
            maps: ``(batch, coil, ky, kx)``.
        """
        centring = Centring.of(maps, GRID)
        kspace, kept, seen = state
        sampled = mask.unsqueeze(-3)
        image = _combined(centring, kspace, maps)
        if self.memory:
            gradient = _combined(centring, seen * sampled - measured, maps)
            change = self.step * gradient + self.model(image, gradient, kept)
        else:
            change = self.model(image)
        moved = centring.forward(maps * change.unsqueeze(1))
        if self.memory:
            kept, seen = kept - change, seen - moved
        return kspace - self.dc_weight * (kspace - measured) * sampled - moved, kept, seen

    def linearize(
        self, state: State, measured: Tensor, mask: Tensor, maps: Tensor
    ) -> tuple[State, Callable[[State, Tensor, Tensor], State]]:
        """:meth:`forward` and its derivative at one state without a batch axis, without any graph.

        Returns:
            The next state, and a function from tangents of state, measured data and maps, with a
            batch axis, to those of the next state. Without gradients.
        """
        centring = Centring.of(maps, GRID)
        with torch.no_grad():
            kspace, kept, seen = state
            image, combine_jvp = _linearized_combination(centring, kspace, maps)
            others: list[Tensor] = []
            if self.memory:
                wrong = seen * mask - measured
                gradient, gradient_jvp = _linearized_combination(centring, wrong, maps)
                others = [gradient.unsqueeze(0), kept.unsqueeze(0)]
            change, model_jvp = self.model.linearize(image.unsqueeze(0), *others)
            if self.memory:
                change = change + self.step * gradient
            moved = centring.forward(maps * change)
            if self.memory:
                kept, seen = kept - change[0], seen - moved
            pull = self.dc_weight * mask
            following = kspace - pull * (kspace - measured) - moved

        def jvp(d_state: State, d_measured: Tensor, d_maps: Tensor) -> State:
            with torch.no_grad():
                d_kspace, d_kept, d_seen = d_state
                d_image = combine_jvp(d_kspace, d_maps)
                d_others: list[Tensor] = []
                if self.memory:
                    d_gradient = gradient_jvp((d_seen * mask).sub_(d_measured), d_maps)
                    d_others = [d_gradient.unsqueeze(1), d_kept.unsqueeze(1)]
                d_change = model_jvp(d_image.unsqueeze(1), *d_others)
                if self.memory:
                    d_change = d_change + self.step * d_gradient.unsqueeze(1)
                d_moved = centring.forward((maps * d_change).add_(d_maps * change))
                if self.memory:
                    d_kept, d_seen = d_kept - d_change[:, 0], d_seen - d_moved
                step = (d_kspace - d_measured).mul_(pull).add_(d_moved)
                return d_kspace - step, d_kept, d_seen

        return (following, kept, seen), jvp


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
    return _bilinear(images, conjugate, lambda tangents: ifft(tangents, GRID))


def _combined(centring: Centring, kspace: Tensor, maps: Tensor) -> Tensor:
    """:func:`combine_coils` between the signs, which cancel in the image."""
    return (maps.conj() * centring.inverse(kspace)).sum(dim=-3)


def _linearized_combination(
    centring: Centring, kspace: Tensor, maps: Tensor
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """:func:`linearize_combine_coils` between the signs."""
    return _bilinear(centring.inverse(kspace), maps.conj().resolve_conj(), centring.inverse)


def _bilinear(
    images: Tensor, conjugate: Tensor, inverse: Tangent
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """``sum conj(S) x`` of coil images, and its derivative in k-space and maps."""
    image = (conjugate * images).sum(dim=-3)
    # Conjugated once here, and after the sum, instead of all coils of all tangents.
    images = images.conj().resolve_conj()

    def jvp(d_kspace: Tensor, d_maps: Tensor) -> Tensor:
        moved = inverse(d_kspace).mul_(conjugate).sum(dim=-3)
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
            calibration: Boolean, as ``mask``: see
                :func:`snrecon.networks.sensitivity.calibration_samples`.

        Returns:
            Both ``(..., coil, ky, kx)``.
        """
        shape = kspace.shape
        measured = (kspace * mask.unsqueeze(-3)).reshape(-1, *shape[-3:])
        mask, calibration = (_flat(part, shape) for part in (mask, calibration))
        maps = self.sens_net(measured, calibration)
        centring = Centring.of(maps, GRID)
        signed, measured = centring.on_image(maps), centring.on_kspace(measured)
        state = self._start(measured)
        for cascade in self.cascades:
            state = cascade(state, measured, mask, signed)
        return centring.on_kspace(state[0]).reshape(shape), maps.reshape(shape)

    def _start(self, measured: Tensor) -> State:
        """The first state, of ``(..., coil, ky, kx)``."""
        kept = torch.zeros_like(measured[..., 0, :, :])
        return measured, kept, torch.zeros_like(measured) if self.memory else kept

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
        centring = Centring.of(kspace, GRID)
        with torch.no_grad():
            maps, maps_jvp = self.sens_net.linearize(kspace * mask, calibration)
            signed, measured = centring.on_image(maps), centring.on_kspace(kspace * mask)
            state = self._start(measured)
            for cascade in self.cascades:
                assert isinstance(cascade, Cascade)
                state, step = cascade.linearize(state, measured, mask, signed)
                steps.append(step)

        def jvp(tangents: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                d_measured = tangents * mask
                d_maps = maps_jvp(d_measured)
                d_signed, d_measured = centring.on_image(d_maps), centring.on_kspace(d_measured)
                d_state = self._start(d_measured)
                for step in steps:
                    d_state = step(d_state, d_measured, d_signed)
                return centring.on_kspace(d_state[0]), d_maps

        return (centring.on_kspace(state[0]), maps), jvp

    def forward(self, kspace: Tensor, mask: Tensor, calibration: Tensor) -> Tensor:
        """The image ``sum conj(S) F^-1 k``, ``(..., ky, kx)`` complex; see :meth:`predict`."""
        return combine_coils(*self.predict(kspace, mask, calibration))


def _flat(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask ``(..., ky, kx)`` with the one batch axis that k-space of ``shape`` gets."""
    if mask.ndim == 2:
        return mask
    return mask.expand(*shape[:-3], *shape[-2:]).reshape(-1, *shape[-2:])
