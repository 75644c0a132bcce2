"""fastMRI's U-Net bound to a scan: on complex images, or on magnitude images as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.linearized import untouched
from snrecon.networks.regularised import (
    consistent_image,
    linearize_consistent_image,
    linearize_sense_image,
    sense_image,
)
from snrecon.networks.unet import Unet as Network
from snrecon.networks.unet import (
    complex_unet,
    linearize_complex_unet,
    linearize_magnitude_unet,
    magnitude_unet,
)
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import KSPACE
from snrecon.recon.own_network import (
    Combine,
    centre_crop,
    coil_options,
    fitted,
    named_network,
    require_size,
)
from snrecon.recon.planes import bind_planes
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.zero_filled import linearize_root_sum_of_squares, root_sum_of_squares

Function = Callable[[Tensor], Tensor]
Linearize = Callable[[Tensor], tuple[Tensor, Function]]


class UNet(Reconstructor):
    """Post-processing of the zero-filled image, or of a CG-SENSE image, by a U-Net.

    Source: Zbontar et al., arXiv:1811.08839 (zero-filled images).

    3D scans go plane by plane (:mod:`snrecon.recon.planes`), normalised in each for itself.

    Which of two variants it is stands in the weights:

    - two channels: the complex matched-filter image in SNR units (see
      :class:`snrecon.recon.varnet.VarNet`), or, for weights made for that (``sense_steps``), the
      image after so many steps of CG-SENSE, to a complex image, the object in the units of the
      maps, exactly zero where all maps are; for weights that say so (``consistency_steps``) drawn
      to the data at the end;
    - one channel: a magnitude image, its mean and standard deviation normalised and cut at +-6 of
      them, to a real image. With ``combine="matched"`` that is the modulus of the image above;
      with ``"rss"`` the root sum of squares of the coils as stored, which needs neither maps nor
      noise.

    Every normalisation is differentiated, so that noise anywhere moves the whole image a little;
    coil maps estimated from the data are frozen.

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file or of a published torch
            file (``.pt``), or a network of one's own ``(batch, chans, ky, kx)`` to the same, with
            an attribute ``in_chans`` of 1 or 2. It is put into evaluation mode.
        combine: How coils are combined; None is ``"rss"`` for published weights, else
            ``"matched"``.
        published: As the published weights want it: root sum of squares of the coils as stored,
            with the readout along the rows. None: if the weights are a torch file.
        crop: ``(rows, columns)`` of the image's centre that the network sees and returns, as
            fastMRI crops before the network; for ``"rss"`` only. None: all of it.

    Raises:
        InputError: for unknown or damaged weights or options that do not go together, and (when
            bound) a 3D grid without an axis along which the mask is constant, an image too small
            for the poolings, or, unless ``"rss"``, a scan whose noise is not known.
    """

    name = "unet"

    def __init__(
        self,
        weights: str | Path | nn.Module = "brain",
        combine: Combine | None = None,
        published: bool | None = None,
        crop: tuple[int, int] | None = None,
    ) -> None:
        self.weights, self._network = named_network(self.name, weights)
        self.published, self.combine = coil_options(
            self.name, weights, combine, published, crop)
        self.crop = crop
        channels = getattr(self._network, "in_chans", None)
        if channels not in (1, 2) or getattr(self._network, "out_chans", channels) != channels:
            raise InputError(
                "unet needs a network of one channel (magnitude images) or two (complex images), "
                "in and out, said by its attribute in_chans."
            )
        self._complex = channels == 2
        if self._complex and (published or self.combine == "rss"):
            raise InputError(
                "this U-Net takes complex images, so the coils are combined by 'matched'; root sum "
                "of squares and the published form are for networks of one channel."
            )
        if published and self.combine != "rss":
            raise InputError("published U-Nets take images of combine='rss'.")

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``, real or complex."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        require_size(self._network, self.crop or scan.grid, scan, self.name)
        network = fitted(self._network, scan.kspace)
        extras = {name: _steps(network, name) for name in ("sense_steps", "consistency_steps")}
        details = {"weights": self.weights, "images": "complex" if self._complex else "magnitude",
                   **{name: steps for name, steps in extras.items() if steps}}
        if self.combine == "rss":
            function, linearize = self._root_sum_of_squares(network, scan)
            return Bound(
                function,
                self.name,
                units=KSPACE,
                linearize=linearize if untouched(network, Network) else None,
                details={**details, "combine": "rss"},
            )
        units = SnrUnits.of(scan)
        function, linearize = (_complex if self._complex else _magnitude)(network, units)
        return Bound(
            function,
            self.name,
            frozen=units.model.frozen,
            maps=units.model.maps,
            units=units.model.units,
            linearize=linearize if untouched(network, Network) else None,
            details={**details, "maps": units.model.maps_source},
        )

    def _root_sum_of_squares(self, network: nn.Module, scan: Scan) -> tuple[Function, Linearize]:
        mask, crop = scan.sampled, self.crop
        if crop is not None:
            centre_crop(scan.kspace, crop)  # complains now, not later

        def enter(image: Tensor) -> Tensor:
            image = image if crop is None else centre_crop(image, crop)
            return image.mT if self.published else image

        def leave(image: Tensor) -> Tensor:
            return image.mT if self.published else image

        def function(kspace: Tensor) -> Tensor:
            return leave(magnitude_unet(network, enter(root_sum_of_squares(kspace, mask))))

        def linearize(kspace: Tensor) -> tuple[Tensor, Function]:
            image, combine_jvp = linearize_root_sum_of_squares(kspace, mask)
            image, jvp = linearize_magnitude_unet(cast(Network, network), enter(image))
            return leave(image), lambda tangents: leave(jvp(enter(combine_jvp(tangents))))

        return function, linearize


def _steps(network: nn.Module, which: str) -> int:
    """``sense_steps`` or ``consistency_steps`` of a network, which one of a user need not have."""
    return int(getattr(network, which, 0))


def _complex(network: nn.Module, units: SnrUnits) -> tuple[Function, Linearize]:
    """The complex image in SNR units through the network, and its derivative."""
    adjoint, support, inverse, gram = units.adjoint, units.support, units.inverse, units.gram
    before, after = _steps(network, "sense_steps"), _steps(network, "consistency_steps")
    lamda = cast(Network, network).lamda if after else 0.0

    def function(kspace: Tensor) -> Tensor:
        b = adjoint(kspace)
        image = complex_unet(network, sense_image(gram, b, before), support)
        return consistent_image(gram, b, image, lamda, after) * inverse

    def linearize(kspace: Tensor) -> tuple[Tensor, Function]:
        b = adjoint(kspace)
        z, solve = linearize_sense_image(gram, b, before)
        image, unet_jvp = linearize_complex_unet(cast(Network, network), z, support)
        image, draw = linearize_consistent_image(gram, b, image, lamda, after)

        def jvp(tangents: Tensor) -> Tensor:
            d_b = adjoint(tangents)
            return draw(d_b, unet_jvp(solve(d_b))) * inverse

        return image * inverse, jvp

    return function, linearize


def _magnitude(network: nn.Module, units: SnrUnits) -> tuple[Function, Linearize]:
    """The modulus of that image through the network, and its derivative."""
    adjoint, inverse = units.adjoint, units.inverse

    def function(kspace: Tensor) -> Tensor:
        return magnitude_unet(network, adjoint(kspace).abs()) * inverse

    def linearize(kspace: Tensor) -> tuple[Tensor, Function]:
        z = adjoint(kspace)
        turn = z.sgn().conj().resolve_conj()
        image, jvp = linearize_magnitude_unet(cast(Network, network), z.abs())
        return image * inverse, lambda tangents: jvp((turn * adjoint(tangents)).real) * inverse

    return function, linearize
