"""Weights between those of two trainings that began alike.

``python -m snrecon.training.blend NETWORK ONE OTHER SHARE OUT.safetensors``

Where one training has what the other lacks, a point on the line between them often has most of
both, without any further step: networks that share the beginning of their training are joined by a
line along which the error does not rise (Wortsman et al., CVPR 2022, arXiv:2109.01903).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from snrecon.errors import InputError
from snrecon.networks.store import NETWORKS, load_weights, save_weights
from snrecon.training.apply import other_setting


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
        InputError: if the share is none, the folder does not exist, or weights cannot be read or
            are not of one size.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the share of the second weights must lie between 0 and 1, not {share}.")
    if network not in NETWORKS:
        raise InputError(f"there is no network {network!r}; choose {', '.join(NETWORKS)}.")
    if not Path(path).parent.is_dir():
        raise InputError(f"{path}: the folder does not exist.")
    first, second = load_weights(network, one), load_weights(network, other)
    goal = second.state_dict()
    mixed = {}
    for name, tensor in first.state_dict().items():
        if name not in goal or goal[name].shape != tensor.shape:
            raise InputError(f"{one} and {other} are weights of networks of different sizes.")
        mixed[name] = torch.lerp(tensor, goal[name], share)
    other_one = other_setting(first, second)
    if other_one is not None:
        raise InputError(f"{one} are weights of a network with {other_one} like {other}.")
    first.load_state_dict(mixed)
    save_weights(first, path, {"share": f"{share:g}"})


def main() -> None:
    """The command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("one", help="weights, a shipped name or a file")
    parser.add_argument("other", help="the same")
    parser.add_argument("share", type=float, help="of the other, 0 to 1")
    parser.add_argument("out", type=Path, help="NAME.safetensors")
    args = parser.parse_args()
    try:
        blend(args.network, args.one, args.other, args.share, args.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
