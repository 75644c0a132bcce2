"""The variational network bound to a scan."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from snrecon.data import Scan
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.own_network import named_network
from snrecon.recon.planes import bind_planes
from snrecon.recon.unrolled import bind_unrolled


class VarNet(Reconstructor):
    """Unrolled variational network (Hammernik et al. 2018) on whitened 2D data with coil maps;
    3D scans plane by plane (:mod:`snrecon.recon.planes`).

    The network works in SNR units: on ``z = rho x`` with ``rho = sqrt(sum |S_white|^2)``, for which
    the maps are normalised and white noise has the same size everywhere. The image is
    ``x = z / rho``, the object in the units of the maps, exactly zero where all maps are. Whatever
    scales k-space and its noise scales the image and nothing else. The normalisation inside the
    network is differentiated; coil maps estimated from the data are frozen.

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file, or a network of one's own
            with the interface of :class:`snrecon.networks.varnet.VarNet`, which is put into
            evaluation mode.

    Raises:
        InputError: for unknown or damaged weights, and (when bound) a 3D grid without an axis
            along which the mask is constant, or a scan whose noise is not known, since the network
            is told the noise level.
    """

    name = "varnet"

    def __init__(self, weights: str | Path | nn.Module = "brain") -> None:
        self.weights, self._network = named_network(self.name, weights)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        return bind_unrolled(self._network, self.weights, scan, self.name)
