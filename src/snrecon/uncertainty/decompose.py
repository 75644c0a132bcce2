"""How thermal noise and a sampler's own draws add up: the law of total variance.

For ``x = f(y, z)`` with data ``y`` and draws ``z``, over repeated scans

    Var[x] = Var_y[E_z x] + E_y[Var_z x],

the *thermal* part, by which the mean of the draws varies from scan to scan, and the *posterior*
part, by which draws vary at the data of one scan. The thermal part needs what different draws have
in common: with the same noise n and different draws z, z' their answers multiply to

    E[Re(dx_z conj(dx_z'))] = Var_y[E_z x],    dx_z = J_z n to first order.

With z' = z it would be the variance at a *fixed seed*, E_z Var_y[x], larger by the variance of the
answers among draws; it belongs to neither sum and carries its own name.

The first order at a fixed seed sees how a sample moves with the data. A sampler that is a
continuous function of y at fixed z (diffusion, Langevin with fixed noise, dropout) has all of dE/dy
in there. One that picks among alternatives by comparing a random number with a weight that depends
on y does not: the weight's derivative never shows in J_z. Finite differences of the same draws
(``estimator="replicas"``) see the switching; ``details["finite_over_first_order"]`` compares both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data import Geometry, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise.accumulated import Accumulated
from snrecon.noise.derivative import require_derivative
from snrecon.noise.problem import Progress, Reconstruction
from snrecon.noise.sampling import Rule, run
from snrecon.noise.state import State
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.recon.option_types import seed_number, whole_number
from snrecon.uncertainty.draws import Draws, draw_seed, draws, state_of
from snrecon.uncertainty.regions import Mask, digest, region_of, regions_of
from snrecon.uncertainty.rounds import PARTS, RoundMoments, round_of

Estimator = Literal["auto", "jacobian", "replicas"]
NOISE, OTHER_NOISE, DRAWS, PILOT_DRAWS = 22, 23, 24, 25
"""Streams of random numbers."""
PILOT = 8
"""Samples whose mean tells the phase."""
EVERYWHERE = "all"
TRUSTED = 0.3
"""So far may finite differences be from the first order without a warning."""


@dataclass(frozen=True, eq=False)
class Part:
    """One term of the law of total variance, (image units)^2; unbiased, so possibly below 0."""

    variance: Tensor
    """Of the component along the phase of the mean image, ``(*grid)``."""
    variance_error: Tensor
    """Its standard error."""
    variance_complex: Tensor
    """Of both components together."""
    variance_complex_error: Tensor
    regions: Mapping[str, tuple[float, float, float, float]]
    """Means over regions: variance, its standard error, complex variance, its standard error.
    Voxels share noise and draws, so these errors are not those of the voxels averaged."""

    @property
    def negative(self) -> Tensor:
        """Boolean: voxels whose estimated variance came out below 0, by its own error."""
        return self.variance < 0

    @property
    def sigma(self) -> Tensor:
        """``sqrt(variance)``; 0 in the voxels of :attr:`negative`, which makes averages of it too
        large: average variances."""
        return self.variance.clamp_min(0).sqrt()

    @property
    def sigma_complex(self) -> Tensor:
        """``sqrt(variance_complex)``, 0 where that came out below 0."""
        return self.variance_complex.clamp_min(0).sqrt()


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The parts of a stochastic reconstruction's variance over repeated scans."""

    mean: Tensor
    """Mean of all samples, at noisy data, ``(*grid)``."""
    thermal: Part
    """``Var_y[E_z x]``."""
    posterior: Part
    """``E_y[Var_z x]``."""
    total: Part
    """Their sum. It is not the error against the truth."""
    fixed_seed: Part
    """``E_z Var_y[x]``: the variance at one fixed seed, not part of the sum."""
    estimator: str
    """``jacobian`` (thermal part and fixed seed to first order) or ``replicas``."""
    rounds: int
    seeds: int
    """In each round."""
    seed: int
    method: str = ""
    units: str = ""
    acceleration: float = 1.0
    geometry: Geometry | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """``finite_over_first_order``: the thermal part (complex, mean over voxels) by finite
    differences of the same draws, ``E|E_z f(y + n) - E_z f(y)|^2``, over that to first order, and
    the ratio's standard error; ``negative``: share of voxels of each part whose variance came out
    below 0; ``why`` the estimator."""

    def save(self, path: str | Path) -> None:
        """Write to ``.h5``, ``.npz``, ``.nii.gz`` or ``.cfl`` by the name's ending
        (:func:`snrecon.uncertainty.parts_files.save_parts`)."""
        from snrecon.uncertainty.parts_files import save_parts

        save_parts(self, path)

    @staticmethod
    def load(path: str | Path) -> Decomposition:
        """Read what :meth:`save` wrote as ``.h5`` or ``.npz``."""
        from snrecon.uncertainty.parts_files import load_parts

        return load_parts(path)

    def __repr__(self) -> str:
        def told(name: str) -> str:
            value, error = getattr(self, name).regions[EVERYWHERE][2:]
            return f"{name} {value:.4g} +- {error:.2g}"

        shape = "x".join(map(str, self.mean.shape))
        return (
            f"Decomposition({shape}, {self.method}, {self.estimator}, {self.rounds} rounds of "
            f"{self.seeds} seeds; mean complex variance: {', '.join(map(told, PARTS))})"
        )


