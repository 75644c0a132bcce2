"""The variational network bound to a scan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.store import load_weights
from snrecon.networks.varnet import VarNet as Network
from snrecon.physics.gram import FourierGram, varying_axes
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import forward_model


class VarNet(Reconstructor):
    """Unrolled variational network (Hammernik et al. 2018) on whitened 2D data with coil maps.

    The network works in SNR units: on ``z = rho x`` with ``rho = sqrt(sum |S_white|^2)``, for which
    the maps are normalised and white noise has the same size everywhere. The image is
    ``x = z / rho``, the object in the units of the maps, exactly zero where all maps are. Whatever
    scales k-space and its noise scales the image and nothing else. The normalisation inside the
    network is differentiated; coil maps estimated from the data are frozen.

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file, or a network of one's own
            with the interface of :class:`snrecon.networks.varnet.VarNet`.

    Raises:
        InputError: for unknown or damaged weights, and (when bound) a 3D grid or a scan whose noise
            is not known, since the network is told the noise level.
    """

    name = "varnet"

    def __init__(self, weights: str | Path | nn.Module = "brain") -> None:
        self.weights = type(weights).__name__ if isinstance(weights, nn.Module) else str(weights)
        network = weights if isinstance(weights, nn.Module) else load_weights("varnet", weights)
        self._network = cast(Network, network)

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, ky, kx)`` to image ``(..., ky, kx)``."""
        if len(scan.grid) != 2:
            raise InputError(
                f"{scan.source}: varnet reconstructs 2D slices, not a 3D grid of "
                f"{'x'.join(map(str, scan.grid))}; transform the fully sampled axis to slices, or "
                "use sense, tv or wavelet."
            )
        scan.require_noise()
        model = forward_model(scan)
        maps, support = model.maps, model.support
        power = maps.abs().square().sum(dim=0).sqrt()
        inverse = torch.where(support, 1 / power, torch.zeros_like(power))
        normalised = maps * inverse
        network = self._network.to(device=maps.device)
        if maps.dtype == torch.complex128:
            network = copy.deepcopy(network).double()
        gram = FourierGram(normalised, model.mask)
        adjoint = _adjoint(normalised, model.whitening.to(maps), model.mask)

        def function(kspace: Tensor) -> Tensor:
            return network(adjoint(kspace), gram, support) * inverse

        def linearize(kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            image, jvp = network.linearize(adjoint(kspace), gram, support)
            return image * inverse, lambda tangents: jvp(adjoint(tangents)).mul_(inverse)

        return Bound(
            function,
            self.name,
            frozen=model.frozen,
            maps=maps,
            units=model.units,
            linearize=linearize if hasattr(network, "linearize") else None,
            details={"weights": self.weights, "maps": model.maps_source},
        )


def _adjoint(maps: Tensor, whitening: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """``y -> S^H F^H M W y`` for ``(..., coil, ky, kx)``.

    One pass over the coils: whitening is folded into the maps, and of the centred transform's two
    shifts the one in k-space is a phase in the maps and the one in the image follows the sum over
    coils.
    """
    combined = torch.einsum("ab,ayx->byx", whitening.conj(), maps)
    combined = torch.fft.ifftshift(combined, dim=(-2, -1))
    for axis in (-2, -1):
        n = mask.shape[axis]
        place = torch.arange(n, device=maps.device, dtype=maps.real.dtype)
        turn = torch.polar(torch.ones_like(place), 2 * torch.pi * (n // 2) / n * place)
        combined = combined * (turn if axis == -1 else turn[:, None])
    weights = combined.conj().resolve_conj()
    if varying_axes(mask) in ((), (-2,)):
        rows = torch.nonzero(mask[:, 0]).squeeze(1)
        total = mask.shape[0]

        def by_rows(kspace: Tensor) -> Tensor:
            # Lines that were not acquired need no transform along the readout.
            lines = torch.fft.ifft(kspace.index_select(-2, rows), dim=-1, norm="ortho")
            shape = (*lines.shape[:-2], total, lines.shape[-1])
            filled = torch.zeros(shape, dtype=lines.dtype, device=lines.device)
            filled = filled.index_copy(-2, rows, lines)
            images = torch.fft.ifft(filled, dim=-2, norm="ortho")
            return torch.fft.fftshift((weights * images).sum(dim=-3), dim=(-2, -1))

        return by_rows

    def by_points(kspace: Tensor) -> Tensor:
        images = torch.fft.ifftn(kspace * mask, dim=(-2, -1), norm="ortho")
        return torch.fft.fftshift((weights * images).sum(dim=-3), dim=(-2, -1))

    return by_points
