"""A training of a few steps, and its log."""

from __future__ import annotations

import csv

from snrecon.training.config import (
    Config,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    SimulationConfig,
    TrainerConfig,
)


def configuration(images, folder, **trainer) -> Config:
    settings = {"max_minutes": 0.0, "max_steps": 9, "batch": 2, "interval": 3, "workers": 0,
                "precision": "float32", "warmup": 2, "seed": 5}
    return Config(
        data=DataConfig([images], [], voxel_sizes={"heads": 5.0}),
        simulation=SimulationConfig(grids=[[32, 32]], coils=[3, 3], accelerations=[2.0], pool=4,
                                    kinds=["random"]),
        network=NetworkConfig("varnet", {"unrolls": 2, "features": 3}),
        trainer=TrainerConfig(**{**settings, **trainer}),
        output=OutputConfig(str(folder), "net"),
    )


def rows(folder) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
