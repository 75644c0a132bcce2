"""MoDL bound to a scan."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.own_network import named_network
from snrecon.recon.planes import bind_planes
from snrecon.recon.unrolled import bind_unrolled


class MoDL(Reconstructor):
    """Model-based deep learning (Aggarwal et al. 2019) on whitened 2D data with coil maps.

    Units, normalisation, what is frozen and what is done with 3D scans are as in
    :class:`snrecon.recon.varnet.VarNet`: the image is the object in the units of the maps, exactly
    zero where all maps are.

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file, or a network of one's own
            with the interface of :class:`snrecon.networks.modl.MoDL`, which is put into evaluation
            mode.
        implicit: Solve the linear systems to rounding and differentiate their solution, instead of
            a fixed number of steps; None: as the weights were trained.

    Raises:
        InputError: for unknown or damaged weights, ``implicit`` with a network that has no such
            choice, and (when bound) a 3D grid without an axis along which the mask is constant, or
            a scan whose noise is not known.
    """

    name = "modl"

    def __init__(
        self, weights: str | Path | nn.Module = "brain", implicit: bool | None = None
    ) -> None:
        self.weights, network = named_network(self.name, weights)
        if implicit is not None:
            if not hasattr(network, "implicit"):
                raise InputError("this network has no choice of implicit solving: leave it out.")
            network = copy.deepcopy(network)
            setattr(network, "implicit", int(implicit))  # noqa: B010
        self.implicit, self._network = implicit, network

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        return bind_unrolled(self._network, self.weights, scan, self.name)
