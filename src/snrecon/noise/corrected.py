"""Beyond first order: the spread of real reconstructions of noisier data, from few of them.

Where the linearity check fails, a Jacobian map is the wrong answer precisely told. This estimator
means ``Var_n f(y + n)``, what Monte Carlo means, and takes the certified first-order map for most
of it (:mod:`snrecon.noise.pairs`): unbiased, and with far fewer passes than Monte Carlo wherever
reconstruction and linearisation are still alike.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from snrecon.data import relative_error
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.noise.accumulated import Found
from snrecon.noise.certified import certified_map
from snrecon.noise.pairs import COST, FEWEST, PairMoments
from snrecon.noise.problem import Problem, Progress
from snrecon.noise.replicas import evaluate
from snrecon.noise.sampling import Rule, StateFile, run
from snrecon.noise.state import State

STREAM = 6
EVERY = 8
"""The error is looked at every eight pairs."""
SHARE = 0.5
"""Part of the squared tolerance that the first-order map may use up."""
AT_MOST = 2
"""The first order gets at most one part in so many of ``max_passes``; without pairs it would be
nothing but a certified map."""
FIRST = 2
"""Fewest passes of the first order."""


class PairRule(Rule):
    """Samples ``(batch, 3, *image)``: the odd part, the even part, the Jacobian product."""

    early = False

    def __init__(self, problem: Problem, first: Found | None, passes: float) -> None:
        super().__init__(problem, zero_mean=False)
        self.first, self.passes = first, passes

    def empty(self) -> PairMoments:
        """No pairs, around the first-order map."""
        assert self.first is not None
        return PairMoments.empty(
            self.first.covariance, self.first.standard_error, self.passes)

    def added(self, state: State, samples: Tensor, indices: range) -> PairMoments:
        """The state's sums with some pairs more."""
        assert isinstance(state.moments, PairMoments)
        odd, even, linear = (self.problem.project(part) for part in samples.unbind(1))
        return state.moments.added(odd, even, linear)

    def decides(self, count: int) -> bool:
        """After every eight pairs."""
        return count > 0 and count % EVERY == 0

    def error(self, state: State) -> float:
        """RMS relative standard error of sigma."""
        if state.moments.samples < FEWEST:
            return math.inf
        found = state.moments.result(state.image)
        floor = self.problem.bound.details.get(FLOOR)
        return relative_error(
            state.image, found.covariance[0].sqrt(), found.standard_error, floor)


def corrected_map(
    problem: Problem,
    *,
    tolerance: float = 0.05,
    max_passes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state_file: StateFile | None = None,
    chunk: int | None = None,
    details: dict[str, object] | None = None,
    predictor: str | Path | NoisePredictor | None = None,
) -> State:
    """Certify the first-order map, then correct it until the error bar is small enough.

    Args:
        problem: Function, scan and noise.
        tolerance: RMS relative standard error of sigma to stop at; 0 runs to ``max_passes``, a
            quarter of which goes to the first order.
        max_passes: Of both parts together, at most half of them for the first order; a pair costs
            three.
        seed: Seed of probes and noise.
        progress: Called after every chunk; of the first order, then of the pairs.
        state_file: Where to save the pairs and from where to resume; the first-order map of an
            unfinished run is kept beside it, in a file of its name and ``.first``.
        chunk: Pairs at once; by default from the memory at hand.
        details: Facts for the metadata.
        predictor: As of :func:`snrecon.noise.certified.certified_map`, for the first order.

    Raises:
        InputError: if ``max_passes`` leaves fewer than two pairs, or the predictor does not fit.
        NotDifferentiableError: if f has no Jacobian products, or they disagree with finite
            differences.
    """
    if max_passes is not None and max_passes < FIRST + FEWEST * COST:
        raise InputError(_too_few(max_passes, FIRST))
    kspace, image = problem.scan.kspace, problem.image
    found = None
    stored = None if state_file is None else state_file.stored()
    if stored is None:
        beside = None
        if state_file is not None:
            name = state_file.path.with_name(state_file.path.name + ".first")
            beside = StateFile.at(name, state_file.index, state_file.stack)
        limit = None
        if max_passes is not None:
            part = AT_MOST if tolerance > 0 else 2 * AT_MOST
            limit = min(max(max_passes // part, FIRST), max_passes - FEWEST * COST)
        first = certified_map(
            problem, tolerance=tolerance * SHARE**0.5, max_passes=limit, seed=seed,
            progress=progress, state_file=beside, chunk=chunk, details=details,
            predictor=predictor)
        found, spent = first.moments.result(first.image), first.moments.passes
        details = {**first.header["details"], "first_order": found.facts["certificate"]}
    else:
        spent = stored.moments.passes - COST * stored.moments.samples
        details = dict(stored.header["details"])
    pairs = None if max_passes is None else int(max_passes - spent) // COST
    drawn = 0 if stored is None else stored.moments.samples
    if max_passes is not None and pairs is not None and max(pairs, drawn) < FEWEST:
        raise InputError(_too_few(max_passes, spent))

    def sampler(indices: range) -> Tensor:
        noise = problem.noise(seed, indices, STREAM)
        with torch.no_grad():
            plus, minus = evaluate(problem, kspace + noise), evaluate(problem, kspace - noise)
        linear = problem.linearization.jvp(noise)
        return torch.stack([(plus - minus) / 2, (plus + minus) / 2 - image, linear], 1)

    return run(
        problem,
        sampler,
        estimator="corrected",
        rule=PairRule(problem, found, spent),
        tolerance=tolerance,
        max_passes=pairs,
        seed=seed,
        progress=progress,
        state_file=state_file,
        chunk=chunk if problem.bound.batched else 1,
        details=details,
    )


def _too_few(max_passes: int, spent: float) -> str:
    """What to say when no two pairs are left after the first order."""
    least = math.ceil(spent) + FEWEST * COST
    return (f"the corrected estimator needs at least {least} passes here, {FEWEST} pairs of noisy "
            f"reconstructions among them, not {max_passes}; raise max_passes (--max-passes).")
