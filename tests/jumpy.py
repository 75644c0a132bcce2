"""A method that draws, to be put among those of the command line."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from snrecon.data import Scan
from snrecon.recon import registry
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.sense import Sense


class Jumpy(Reconstructor):
    """SENSE with a random factor in each voxel."""

    name = "jumpy"

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        bound = Sense(lamda=0.01).bind(scan)
        own = torch.Generator().manual_seed(seed_of(generator))
        factor = 1 + 0.1 * torch.randn(scan.grid, generator=own)
        return Bound(lambda kspace: factor * bound(kspace), self.name, stochastic=True,
                     units=bound.units)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``--method jumpy``."""
    module = types.ModuleType("snrecon.recon.jumpy")
    module.Jumpy = Jumpy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snrecon.recon.jumpy", module)
    monkeypatch.setitem(registry._METHODS, "jumpy", ("jumpy", "Jumpy", None))
