"""What one training step sees."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from snrecon.physics.fourier import fft, ifft

PLANE = (-2, -1)
Targets = Literal["none", "some", "all"]
"""How many of the measurements of a training must have a target."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Whitened measurements on one grid: the noise of a complex sample has SD 1."""

    kspace: Tensor
    """``(batch, coil, ky, kx)`` complex, zero where nothing was sampled."""
    maps: Tensor
    """Maps given to the reconstruction, ``(batch, coil, ky, kx)``, ``sum |S|^2 = 1`` on their
    support."""
    mask: Tensor
    """Boolean ``(batch, ky, kx)``."""
    target: Tensor
    """What the network should answer, ``(batch, ky, kx)``; zero where no target is known."""
    b: Tensor
    """``A^H y``, ``(batch, ky, kx)``."""
    labelled: Tensor
    """Boolean ``(batch,)``: which have a target."""
    calibration: Tensor | None = None
    """Boolean ``(batch, ky, kx)``: the samples that coil maps are made from, where ``mask`` is a
    part of one that has the same calibration block; None: those that ``mask`` tells."""

    @staticmethod
    def of(kspace: Tensor, maps: Tensor, mask: Tensor, target: Tensor) -> Batch:
        """Measurements that all have their targets."""
        flags = torch.ones(mask.shape[0], dtype=torch.bool, device=mask.device)
        return Batch(kspace, maps, mask, target, kspace[:, 0], flags).with_adjoint()

    @property
    def support(self) -> Tensor:
        """Boolean ``(batch, ky, kx)``."""
        return (self.maps != 0).any(dim=1)

    @property
    def size(self) -> Tensor:
        """Root mean square of ``b`` on the support, ``(batch,)``."""
        support = self.support
        power = (self.b.abs().square() * support).sum(dim=(-2, -1))
        return torch.sqrt(power / support.sum(dim=(-2, -1)).clamp(min=1))

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in their order; ``Batch(*batch.tensors())`` is the batch again."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)

    def part(self, index: Tensor) -> Batch:
        """Some of the measurements, by their numbers."""
        return Batch(*(tensor[index] for tensor in self.tensors()))

    def to(self, device: torch.device | str) -> Batch:
        """On another device."""
        return Batch(*(tensor.to(device) for tensor in self.tensors()))

    def with_adjoint(self) -> Batch:
        """With ``b`` computed again from k-space and maps."""
        images = ifft(self.kspace, PLANE)
        return replace(self, b=(self.maps.conj() * images).sum(dim=1))

    def sampled(self, mask: Tensor) -> Batch:
        """The part of the measurements on ``mask`` ``(batch, ky, kx)``, a part of theirs."""
        part = replace(self, kspace=self.kspace * mask.unsqueeze(1), mask=mask)
        return part.with_adjoint()

    def measure(self, image: Tensor) -> Tensor:
        """``F S x``: images ``(batch, ky, kx)`` to full k-space ``(batch, coil, ky, kx)``."""
        return fft(self.maps * image.unsqueeze(1), PLANE)
