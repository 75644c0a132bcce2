"""Zero-filled reconstructions: inverse Fourier transform and coil combination, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.safe import safe_divide, safe_root
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import KSPACE, ForwardModel, forward_model

Combine = Literal["matched", "rss"]


class ZeroFilled(Reconstructor):
    """Zero-filled image, points that were not sampled count as zero.

    ``combine="matched"``: the matched filter ``sum_c conj(S_c) F^-1 y_c`` of whitened data and
    whitened maps (Roemer et al. 1990), complex and linear. It is not divided by ``sum_c |S_c|^2``:
    where the whitened maps are not normalised to 1 the image is the object times that sum.

    ``combine="rss"``: ``sqrt(sum_c |F^-1 y_c|^2)`` of the coils as stored (not whitened), real.

    Raises:
        InputError: for another ``combine``.
    """

    name = "zero_filled"

    def __init__(self, combine: Combine = "matched") -> None:
        if combine not in ("matched", "rss"):
            raise InputError(f"zero_filled combines coils by 'matched' or 'rss', not {combine!r}.")
        self.combine = combine

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if self.combine == "rss":
            mask = scan.sampled
            return Bound(
                lambda y: root_sum_of_squares(y, mask),
                "zero_filled:rss",
                units=KSPACE,
                details={} if scan.noise is None else {FLOOR: noise_floor(scan)},
            )
        model = forward_model(scan)
        return Bound(
            lambda y: matched_filter(model, y),
            self.name,
            frozen=model.frozen,
            linear=True,
            maps=matched_filter_maps(model.maps),
            units=model.matched_filter_units,
            details={"maps": model.maps_source},
        )


def matched_filter(
    model: ForwardModel, kspace: Tensor, precision: torch.dtype | None = None
) -> Tensor:
    """``A^H L_Psi^-1 y``: k-space ``(..., coil, *grid)`` in the scan's coils to ``(..., *grid)``.

    Computed, and returned, in ``precision`` where that is higher than the data's.
    """
    if precision is not None:
        kspace = kspace.to(torch.promote_types(precision, kspace.dtype))
    images = ifft(model.whiten(kspace) * model.mask, grid_axes(model.mask.ndim))
    return (model.maps.to(kspace.dtype).conj() * images).sum(dim=-1 - model.mask.ndim)


def matched_filter_maps(maps: Tensor) -> Tensor:
    """Maps ``S / sum |S|^2`` of which the matched filter's image ``sum |S|^2 x`` is the object.

    They equal the given whitened maps ``(coil, *grid)`` when those are normalised, and are zero
    where those are.
    """
    power = map_power(maps)
    return torch.where(power > 0, maps / torch.where(power > 0, power, 1), 0)


def map_power(maps: Tensor) -> Tensor:
    """``sum_c |S_c|^2``, ``(*grid)`` real."""
    return (maps.real**2 + maps.imag**2).sum(dim=0)


def root_sum_of_squares(kspace: Tensor, mask: Tensor) -> Tensor:
    """``sqrt(sum_c |F^-1 M y_c|^2)``, ``(..., coil, *grid)`` to real ``(..., *grid)``.

    The derivative at a voxel that is exactly zero is taken as zero.
    """
    images = ifft(kspace * mask, grid_axes(mask.ndim))
    power = (images.real**2 + images.imag**2).sum(dim=-1 - mask.ndim)
    return safe_root(power)


def noise_floor(scan: Scan) -> dict[str, float]:
    """``mean`` and ``sd`` of the square of :func:`root_sum_of_squares` where there is only noise.

    The coils' noise in a voxel is circular with covariance ``q Psi``, with ``q`` the sampled
    fraction, so that the sum of its squares has mean ``q tr Psi`` and variance ``q^2 tr Psi^2``.
    Noise that is coloured along the readout enters with its mean.

    Raises:
        InputError: if the noise of the scan is not known.
    """
    noise = scan.require_noise()
    psi = noise.covariance.to(torch.complex128)
    share = float(scan.sampled.double().mean())
    if noise.spectrum is not None:
        share *= float(noise.spectrum.double().mean())
    return {
        "mean": share * float(psi.diagonal().real.sum()),
        "sd": share * float(torch.linalg.matrix_norm(psi)),
    }


def linearize_root_sum_of_squares(
    kspace: Tensor, mask: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """:func:`root_sum_of_squares` at one k-space ``(coil, *grid)``, and its derivative there.

    Returns:
        The image ``(*grid)`` and a function from tangents ``(batch, coil, *grid)`` to
        ``(batch, *grid)``.
    """
    axes = grid_axes(mask.ndim)
    image = root_sum_of_squares(kspace, mask)
    inverse = safe_divide(torch.ones_like(image), image)
    weights = (ifft(kspace * mask, axes) * inverse).conj().resolve_conj()

    def jvp(tangents: Tensor) -> Tensor:
        return (weights * ifft(tangents * mask, axes)).sum(dim=-1 - mask.ndim).real

    return image, jvp
