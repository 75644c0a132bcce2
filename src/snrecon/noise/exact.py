"""Exact rows: the noise of a voxel is the norm of its gradient row, one VJP each.

With the real gradient row ``h = L^H J^T (u e_i)``, whitened, ``sigma_i = ||h|| / sqrt(2)``
for circular white noise of ``E|w|^2 = 1``.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.noise.combs import Combs, local_axes, outside, smallest_spacing
from snrecon.noise.derivative import require_derivative
from snrecon.noise.memory import CPU_CAP, chunk_size, peak_bytes
from snrecon.noise.moments import Moments
from snrecon.noise.problem import Problem, Progress, probe_generator
from snrecon.noise.sampling import SAVE_EVERY, SAVE_SHARE, StateFile
from snrecon.noise.state import State, assemble, same_image
from snrecon.physics.clock import clock

STREAM = 5


def rows(problem: Problem, cotangents: Tensor) -> Tensor:
    """Whitened gradient rows ``h`` ``(batch, coil, *grid)`` of ``Re <cotangent, f(y)>``."""
    return problem.colouring.H(problem.linearization.vjp(cotangents))


def exact(
    problem: Problem,
    *,
    voxels: Tensor | None = None,
    compress: float | None = None,
    progress: Progress | None = None,
    state_file: StateFile | None = None,
    chunk: int | None = None,
    details: dict[str, object] | None = None,
) -> NoiseMap:
    """sigma, sigma_complex and the 2x2 covariance without sampling error.

    Args:
        problem: Function, scan and noise.
        voxels: Boolean ``(*image)``: the voxels wanted; by default all. The maps are 0 elsewhere.
        compress: Share of a row's energy, 1e-4 say, that may lie in its neighbours' part: then
            voxels far enough apart along the fully sampled axes share a VJP
            (:mod:`snrecon.noise.combs`), and the standard error is the RMS difference found at
            voxels whose rows were taken alone. None: every voxel has VJPs of its own.
        progress: Called after every batch of rows.
        state_file: Where finished rows are kept, and from where to resume.
        chunk: Rows at once; by default from the memory at hand.
        details: Facts for the metadata.

    Returns:
        A NoiseMap with standard error 0. ``passes`` counts VJPs at their measured cost in
        evaluations of f.

    Raises:
        NotDifferentiableError: if f has no reverse mode, or one that disagrees with finite
            differences.
        InputError: if ``voxels`` does not have the image's shape, the rows cannot be compressed, or
            the state file is of something else.
    """
    image = problem.image
    wanted = torch.ones_like(image, dtype=torch.bool)
    if voxels is not None:
        wanted = torch.as_tensor(voxels, device=image.device)
    if wanted.shape != image.shape or wanted.dtype != torch.bool:
        raise InputError(
            f"voxels must be a boolean array of the image's shape {tuple(image.shape)}, not "
            f"{wanted.dtype} of {tuple(wanted.shape)}."
        )
    checked = require_derivative(problem, transposed=True)
    parts = 2 if image.is_complex() else 1
    alone = None if compress is None else Alone.of(problem, wanted, compress)
    combs = None if alone is None else alone.combs
    singles = list(wanted.flatten().cpu().nonzero()[:, 0].split(1))
    silent = torch.zeros_like(wanted) if combs is None else _silent(problem, wanted)
    groups = singles if combs is None else combs.groups(wanted & ~silent)
    signs = torch.randint(0, 2, (image.numel(),), generator=probe_generator(0, 0, STREAM)) * 2 - 1
    cotangent = problem.direction.flatten() * (1 if combs is None else signs.to(image.device))
    identity = _identity(wanted & ~silent, compress, None if combs is None else combs.spacing)
    covariance, resumed = _stored(problem, identity, state_file)
    seconds, timed = 0.0, 0
    start, kept, saved, pause = resumed, resumed, time.monotonic(), SAVE_EVERY
    try:
        while start < len(groups):
            batch = groups[start : start + (chunk or 1)]
            units = torch.zeros((len(batch), image.numel()), dtype=image.dtype, device=image.device)
            for unit, group in zip(units, batch, strict=True):
                unit[group] = cotangent[group]
            units = units.reshape(len(batch), *image.shape)
            begun = clock(image.device)
            if chunk is None and start > resumed:
                along, size = peak_bytes(lambda u=units: rows(problem, u))  # type: ignore[misc]
                chunk = chunk_size(size, image.device, CPU_CAP)
            else:
                along = rows(problem, units)
            pairs = [(along, along)]
            if parts == 2:
                across = rows(problem, 1j * units)
                pairs += [(across, across), (along, across)]
            for number, pair in enumerate(pairs):
                found = _products(*pair) if combs is None else combs.shared(*pair, batch)
                for group, values in zip(batch, found, strict=True):
                    covariance[number, group] = values / 2
            if start > resumed:  # the first rows carry the cost of setting up
                seconds += clock(image.device) - begun
                timed += parts * len(batch)
            start += len(batch)
            if progress is not None:
                progress(parts * start, parts * len(groups), "exact: rows")
            if state_file is not None and time.monotonic() - saved > pause:
                begun = time.monotonic()
                _store(problem, identity, state_file, covariance, start)
                kept, saved = start, time.monotonic()
                pause = max(SAVE_EVERY, (saved - begun) / SAVE_SHARE)
    finally:
        if state_file is not None and kept != start:
            _store(problem, identity, state_file, covariance, start)
    count = parts * (len(groups) + int(silent.any())) + (0 if alone is None else alone.vjps)
    cost = seconds / timed / forward_seconds(problem) if timed else 1.0
    facts = {**(details or {}), **checked, "vjps": count, "forward_passes_per_vjp": cost}
    if voxels is not None:
        facts["voxels"] = int(wanted.sum())
    covariance = covariance.reshape(3, *image.shape)
    error = None
    if alone is not None:
        found_error = alone.error(covariance[0])
        error = found_error * covariance[0].sqrt()
        facts |= {"spacing": alone.combs.spacing, "leakage": alone.leakage,
                  "compression_error": found_error}
    return assemble(
        image,
        covariance,
        standard_error=error,
        full_sigma=problem.full_sigma,
        estimator="exact",
        passes=count * cost,
        seed=None,
        header=header(problem),
        details=facts,
    )


@dataclass(frozen=True, eq=False)
class Alone:
    """Rows of a few voxels alone: how far they reach, and what the compressed ones should give."""

    combs: Combs
    index: Tensor
    """Flat indices of the voxels."""
    variance: Tensor
    """Of the component along the phase, at them, float64."""
    leakage: float
    """Mean share of their energy outside their part."""
    vjps: int

    @staticmethod
    def of(problem: Problem, wanted: Tensor, leakage: float, count: int = 16) -> Alone:
        """Take rows of ``count`` of the wanted voxels, brighter than their median.

        Raises:
            InputError: if no axis is fully sampled, or the rows reach so far along them that
                nothing would be gained.
        """
        source, sampled = problem.scan.source, problem.scan.sampled
        axes = local_axes(sampled)
        if not 0 < leakage < 1:
            raise InputError(f"compress must be a share between 0 and 1, not {leakage}.")
        if not axes:
            raise InputError(
                f"{source}: rows can be compressed along fully sampled axes only, and this mask "
                "varies along all; take exact rows of chosen voxels, or a sampled map."
            )
        image, grid = problem.image, tuple(sampled.shape)
        size = torch.where(wanted, image.abs(), 0).flatten()
        bright = (size >= size[size > 0].median()).nonzero()[:, 0] if bool(size.any()) else None
        if bright is None:
            raise InputError(f"{source}: none of the voxels wanted has any signal.")
        order = torch.randperm(len(bright), generator=probe_generator(1, 0, STREAM))
        index = bright[order[:count].to(bright.device)]
        probe = Combs(tuple(image.shape), grid, axes, max(grid))
        profiles, variance, centres = [], [], []
        for voxel in index.tolist():
            unit = torch.zeros(image.numel(), dtype=image.dtype, device=image.device)
            unit[voxel] = problem.direction.flatten()[voxel]
            row = rows(problem, unit.reshape(1, *image.shape))
            profiles.append(probe.profile(row, row)[0])
            variance.append(_products(row, row)[0, 0] / 2)
            place = torch.unravel_index(torch.tensor(voxel), image.shape)
            centres.append(tuple(
                int(place[a]) + (grid[a] - image.shape[a]) // 2 for a in axes))
        energies = torch.stack(profiles)
        spacing = smallest_spacing(energies, centres, leakage)
        combs = Combs(tuple(image.shape), grid, axes, spacing)
        if all(2 * combs.places(axis) > grid[axis] for axis in axes):
            raise InputError(
                f"{source}: with at most {leakage:.2g} of a row's energy outside its part, rows "
                f"reach over {spacing} positions: nothing is gained by compressing them; allow "
                "more leakage, or take exact rows of chosen voxels."
            )
        shares = [outside(p, c, (spacing - 1) // 2) for p, c in zip(energies, centres, strict=True)]
        return Alone(combs, index, torch.stack(variance), sum(shares) / len(shares), len(index))

    def error(self, variance: Tensor) -> float:
        """Relative RMS error of a compressed map's sigma ``(*image)`` at these voxels."""
        found = variance.flatten()[self.index].sqrt()
        true = self.variance.sqrt()
        return float((found - true).square().mean().sqrt() / true.square().mean().sqrt())