def decompose(
    recon: Reconstruction,
    scan: Scan,
    *,
    rounds: int = 32,
    seeds: int = 4,
    estimator: Estimator = "auto",
    seed: int = 0,
    regions: Mapping[str, Mask] | None = None,
    progress: Progress | None = None,
    state: str | Path | None = None,
) -> Decomposition:
    """Part the variance of a sampler's output over repeated scans.

    A round draws noise and ``seeds`` new seeds. ``jacobian`` takes for each seed the sample at the
    noisy data and the Jacobian product with the same noise at the measured data; ``replicas`` two
    samples, at data with two draws of the noise, whose difference answers to noise of zero mean.
    Both describe noise around the measured data, as noise maps do. A sampler of few levels (``dds``
    with 5) is not linear over the noise of a scan: there ``jacobian`` may be some 10 % off.

    Args:
        recon: A Reconstructor that draws.
        scan: One slice or one 3D grid with known noise.
        rounds: At least 2.
        seeds: In each round, at least 2. A round costs a sample and a Jacobian product (or two
            samples) for each; the standard errors fall with the root of ``rounds``.
        estimator: ``auto`` takes ``jacobian`` where the method can be differentiated.
        seed: Same seed, same result.
        regions: Boolean ``(*grid)`` by name; ``"all"`` is there anyway.
        progress: ``progress(done, total, message)``.
        state: File to save to and resume from; it belongs to the regions it was begun with.

    Returns:
        Thermal part, posterior part, their sum, and the variance at a fixed seed, each for the
        component along the phase of the mean image and for the complex image, with standard errors.

    Raises:
        InputError: if the method does not draw, the noise is not known, an option does not fit, or
            ``jacobian`` was asked of a method that cannot be differentiated.
    """
    if estimator not in ("auto", "jacobian", "replicas"):
        raise InputError(f"estimator must be auto, jacobian or replicas, not {estimator!r}.")
    rounds, seeds = whole_number("rounds", rounds), whole_number("seeds", seeds)
    seed = seed_number(seed)
    if rounds < 2 or seeds < 2:
        raise InputError(
            f"a decomposition takes at least 2 rounds of at least 2 seeds, not {rounds} of {seeds}."
        )
    scan.require_noise()
    state_file = state_of(state, seed)
    given = regions_of(regions)
    settings = f"{seeds} seeds, regions {digest(given)}"
    problem = draws(recon, scan, draw_seed(seed, 0, DRAWS), settings,
                    "its variance over repeated scans is its noise (noise_map)")
    areas = _areas(given, problem.image)
    chosen, facts = _chosen(estimator, problem, seed)
    sampler = _Rounds(problem, seeds, seed, chosen == "jacobian")
    found = run(
        problem, sampler, estimator=f"decompose {chosen}",
        rule=_Collected(problem, list(areas.values())), tolerance=0, max_passes=rounds, seed=seed,
        progress=progress, state_file=state_file, chunk=1, details={},
    ).moments
    assert isinstance(found, RoundMoments)
    return _result(found, problem, list(areas), list(given), seeds, seed, chosen, facts)


