"""The certified estimator: a noise map from few probes, with a proof of its accuracy.

The probes are those of the sketch; what is made of them is more (:mod:`snrecon.noise.crossfit`),
and how good it is, is measured on probes that were held out (:mod:`snrecon.noise.certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snrecon.data import relative_error
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.noise.accumulated import Accumulated
from snrecon.noise.derivative import require_derivative
from snrecon.noise.folds import FoldMoments
from snrecon.noise.memory import chunk_size, peak_bytes
from snrecon.noise.options import chosen
from snrecon.noise.predicted import load_predictor, predicted_variance
from snrecon.noise.problem import Problem, Progress
from snrecon.noise.sampling import Rule, StateFile, at_once, run
from snrecon.noise.sketch import random_phase
from snrecon.noise.state import State
from snrecon.noise.surrogate import LineSurrogate
from snrecon.physics.precision import low_precision, low_precision_pays

FIRST = 16
GROWTH = 1.25
"""The certificate is looked at after 16 probes, and then whenever there are a quarter more, rounded
to whole probes a fold's pair."""

CHECKS = 1
"""The first probes, in single precision: they are compared with low precision and with finite
differences. What either leaves out is an average over all voxels: one probe tells it well."""


def schedule(count: int) -> bool:
    """Whether the certificate is looked at after ``count`` probes."""
    stop = FIRST
    while stop < count:
        stop = math.ceil(stop * GROWTH / 8) * 8
    return stop == count


class FoldRule(Rule):
    """Samples ``(batch, 2, *image)``: the product, and the surrogate's answer to the same probe."""

    early = False
    meaning = "at most "

    def __init__(self, problem: Problem, surrogate: LineSurrogate | None) -> None:
        super().__init__(problem, zero_mean=True)
        self.surrogate = surrogate
        self.left_out: Tensor | None = None
        self.predicted: Tensor | None = None
        self.regions: dict[str, Tensor] = {}
        self.adaptive = False

    def empty(self) -> FoldMoments:
        """No samples."""
        power = None if self.surrogate is None else self.surrogate.variance / 2
        empty = FoldMoments.empty(self.problem.image, power)
        return replace(empty, left_out=self.left_out, predicted=self.predicted,
                       regions=self.regions, adaptive=self.adaptive)

    def resumed(self, moments: Accumulated) -> FoldMoments:
        """Regions and prediction are no part of the sums: those given now replace the earlier."""
        assert isinstance(moments, FoldMoments)
        predicted = moments.predicted if self.predicted is None else self.predicted
        return replace(moments, predicted=predicted, regions=self.regions or moments.regions,
                       adaptive=self.adaptive or moments.adaptive)

    def added(self, state: State, samples: Tensor, indices: range) -> FoldMoments:
        """The state's sums with some samples more."""
        assert isinstance(state.moments, FoldMoments)
        product = samples[:, 0]
        a, b = self.problem.project(
            product if self.problem.image.is_complex() else product.real)
        f = None
        if self.surrogate is not None:
            f = samples[:, 1] * self.problem.direction.conj()
        return state.moments.added(indices.start, a, b, f)

    def decides(self, count: int) -> bool:
        """After 16, 24, 32, ... samples, a quarter more each time."""
        return schedule(count)

    def error(self, state: State) -> float:
        """Upper limit of the relative RMS error of sigma, or the RMS of the standard errors, which
        allow for single voxels, if that is larger; 0 if the image never answered a probe."""
        found = state.moments.result(state.image)
        certificate = found.facts["certificate"]
        if certificate is None:
            enough = self.decides(state.moments.samples)
            return 0.0 if enough and not bool((found.covariance != 0).any()) else math.inf
        floor = self.problem.bound.details.get(FLOOR)
        stated = relative_error(
            state.image, found.covariance[0].sqrt(), found.standard_error, floor)
        return max(float(certificate["bound"]), stated)