def _silent(problem: Problem, wanted: Tensor) -> Tensor:
    """Voxels that have no noise, as where there are no coil maps, boolean ``(*image)``: in a
    compressed row they would get what their neighbours leak. Found by one VJP for all without any
    image, so that a single one with noise keeps them all."""
    dark = wanted & (problem.image == 0)
    if not bool(dark.any()):
        return dark
    draw = torch.randn(dark.shape, generator=probe_generator(2, 0, STREAM)).to(problem.image.device)
    for factor in (1, 1j) if problem.image.is_complex() else (1,):
        unit = (factor * draw * dark).to(problem.image.dtype)
        if bool((rows(problem, unit[None]) != 0).any()):
            return torch.zeros_like(dark)
    return dark


def _products(first: Tensor, second: Tensor) -> Tensor:
    """``Re <first, second>`` of two batches of rows, float64 ``(batch, 1)``."""
    return (first.conj() * second).flatten(1).real.double().sum(1, keepdim=True)


def _identity(wanted: Tensor, compress: float | None, spacing: int | None) -> str:
    """Tells states of different choices of rows apart. The spacing is measured anew every time:
    another machine may find another, and then has other combs."""
    choice = "" if compress is None else f"{compress!r} {spacing}"
    return hashlib.sha256(wanted.cpu().numpy().tobytes() + choice.encode()).hexdigest()


