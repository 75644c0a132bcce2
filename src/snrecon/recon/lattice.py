"""Regular (lattice) undersampling: which voxels alias onto each other, and how to unfold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.physics.constant_matmul import constant_matmul
from snrecon.recon.dense import support_inverse


@dataclass(frozen=True, eq=False)
class Lattice:
    """A mask that is a (shifted, possibly sheared) regular lattice of k-space.

    Its point-spread function is R peaks of equal size 1/R: ``F^-1 M F z (r) = (1/R) sum_d
    phases[d] z(r - offsets[d])``, indices modulo the grid.
    """

    offsets: Tensor
    """``(R, dimensions)`` integer voxel displacements; the first is zero."""
    phases: Tensor
    """``(R,)`` complex128, unit modulus: the lattice may leave out the centre of k-space."""
    grid: tuple[int, ...]
    """Shape of the image."""

    @property
    def acceleration(self) -> int:
        """R, the number of voxels that alias onto each other."""
        return int(self.phases.shape[0])

    def groups(self) -> Tensor:
        """Alias groups ``(voxels / R, R)``: flat indices of the voxels ``r - offsets[d]`` that fold
        onto the first of the group, ``r``. Every voxel is in one group."""
        axes = [torch.arange(n, device=self.offsets.device) for n in self.grid]
        mesh = torch.meshgrid(*axes, indexing="ij")
        position = torch.stack(mesh, dim=-1).reshape(-1, 1, len(axes))
        sizes = torch.tensor(self.grid, device=self.offsets.device)
        wrapped = (position - self.offsets) % sizes
        flat = torch.zeros(wrapped.shape[:-1], dtype=torch.long, device=wrapped.device)
        for axis, n in enumerate(self.grid):
            flat = flat * n + wrapped[..., axis]
        return flat[flat[:, 0] == flat.min(dim=1).values]


def regular_lattice(mask: Tensor) -> Lattice | None:
    """The lattice that a boolean mask ``(*grid)`` is, or None if it is not one.

    One axis or several, any shift, sheared lattices (CAIPIRINHA) included. A fully sampled mask is
    a lattice with R = 1. Extra calibration lines, and steps that do not divide the grid, are not.
    """
    points, sampled = mask.numel(), int(mask.sum())
    if sampled == 0 or points % sampled:
        return None
    acceleration = points // sampled
    spread = torch.fft.ifftn(torch.fft.ifftshift(mask.to(torch.complex128)))
    peaks = spread.abs() * acceleration > 0.5
    # Parseval: R peaks of height 1/R hold all the energy, so nothing is left for other places.
    whole = bool(((spread[peaks].abs() * acceleration - 1).abs() < 1e-9).all())
    if int(peaks.sum()) != acceleration or not whole:
        return None
    return Lattice(peaks.nonzero(), spread[peaks] * acceleration, tuple(mask.shape))


@dataclass(frozen=True, eq=False)
class Unfolding:
    """SENSE unfolding: aliased coil images to voxels, one small matrix for every alias group."""

    matrix: Tensor
    """``(group, R, coil)`` complex."""
    groups: Tensor
    """``(group, R)`` flat voxel indices; the aliased image is read at the first."""
    order: Tensor
    """``(voxels,)``: place of each voxel in the flattened groups."""

    def __call__(self, aliased: Tensor) -> Tensor:
        """Coil images ``F^-1 y``, ``(..., coil, voxels)``, to ``(..., voxels)``."""
        folded = aliased[..., self.groups[:, 0]].movedim(-1, 0)  # (group, ..., coil)
        columns = folded.reshape(*folded.shape[:1], -1, folded.shape[-1]).mT  # (group, coil, batch)
        unfolded = constant_matmul(self.matrix.to(aliased.dtype), columns)  # (group, R, batch)
        voxels = unfolded.permute(2, 0, 1).flatten(1)
        return voxels[:, self.order].reshape(*aliased.shape[:-2], -1)


def unfold_matrices(maps: Tensor, lattice: Lattice, lamda: float = 0.0) -> Unfolding:
    """Closed-form minimiser of ``|A x - y|^2 + lamda |x|^2`` for a regular lattice.

    With ``E = [phases[d] S_c(r - offsets[d])]`` of a group, ``m = E x / R`` is the aliased image at
    r and ``x = (E^H E / R + lamda)^-1 E^H m``: Pruessmann et al. 1999, eq. 4 in the whitened basis
    for ``lamda = 0``, where the pseudo-inverse takes the place of an inverse that does not exist.

    Args:
        maps: Whitened maps ``(coil, *grid)``; voxels where all are zero stay exactly zero.
        lattice: Of the mask.
        lamda: Weight of ``|x|^2``.
    """
    coils, acceleration = maps.shape[0], lattice.acceleration
    groups = lattice.groups()
    flat = maps.reshape(coils, -1).to(torch.complex128)
    folding = (flat[:, groups] * lattice.phases).movedim(0, 1)  # (group, coil, R)
    normal = folding.mH @ folding / acceleration
    inverse, _ = support_inverse(normal, (folding != 0).any(dim=1), lamda)
    matrix = inverse @ folding.mH
    return Unfolding(matrix.to(maps.dtype), groups, torch.argsort(groups.flatten()))