class _Rounds:
    """Numbers of rounds to their channels ``(round, CHANNELS, *image)``."""

    def __init__(self, problem: Draws, seeds: int, seed: int, first_order: bool) -> None:
        self.problem, self.seeds, self.seed = problem, seeds, seed
        self.first_order = first_order
        pilot = [draw_seed(seed, k, PILOT_DRAWS) for k in range(PILOT)]
        mean = problem.samples(problem.scan.kspace, pilot).mean(0)
        size = mean.abs()
        tiny = torch.finfo(size.dtype).tiny
        self.direction = torch.where(size > 0, mean / size.clamp_min(tiny), 1)

    def __call__(self, indices: range) -> Tensor:
        return torch.stack([self._round(k) for k in indices])

    def _round(self, index: int) -> Tensor:
        problem, kspace = self.problem, self.problem.scan.kspace
        first = index * self.seeds
        seeds = [draw_seed(self.seed, first + j, DRAWS) for j in range(self.seeds)]
        one = range(index, index + 1)
        noise = problem.noise(self.seed, one, NOISE)[0]
        noisy = problem.samples(kspace + noise, seeds)
        if not self.first_order:
            other = problem.noise(self.seed, one, OTHER_NOISE)[0]
            again = problem.samples(kspace + other, seeds)
            return round_of([noisy, again], (noisy - again) / 2**0.5, self.direction)
        pairs = [problem.pushed(draw, noise) for draw in seeds]
        values, answers = (torch.stack(part) for part in zip(*pairs))
        return round_of([noisy], answers, self.direction, noisy - values)


class _Collected(Rule):
    """Rounds add up until there are as many as were asked for."""

    def __init__(self, problem: Draws, areas: list[Tensor]) -> None:
        super().__init__(problem, zero_mean=False)
        self.areas = areas

    def empty(self) -> Accumulated:
        return RoundMoments.empty(self.problem.image, len(self.areas))

    def added(self, state: State, samples: Tensor, indices: range) -> Accumulated:
        assert isinstance(state.moments, RoundMoments)
        return state.moments.added(samples, self.areas)

    def decides(self, count: int) -> bool:
        return False

    def error(self, state: State) -> float:
        return math.inf


def _areas(regions: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """The regions by name: everywhere first, then in the order in which a state keeps their means,
    which is not the order that they are given in."""
    areas = {EVERYWHERE: torch.ones(image.shape, dtype=torch.bool, device=image.device)}
    for name in sorted(regions):
        areas[name] = region_of(name, regions[name], tuple(image.shape)).to(image.device)
    return areas


def _chosen(estimator: Estimator, problem: Draws, seed: int) -> tuple[str, dict[str, Any]]:
    """The estimator, and why."""
    if estimator == "replicas":
        return estimator, {"why": "as asked"}
    try:
        if not problem.bound.differentiable:
            raise NotDifferentiableError("the reconstruction is not made of tensor operations")
        facts = dict(require_derivative(problem, seed))
        # One f at a time is differentiated, so this is the way it has to work.
        problem.pushed(problem.first, torch.zeros_like(problem.scan.kspace))
    except NotDifferentiableError as error:
        if estimator == "jacobian":
            raise InputError(
                f"{problem.scan.source}: {error}; use the estimator 'replicas'."
            ) from error
        return "replicas", {"why": f"replicas, because {error}"}
    return "jacobian", facts | {"why": "the reconstruction can be differentiated"}


def _result(
    found: RoundMoments, problem: Draws, names: list[str], given: list[str], seeds: int, seed: int,
    chosen: str, facts: dict[str, Any],
) -> Decomposition:
    """``names`` of the regions in the order of their means, ``given`` in that of the result."""
    mean, error = found.means()
    regional, regional_error = found.region_means()
    real = problem.image.abs().dtype
    parts = {}
    for k, name in enumerate(PARTS):
        a, c = 2 * k, 2 * k + 1
        tables = {
            area: (float(regional[r, a]), float(regional_error[r, a]),
                   float(regional[r, c]), float(regional_error[r, c]))
            for r, area in enumerate(names)
        }
        ordered = {area: tables[area] for area in dict.fromkeys((EVERYWHERE, *given))}
        parts[name] = Part(mean[a].to(real), error[a].to(real), mean[c].to(real),
                           error[c].to(real), ordered)
    facts |= {
        "negative": {name: float(part.negative.double().mean()) for name, part in parts.items()}}
    if chosen == "jacobian":
        ratio, ratio_error = found.finite_over_first_order()
        facts["finite_over_first_order"] = ratio, ratio_error
        if abs(ratio - 1) > max(TRUSTED, 3 * ratio_error):
            warnings.warn(
                f"finite differences of {problem.bound.method} at fixed seeds give {ratio:.2f} +- "
                f"{ratio_error:.2f} times the thermal part to first order; take the estimator "
                "'replicas'.",
                SnreconWarning,
                stacklevel=3,
            )
    return Decomposition(
        mean=found.mean_image(problem.image), **parts, estimator=chosen, rounds=found.count,
        seeds=seeds, seed=seed, method=problem.bound.method, units=problem.bound.units,
        acceleration=problem.scan.acceleration, geometry=problem.scan.geometry,
        details={**problem.details, **facts})
