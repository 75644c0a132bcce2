"""Training batches of real scans: a folder of prepared volumes, or of fastMRI files as they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.coverage import fully_sampled
from snrecon.physics.fourier import fft, ifft
from snrecon.training.batch import Batch, Targets
from snrecon.training.config import SimulationConfig
from snrecon.training.drawn_mask import draw_mask
from snrecon.training.slices import Volume, open_volumes


class Measured:
    """Draws training batches of measured slices; batch ``i`` depends on the seed and ``i`` only.

    It takes the place of :class:`snrecon.training.simulate.Simulator`. Every slice is seen once
    before any is seen again. Fully sampled slices are undersampled by a mask of the configured
    kinds, accelerations and calibration, and their target is the fully sampled matched filter.
    Slices that were undersampled when they were measured keep their own mask, have no target and
    are not ``labelled``; schemes without targets can use them, the others have them left out.

    Args:
        volumes: The scans.
        settings: ``kinds``, ``accelerations`` and ``calibration`` are used.
        seed: Of order and masks.
        labelled: Share of the volumes whose targets are known; those of the others are zero.
        columns: Width of a random strip along kx to train on, 0 for the whole width. Lines along
            kx being fully sampled, a strip is a complete problem of its own.
        targets: What is learned needs targets of ``none`` of the slices, of ``some`` or of ``all``,
            where slices without are left out.

    Raises:
        InputError: if there are no volumes, none of them has a target that is needed, or the
            numbers make no sense.
    """

    def __init__(
        self, volumes: Sequence[Volume], settings: SimulationConfig, seed: int = 0,
        labelled: float = 1.0, columns: int = 0, targets: Targets = "none",
    ) -> None:
        if not volumes:
            raise InputError("there are no volumes to train on.")
        if columns < 0 or not 0 <= labelled <= 1:
            raise InputError("labelled must lie from 0 to 1, and columns must not be negative.")
        self.volumes, self.settings, self.seed = volumes, settings, seed
        self.columns, self.targets = columns, targets
        order = sorted(range(len(volumes)), key=lambda i: _hash(seed, volumes[i].name))
        self.known = frozenset(order[: math.ceil(labelled * len(volumes))])
        self._places = [(v, s) for v, volume in enumerate(volumes) for s in range(volume.slices)]
        if targets != "none":
            taught = [(v, s) for v, s in self._places if v in self.known and volumes[v].full(s)]
            if not taught:
                raise InputError(self._nothing_to_learn(labelled))
            self._places = taught if targets == "all" else self._places
        self._epoch: tuple[int, int, list[list[tuple[int, int]]]] | None = None

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._places)

    def _nothing_to_learn(self, labelled: float) -> str:
        folders = ", ".join(dict.fromkeys(str(volume.path.parent) for volume in self.volumes))
        full = any(v.full(s) for v in self.volumes for s in range(v.slices))
        if full:
            return (f"{folders}: none of the fully sampled volumes is in the share whose targets "
                    f"are used (consistency.labelled = {labelled:g}); raise it, or add volumes.")
        return (f"{folders}: all volumes are undersampled, so there is no fully sampled reference, "
                "which is needed here; only the schemes ssdu and noise_predictor do without.")

    def draw(self, index: int, count: int) -> Batch:
        """Batch ``index`` of ``count`` slices of one shape.

        Raises:
            InputError: if a volume has changed or a mask does not fit.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        items = [self._item(volume, part, generator) for volume, part in self.places(index, count)]
        kspace, maps, mask, target, known = (
            torch.stack(columns) for columns in zip(*items, strict=True))
        return replace(Batch.of(kspace, maps, mask, target), labelled=known)

    def places(self, index: int, count: int) -> list[tuple[int, int]]:
        """Volume and slice of every measurement of batch ``index``."""
        size = sum(-(-len(group) // count) for group in self._groups(count))
        epoch, place = divmod(index, size)
        if self._epoch is None or self._epoch[:2] != (epoch, count):
            self._epoch = (epoch, count, self._shuffled(epoch, count))
        return self._epoch[2][place]

    def _groups(self, count: int) -> list[list[tuple[int, int]]]:
        """Slices that can be in one batch: of one shape."""
        if count == 1:
            return [self._places]
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for place in self._places:
            groups.setdefault(self.volumes[place[0]].shape, []).append(place)
        return list(groups.values())

    def _shuffled(self, epoch: int, count: int) -> list[list[tuple[int, int]]]:
        """The batches of one pass over all slices; the last of a group is filled from its head."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 - 1 - epoch)
        batches = []
        for group in self._groups(count):
            order = torch.randperm(len(group), generator=generator).tolist()
            total = -(-len(order) // count) * count
            order = [order[i % len(order)] for i in range(total)]
            batches += [[group[i] for i in order[s : s + count]] for s in range(0, total, count)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _item(
        self, volume: int, part: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kspace, maps, sampled = self.volumes[volume].read(part)
        full = fully_sampled(sampled)
        mask = sampled
        if full:
            drawn = draw_mask(
                self.settings, tuple(sampled.shape), generator, strip=self.columns > 0)
            mask = drawn & sampled
        if self.columns and self.columns < mask.shape[-1]:
            if not torch.equal(mask, mask[:, :1].expand_as(mask)):
                raise InputError(
                    f"{self.volumes[volume].name}: a strip of {self.columns} columns needs lines "
                    "along kx that are fully sampled; train on the whole width."
                )
            kspace, maps = self._strip(kspace, maps, generator)
            mask = mask[:, : self.columns]
        known = full and volume in self.known
        if self.targets == "all" and not known:
            raise InputError(f"{self.volumes[volume].path}: slice {part} is undersampled, and "
                             "others of this file are not.")
        target = torch.zeros_like(kspace[0])
        if known:
            target = (maps.conj() * ifft(kspace, (-2, -1))).sum(dim=0)
        return kspace * mask, maps, mask.clone(), target, torch.tensor(known)

    def _strip(
        self, kspace: Tensor, maps: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The part of the image between two columns, where the maps show an object."""
        width, wide = self.columns, int(maps.shape[-1])
        inside = torch.nonzero((maps != 0).any(dim=0).any(dim=0)).flatten()
        low = max(0, min(int(inside[0]), wide - width)) if len(inside) else 0
        high = max(low, min(int(inside[-1]) + 1 - width, wide - width)) if len(inside) else low
        left = low + int(torch.randint(high - low + 1, (), generator=generator))
        images = ifft(kspace, (-1,))[..., left : left + width]
        return fft(images, (-1,)), maps[..., left : left + width].contiguous()


def measured(
    path: str | Path,
    settings: SimulationConfig,
    seed: int = 0,
    split: str = "train",
    labelled: float = 1.0,
    columns: int = 0,
) -> Measured:
    """Real scans for training.

    A folder made by ``snrecon prepare`` is read slice by slice, and only the volumes of ``split``.
    fastMRI files (a folder or one file) are used as they are and in full, whatever ``split``
    says: noise from the background of the middle slice of each file, maps estimated when a slice
    is first seen, and a slice without signal replaced by the next one that has some. That costs
    about a second a slice, so prepare what is used often.

    Args:
        path: Folder or file.
        settings: Masks; see :class:`Measured`.
        seed: Of order and masks.
        split: ``train`` or ``validation``.
        labelled: Share of the volumes whose targets are known.
        columns: Width of strips, 0 for all.

    Raises:
        InputError: if there are no usable scans.
    """
    return Measured(open_volumes(path, split), settings, seed, labelled, columns)


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
