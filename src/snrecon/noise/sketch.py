"""Streaming Jacobian sketching: the noise map from products ``J L v`` with random-phase probes.

Source: Dalmaz et al., Efficient Noise Calculation in Deep Learning-based MRI Reconstructions, ICML
2025: for ``E[v v^H] = I`` the mean of ``|L v|^2`` is ``diag(L L^H)``. Here the components along and
across the image's phase are kept apart, moments are streamed, and the error comes with the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.noise.derivative import require_derivative
from snrecon.noise.problem import Problem, Progress, probe_generator
from snrecon.noise.sampling import Rule, StateFile, run
from snrecon.noise.state import State

STREAM = 1


def random_phase(problem: Problem, seed: int, indices: range) -> Tensor:
    """Probes ``(len, coil, *grid)`` with entries drawn from {1, i, -1, -i}.

    ``E[v v^H] = I`` and ``E[v v^T] = 0``, as a real-linear J needs (real +-1 would not do: then
    ``E[v v^T] = I``). Four phases cost a fraction of continuous ones and have the same moments up
    to the third.
    """
    kspace = problem.scan.kspace
    table = torch.tensor([1, 1j, -1, -1j], dtype=kspace.dtype)
    probes = [
        torch.randint(0, 4, kspace.shape, generator=probe_generator(seed, k, STREAM))
        for k in indices
    ]
    chosen = table.index_select(0, torch.stack(probes).flatten())  # faster than table[probes]
    return chosen.reshape(-1, *kspace.shape).to(kspace.device)


def sketch(
    problem: Problem,
    *,
    tolerance: float = 0.05,
    max_passes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state_file: StateFile | None = None,
    chunk: int | None = None,
    details: dict[str, object] | None = None,
) -> State:
    """Accumulate Jacobian products of random-phase probes.

    Args:
        problem: Function, scan and noise.
        tolerance: Stop when the RMS relative standard error of sigma is reached; 0 runs to
            ``max_passes``.
        max_passes: Largest number of probes.
        seed: Seed of the probes.
        progress: Called after every chunk.
        state_file: Where to save and from where to resume.
        chunk: Probes at once; by default from the memory at hand.
        details: Facts for the metadata.

    Raises:
        NotDifferentiableError: if f has no Jacobian products, or they disagree with finite
            differences.
    """
    colouring = problem.colouring
    _ = problem.image  # an unusable image is an error of its own

    def sampler(indices: range) -> Tensor:
        return problem.linearization.jvp(colouring(random_phase(problem, seed, indices)))

    facts = {**(details or {}), **require_derivative(problem, seed)}
    state = run(
        problem,
        sampler,
        estimator="sketch",
        rule=Rule(problem, zero_mean=True),
        tolerance=tolerance,
        max_passes=max_passes,
        seed=seed,
        progress=progress,
        state_file=state_file,
        chunk=chunk,
        details=facts,
    )
    state.header["details"]["jacobian"] = problem.linearization.strategy
    return state
