"""Exact rows: the noise of a voxel is the norm of its gradient row, one VJP each.

With the real gradient row ``h = L^H J^T (u e_i)``, whitened, ``sigma_i = ||h|| / sqrt(2)``
for circular white noise of ``E|w|^2 = 1``.
"""

from __future__ import annotations

import hashlib
import time

import torch
from torch import Tensor

from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.noise.derivative import require_derivative
from snrecon.noise.memory import CPU_CAP, chunk_size, peak_bytes
from snrecon.noise.moments import Moments
from snrecon.noise.problem import Problem, Progress
from snrecon.noise.sampling import SAVE_EVERY, StateFile
from snrecon.noise.state import State, assemble, same_image


def rows(problem: Problem, cotangents: Tensor) -> Tensor:
    """Whitened gradient rows ``h`` ``(batch, coil, *grid)`` of ``Re <cotangent, f(y)>``."""
    return problem.colouring.H(problem.linearization.vjp(cotangents))


def exact(
    problem: Problem,
    *,
    voxels: Tensor | None = None,
    progress: Progress | None = None,
    state_file: StateFile | None = None,
    chunk: int | None = None,
    details: dict[str, object] | None = None,
) -> NoiseMap:
    """sigma, sigma_complex and the 2x2 covariance without sampling error.

    Args:
        problem: Function, scan and noise.
        voxels: Boolean ``(*image)``: the voxels wanted; by default all. The maps are 0 elsewhere.
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
        InputError: if ``voxels`` does not have the image's shape, or the state file is of
            something else.
    """
    image, direction = problem.image, problem.direction
    wanted = torch.ones_like(image, dtype=torch.bool) if voxels is None else voxels.to(image.device)
    if wanted.shape != image.shape or wanted.dtype != torch.bool:
        raise InputError(
            f"voxels must be a boolean array of the image's shape {tuple(image.shape)}, not "
            f"{wanted.dtype} of {tuple(wanted.shape)}."
        )
    checked = require_derivative(problem, transposed=True)
    index = wanted.flatten().nonzero()[:, 0]
    parts = 2 if image.is_complex() else 1
    covariance, resumed = _stored(problem, wanted, state_file)
    seconds, timed = 0.0, 0
    start, kept, saved = resumed, resumed, time.monotonic()
    try:
        while start < len(index):
            batch = index[start : start + (chunk or 1)]
            units = torch.zeros((len(batch), image.numel()), dtype=image.dtype, device=image.device)
            units[torch.arange(len(batch)), batch] = direction.flatten()[batch]
            units = units.reshape(len(batch), *image.shape)
            begun = time.perf_counter()
            if chunk is None and start > resumed:
                along, size = peak_bytes(lambda u=units: rows(problem, u))  # type: ignore[misc]
                chunk = chunk_size(size, image.device, CPU_CAP)
            else:
                along = rows(problem, units)
            along = along.flatten(1)
            covariance[0, batch] = _power(along) / 2
            if parts == 2:
                across = rows(problem, 1j * units).flatten(1)
                covariance[1, batch] = _power(across) / 2
                covariance[2, batch] = (along.conj() * across).real.double().sum(1) / 2
            if start > resumed:  # the first rows carry the cost of setting up
                seconds, timed = seconds + time.perf_counter() - begun, timed + parts * len(batch)
            start += len(batch)
            if progress is not None:
                progress(parts * start, parts * len(index), "exact: rows")
            if state_file is not None and time.monotonic() - saved > SAVE_EVERY:
                _store(problem, wanted, state_file, covariance, start)
                kept, saved = start, time.monotonic()
    finally:
        if state_file is not None and kept != start:
            _store(problem, wanted, state_file, covariance, start)
    count = parts * len(index)
    cost = seconds / timed / forward_seconds(problem) if timed else 1.0
    facts = {**(details or {}), **checked, "vjps": count, "forward_passes_per_vjp": cost}
    if voxels is not None:
        facts["voxels"] = len(index)
    return assemble(
        image,
        covariance.reshape(3, *image.shape),
        standard_error=None,
        full_sigma=problem.full_sigma,
        estimator="exact",
        passes=count * cost,
        seed=None,
        header=header(problem),
        details=facts,
    )


def _digest(wanted: Tensor) -> str:
    return hashlib.sha256(wanted.cpu().numpy().tobytes()).hexdigest()


def _stored(
    problem: Problem, wanted: Tensor, state_file: StateFile | None
) -> tuple[Tensor, int]:
    """Covariances ``(3, voxels)`` found so far, and the number of voxels done."""
    image = problem.image
    stored = None if state_file is None else state_file.stored()
    if stored is None:
        empty = torch.zeros((3, image.numel()), dtype=torch.float64, device=image.device)
        return empty, 0
    assert state_file is not None
    expected = {"fingerprint": problem.fingerprint, "estimator": "exact", "voxels": _digest(wanted)}
    other = any(stored.header.get(key) != value for key, value in expected.items())
    if other or not same_image(image, stored.image):
        raise InputError(
            f"{state_file.path}: the state is of another scan, method, estimator or choice of "
            "voxels; choose another --state file."
        )
    sums = stored.moments.sums
    covariance = torch.stack([sums[name].flatten() for name in ("a2", "b2", "ab")])
    return covariance.to(image.device), stored.moments.count


def _store(
    problem: Problem, wanted: Tensor, state_file: StateFile, covariance: Tensor, done: int
) -> None:
    """Keep finished rows: in an exact state the second moments hold the covariances themselves."""
    moments = Moments.empty(problem.image, zero_mean=True)
    for name, values in zip(("a2", "b2", "ab"), covariance, strict=True):
        moments.sums[name] = values.reshape(problem.image.shape)
    moments.count = done
    facts = {
        "fingerprint": problem.fingerprint,
        "estimator": "exact",
        "voxels": _digest(wanted),
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
            begun = time.perf_counter()
            problem.bound.function(problem.scan.kspace)
            times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)


def _power(rows: Tensor) -> Tensor:
    return (rows.abs().double() ** 2).sum(1)
