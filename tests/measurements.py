"""Small simulated training measurements."""

from __future__ import annotations

import torch

from snrecon.training.batch import Batch
from snrecon.training.config import SimulationConfig
from snrecon.training.simulate import Simulator


def simulated(grid=(32, 32), labelled=1.0, snr=30.0, count=2, acceleration=2.0) -> Batch:
    size = max(grid)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float() * (1 + 0.5 * torch.sin(9 * x))
    settings = SimulationConfig(grids=[list(grid)], coils=[4, 4], accelerations=[acceleration],
                                kinds=["random"], snr=[snr, snr])
    return Simulator({size: head[None].repeat(4, 1, 1)}, settings, 1, labelled).draw(0, count)


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
