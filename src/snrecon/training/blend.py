"""Weights between those of two trainings that began alike.

``python -m snrecon.training.blend NETWORK ONE OTHER SHARE OUT.safetensors``

Where one training has what the other lacks, a point on the line between them often has most of
both, without any further step: networks that share the beginning of their training are joined by a
line along which the error does not rise (Wortsman et al., CVPR 2022, arXiv:2109.01903).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from snrecon.errors import InputError
from snrecon.networks.store import load_weights, save_weights


def blend(
    network: str, one: str | Path, other: str | Path, share: float, path: str | Path
) -> None:
    """Write ``(1 - share) * one + share * other``.

    Args:
        network: Name of the network that both are weights of.
        one: Shipped name or file.
        other: The same.
        share: Of the other, 0 to 1.
        path: ``.safetensors`` file.

    Raises:
        InputError: if the share is none, weights cannot be read, or are not of one size.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the share of the second weights must lie between 0 and 1, not {share}.")
    first, second = load_weights(network, one), load_weights(network, other)
    goal = second.state_dict()
    mixed = {}
    for name, tensor in first.state_dict().items():
        if name not in goal or goal[name].shape != tensor.shape:
            raise InputError(f"{one} and {other} are weights of networks of different sizes.")
        mixed[name] = torch.lerp(tensor, goal[name], share)
    first.load_state_dict(mixed)
    save_weights(first, path, {"share": f"{share:g}"})


if __name__ == "__main__":
    name, start, end, part, target = sys.argv[1:]
    blend(name, start, end, float(part), target)