def _stored(
    problem: Problem, identity: str, state_file: StateFile | None
) -> tuple[Tensor, int]:
    """Covariances ``(3, voxels)`` found so far, and the number of rows (or combs) done."""
    image = problem.image
    stored = None if state_file is None else state_file.stored()
    if stored is None:
        empty = torch.zeros((3, image.numel()), dtype=torch.float64, device=image.device)
        return empty, 0
    assert state_file is not None
    expected = {"fingerprint": problem.fingerprint, "estimator": "exact", "voxels": identity}
    other = any(stored.header.get(key) != value for key, value in expected.items())
    if other or not same_image(image, stored.image):
        raise InputError(
            f"{state_file.path}: the state is of another scan, method, estimator or choice of "
            "voxels; choose another --state file."
        )
    assert isinstance(stored.moments, Moments)
    sums = stored.moments.sums
    covariance = torch.stack([sums[name].flatten() for name in ("a2", "b2", "ab")])
    return covariance.to(image.device), stored.moments.count


def _store(
    problem: Problem, identity: str, state_file: StateFile, covariance: Tensor, done: int
) -> None:
    """Keep finished rows: in an exact state the second moments hold the covariances themselves."""
    moments = Moments.empty(problem.image, zero_mean=True)
    for name, values in zip(("a2", "b2", "ab"), covariance, strict=True):
        moments.sums[name] = values.reshape(problem.image.shape)
    moments.count = done
    facts = {
        "fingerprint": problem.fingerprint,
        "estimator": "exact",
        "voxels": identity,
        "details": {},
    }
    complete = {**header(problem), **facts}
    state_file.write(State(moments, problem.image, problem.full_sigma, complete))


def header(problem: Problem) -> dict[str, object]:
    """What :func:`assemble` needs to know about the problem."""
    return {
        "method": problem.bound.method,
        "frozen": problem.bound.frozen,
        "acceleration": problem.scan.acceleration,
        "geometry": problem.scan.geometry,
        "units": problem.bound.units,
    }


def forward_seconds(problem: Problem) -> float:
    """Seconds of one evaluation of f, the faster of two."""
    times = []
    with torch.no_grad():
        for _ in range(2):
            begun = clock(problem.scan.kspace.device)
            problem.bound.function(problem.scan.kspace)
            times.append(clock(problem.scan.kspace.device) - begun)
    return max(min(times), 1e-9)
