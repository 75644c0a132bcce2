"""Samplers that begin from another reconstruction instead of from noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.registry import load
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.zero_filled import ZeroFilled

AXES = grid_axes(2)
NO_PHASE = ("score cannot start from {}, whose image has lost the coils' phase; start from "
            "zero_filled, sense, tv, varnet or another method with coil maps.")


def named_start(start: str | Reconstructor | None) -> Reconstructor | None:
    """The reconstruction to begin from, by name or as it is.

    Raises:
        InputError: for an unknown name, or something that is no reconstruction method.
    """
    if start is None or isinstance(start, Reconstructor):
        return start
    if not isinstance(start, str):
        raise InputError(
            f"a start is the name of a method or a method of snrecon.recon, not {start!r}."
        )
    return load(start)


@dataclass(frozen=True, eq=False)
class Start:
    """A reconstruction bound to the scan, in the form a sampler begins from."""

    bound: Bound | None
    """None for the zero-filled coil images themselves."""
    function: Callable[[Tensor], Tensor]
    """k-space ``(..., coil, ky, kx)`` to what the sampler begins from."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """What the reconstruction holds fixed."""
        return () if self.bound is None else self.bound.frozen


def coil_start(recon: Reconstructor, scan: Scan) -> Start:
    """Coil images ``(..., coil, ky, kx)`` as stored: of ``zero_filled`` each coil's own, of other
    methods their image times the maps that set its units.

    Raises:
        InputError: if the method draws, or its image is not that of coil maps.
    """
    if isinstance(recon, ZeroFilled):
        mask = scan.sampled
        return Start(None, lambda kspace: ifft(kspace * mask, AXES))
    bound, maps = _bound(recon, scan)
    if scan.noise is not None:
        maps = scan.noise.unwhiten(maps)
    return Start(bound, lambda kspace: maps * _complex(bound, kspace).unsqueeze(-3))


def image_start(recon: Reconstructor, scan: Scan, units: SnrUnits) -> Start:
    """The image ``(..., ky, kx)`` in SNR units.

    Raises:
        InputError: if the method draws, or its image is not that of coil maps.
    """
    bound, maps = _bound(recon, scan)
    # Matched filter of the image's own coil images: methods differ in how they normalise.
    weight = (units.normalised.conj() * maps).sum(dim=0)
    return Start(bound, lambda kspace: weight * _complex(bound, kspace))


def _complex(bound: Bound, kspace: Tensor) -> Tensor:
    """The method's image, if it has a phase."""
    image = bound(kspace)
    if not image.is_complex():
        raise InputError(NO_PHASE.format(bound.method))
    return image


def _bound(recon: Reconstructor, scan: Scan) -> tuple[Bound, Tensor]:
    """The method bound to the scan, and the whitened maps of its image."""
    bound = recon.bind(scan)
    if bound.stochastic:
        raise InputError(
            f"score cannot start from {bound.method}, which draws at random itself; start from "
            "sense, tv, varnet or another method without draws."
        )
    if bound.maps is None:
        raise InputError(NO_PHASE.format(bound.method))
    return bound, bound.maps
