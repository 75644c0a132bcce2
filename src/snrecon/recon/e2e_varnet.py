"""The end-to-end variational network bound to a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.e2e_varnet import E2EVarNet as Network
from snrecon.networks.e2e_varnet import combine_coils, linearize_combine_coils
from snrecon.networks.linearized import untouched
from snrecon.networks.sensitivity import CALIBRATION_LIMIT, calibration_samples
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import KSPACE, NOISE, OBJECT
from snrecon.recon.own_network import (
    Combine,
    centre_crop,
    coil_options,
    fitted,
    named_network,
    require_size,
)
from snrecon.recon.planes import bind_planes
from snrecon.recon.zero_filled import linearize_root_sum_of_squares, root_sum_of_squares

ESPIRIT_AT_ONCE = 4
"""Perturbations that share the iterates of soft ESPIRiT, which every batch makes anew."""


class E2EVarNet(Reconstructor):
    """End-to-end variational network (Sriram et al. 2020) on 2D k-space with calibration lines.

    Its sensitivity network makes coil maps from the calibration lines inside the differentiated
    function, so that nothing is frozen and the noise of the maps counts. Which lines are for
    calibration follows from the mask when it is bound. 3D scans go plane by plane
    (:mod:`snrecon.recon.planes`), each with the calibration lines, or block, of the plane's mask.

    The network works on whitened data (as stored, where the noise is not known) and is homogeneous:
    whatever scales k-space scales the image. One with ``espirit`` is not quite, and needs the
    noise. Images:

    - ``"matched"``: ``sum_c conj(S_c) F^-1 k_c`` of the predicted k-space and the network's own
      maps, complex, in SNR units. Where the scan brought maps their ``sqrt(sum |S_white|^2)`` is
      divided out, so that the image has the units of ``sense`` and is zero where they are; they are
      used for nothing else.
    - ``"rss"``: the root sum of squares of the predicted coil images, real; in the units of the
      coils (SNR units if they were whitened).

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file or of a published torch
            file (``.pt``), or a network of one's own with the interface of
            :class:`snrecon.networks.e2e_varnet.E2EVarNet`, which is put into evaluation mode.
        combine: See above; None is ``"rss"`` for published weights, else ``"matched"``.
        published: As the published weights want it: k-space as stored (not whitened), the readout
            along the rows, all calibration lines. None: if the weights are a torch file. fastMRI
            keeps the readout oversampling until after the network; loaded scans have it removed.
        crop: ``(rows, columns)`` of the centre that is returned, for ``"rss"`` only; None: all.

    Raises:
        InputError: for unknown or damaged weights or options that do not go together, and (when
            bound) a 3D grid without an axis along which the mask is constant, a grid too small for
            the poolings, a mask without calibration lines, or, for a network with ``espirit``, a
            scan whose noise is not known.
    """

    name = "e2e_varnet"

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

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        require_size(self._network, scan.grid, scan, self.name)
        network = cast(Network, fitted(self._network, scan.kspace))
        mask = scan.sampled
        calibration = calibration_samples(mask, None if self.published else CALIBRATION_LIMIT)
        if getattr(network, "espirit", 0):
            if self.published:
                raise InputError("weights made with espirit take whitened k-space, not published.")
            scan.require_noise()  # what counts as signal is told from noise of variance 1
        whitening = self._whitening(scan)
        predict = _Prediction(network, mask, calibration, whitening, self.published)
        details = {"weights": self.weights, "combine": self.combine, "maps": "the network's own"}
        linearize = untouched(network, Network)
        known = scan.noise is not None and not self.published
        at_once = ESPIRIT_AT_ONCE if getattr(network, "espirit", 0) else None
        if self.combine == "rss":
            shape, everywhere = self.crop or (mask.shape[0], mask.shape[1]), torch.ones_like(mask)
            centre_crop(scan.kspace, shape)  # complains now, not later

            def rss(kspace: Tensor) -> Tensor:
                return centre_crop(root_sum_of_squares(predict(kspace)[0], everywhere), shape)

            def linearize_rss(kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
                (k, _), jvp = predict.linearize(kspace)
                image, combine_jvp = linearize_root_sum_of_squares(k, everywhere)

                def product(tangents: Tensor) -> Tensor:
                    return centre_crop(combine_jvp(jvp(tangents)[0]), shape)

                return centre_crop(image, shape), product

            return Bound(
                rss,
                self.name,
                units=NOISE if known else KSPACE,
                linearize=linearize_rss if linearize else None,
                at_once=at_once,
                details=details,
            )
        given, inverse = None, torch.ones_like(mask, dtype=scan.kspace.real.dtype)
        if scan.maps is not None and not self.published:
            given = torch.einsum("ab,byx->ayx", whitening, scan.maps)
            power = given.abs().square().sum(dim=0).sqrt()
            inverse = torch.where(power > 0, 1 / torch.where(power > 0, power, 1), 0)

        def matched(kspace: Tensor) -> Tensor:
            return combine_coils(*predict(kspace)) * inverse

        def linearize_matched(kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            (k, maps), jvp = predict.linearize(kspace)
            image, combine_jvp = linearize_combine_coils(k, maps)
            return image * inverse, lambda tangents: combine_jvp(*jvp(tangents)) * inverse

        return Bound(
            matched,
            self.name,
            maps=self._units(predict, scan, given),
            units=OBJECT if given is not None else NOISE if known else KSPACE,
            linearize=linearize_matched if linearize else None,
            at_once=at_once,
            details=details,
        )

    def _units(
        self, predict: _Prediction, scan: Scan, given: Tensor | None
    ) -> Tensor | None:
        """Whitened maps that set the image's units; none for coils that were not whitened."""
        if given is not None or self.published or scan.noise is None:
            return None if self.published else given
        with torch.no_grad():
            return predict(scan.kspace)[1]

    def _whitening(self, scan: Scan) -> Tensor:
        if scan.noise is None or self.published:
            return torch.eye(scan.coils, dtype=scan.kspace.dtype, device=scan.kspace.device)
        return scan.noise.whitening_matrix.to(scan.kspace)


@dataclass(frozen=True, eq=False)
class _Prediction:
    """K-space of a scan ``(..., coil, ky, kx)`` to the network's k-space and maps."""

    network: Network
    mask: Tensor
    calibration: Tensor
    whitening: Tensor
    published: bool
    """Not whitened, and the readout along the rows."""

    def __call__(self, kspace: Tensor) -> tuple[Tensor, Tensor]:
        k, maps = self.network.predict(self._enter(kspace), *self._masks())
        return self._turned(k), self._turned(maps)

    def linearize(
        self, kspace: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """The same at one ``(coil, ky, kx)``, and a function from tangents
        ``(batch, coil, ky, kx)`` to tangents of both."""
        (k, maps), jvp = self.network.linearize(self._enter(kspace), *self._masks())

        def product(tangents: Tensor) -> tuple[Tensor, Tensor]:
            d_k, d_maps = jvp(self._enter(tangents))
            return self._turned(d_k), self._turned(d_maps)

        return (self._turned(k), self._turned(maps)), product

    def _enter(self, kspace: Tensor) -> Tensor:
        if self.published:
            return kspace.mT
        return torch.einsum("ab,...byx->...ayx", self.whitening, kspace)

    def _masks(self) -> tuple[Tensor, Tensor]:
        return self._turned(self.mask), self._turned(self.calibration)

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.published else x
