"""What the noise of a region would be, had the scanner measured other lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise.functionals import Functional, RegionNoise, roi
from snrecon.noise.problem import Reconstruction

Change = Literal["averaged", "dropped", "added"]
CHANGES = ("averaged", "dropped", "added")


@dataclass(frozen=True, eq=False)
class Acquisition:
    """A region's mean and its noise before and after a change of the measured lines."""

    change: str
    """``averaged``, ``dropped`` or ``added``."""
    before: RegionNoise
    value: float
    """The region's mean afterwards; for averaged lines the same, as their data are not at hand."""
    sd: float
    """Its standard deviation afterwards."""
    samples: int
    """Measured k-space points that the change concerns."""

    @property
    def ratio(self) -> float:
        """Standard deviation afterwards over that before."""
        return self.sd / self.before.sd if self.before.sd > 0 else 1.0

    def __repr__(self) -> str:
        return (f"Acquisition({self.change} {self.samples} points: SD {self.before.sd:.3g} -> "
                f"{self.sd:.3g}, {self.ratio - 1:+.1%})")


def acquire(
    recon: Reconstruction,
    scan: Scan,
    lines: Tensor | Sequence[int],
    mask: Tensor,
    *,
    change: Change = "averaged",
    full: Scan | None = None,
) -> Acquisition:
    """How a region's noise changes if lines are averaged twice, dropped, or added.

    Averaging is read off the gradient, with f and the point of its derivative as they are: exact
    for linear f, to first order for others, also for parts of a readout whose noise is coloured.
    Dropped and added lines change f itself, and are recomputed with the new mask, never
    extrapolated: the share of a line says nothing of what a reconstruction without it would do.

    Args:
        recon: Reconstructor; a callable, which knows one mask only, can be asked about averaging.
        scan: One slice or one 3D grid with known noise.
        lines: Indices along ``ky``, all of whose readout is meant, or boolean ``(ky,)``; or boolean
            ``(*grid)``.
        mask: The region, as for :func:`snrecon.noise.roi`.
        change: ``averaged``, ``dropped`` or ``added``.
        full: For added lines a scan of the same grid and coils in which they are measured.

    Raises:
        InputError: if the lines do not fit the scan or the change, or the region the image.
    """
    if change not in CHANGES:
        raise InputError(f"change must be one of {', '.join(CHANGES)}, not {change!r}.")
    chosen = _chosen(scan, lines)
    if change != "averaged" and not hasattr(recon, "bind"):
        raise InputError(
            "a plain function knows one mask only: give a Reconstructor for lines that are "
            f"{change}."
        )
    if change != "added" and not bool((chosen & scan.sampled).any()):
        raise InputError(f"{scan.source}: none of the lines to be {change} is measured.")
    other = scan
    if change == "added":
        other = _with_lines(scan, chosen, full)
    elif change == "dropped":
        other = scan.undersample(~chosen)
    functional = Functional.of(recon, scan, mask)
    before = functional.noise()
    if change == "averaged":
        # The second measurement's noise is another draw, of the whole readout where it is coloured:
        # half of each where both are, the first alone elsewhere.
        half = 0.5 * chosen
        sd = (functional.variance(1 - half) + functional.variance(half)) ** 0.5
        return Acquisition(change, before, before.value, sd, int((chosen & scan.sampled).sum()))
    after = roi(recon, other, mask)
    points = int((other.sampled != scan.sampled).sum())
    return Acquisition(change, before, after.value, after.sd, points)


def _chosen(scan: Scan, lines: Tensor | Sequence[int]) -> Tensor:
    """Boolean ``(*grid)``."""
    grid, device = scan.grid, scan.sampled.device
    rows = grid[-2]
    given = torch.as_tensor(lines)
    if given.dtype == torch.bool:
        if tuple(given.shape) not in (grid, (rows,)):
            raise InputError(
                f"lines as a mask must have the grid's shape {grid}, or one entry for each of the "
                f"{rows} along ky, not {tuple(given.shape)}."
            )
        given = given.to(device)
        return given if given.ndim > 1 else given[:, None].expand(grid).clone()
    if given.numel() > 0 and (given.is_floating_point() or given.is_complex()):
        raise InputError(f"{scan.source}: lines must be whole numbers or booleans.")
    index = given.to(torch.int64).flatten()
    if len(index) == 0 or bool(((index < -rows) | (index >= rows)).any()):
        raise InputError(f"{scan.source}: lines must be indices from 0 to {rows - 1} along ky.")
    chosen = torch.zeros(grid, dtype=torch.bool, device=device)
    chosen[..., index % rows, :] = True
    return chosen


def _with_lines(scan: Scan, chosen: Tensor, full: Scan | None) -> Scan:
    """The scan with lines more, whose data come from ``full``."""
    if full is None:
        raise InputError("added lines need their data: give a scan that has them (full).")
    if (full.grid, full.coils, full.layout) != (scan.grid, scan.coils, scan.layout):
        raise InputError(
            f"{full.source}: its grid {full.grid} and {full.coils} coils are not those of "
            f"{scan.source}, {scan.grid} and {scan.coils}."
        )
    new = chosen & ~scan.sampled
    if not bool(new.any()):
        raise InputError(f"{scan.source}: all of the lines to be added are measured already.")
    if not bool(full.sampled[new].all()):
        raise InputError(f"{full.source}: some of the lines to be added are not measured in it.")
    kspace = torch.where(new, full.kspace.to(scan.kspace), scan.kspace)
    return replace(scan, kspace=kspace, mask=scan.sampled | new, repetitions=None)
