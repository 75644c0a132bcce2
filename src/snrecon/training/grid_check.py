"""Whether a network can work on the grids of a training's measurements."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from snrecon.errors import InputError
from snrecon.training.config import Config
from snrecon.training.stream import Found

VALIDATION_GRID = (160, 160)
"""Of the measurements that are simulated from validation images."""


def check_grids(config: Config, network: nn.Module, train: Found, validation: Found) -> None:
    """Look at every size of measurement that training and validation will show to a network.

    Args:
        config: The run.
        network: That of the run.
        train: What it learns from.
        validation: What it is scored on.

    Raises:
        InputError: naming the key, if a network halves one of them too often.
    """
    fits: Callable[[tuple[int, ...]], bool] | None = getattr(network, "fits", None)
    if fits is None:
        return
    grids: dict[tuple[int, ...], str] = {}
    for found, split in ((validation, "data.validation"), (train, "data.images")):
        for volume in found.volumes:
            rows, columns = volume.shape[-2:]
            strip = config.data.columns if split == "data.images" else 0
            narrow = 0 < strip < columns
            key = "data.columns" if narrow else split
            grids[rows, strip if narrow else columns] = key
        if found.images and split == "data.validation":
            grids[VALIDATION_GRID] = split
        elif found.images:
            grids |= dict.fromkeys(map(tuple, config.simulation.grids), "simulation.grids")
    for (rows, columns), key in grids.items():
        if not fits((rows, columns)):
            raise InputError(f"{key}: {rows}x{columns} voxels are too few for a "
                             f"{config.network.name} that halves them as often as network.pools "
                             "says.")
