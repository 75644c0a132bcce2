"""What every training does at a step besides its loss."""

from __future__ import annotations

import math

import torch
from torch import nn

from snrecon.training.config import TrainerConfig


def set_rate(
    optimizer: torch.optim.Optimizer, trainer: TrainerConfig, step: int, share: float
) -> None:
    """Linear warm-up, then half a cosine to a thousandth of the learning rate.

    Args:
        optimizer: Whose rate is set.
        trainer: Rate and warm-up.
        step: Steps taken before.
        share: How much of the rate's way is over, 0 to 1.
    """
    warm = min(1.0, (step + 1) / max(1, trainer.warmup))
    rate = trainer.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * share))
    for group in optimizer.param_groups:
        group["lr"] = max(rate, 1e-3 * trainer.learning_rate)


def follow(average: nn.Module, network: nn.Module, decay: float, steps: int) -> None:
    """Move the averaged weights towards those of the network; sooner while there are few steps."""
    decay = min(decay, (1 + steps) / (10 + steps))
    with torch.no_grad():
        for mean, now in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
