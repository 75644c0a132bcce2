"""What an untrained decoder is fitted to: from its channels to k-space, and on to an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.gram import varying_axes
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.zero_filled import root_sum_of_squares

Decode = Literal["image", "coils"]
Combine = Literal["matched", "rss"]
AXES = (-2, -1)

CENTRE = 1 / 8
"""Share of each undersampled axis, around the centre of k-space, that is never held out: the
energy there would drown everything else, and it is never what undersampling leaves out."""


@dataclass(frozen=True, eq=False)
class DecoderData:
    """The measurement of one 2D scan as a decoder sees it.

    A decoder gives real channels, real and imaginary parts alternating: of one image, which the
    normalised whitened maps turn into coil images, or of the whitened coil images themselves.
    """

    model: ForwardModel
    """The whitened measurement; its maps are ones where none are needed."""
    normalised: Tensor
    """Whitened maps over the root of their power, ``(coil, ky, kx)``; zero off the support."""
    inverse: Tensor
    """What turns an image of the normalised maps into one of the maps, ``(ky, kx)``."""
    unwhitening: Tensor
    """``L_Psi``, ``(coil, coil)``: back to the coils as stored."""
    decode: Decode
    """What the channels are of."""
    combine: Combine
    """How coil images become an image."""
    keep: bool
    """Measured samples replace the decoder's."""

    @staticmethod
    def of(scan: Scan, decode: Decode, combine: Combine, consistent: bool) -> DecoderData:
        """Of a 2D scan.

        Raises:
            InputError: if maps are needed and cannot be estimated.
        """
        if scan.maps is None and decode == "coils" and combine == "rss":
            scan = replace(scan, maps=torch.ones_like(scan.kspace))
        model = forward_model(scan)
        with torch.inference_mode(False):  # of tensors that gradients may be taken through
            model = replace(
                model,
                whitening=model.whitening.clone(),
                maps=model.maps.clone(),
                mask=model.mask.clone(),
            )
            power = model.maps.abs().square().sum(dim=0).sqrt()
            inverse = torch.where(power > 0, 1 / power, torch.zeros_like(power))
            unwhitening = torch.linalg.inv(model.whitening.to(torch.complex128)).to(scan.kspace)
            normalised = model.maps * inverse
        return DecoderData(model, normalised, inverse, unwhitening, decode, combine, consistent)

    @property
    def outputs(self) -> int:
        """Channels of the decoder."""
        return 2 if self.decode == "image" else 2 * self.normalised.shape[0]

    def measured(self, kspace: Tensor) -> Tensor:
        """Whitened samples ``(coil, ky, kx)``, zero where nothing was sampled."""
        return self.model.whiten(kspace) * self.model.mask

    def kspace(self, channels: Tensor) -> Tensor:
        """The decoder's channels ``(outputs, ky, kx)`` as whitened k-space ``(coil, ky, kx)``."""
        images = torch.complex(channels[0::2], channels[1::2])
        return fft(self.normalised * images if self.decode == "image" else images, AXES)

    def image(self, decoded: Tensor, measured: Tensor) -> Tensor:
        """Whitened k-space of the decoder ``(..., coil, ky, kx)`` and what was measured, to an
        image ``(..., ky, kx)``."""
        kspace = self.consistent(decoded, measured)
        if self.combine == "rss":
            everywhere = torch.ones_like(self.model.mask)
            # Fitted in double precision, whatever the precision of the data.
            matrix = self.unwhitening.to(kspace.dtype)
            raw = torch.einsum("ab,...byx->...ayx", matrix, kspace)
            return root_sum_of_squares(raw, everywhere)
        coils = self.normalised.conj() * ifft(kspace, AXES)
        return coils.sum(dim=-3) * self.inverse

    def consistent(self, decoded: Tensor, measured: Tensor) -> Tensor:
        """k-space with the samples that were measured, if they replace the decoder's."""
        return torch.where(self.model.mask, measured, decoded) if self.keep else decoded


def held_out_samples(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Some of the samples outside the centre of k-space, boolean ``(ky, kx)``.

    Where the mask consists of lines, whole lines: that is what was left out, and single samples of
    a measured line can be told from their neighbours without knowing anything about other lines.
    Single samples where it does not, or where there are too few lines to hold out two and leave as
    many again.

    Args:
        mask: Boolean ``(ky, kx)``.
        share: Of all samples; 0 holds out none.
        generator: Which ones.
    """
    held = torch.zeros_like(mask)
    if share == 0:
        return held
    axes = varying_axes(mask)
    if len(axes) == 1:
        axis = axes[0]
        lines = mask.any(dim=-3 - axis)  # the other one of -2 and -1
        outer = torch.nonzero(lines & _outside(mask, axis)).squeeze(1)
        count = round(share * int(lines.sum()))
        if count >= 2 and 2 * count <= len(outer):
            chosen = _some(outer, count, generator)
            held.index_fill_(axis, chosen, True)
            return held & mask
    candidates = torch.zeros_like(mask)
    for axis in axes or AXES:
        outside = _outside(mask, axis)
        candidates |= outside if axis == -1 else outside[:, None]
    places = torch.nonzero((candidates & mask).flatten()).squeeze(1)
    count = min(max(1, round(share * int(mask.sum()))), len(places) // 2)
    held.view(-1)[_some(places, count, generator)] = True
    return held


def _outside(mask: Tensor, axis: int) -> Tensor:
    """Boolean, one for each place along the axis: not in the centre."""
    n = mask.shape[axis]
    return (torch.arange(n, device=mask.device) - n // 2).abs() > CENTRE * n / 2


def _some(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(places), generator=generator)[:count]
    return places[order.to(places.device)]
