"""Do the 95 % intervals cover? Sketch and replicas on every small reconstruction, many seeds.

The truth is a dense matrix built without automatic differentiation (``dense_noise``). Intervals are
chi-square with matched degrees of freedom. Voxels share probes, so coverage is averaged over seeds
and its error is the spread over seeds. Replicas of nonlinear reconstructions use noise scaled down
by 100, where first order is exact to within their error.

    python -m benchmarks.coverage [--quick] [--seeds 200] [--passes 64]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from benchmarks.dense_noise import reference
from benchmarks.small_problems import NAMES, SmallProblem, small_problems
from benchmarks.table import publish, table
from snrecon.noise.intervals import sigma_interval
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import replicas
from snrecon.noise.sketch import sketch


@dataclass(frozen=True)
class Coverage:
    """Share of voxels whose true sigma lies inside the interval."""

    name: str
    estimator: str
    sigma: float
    sigma_error: float
    """Standard error over seeds."""
    sigma_complex: float
    relative_error: float
    """RMS relative error of sigma over voxels and seeds."""
    stated_error: float
    """RMS relative standard error that the maps state."""


def measure(small: SmallProblem, estimator: str, seeds: int, passes: int) -> Coverage:
    """Run one estimator with many seeds on one problem."""
    problem = Problem.of(small.recon, small.scan)
    lamda = float(problem.bound.details.get("lambda", 0.0))
    dense = torch.from_numpy(reference(problem.bound.method, problem.bound, small.scan, lamda))
    truth, truth_complex = dense[0].sqrt(), (dense[0] + dense[1]).sqrt()
    noisy = truth > 1e-6 * truth.max()
    covered, covered_complex, errors, stated = [], [], [], []
    for seed in range(seeds):
        options = {"tolerance": 0.0, "max_passes": passes, "seed": seed, "chunk": 16}
        if estimator == "sketch":
            state = sketch(problem, **options)  # type: ignore[arg-type]
        else:
            scale = 1.0 if small.linear else 0.01
            state = replicas(problem, noise_scale=scale, **options)  # type: ignore[arg-type]
        moments = state.moments
        sigma, error = moments.sigma()
        low, high = sigma_interval(sigma, moments.degrees_of_freedom())
        covered.append(float(((low <= truth) & (truth <= high))[noisy].double().mean()))
        total = moments.covariance()[:2].sum(0).sqrt()
        low, high = sigma_interval(total, moments.degrees_of_freedom_complex())
        inside = (low <= truth_complex) & (truth_complex <= high)
        covered_complex.append(float(inside[noisy].double().mean()))
        errors.append(float(((sigma / truth - 1)[noisy] ** 2).mean()))
        stated.append(float(((error / sigma)[noisy] ** 2).mean()))
    shares = torch.tensor(covered, dtype=torch.float64)
    return Coverage(
        small.name,
        estimator,
        float(shares.mean()),
        float(shares.std()) / max(seeds, 2) ** 0.5,
        sum(covered_complex) / seeds,
        (sum(errors) / seeds) ** 0.5,
        (sum(stated) / seeds) ** 0.5,
    )


def run(
    seeds: int,
    passes: int,
    names: tuple[str, ...] = NAMES,
    estimators: tuple[str, ...] = ("sketch", "replicas"),
) -> list[Coverage]:
    """All problems and both estimators."""
    return [
        measure(small, estimator, seeds, passes)
        for small in small_problems(list(names))
        for estimator in estimators
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 seeds")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--passes", type=int, default=64)
    args = parser.parse_args()
    seeds = 10 if args.quick else args.seeds
    rows = run(seeds, args.passes)
    body = table(
        [
            "reconstruction",
            "estimator",
            "coverage of sigma, %",
            "+-",
            "coverage of sigma_complex, %",
            "RMS error of sigma, %",
            "stated, %",
        ],
        [
            (
                r.name,
                r.estimator,
                f"{100 * r.sigma:.2f}",
                f"{100 * r.sigma_error:.2f}",
                f"{100 * r.sigma_complex:.2f}",
                f"{100 * r.relative_error:.2f}",
                f"{100 * r.stated_error:.2f}",
            )
            for r in rows
        ],
    )
    low, high = min(r.sigma for r in rows), max(r.sigma for r in rows)
    mean = sum(r.sigma for r in rows) / len(rows)
    body += (
        f"\n\n{seeds} seeds of {args.passes} passes, nominal 95 %: {100 * low:.2f} to "
        f"{100 * high:.2f} %, mean {100 * mean:.2f} % (95 +- 1 % wanted)."
    )
    publish("coverage", "Coverage of the 95 % intervals", body, keep=not args.quick)


if __name__ == "__main__":
    main()
