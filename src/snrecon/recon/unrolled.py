"""What binds an unrolled network of ``b`` and ``A^H A`` to a scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.networks.linearized import untouched
from snrecon.networks.modl import MoDL
from snrecon.networks.varnet import VarNet
from snrecon.physics.gram import LineGram
from snrecon.recon.base import Bound
from snrecon.recon.own_network import fitted
from snrecon.recon.snr_units import SnrUnits

MATRIX_AT_ONCE = 4
"""Images that share every reading of the matrices of ``A^H A``, where it has such."""


def bind_unrolled(network: nn.Module, weights: str, scan: Scan, method: str) -> Bound:
    """k-space ``(..., coil, ky, kx)`` to image ``(..., ky, kx)``, the object in the units of the
    maps, through a network in SNR units.

    Args:
        network: With the interface of :class:`snrecon.networks.varnet.VarNet`; its own
            ``linearize`` is used if it has one that is of what it computes.
        weights: What to call its weights.
        scan: One slice.
        method: Name of the method.

    Raises:
        InputError: if nothing is known about the noise of the scan.
    """
    units = SnrUnits.of(scan)
    net: Any = fitted(network, units.normalised)
    adjoint, gram, support, inverse = units.adjoint, units.gram, units.support, units.inverse

    def function(kspace: Tensor) -> Tensor:
        image: Tensor = net(adjoint(kspace), gram, support) * inverse
        return image

    def linearize(kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        image, jvp = net.linearize(adjoint(kspace), gram, support)
        return image * inverse, lambda tangents: jvp(adjoint(tangents)) * inverse

    return Bound(
        function,
        method,
        frozen=units.model.frozen,
        maps=units.model.maps,
        units=units.model.units,
        linearize=linearize if _linearizes_itself(net) else None,
        at_once=MATRIX_AT_ONCE if isinstance(gram, LineGram) else None,
        details={"weights": weights, "maps": units.model.maps_source},
    )


def _linearizes_itself(network: nn.Module) -> bool:
    """Whether ``network.linearize`` is of the function that ``network`` is: that of the package's
    networks of these as they were built, any other of whoever wrote it."""
    own: Any = getattr(network, "linearize", None)
    for kind in (VarNet, MoDL):
        if getattr(own, "__func__", None) is kind.linearize:
            return untouched(own.__self__, kind)  # the network, or the one within it
    return own is not None
