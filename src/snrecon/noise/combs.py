"""Voxels that can share one VJP, because their rows do not overlap.

Along a fully sampled axis noise is independent from one position to the next (in hybrid space,
k-space transformed along that axis), and a reconstruction mostly answers to positions near the
voxel. A cotangent with voxels far enough apart along such axes therefore returns their rows side by
side: the energy near each voxel is its own. Random signs keep what leaks into a neighbour's part,
and the products with it, from adding up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes


def local_axes(sampled: Tensor) -> tuple[int, ...]:
    """Axes (negative), longer than one, along which the boolean mask ``(*grid)`` is constant."""
    varying = varying_axes(sampled)
    return tuple(a for a in range(-sampled.ndim, 0) if a not in varying and sampled.shape[a] > 1)


@dataclass(frozen=True, eq=False)
class Combs:
    """Combs with teeth at least ``spacing`` apart along the local axes.

    Args:
        image: Shape of the image; a centred part of the grid.
        grid: Shape of the k-space grid.
        axes: Local axes, negative.
        spacing: Smallest distance of two teeth.
    """

    image: tuple[int, ...]
    grid: tuple[int, ...]
    axes: tuple[int, ...]
    spacing: int

    def _starts(self, axis: int) -> Tensor:
        """Where the segments of an axis begin, on the grid; every segment has one tooth a comb."""
        n = self.grid[axis]
        teeth = max(1, n // self.spacing)
        return torch.arange(teeth + 1) * n // teeth

    def _segments(self, axis: int) -> tuple[Tensor, Tensor]:
        """Segment and place in it of every image position along an axis."""
        starts = self._starts(axis)
        offset = (self.grid[axis] - self.image[axis]) // 2
        position = torch.arange(self.image[axis]) + offset
        segment = torch.searchsorted(starts, position, right=True) - 1
        return segment, position - starts[segment]

    def places(self, axis: int) -> int:
        """Combs needed to reach every position of an axis."""
        return int(self._starts(axis).diff().max())

    @cached_property
    def _labels(self) -> tuple[Tensor, Tensor]:
        """For every voxel ``(*image)``: the number of its comb, and of its tooth in the comb."""
        comb, tooth = torch.zeros((2, *self.image), dtype=torch.int64)
        for axis in range(-len(self.image), 0):
            if axis in self.axes:
                segment, place = self._segments(axis)
                count, key = self.places(axis), place
                shape = [1] * len(self.image)
                shape[axis] = -1
                tooth = tooth * (len(self._starts(axis)) - 1) + segment.reshape(shape)
            else:
                count, key = self.image[axis], torch.arange(self.image[axis])
                shape = [1] * len(self.image)
                shape[axis] = -1
            comb = comb * count + key.reshape(shape)
        return comb, tooth

    def groups(self, wanted: Tensor) -> list[Tensor]:
        """Flat voxel indices of every comb that holds wanted voxels, ``wanted`` being boolean
        ``(*image)``."""
        index = wanted.flatten().cpu().nonzero()[:, 0]
        order = torch.argsort(self._labels[0].flatten()[index], stable=True)
        index = index[order]
        _, counts = torch.unique_consecutive(self._labels[0].flatten()[index], return_counts=True)
        return list(index.split(counts.tolist()))

    @cached_property
    def _owners(self) -> dict[int, Tensor]:
        """For a local axis and a place: which grid positions belong to which tooth,
        ``(places, positions, teeth)`` of 0 and 1."""
        owners = {}
        for axis in self.axes:
            starts, n = self._starts(axis), self.grid[axis]
            position = torch.arange(n)
            tables = []
            for place in range(self.places(axis)):
                there = place < starts.diff()
                distance = (position[:, None] - (starts[:-1] + place)[None]).abs()
                distance = torch.minimum(distance, n - distance)
                distance[:, ~there] = n
                nearest = distance.argmin(1)
                tables.append(torch.nn.functional.one_hot(nearest, len(starts) - 1))
            owners[axis] = torch.stack(tables).double()
        return owners

    def _place(self, axis: int, voxel: int) -> int:
        position = torch.unravel_index(torch.tensor(voxel), self.image)[axis]
        return int(self._segments(axis)[1][position])

    def shared(self, first: Tensor, second: Tensor, groups: list[Tensor]) -> Iterator[Tensor]:
        """``Re <first, second>`` of every voxel's own part of two batches of rows.

        Args:
            first: Rows ``(batch, coil, *grid)`` of as many combs.
            second: Rows of the same combs.
            groups: Voxels of each comb.

        Yields:
            For each comb, float64, one value a voxel.
        """
        profile = self.profile(first, second)
        for density, group in zip(profile, groups, strict=True):
            # Contract one local axis after the other; the first of them is the leading axis left.
            for axis in self.axes:
                table = self._owners[axis][self._place(axis, int(group[0]))].to(density.device)
                density = torch.tensordot(density, table, dims=([0], [0]))
            tooth = self._labels[1].flatten()[group].to(density.device)
            yield density.flatten()[tooth]

    def profile(self, first: Tensor, second: Tensor) -> Tensor:
        """``Re <first, second>`` over coils and the other axes, ``(batch, *local lengths)``."""
        a = ifft(first, self.axes)
        b = a if second is first else ifft(second, self.axes)
        product = (a.conj() * b).real.double()
        others = [a for a in range(-len(self.grid), 0) if a not in self.axes]
        return product.sum(dim=[1, *others])


def outside(profile: Tensor, centre: tuple[int, ...], width: int) -> float:
    """Share of a row's energy further than ``width`` from the voxel along some local axis.

    Args:
        profile: Energy ``(*local lengths)``.
        centre: The voxel's positions along them, on the grid.
        width: In voxels, 0 or more.
    """
    total = float(profile.sum())
    if total <= 0:
        return 0.0
    part = profile
    for axis, (place, n) in enumerate(zip(centre, profile.shape, strict=True)):
        distance = (torch.arange(n, device=profile.device) - place).abs()
        near = torch.minimum(distance, n - distance) <= width
        shape = [1] * profile.ndim
        shape[axis] = -1
        part = part * near.reshape(shape)
    return max(0.0, 1 - float(part.sum()) / total)


def smallest_spacing(profiles: Tensor, centres: list[tuple[int, ...]], leakage: float) -> int:
    """Smallest spacing of combs that leaves at most ``leakage`` of the energy outside, on average.

    Args:
        profiles: Energies of single rows, ``(voxels, *local lengths)``.
        centres: Their voxels' positions on the grid along the local axes.
        leakage: Mean share allowed outside a voxel's own part.
    """
    longest = max(profiles.shape[1:])
    for width in range(math.ceil(longest / 2)):
        shares = [outside(p, c, width) for p, c in zip(profiles, centres, strict=True)]
        if sum(shares) / len(shares) <= leakage:
            return 2 * width + 1
    return longest
