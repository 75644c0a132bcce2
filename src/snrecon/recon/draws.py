"""Random numbers of stochastic reconstructions: one stream for each seed, under any transform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class NormalDraws:
    """Standard normal arrays, one after the other; each seed has a stream of its own, the same in
    every precision, on every device, and whichever seeds are drawn beside it.

    numpy makes them: torch's generators may not be used within its function transforms.

    Args:
        seeds: Not negative.
        shape: Of one array.
        like: Real; gives precision and device.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], like: Tensor) -> None:
        self.streams = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
        self.shape, self.dtype, self.device = shape, like.dtype, like.device

    def __call__(self) -> Tensor:
        """The next arrays, ``(seed, *shape)``."""
        drawn = np.stack([stream.standard_normal(self.shape) for stream in self.streams])
        return torch.from_numpy(drawn).to(dtype=self.dtype, device=self.device)
