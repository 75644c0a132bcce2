"""Training measurements as a stream that can be continued at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from snrecon.errors import InputError
from snrecon.training.batch import Batch
from snrecon.training.config import Config, DataConfig, SimulationConfig
from snrecon.training.drawn_mask import check_masks
from snrecon.training.images import (
    Source,
    draw_image,
    draw_shapes,
    load_source,
)
from snrecon.training.measured import Measured
from snrecon.training.schemes import scheme_of
from snrecon.training.simulate import Simulator
from snrecon.training.slices import Volume, find_scans, open_volumes, raw_files

Item = tuple[Tensor, ...]
"""The tensors of a :class:`Batch`, which processes can hand to each other."""
VALIDATION = 12345
"""Seed of what is drawn from the validation data."""


class Drawn(Protocol):
    """What batches are drawn from; batch ``index`` depends on it and its seed only."""

    def draw(self, index: int, count: int) -> Batch:
        """Batch ``index`` of ``count`` measurements."""


class Stream(Dataset[Item]):
    """The batches of a source by their numbers, without end, as tuples of a Batch's fields."""

    def __init__(self, source: Drawn, batch: int) -> None:
        self.source, self.batch = source, batch

    def __getitem__(self, index: int) -> Item:
        return self.source.draw(index, self.batch).tensors()


class Interval(Sampler[int]):
    """The numbers of the next ``count`` batches after those that are ``done``."""

    def __init__(self, done: Callable[[], int], count: int) -> None:
        self.done, self.count = done, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        start = self.done()
        return iter(range(start, start + self.count))


def sources(entries: list[str], data: DataConfig) -> list[Source]:
    """The images of a configuration."""

    def of(table: dict[str, float] | dict[str, int], entry: str) -> float | None:
        return next((value for part, value in table.items() if part in entry), None)

    return [load_source(entry, voxel=of(data.voxel_sizes, entry),
                        first=int(of(data.first_slice, entry) or 0)) for entry in entries]


def scans(entries: list[str], split: str) -> list[Volume]:
    """The measured volumes among the entries of a configuration, none if they are images.

    Raises:
        InputError: if an entry cannot be read, or scans and images are mixed.
    """
    found = [place for entry in entries if (place := find_scans(entry)) is not None]
    if found and len(found) < len(entries):
        raise InputError("the data of a training are either images or measured scans, not both.")
    return [volume for place in found for volume in open_volumes(place, split)]


@dataclass(frozen=True, eq=False)
class Found:
    """What the entries under ``[data]`` name: measured scans, or else images."""

    volumes: list[Volume]
    images: list[Source]


def find_data(config: Config, split: str) -> Found:
    """Open what a configuration trains on (``train``) or is scored on (``validation``).

    Raises:
        InputError: if an entry cannot be read, scans and images are mixed, or the same fastMRI
            file is named for both.
    """
    if split == "validation":
        _check_apart(config.data)
    entries = config.data.images if split == "train" else config.data.validation
    volumes = scans(entries, split)
    return Found(volumes, [] if volumes else sources(entries, config.data))


def _check_apart(data: DataConfig) -> None:
    """Errors on what was learnt by heart say nothing. Prepared folders know what is for what."""
    taught, scored = ({file.resolve() for entry in entries
                       if (place := find_scans(entry)) is not None for file in raw_files(place)}
                      for entries in (data.images, data.validation))
    if taught & scored:
        raise InputError(f"{min(taught & scored)}: this file is under both data.images and "
                         "data.validation, which must be of different subjects; snrecon prepare "
                         "makes a folder that divides them and can be named under both.")


def check_mask_grids(config: Config, found: Found) -> None:
    """Make sure that all masks which a training may draw can be drawn.

    Raises:
        InputError: naming the settings that do not go together.
    """
    grids = {(rows, columns, rows != columns) for rows, columns in config.simulation.grids}
    if found.volumes:  # whose grids are their own
        grids = {(v.shape[-2], v.shape[-1], config.data.columns > 0)
                 for v in full_volumes(found.volumes)}
    for rows, columns, strip in sorted(grids):
        check_masks(config.simulation, (rows, columns), strip)


def full_volumes(volumes: list[Volume]) -> list[Volume]:
    """Those with fully sampled slices."""
    return [volume for volume in volumes if any(map(volume.full, range(volume.slices)))]


