"""Pseudo-replica Monte Carlo: reconstruct again and again with synthetic noise added.

Source: Robson et al., Comprehensive quantification of signal-to-noise ratio and g-factor for
image-based and k-space-based parallel imaging reconstructions, MRM 60 (2008). Works for anything
that maps k-space to an image, differentiable or not.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.noise.moments import FEWEST, TOO_FEW
from snrecon.noise.problem import Problem, Progress
from snrecon.noise.sampling import Rule, StateFile, run
from snrecon.noise.state import State
from snrecon.physics.precision import full_precision

STREAM = 2


def replicas(
    problem: Problem,
    *,
    tolerance: float = 0.05,
    max_passes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state_file: StateFile | None = None,
    chunk: int | None = None,
    noise_scale: float = 1.0,
    details: dict[str, object] | None = None,
) -> State:
    """Accumulate ``(f(y + e n) - f(y)) / e`` over noise draws ``n``.

    Args:
        problem: Function, scan and noise.
        tolerance: RMS relative standard error of sigma to stop at; 0 runs to ``max_passes``.
        max_passes: Largest number of replicas, at least 2.
        seed: Seed of the noise.
        progress: Called after every chunk.
        state_file: Where to save and from where to resume.
        chunk: Replicas at once; by default from the memory at hand.
        noise_scale: ``e``: below 1 the first-order limit of a nonlinear f is approached.
        details: Facts for the metadata.

    Raises:
        InputError: if ``max_passes`` is below 2.
    """
    if max_passes is not None and max_passes < FEWEST:
        raise InputError(f"{TOO_FEW}, not {max_passes}; raise max_passes (--max-passes).")
    kspace, image = problem.scan.kspace, problem.image

    def sampler(indices: range) -> Tensor:
        noise = problem.noise(seed, indices, STREAM)
        # Noise that was scaled down must stand out from rounding; at its own size it does.
        with torch.no_grad(), full_precision() if noise_scale < 1 else nullcontext():
            images = evaluate(problem, kspace + noise_scale * noise)
        return (images - image) / noise_scale

    return run(
        problem,
        sampler,
        estimator="replicas",
        rule=Rule(problem, zero_mean=False),
        tolerance=tolerance,
        max_passes=max_passes,
        seed=seed,
        progress=progress,
        state_file=state_file,
        chunk=chunk if problem.bound.batched else 1,
        details={**(details or {}), "noise_scale": noise_scale},
    )


def evaluate(problem: Problem, kspaces: Tensor) -> Tensor:
    """``f`` for a batch of k-spaces ``(batch, coil, *grid)``.

    A user's f is only promised one k-space at a time, so it gets just that.
    """
    f = problem.bound.function
    if problem.bound.batched:
        return f(kspaces)
    return torch.stack([f(one) for one in kspaces])
