"""What every kind of running sum over samples offers, so that a run can be saved and merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """What some samples say about the noise."""

    covariance: Tensor
    """``(3, *image)`` float64: Var of the component along the phase, across it, covariance."""
    standard_error: Tensor
    """Of sigma, ``(*image)`` float64."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the metadata."""


class Accumulated(ABC):
    """Sums over samples of one problem. They are replaced, never changed, so that an interrupt in
    between leaves the old ones whole."""

    kind: ClassVar[str]
    """Name in state files."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Samples so far."""

    @property
    def passes(self) -> float:
        """Evaluations of f and of its Jacobian products so far."""
        return float(self.samples)

    @abstractmethod
    def merged(self, other: Self) -> Self:
        """With the samples of another run, independent of these, of the same problem."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same on another device."""

    @abstractmethod
    def result(self, image: Tensor) -> Found:
        """The noise of the image's voxels."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """All tensors, by name, for a state file."""

    def attributes(self) -> dict[str, Any]:
        """All numbers, by name, for a state file."""
        return {}

    @classmethod
    @abstractmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        """What :meth:`arrays` and :meth:`attributes` gave."""
