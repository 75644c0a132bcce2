"""Closed forms: zero-filled, root sum of squares, and every linear SENSE that separates.

Sources: Pruessmann et al., SENSE, MRM 42 (1999), eq. for the g-factor of regular undersampling;
Roemer et al., The NMR phased array, MRM 16 (1990). Irregular 1D Cartesian masks separate into one
dense problem per line of voxels, which is solved exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError
from snrecon.noise.exact import header
from snrecon.noise.problem import Problem
from snrecon.noise.state import assemble
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import LineGram, varying_axes
from snrecon.recon.dense import support_inverse
from snrecon.recon.lattice import Lattice, regular_lattice

LINE_BYTES = 2**28
"""Dense line problems are solved in batches of at most this many bytes."""


def unsupported(problem: Problem) -> str | None:
    """Why there is no closed form for the problem; None when there is one."""
    bound, scan = problem.bound, problem.scan
    if bound.method in ("zero_filled", "zero_filled:rss", "partial_fourier:zero_filled"):
        return None
    if bound.method != "sense":
        return f"{bound.method} has no closed form"
    if bound.maps is None or "lambda" not in bound.details:
        return "the maps or lambda of this SENSE are not known"
    axes = varying_axes(scan.sampled)
    coloured = scan.require_noise().spectrum is not None
    if coloured and -1 in axes:
        return "the mask varies along the readout, along which the noise is coloured"
    if len(axes) <= 1 or regular_lattice(scan.sampled) is not None:
        return None
    return "the mask varies irregularly along more than one axis"


def analytic(problem: Problem, *, details: dict[str, object] | None = None) -> NoiseMap:
    """The noise map in closed form; standard error 0, no passes.

    Raises:
        InputError: if the method or the mask has no closed form, saying why.
    """
    reason = unsupported(problem)
    if reason is not None:
        raise InputError(
            f"{problem.scan.source}: there is no analytic noise map here: {reason}; use sketch or "
            "replicas."
        )
    image = problem.image
    if problem.bound.method == "zero_filled:rss":
        variance = _root_sum_of_squares(problem)
        covariance = torch.stack([variance, torch.zeros_like(variance), torch.zeros_like(variance)])
    else:
        maps = problem.bound.maps
        if maps is None:
            raise InputError(
                f"{problem.scan.source}: there is no analytic noise map here: the coil maps are "
                "not known."
            )
        if problem.bound.method == "sense":
            variance = sense_variance(maps, problem.scan, float(problem.bound.details["lambda"]))
        else:
            # The image's units are those of bound.maps = S / sum |S|^2.
            power = (maps.abs().double() ** 2).sum(0)
            inverse = torch.where(power > 0, 1 / power.clamp_min(1e-300), 0)
            variance = inverse * sampled_variance(problem.scan)
        half = variance / 2  # circular: equal shares along and across the phase
        covariance = torch.stack([half, half, torch.zeros_like(half)])
    return assemble(
        image,
        covariance,
        standard_error=None,
        full_sigma=problem.full_sigma,
        estimator="analytic",
        passes=0.0,
        seed=None,
        header=header(problem),
        details=dict(details or {}),
    )


def sampled_variance(scan: Scan) -> Tensor:
    """Variance ``E|n|^2`` per image voxel of the zero-filled inverse transform of whitened noise.

    ``(*grid)`` float64: the sampled fraction, times the readout's noise spectrum. When the mask
    varies along the readout, the spectrum is smeared by each line's point-spread function.
    """
    mask = scan.sampled.double()
    spectrum = scan.require_noise().spectrum
    if spectrum is None:
        return torch.full_like(mask, float(mask.mean()))
    lines = mask.reshape(-1, mask.shape[-1])
    points = lines.shape[-1]
    spread = torch.fft.ifft(torch.fft.ifftshift(lines, dim=-1), dim=-1).abs() ** 2
    blurred = torch.fft.ifft(torch.fft.fft(spread.mean(0)) * torch.fft.fft(spectrum.double())).real
    return blurred.expand((*mask.shape[:-1], points)).clone()


def _root_sum_of_squares(problem: Problem) -> Tensor:
    """``x^H Psi x v / (2 |x|^2)`` of the coil images ``x``: real output, to first order."""
    scan = problem.scan
    axes = tuple(range(-scan.sampled.ndim, 0))
    coils = ifft(scan.kspace, axes).to(torch.complex128)
    psi = scan.require_noise().covariance.to(torch.complex128)
    mixed = torch.einsum("ab,b...->a...", psi, coils)
    size = (coils.abs() ** 2).sum(0)
    quadratic = (coils.conj() * mixed).sum(0).real
    ratio = torch.where(size > 0, quadratic / size.clamp_min(1e-300), 0)
    return ratio * sampled_variance(scan) / 2


def sense_variance(maps: Tensor, scan: Scan, lamda: float) -> Tensor:
    """``E|dx|^2`` per voxel of ``(A^H A + lamda)^-1 A^H n`` for whitened noise.

    ``diag((G + lamda)^-1 G (G + lamda)^-1)`` of the Gram matrix ``G``, times the readout's noise
    spectrum. Voxels where all maps are zero carry no noise.

    Args:
        maps: Whitened, ``(coil, *grid)``.
        scan: Gives mask and spectrum.
        lamda: Tikhonov weight, in the metric of whitened data.
    """
    mask = scan.sampled
    maps = maps.to(torch.complex128)
    lattice = regular_lattice(mask)
    axes = varying_axes(mask)
    if lattice is not None:
        variance = _lattice_variance(maps, lattice, lamda)
    elif not axes:
        power = (maps.abs() ** 2).sum(0)
        variance = torch.where(power > 0, power / (power + lamda).clamp_min(1e-300) ** 2, 0)
    else:
        variance = _line_variance(maps, mask, axes[0], lamda)
    spectrum = scan.require_noise().spectrum
    return variance if spectrum is None else variance * spectrum.double()


def _line_variance(maps: Tensor, mask: Tensor, axis: int, lamda: float) -> Tensor:
    grid = tuple(mask.shape)
    n = grid[axis]
    lines = maps.movedim(axis, -1).reshape(maps.shape[0], -1, n)
    profile = mask.movedim(axis, -1).reshape(-1, n)[:1]
    step = max(1, LINE_BYTES // (n * n * 16 * 4))
    parts = []
    for some in lines.split(step, dim=1):
        gram = LineGram(some, profile.expand(some.shape[1], n), -1).matrix
        parts.append(_diagonal(gram, (some != 0).any(dim=0), lamda))
    others = [size for i, size in enumerate(grid) if i - len(grid) != axis]
    return torch.cat(parts).reshape(*others, n).movedim(-1, axis)


def _lattice_variance(maps: Tensor, lattice: Lattice, lamda: float) -> Tensor:
    """Unfolding: one small matrix per group of voxels that alias onto each other."""
    groups = lattice.groups()
    flat = maps.reshape(maps.shape[0], -1)
    folding = (flat[:, groups] * lattice.phases.to(flat)).movedim(0, 1)  # (group, coil, R)
    normal = folding.mH @ folding / lattice.acceleration
    variance = torch.zeros(flat.shape[1], dtype=torch.float64, device=maps.device)
    variance[groups] = _diagonal(normal, (folding != 0).any(dim=1), lamda)
    return variance.reshape(lattice.grid)


def _diagonal(normal: Tensor, support: Tensor, lamda: float) -> Tensor:
    """``diag((N + lamda)^-1 N (N + lamda)^-1)`` of Hermitian ``(batch, n, n)``: ``(batch, n)``.

    Written as ``diag(B) - lamda diag(B B)`` with ``B`` the (pseudo-)inverse on the support.
    """
    inverse, _ = support_inverse(normal, support, lamda)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1).real
    if lamda:
        diagonal = diagonal - lamda * (inverse.abs() ** 2).sum(-1)
    return diagonal


def pruessmann_g(maps: Tensor, mask: Tensor) -> Tensor:
    """``g_i = sqrt([(S^H Psi^-1 S)^-1]_ii [S^H Psi^-1 S]_ii)`` of regular SENSE (Pruessmann 1999).

    Args:
        maps: Whitened maps ``(coil, *grid)``.
        mask: Boolean ``(*grid)``, a regular lattice without extra calibration lines.

    Returns:
        ``(*grid)`` real, 0 off the maps' support.

    Raises:
        InputError: if the mask is not a regular lattice.
    """
    lattice = regular_lattice(mask)
    if lattice is None:
        raise InputError("Pruessmann's g-factor is defined for regular undersampling only.")
    variance = _lattice_variance(maps.to(torch.complex128), lattice, 0.0)
    power = (maps.abs().double() ** 2).sum(0)
    return (variance / lattice.acceleration * power).sqrt()


__all__ = ["analytic", "pruessmann_g", "sampled_variance", "sense_variance", "unsupported"]
