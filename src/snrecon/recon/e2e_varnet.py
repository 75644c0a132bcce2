"""The end-to-end variational network bound to a scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.convert import is_torch_file
from snrecon.networks.e2e_varnet import CALIBRATION_LIMIT, calibration_samples, combine_coils
from snrecon.networks.e2e_varnet import E2EVarNet as Network
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import KSPACE, NOISE, OBJECT
from snrecon.recon.own_network import (
    centre_crop,
    fitted,
    named_network,
    require_size,
)
from snrecon.recon.planes import bind_planes
from snrecon.recon.zero_filled import root_sum_of_squares

Combine = Literal["matched", "rss"]
Predict = Callable[[Tensor], tuple[Tensor, Tensor]]


class E2EVarNet(Reconstructor):
    """End-to-end variational network (Sriram et al. 2020) on 2D k-space with calibration lines.

    Its sensitivity network makes coil maps from the calibration lines inside the differentiated
    function, so that nothing is frozen and the noise of the maps counts. Which lines are for
    calibration follows from the mask when it is bound. 3D scans go plane by plane
    (:mod:`snrecon.recon.planes`), each with the calibration lines, or block, of the plane's mask.

    The network works on whitened data (as stored, where the noise is not known) and is homogeneous:
    whatever scales k-space scales the image. Images:

    - ``"matched"``: ``sum_c conj(S_c) F^-1 k_c`` of the predicted k-space and the network's own
      maps, complex, in SNR units. Where the scan brought maps their ``sqrt(sum |S_white|^2)`` is
      divided out, so that the image has the units of ``sense`` and is zero where they are; they are
      used for nothing else.
    - ``"rss"``: the root sum of squares of the predicted coil images, real; in the units of the
      coils (SNR units if they were whitened).

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file or of a published torch
            file (``.pt``), or a network of one's own with the interface of
            :class:`snrecon.networks.e2e_varnet.E2EVarNet`.
        combine: See above; None is ``"rss"`` for published weights, else ``"matched"``.
        published: As the published weights want it: k-space as stored (not whitened), the readout
            along the rows, all calibration lines. None: if the weights are a torch file. fastMRI
            keeps the readout oversampling until after the network; loaded scans have it removed.
        crop: ``(rows, columns)`` of the centre that is returned, for ``"rss"`` only; None: all.

    Raises:
        InputError: for unknown or damaged weights or options that do not go together, and (when
            bound) a 3D grid without an axis along which the mask is constant, a grid too small for
            the poolings, or a mask without calibration lines.
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
        if published is None:
            published = not isinstance(weights, nn.Module) and is_torch_file(weights)
        self.published = published
        if combine not in (None, "matched", "rss"):
            raise InputError(f"e2e_varnet combines coils by 'matched' or 'rss', not {combine!r}.")
        self.combine: Combine = combine or ("rss" if published else "matched")
        if crop is not None and self.combine != "rss":
            raise InputError("e2e_varnet crops images of combine='rss' only.")
        self.crop = crop

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        if len(scan.grid) == 3:
            return bind_planes(self, scan)
        require_size(self._network, scan.grid, scan, self.name)
        network = cast(Network, fitted(self._network, scan.kspace))
        mask = scan.sampled
        calibration = calibration_samples(mask, None if self.published else CALIBRATION_LIMIT)
        whitening = self._whitening(scan)

        def predict(kspace: Tensor) -> tuple[Tensor, Tensor]:
            if self.published:
                k, maps = network.predict(kspace.mT, mask.mT, calibration.mT)
                return k.mT, maps.mT
            white = torch.einsum("ab,...byx->...ayx", whitening, kspace)
            return network.predict(white, mask, calibration)

        details = {"weights": self.weights, "combine": self.combine, "maps": "the network's own"}
        if self.combine == "rss":
            crop, everywhere = self.crop, torch.ones_like(mask)
            if crop is not None:
                centre_crop(scan.kspace, crop)  # complains now, not later

            def rss(kspace: Tensor) -> Tensor:
                image = root_sum_of_squares(predict(kspace)[0], everywhere)
                return image if crop is None else centre_crop(image, crop)

            return Bound(rss, self.name, units=KSPACE, details=details)
        given = None
        if scan.maps is not None and not self.published:
            given = torch.einsum("ab,byx->ayx", whitening, scan.maps)
            power = given.abs().square().sum(dim=0).sqrt()
            inverse = torch.where(power > 0, 1 / torch.where(power > 0, power, 1), 0)

        def matched(kspace: Tensor) -> Tensor:
            image = combine_coils(*predict(kspace))
            return image if given is None else image * inverse

        known = scan.noise is not None and not self.published
        return Bound(
            matched,
            self.name,
            maps=self._units(predict, scan, given),
            units=OBJECT if given is not None else NOISE if known else KSPACE,
            details=details,
        )

    def _units(
        self, predict: Predict, scan: Scan, given: Tensor | None
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
