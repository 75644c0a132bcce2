"""Training measurements as a stream that can be continued at any step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snrecon.training.config import Config, DataConfig, SimulationConfig
from snrecon.training.images import Source, draw_image, draw_shapes, load_source
from snrecon.training.simulate import Batch, Simulator

Item = tuple[Tensor, Tensor, Tensor, Tensor]


class Stream(Dataset[Item]):
    """Batches ``start`` to ``start + count`` of a simulator, as tuples of a Batch's fields."""

    def __init__(self, simulator: Simulator, start: int, count: int, batch: int) -> None:
        self.simulator, self.start, self.count, self.batch = simulator, start, count, batch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        drawn = self.simulator.draw(self.start + index, self.batch)
        return drawn.b, drawn.maps, drawn.mask, drawn.target


def sources(entries: list[str], data: DataConfig) -> list[Source]:
    """The images of a configuration."""

    def of(table: dict[str, float] | dict[str, int], entry: str, default: float) -> float:
        return next((value for part, value in table.items() if part in entry), default)

    return [load_source(entry, voxel=of(data.voxel_sizes, entry, 1.0),
                        first=int(of(data.first_slice, entry, 0))) for entry in entries]


def training_simulator(config: Config) -> Simulator:
    """The stream that a configuration trains on."""
    pools = _pools(sources(config.data.images, config.data), config.simulation,
                   config.simulation.pool, config.trainer.seed)
    return Simulator(pools, config.simulation, config.trainer.seed)


def validation_batches(config: Config, count: int = 8) -> dict[float, Batch]:
    """Fixed measurements of the validation images for accelerations 2, 4 and 8: random masks,
    8 coils, 160x160, mean SNR 10 to 100."""
    if not config.data.validation:
        return {}
    settings = replace(config.simulation, kinds=["random"], snr=[10.0, 100.0])
    simulator = validation_simulator(replace(config, simulation=settings), 12345)
    return {
        rate: Simulator(simulator.pools, replace(simulator.settings, accelerations=[rate]),
                        simulator.seed).draw(int(rate), count)
        for rate in (2.0, 4.0, 8.0)
    }


def validation_simulator(config: Config, seed: int) -> Simulator:
    """Measurements of the validation images on one full grid, 160x160, with 8 coils and 6 to 8 %
    calibration; the rest as the configuration says."""
    settings = replace(config.simulation, grids=[[160, 160]], coils=[8, 8], shapes=0.0,
                       calibration=[0.06, 0.08])
    pools = _pools(sources(config.data.validation, config.data), settings, 32, seed)
    return Simulator(pools, settings, seed)


def _pools(
    found: list[Source], settings: SimulationConfig, count: int, seed: int
) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = sorted({max(grid) for grid in settings.grids})
    each = max(1, count // len(sizes))

    def draw(index: int, size: int) -> Tensor:
        if float(torch.rand((), generator=generator)) < settings.shapes:
            return draw_shapes(size, generator)
        return draw_image(found[index % len(found)], size, generator)

    return {size: torch.stack([draw(i, size) for i in range(each)]) for size in sizes}
