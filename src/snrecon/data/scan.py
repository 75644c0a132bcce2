"""One scan: measured k-space with everything that is known about it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data.geometry import Geometry
from snrecon.data.noise_model import NoiseModel
from snrecon.errors import InputError, SnreconWarning

Layout = Literal["grid", "stack"]


DENSE = 0.9
"""Share of measured points from which on single ones are rather zeros than left out."""


def _has_holes(mask: Tensor, axes: int) -> bool:
    """Whether few points are missing that are no whole lines, as of integers that happen to be 0.

    Args:
        mask: Boolean ``(..., *grid)``.
        axes: Number of the grid's axes.
    """
    if bool(mask.all()):
        return False
    covered = mask
    for axis in range(-axes, 0):  # lines of any direction without any sample were left out
        others = tuple(a for a in range(-axes, 0) if a != axis)
        lines = mask.any(dim=others, keepdim=True) if others else mask
        covered = covered | ~lines
    share = float(covered.float().mean())
    return DENSE < share < 1


@dataclass(frozen=True, eq=False)
class Scan:
    """Multi-coil Cartesian k-space, ``grid`` = ``(ky, kx)`` or ``(kz, ky, kx)``, readout last.

    Raises:
        InputError: if shapes do not fit together, values are not finite, or nothing is sampled.
    """

    kspace: Tensor
    """``(coil, *grid)``; with ``layout="stack"`` ``(slice, coil, ky, kx)``. Complex, zero where
    not sampled, centre of k-space at ``n // 2``."""
    mask: Tensor | None = None
    """Boolean ``(*grid)`` (or ``(slice, *grid)``): sampled points. Given as None it becomes "where
    any coil is non-zero"; it is never None afterwards."""
    maps: Tensor | None = None
    """Coil sensitivities, shape as ``kspace``, in the coil basis of ``kspace``; used as given."""
    noise: NoiseModel | None = None
    """Thermal noise of ``kspace``; None when nothing is known about it."""
    geometry: Geometry | None = None
    """Voxel size and orientation; None when the file does not say."""
    layout: Layout = "grid"
    """``"grid"``: one slice or one 3D volume. ``"stack"``: independent 2D slices."""
    repetitions: Tensor | None = None
    """Repeated measurements ``(repetition, *kspace.shape)`` of which ``kspace`` is the first."""
    source: str = "array"
    """File name or description, for messages and metadata."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Facts from the file's header: field strength, averages, bandwidth, nominal acceleration."""
    noise_unknown: str = ""
    """Why nothing could be found out about the noise, as a clause; "" when nobody looked."""

    def __post_init__(self) -> None:
        k = self.kspace
        if not k.is_complex():
            raise InputError(f"{self.source}: the k-space must be complex, not {k.dtype}.")
        axes = (4,) if self.layout == "stack" else (3, 4)
        if k.ndim not in axes:
            wanted = "(slice, coil, ky, kx)" if self.layout == "stack" else "(coil, [kz,] ky, kx)"
            raise InputError(
                f"{self.source}: k-space has shape {tuple(k.shape)}, but {wanted} is needed."
            )
        if 0 in k.shape:
            raise InputError(
                f"{self.source}: k-space of shape {tuple(k.shape)} has no "
                f"{'coils' if self.coils == 0 else 'samples'}."
            )
        if not bool(torch.isfinite(k).all()):
            raise InputError(f"{self.source}: k-space contains NaN or infinite values.")
        mask = self.mask
        if mask is None:
            mask = (k != 0).any(dim=-1 - len(self.grid))
            if _has_holes(mask, len(self.grid)):
                warnings.warn(
                    f"{self.source}: {int((~mask).sum())} points scattered over the k-space are "
                    "exactly 0 in all coils and count as not measured; if they were measured (as "
                    "with whole numbers), give the mask.",
                    SnreconWarning,
                    stacklevel=3,
                )
        stacked = self.layout == "stack" and mask.ndim == 3
        if tuple(mask.shape) != ((self.slices,) if stacked else ()) + self.grid:
            slices = tuple(mask.shape) == self.grid[1:] and self.layout == "grid"
            hint = '; a stack of slices needs layout="stack"' if slices else ""
            raise InputError(
                f"{self.source}: the mask has shape {tuple(mask.shape)}, but the k-space grid is "
                f"{self.grid}{hint}."
            )
        mask = mask.to(device=k.device, dtype=torch.bool)
        some = mask.flatten(-len(self.grid)).any(-1)
        if not bool(some.all()):
            which = f" of slice {int((~some).nonzero()[0])}" if stacked else ""
            raise InputError(
                f"{self.source}: the mask{which} has no samples: nothing was measured.")
        object.__setattr__(self, "mask", mask)
        sampled = mask.unsqueeze(-1 - len(self.grid))
        if bool((k * ~sampled != 0).any()):
            # Values off the mask are not data; a reconstruction must never see them.
            object.__setattr__(self, "kspace", k * sampled)
        if self.maps is not None:
            if self.maps.shape != k.shape:
                raise InputError(
                    f"{self.source}: coil maps of shape {tuple(self.maps.shape)} do not fit "
                    f"k-space of shape {tuple(k.shape)}."
                )
            if not bool(torch.isfinite(self.maps.to(k)).all()):
                raise InputError(f"{self.source}: the coil maps contain NaN or infinite values.")
            object.__setattr__(self, "maps", self.maps.to(k))
        if self.noise is not None:
            if self.noise.coils != self.coils:
                raise InputError(
                    f"{self.source}: the noise covariance is for {self.noise.coils} coils, but the "
                    f"scan has {self.coils}."
                )
            spectrum = self.noise.spectrum
            if spectrum is not None and spectrum.shape[0] != self.grid[-1]:
                raise InputError(
                    f"{self.source}: the noise spectrum has {spectrum.shape[0]} entries, but the "
                    f"readout has {self.grid[-1]} points."
                )
            object.__setattr__(self, "noise", self.noise.to(k))
        if self.repetitions is not None:
            if self.repetitions.shape[1:] != k.shape:
                raise InputError(f"{self.source}: the repetitions do not fit the k-space.")
            repeated = self.repetitions.to(k)
            if not bool(torch.isfinite(torch.view_as_real(repeated.resolve_conj())).all()):
                raise InputError(f"{self.source}: the repetitions contain NaN or infinite values.")
            if bool((repeated * ~sampled != 0).any()):
                repeated = repeated * sampled
            object.__setattr__(self, "repetitions", repeated)

    @property
    def grid(self) -> tuple[int, ...]:
        """``(ky, kx)`` or ``(kz, ky, kx)``."""
        return tuple(self.kspace.shape[2:] if self.layout == "stack" else self.kspace.shape[1:])

    @property
    def coils(self) -> int:
        """Number of coils."""
        return int(self.kspace.shape[1 if self.layout == "stack" else 0])

    @property
    def slices(self) -> int:
        """Number of independent slices: 1 unless the layout is a stack."""
        return int(self.kspace.shape[0]) if self.layout == "stack" else 1

    @property
    def sampled(self) -> Tensor:
        """The mask, never None: boolean ``(*grid)`` (or ``(slice, *grid)``)."""
        assert self.mask is not None
        return self.mask

    @property
    def acceleration(self) -> float:
        """True acceleration R: grid points over sampled points, calibration lines counted."""
        return self.sampled.numel() / int(self.sampled.sum())

    def require_noise(self) -> NoiseModel:
        """The noise model.

        Raises:
            InputError: if nothing is known about the noise of this scan, and why if that is known.
        """
        if self.noise is None:
            why = f", because {self.noise_unknown}" if self.noise_unknown else ""
            raise InputError(
                f"{self.source}: the noise of this scan is not known{why}; give its covariance "
                "with --noise-covariance FILE (or 'identity' if the data are already whitened)."
            )
        return self.noise

    def slice(self, index: int) -> Scan:
        """One slice of a stack as a scan of its own; slice 0 of a grid is the scan itself."""
        if not -self.slices <= index < self.slices:
            raise InputError(
                f"{self.source}: there is no slice {index}; the scan has {self.slices} "
                f"(0 to {self.slices - 1})."
            )
        if self.layout == "grid":
            return self
        index %= self.slices
        mask = self.sampled[index] if self.sampled.ndim == 3 else self.sampled
        geometry = self.geometry
        if geometry is not None and index:
            step = geometry.voxel_size[0] * index
            moved = tuple(
                p + step * d
                for p, d in zip(geometry.position, geometry.slice_direction, strict=True)
            )
            geometry = replace(geometry, position=moved)  # type: ignore[arg-type]
        return replace(
            self,
            kspace=self.kspace[index],
            mask=mask,
            maps=None if self.maps is None else self.maps[index],
            geometry=geometry,
            layout="grid",
            repetitions=None if self.repetitions is None else self.repetitions[:, index],
        )

    def __iter__(self) -> Iterator[Scan]:
        """The slices, each a scan of its own."""
        return (self.slice(i) for i in range(self.slices))

    def undersample(self, mask: Tensor) -> Scan:
        """Keep only the samples where ``mask`` (boolean ``(*grid)``) is true as well."""
        if tuple(mask.shape) != self.grid:
            raise InputError(
                f"{self.source}: a mask of shape {tuple(mask.shape)} does not fit the grid "
                f"{self.grid}."
            )
        kept = self.sampled & mask.to(self.sampled)
        repetitions = None if self.repetitions is None else self.repetitions * mask.to(self.kspace)
        return replace(
            self, kspace=self.kspace * mask.to(self.kspace), mask=kept, repetitions=repetitions
        )

    def to(self, target: Any) -> Scan:
        """Move to a device, or to the precision of a complex dtype."""
        device = isinstance(target, torch.device | str)
        return replace(
            self,
            kspace=self.kspace.to(target),
            mask=self.sampled.to(target) if device else self.sampled,
            maps=None if self.maps is None else self.maps.to(target),
            noise=None if self.noise is None else self.noise.to(target),
            repetitions=None if self.repetitions is None else self.repetitions.to(target),
        )