def certified_map(
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
    regions: Mapping[str, Tensor] | None = None,
) -> State:
    """Accumulate probes until the certified error is small enough.

    Args:
        problem: Function, scan and noise.
        tolerance: Upper 95 % limit of the RMS error of sigma, relative to the sigma that is stated,
            to stop at; 0 runs to ``max_passes``.
        max_passes: Largest number of probes.
        seed: Seed of the probes.
        progress: Called after every chunk.
        state_file: Where to save and from where to resume.
        chunk: Probes at once; by default from the memory at hand.
        details: Facts for the metadata.
        predictor: A trained predictor of this reconstruction's noise, a shipped one by name or one
            from a file: another column of the prior.
        regions: Boolean ``(*image)``, by name: parts of the image that get a certificate of their
            own, over their voxels with ``|x| >= 3 sigma`` (if there are none, all with noise).

    Raises:
        InputError: if the predictor cannot be read, or does not fit the scan, a region does not
            fit the image or is empty, or the state's probes were drawn in a precision that the
            tolerance does not allow.
        NotDifferentiableError: if f has no Jacobian products, or they disagree with finite
            differences.
    """
    _ = problem.image  # an unusable image is an error of its own
    surrogate = LineSurrogate.of(problem)
    complex_type = problem.scan.kspace.dtype

    opening = problem.colouring(random_phase(problem, seed, range(CHECKS)))
    known, size = peak_bytes(lambda: problem.linearization.jvp(opening))
    chunk = chunk or chunk_size(
        size // CHECKS, problem.scan.kspace.device, at_once(problem))
    derivative = require_derivative(problem, seed, known=(opening[0], known[0]))
    facts = {**(details or {}), **derivative}
    rule = FoldRule(problem, surrogate)
    stored = None if state_file is None else state_file.stored()
    if stored is not None and isinstance(stored.moments, FoldMoments):
        low = stored.moments.left_out  # what a run began with, it goes on with
        _require_precision(stored, tolerance, state_file)
    else:
        low = tangents_in_low_precision(problem, opening, known, tolerance)
    if low is not None:
        rule.left_out = low
        facts["tangents"] = "bfloat16"

    def sampler(indices: range) -> Tensor:
        noise = problem.colouring(random_phase(problem, seed, indices))
        product = known[indices.start : indices.stop]
        if len(product) < len(indices):
            with low_precision(None if low is None else torch.bfloat16):
                rest = problem.linearization.jvp(noise[len(product) :])
            product = torch.cat([product, rest])
        if surrogate is None:
            return product[:, None]
        return torch.stack([product.to(complex_type), surrogate(noise)], 1)

    rule.regions = {name: chosen(region, problem.image, f"the region {name!r}")
                    for name, region in (regions or {}).items()}
    rule.adaptive = tolerance > 0
    if predictor is not None:
        rule.predicted = predicted_variance(load_predictor(predictor), problem, surrogate)
        facts["predictor"] = "given" if isinstance(predictor, NoisePredictor) else str(predictor)
    facts["control_variate"] = "none" if surrogate is None else "edge-adaptive SENSE, line by line"
    state = run(
        problem,
        sampler,
        estimator="certified",
        rule=rule,
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


def _require_precision(stored: State, tolerance: float, state_file: StateFile | None) -> None:
    """InputError if no number of probes would do."""
    certificate = stored.moments.result(stored.image).facts["certificate"]
    lost = 0.0 if certificate is None else float(certificate["precision"])
    if state_file is not None and 0 < tolerance <= lost:
        raise InputError(
            f"{state_file.path}: the state was drawn with tangents in low precision, which leave "
            f"out {lost:.2%} of sigma, so that a tolerance of {tolerance:.2%} cannot be certified; "
            "choose another --state file."
        )


def tangents_in_low_precision(
    problem: Problem, noise: Tensor, full: Tensor, tolerance: float
) -> Tensor | None:
    """Whether bfloat16 will do for the tangents, and what it leaves out.

    It is tried where the hardware multiplies it faster than single precision and the
    reconstruction's own linearisation is made for it, on a few probes: what it leaves out may not
    be more than a tenth of the tolerance (or of 5 %, without one).

    Args:
        problem: Function, scan and noise.
        noise: Probes ``(number, coil, *grid)``.
        full: Their products in single precision, ``(number, *image)``.
        tolerance: As of :func:`certified_map`.

    Returns:
        Mean square of what it leaves out of the component along the phase, ``(*image)``; None where
        it is not used.
    """
    if not low_precision_pays(problem.image.device) or problem.bound.linearize is None:
        return None
    with low_precision():
        low = problem.linearization.jvp(noise)
    if torch.equal(full, low):
        return None
    # Of the whole image: in single voxels so few probes tell the power too badly to divide by it.
    share = float((low - full).abs().square().sum() / full.abs().square().sum())
    if not share**0.5 <= 0.1 * (tolerance or 0.05):
        return None
    return problem.project(low - full)[0].square().mean(0)