def training_source(config: Config, found: Found | None = None) -> Drawn:
    """The stream that a configuration trains on: measured scans, or simulated measurements.

    Args:
        config: The run.
        found: What :func:`find_data` has opened already.

    Raises:
        InputError: if the data cannot be read, have no targets where the scheme needs some, or are
            on grids that the configured masks are not for.
    """
    share = {"supervised": 1.0, "ssdu": 0.0, "noise_predictor": 1.0}.get(
        config.scheme, config.consistency.labelled)
    found = found or find_data(config, "train")
    check_mask_grids(config, found)
    if found.volumes:
        # The noise of a reconstruction has no use for the true image.
        targets = "none" if config.scheme == "noise_predictor" else scheme_of(config).targets
        return Measured(found.volumes, config.simulation, config.trainer.seed, share,
                        config.data.columns, targets)
    pools = image_pools(
        found.images, config.simulation, config.simulation.pool, config.trainer.seed)
    return Simulator(pools, config.simulation, config.trainer.seed, share,
                     config.consistency.balance)


def validation_batches(
    config: Config, count: int = 8, found: Found | None = None
) -> dict[float, Batch]:
    """Fixed measurements for accelerations 2, 4 and 8, with random masks: of the validation
    images with 8 coils on 160x160 at a mean SNR of 10 to 100, or of the fully sampled slices of
    validation scans. None for the scheme ssdu where there are no such slices: see
    :func:`unlabelled_batch`.

    Args:
        config: The run.
        count: Measurements for each acceleration.
        found: What :func:`find_data` has opened already.

    Raises:
        InputError: if the data cannot be read, or have no references to compare with.
    """
    if not config.data.validation:
        return {}
    found = found or find_data(config, "validation")
    if found.volumes and not full_volumes(found.volumes):
        if config.scheme == "ssdu":
            return {}
        raise InputError(f"data.validation ({', '.join(config.data.validation)}): all volumes are "
                         "undersampled, so there is no reference to compare with; name fully "
                         "sampled ones, or none (validation = []).")
    if found.volumes:
        return {
            rate: Measured(found.volumes, replace(config.simulation, kinds=["random"],
                                                  accelerations=[rate]),
                           VALIDATION, targets="all").draw(0, count)
            for rate in (2.0, 4.0, 8.0)
        }
    settings = replace(config.simulation, kinds=["random"], snr=[10.0, 100.0])
    simulator = validation_simulator(replace(config, simulation=settings), VALIDATION, found)
    return {
        rate: Simulator(simulator.pools, replace(simulator.settings, accelerations=[rate]),
                        simulator.seed).draw(int(rate), count)
        for rate in (2.0, 4.0, 8.0)
    }


def unlabelled_batch(config: Config, count: int = 8, found: Found | None = None) -> Batch | None:
    """Fixed undersampled measurements of the validation scans, for the scheme ssdu, whose loss
    needs no references; None where :func:`validation_batches` has some to compare with.

    Args:
        config: The run.
        count: Measurements.
        found: What :func:`find_data` has opened already.

    Raises:
        InputError: if the data cannot be read.
    """
    if config.scheme != "ssdu" or not config.data.validation:
        return None
    found = found or find_data(config, "validation")
    if not found.volumes or full_volumes(found.volumes):
        return None
    return Measured(found.volumes, config.simulation, VALIDATION, 0.0).draw(0, count)


def validation_simulator(config: Config, seed: int, found: Found | None = None) -> Simulator:
    """Measurements of the validation images on one full grid, 160x160, with 8 coils and 6 to 8 %
    calibration; the rest as the configuration says."""
    settings = replace(config.simulation, grids=[[160, 160]], coils=[8, 8], shapes=0.0,
                       calibration=[0.06, 0.08])
    found = found or Found([], sources(config.data.validation, config.data))
    pools = image_pools(found.images, settings, 32, seed)
    return Simulator(pools, settings, seed)


def image_pools(
    found: list[Source], settings: SimulationConfig, count: int, seed: int
) -> dict[int, Tensor]:
    """Images ``(image, size, size)``, mean 1 over the head, by their size: the longer sides of
    the training grids, ``count`` in all."""
    generator = torch.Generator().manual_seed(seed)
    sizes = sorted({max(grid) for grid in settings.grids})
    each = max(1, count // len(sizes))

    def draw(index: int, size: int) -> Tensor:
        if float(torch.rand((), generator=generator)) < settings.shapes:
            return draw_shapes(size, generator)
        return draw_image(found[index % len(found)], size, generator)

    return {size: torch.stack([draw(i, size) for i in range(each)]) for size in sizes}
