"""Posterior mean, spread and intervals of a reconstruction that draws, at fixed data."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise.accumulated import Accumulated
from snrecon.noise.problem import Progress, Reconstruction
from snrecon.noise.sampling import Rule, run
from snrecon.noise.state import State
from snrecon.recon.option_types import seed_number, whole_number
from snrecon.uncertainty.draws import Draws, draw_seed, draws, state_of
from snrecon.uncertainty.intervals import checked_level, tail
from snrecon.uncertainty.sample_moments import SampleMoments
from snrecon.uncertainty.spread_map import POSTERIOR, SpreadMap

SAMPLES = 40
"""Enough for 95 % intervals that assume nothing about the distribution."""


def posterior(
    recon: Reconstruction,
    scan: Scan,
    samples: int = SAMPLES,
    *,
    seed: int = 0,
    level: float = 0.95,
    progress: Progress | None = None,
    state: str | Path | None = None,
    keep: bool = False,
    chunk: int | None = None,
) -> SpreadMap:
    """Draw reconstructions of the same data, and say how they spread.

    What comes out is the spread of *this sampler's* output. It equals the posterior's only as far
    as the sampler draws from the posterior. Thermal noise, the spread over repeated scans, is
    something else (:func:`snrecon.noise_map`, :func:`snrecon.uncertainty.decompose`).

    Args:
        recon: A Reconstructor that draws (``Bound.stochastic``): ``score``, ``langevin``,
            :class:`snrecon.uncertainty.Dropout`, or one's own.
        scan: One slice or one 3D grid; its noise need not be known for this.
        samples: How many, at least 2. From ``2/(1 - level) - 1`` on (39 for 95 %) the intervals are
            order statistics; below, a normal approximation with Student's t. Both are meant for one
            more sample (:mod:`snrecon.uncertainty.intervals`).
        seed: Same seed, same samples; sample k does not depend on how many there are. Below 2^64.
        level: What the equal-tailed intervals of the magnitude cover.
        progress: ``progress(done, total, message)``.
        state: File to save to and resume from; it holds sums, not the samples (unless ``keep``).
        keep: Hold all samples as ``result.samples``.
        chunk: Samples at once; by default from the memory at hand.

    Returns:
        Mean, spread with its standard error, intervals, and the seed of every sample.

    Raises:
        InputError: if the method does not draw, an option does not fit, or the state file belongs
            to another scan, method, settings or seed.
    """
    samples, seed = whole_number("samples", samples), seed_number(seed)
    if samples < 2:
        raise InputError(f"a spread takes at least 2 samples, not {samples}.")
    level = checked_level(level)
    chunk = None if chunk is None else whole_number("chunk", chunk, 1)
    state_file = state_of(state, seed)
    problem = draws(recon, scan, draw_seed(seed, 0))

    def sampler(indices: range) -> Tensor:
        seeds = [draw_seed(seed, k) for k in indices]
        if indices.start > 0:
            return problem.samples(scan.kspace, seeds)
        first = problem.image.unsqueeze(0)  # drawn already, to recognise the state by
        rest = seeds[1:]
        return torch.cat([first, problem.samples(scan.kspace, rest)]) if rest else first

    found = run(
        problem,
        sampler,
        estimator=POSTERIOR,
        rule=_Collected(problem, samples, level, keep),
        tolerance=0,
        max_passes=samples,
        seed=seed,
        progress=progress,
        state_file=state_file,
        chunk=chunk if problem.together else 1,
        details={},
    ).moments
    assert isinstance(found, SampleMoments)
    return SpreadMap.of(
        found, level, kind=POSTERIOR, seed=seed,
        seeds=tuple(draw_seed(seed, k) for k in range(found.samples)),
        method=problem.bound.method, units=problem.bound.units, frozen=problem.bound.frozen,
        acceleration=scan.acceleration, geometry=scan.geometry,
        details=problem.details)


class _Collected(Rule):
    """Samples add up until there are as many as were asked for."""

    def __init__(self, problem: Draws, samples: int, level: float, keep: bool) -> None:
        super().__init__(problem, zero_mean=False)
        self.samples, self.level, self.keep = samples, level, keep

    def empty(self) -> Accumulated:
        return SampleMoments.empty(
            self.problem.image, tail(self.samples, self.level), self.keep)

    def added(self, state: State, samples: Tensor, indices: range) -> Accumulated:
        assert isinstance(state.moments, SampleMoments)
        return state.moments.added(samples)

    def resumed(self, moments: Accumulated) -> Accumulated:
        assert isinstance(moments, SampleMoments)
        moments.require(max(self.samples, moments.samples), self.level)
        if self.keep and moments.images is None:
            raise InputError(
                "the state was begun without keeping the samples themselves; start another state "
                "file to keep them."
            )
        return moments

    def decides(self, count: int) -> bool:
        return False

    def error(self, state: State) -> float:
        return math.inf
