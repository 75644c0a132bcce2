"""Streaming Jacobian sketching: the noise map from products ``J L v`` with random-phase probes.

Source: Dalmaz et al., Efficient Noise Calculation in Deep Learning-based MRI Reconstructions, ICML
2025: for ``E[v v^H] = I`` the mean of ``|L v|^2`` is ``diag(L L^H)``. Here the components along and
across the image's phase are kept apart, moments are streamed, and the error comes with the map.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from snrecon.errors import SnreconWarning
from snrecon.noise.problem import Problem, Progress, probe_generator
from snrecon.noise.sampling import StateFile, run
from snrecon.noise.state import State
from snrecon.physics.jacobian import NotDifferentiableError

STREAM = 1
CHECK_STREAM = 3


def random_phase(problem: Problem, seed: int, indices: range) -> Tensor:
    """Probes ``(len, coil, *grid)`` with entries drawn from {1, i, -1, -i}.

    ``E[v v^H] = I`` and ``E[v v^T] = 0``, as a real-linear J needs (real +-1 would not do: then
    ``E[v v^T] = I``). Four phases cost a fraction of continuous ones and have the same moments up
    to the third.
    """
    kspace = problem.scan.kspace
    table = torch.tensor([1, 1j, -1, -1j], dtype=kspace.dtype)
    probes = [
        table[torch.randint(0, 4, kspace.shape, generator=probe_generator(seed, k, STREAM))]
        for k in indices
    ]
    return torch.stack(probes).to(kspace.device)


def check_derivative(problem: Problem, seed: int) -> float:
    """Relative disagreement of ``J n`` with a small central difference, in the RMS over the image.

    A user's function that leaves automatic differentiation on the way (``detach``, ``no_grad``,
    numpy) has Jacobian products that are wrong without any error: this is where it shows.
    """
    kspace = problem.scan.kspace
    noise = problem.colouring.sample(probe_generator(seed, 0, CHECK_STREAM), kspace.dtype)
    product = problem.linearization.jvp(noise[None])[0]
    f = problem.bound.function
    # Small enough for curvature to vanish, large enough for rounding: sqrt of the unit roundoff
    # relative to the data, but never more than the noise itself.
    eps = torch.finfo(kspace.real.dtype).eps
    ratio = float(torch.linalg.vector_norm(kspace) / torch.linalg.vector_norm(noise))
    step = min(max(eps**0.5 * ratio, 1e-3), 0.5)
    with torch.no_grad():
        difference = (f(kspace + step * noise) - f(kspace - step * noise)) / (2 * step)
    size = torch.linalg.vector_norm(difference)
    if float(size) == 0:
        return 0.0 if float(torch.linalg.vector_norm(product)) == 0 else float("inf")
    return float(torch.linalg.vector_norm(product - difference) / size)


DISAGREEMENT = 0.3
"""More than this and the Jacobian products are not those of f."""


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

    facts = dict(details or {})
    if not problem.bound.linear:
        disagreement = check_derivative(problem, seed)
        facts["derivative_check"] = disagreement
        if not disagreement <= DISAGREEMENT:
            raise NotDifferentiableError(
                "the Jacobian products of the reconstruction disagree with finite differences by "
                f"{disagreement:.0%}: it may detach its data, run under no_grad, or draw at random"
            )
        if disagreement > DISAGREEMENT / 3:
            warnings.warn(
                f"Jacobian products and finite differences of the reconstruction differ by "
                f"{disagreement:.0%}; see noise.linearity_check.",
                SnreconWarning,
                stacklevel=2,
            )
    state = run(
        problem,
        sampler,
        estimator="sketch",
        zero_mean=True,
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
