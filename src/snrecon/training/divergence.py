"""Trainings whose numbers end in NaN or infinity: told in a sentence before anything is written."""

from __future__ import annotations

import math

import torch
from torch import nn


class Diverged(ArithmeticError):
    """A loss or weights are not finite; weights and checkpoint on disk are from before that."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"the training diverged: after step {step} {what}; what the folder has from before "
            "stays; a smaller trainer.learning_rate may help.")


def check_number(name: str, value: float, step: int) -> None:
    """Stop at a loss or score that is not a finite number.

    Args:
        name: What it is, for the message.
        value: The number.
        step: Steps taken before.

    Raises:
        Diverged: if it is not finite.
    """
    if not math.isfinite(value):
        raise Diverged(f"the {name} is {value}", step)


def check_weights(network: nn.Module, step: int) -> None:
    """Stop at weights that are not finite.

    Args:
        network: Whose parameters are looked at.
        step: Steps taken before.

    Raises:
        Diverged: if one is not finite.
    """
    if not all(bool(torch.isfinite(one).all()) for one in network.parameters()):
        raise Diverged("the weights are not finite", step)
