"""How far are the samplers from a posterior that is known exactly?

An image is drawn from a prior in closed form (a Gaussian; a mixture of two), measured by one or
several coils along half of the lines, and sampled by every method that takes the prior's score.
Mean and SD of the samples are compared with those of the exact posterior. What the methods are
given is the exact score, so all that differs is their own doing.

    python -m benchmarks.toy_posterior [--quick] [--fresh] [--samples 200]

Finished cells are kept under ``build/benchmarks/toy_posterior``.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import cells
from benchmarks.real_scans import ROOT
from benchmarks.table import insert, publish, table
from benchmarks.toy_problems import GRID, STRIPES, Problem, chain_law, make_problem, wave
from snrecon.recon.base import Reconstructor
from snrecon.recon.langevin import Langevin
from snrecon.recon.toy_priors import GaussianMixture, GaussianPrior, MixturePrior, as_vectors

FOLDER = cells.BUILD / "toy_posterior"
DOCUMENT = ROOT / "docs" / "toy_posterior.md"
EXACT_DRAWS = 20000
"""From which the exact moments of magnitudes, and the exact share of a mode, are taken."""
AT_ONCE = 100_000
SETTINGS = (("gaussian", 0.02), ("gaussian", 0.1), ("mixture", 0.1))
"""Priors and noise levels."""


@dataclass(frozen=True)
class Entry:
    """One method of the table: its class by name, so that a version without it has a shorter
    table."""

    name: str
    module: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    coils: int = 3
    kspace_unit: bool = False
    """Its scale is in the unit of the k-space, not in SNR units."""
    real: bool = False
    """It samples real images."""


EXACT = ("snrecon.recon.gaussian_posterior", "GaussianPosterior")
LANGEVIN = ("snrecon.recon.langevin", "Langevin")
SCORE = ("snrecon.recon.score", "Score")
ENTRIES = (
    Entry("exact: perturb and solve", *EXACT),
    Entry("langevin", *LANGEVIN),
    Entry("langevin, neither settled nor denoised", *LANGEVIN,
          {"levels": 120, "settle": 0, "denoise": False}),
    Entry("langevin, as published", *LANGEVIN, {"as_published": True}),
    Entry("score, dds", *SCORE, {"algorithm": "dds", "demodulate": False}),
    Entry("score, dds, eta 0", *SCORE, {"algorithm": "dds", "demodulate": False, "eta": 0.0}),
    Entry("score, 2 (real)", *SCORE, {"algorithm": "2"}, 1, True, True),
    Entry("score, 3 (complex)", *SCORE, {"algorithm": "3"}, 1, True),
    Entry("score, 4 (ssos)", *SCORE, {"algorithm": "4"}, 1, True),
    Entry("score, 5 (hybrid)", *SCORE, {"algorithm": "5"}, 3, True),
)

SCHEDULES: dict[str, dict[str, Any]] = {
    "60 levels, 180 steps to settle: the default": {},
    "100 levels, 60 steps to settle": {"levels": 100, "settle": 60},
    "100 levels, 300 steps to settle": {"levels": 100, "settle": 300},
    "300 levels, 1000 steps to settle": {"levels": 300, "settle": 1000},
    "120 levels, neither settled nor denoised": {"levels": 120, "settle": 0, "denoise": False},
    "as published": {"as_published": True},
}
SCHEDULE_GAMMAS = (0.005, 0.02, 0.1)


def build(entry: Entry, problem: Problem) -> Reconstructor | None:
    """The method, with the prior's score; None if this version does not have it, or it does not
    apply to the prior."""
    try:
        method = getattr(import_module(entry.module), entry.kind)
    except (ImportError, AttributeError):
        return None
    if entry.kind == "GaussianPosterior":
        if not isinstance(problem.prior, GaussianPrior):
            return None
        built = method(problem.prior, problem.scale)
    else:
        scale = problem.scale
        if entry.kspace_unit:
            assert problem.scan.maps is not None
            scale = scale * float(problem.scan.maps.abs().max())
        built = method(score=problem.prior, scale=scale, at_once=AT_ONCE, **entry.options)
    assert isinstance(built, Reconstructor)
    return built


def draw(recon: Reconstructor, problem: Problem, samples: int) -> tuple[Tensor, dict[str, Any]]:
    """Samples ``(samples, ky, kx)`` in the prior's unit, and what the method says of itself."""
    scan = problem.scan
    bound = recon.bind(scan)
    assert bound.sample is not None
    assert scan.maps is not None
    with torch.no_grad():
        images = bound.sample(scan.kspace, range(samples)) / problem.scale
    if bound.maps is None:  # root sums of squares of the coils as stored
        images = images / scan.maps.abs().square().sum(0).sqrt()
    return images, bound.details


def compare(images: Tensor, law: GaussianMixture) -> dict[str, float]:
    """Samples against the exact posterior.

    Root sums of squares are compared with the magnitude of exact draws.

    Returns:
        ``bias``: root mean square over the components of voxels of (mean - exact mean) / exact SD,
        the share of sampling error subtracted from the square; ``bias_error``: the root of that
        share; ``ratio``: root of the mean of variance over exact variance; ``ratio_error``: its
        standard error; ``low`` and ``high``: the smallest and the largest SD over exact SD along
        principal axes of the exact covariance, the extreme twentieths left out.
    """
    values = as_vectors(images) if images.is_complex() else images.flatten(1)
    if values.shape[1] == law.means.shape[1]:
        mean, covariance = law.mean, law.covariance
    else:
        exact = law.draw(EXACT_DRAWS, torch.Generator().manual_seed(9))
        size = torch.complex(*exact.chunk(2, dim=1)).abs()
        mean, covariance = size.mean(0), torch.cov(size.T)
    standard = (values - mean) / covariance.diagonal().sqrt()
    variances = standard.var(0)
    expected = float(variances.mean()) / len(values)
    squares = float(standard.mean(0).square().mean())
    lengths, axes = torch.linalg.eigh(covariance)
    along = ((values - mean) @ axes).std(0) / lengths.clamp_min(1e-12).sqrt()
    return {
        "bias": max(squares - expected, 0.0) ** 0.5,
        "bias_error": expected**0.5,
        "ratio": float(variances.mean()) ** 0.5,
        "ratio_error": _ratio_error(standard),
        "low": float(torch.quantile(along, 0.05)),
        "high": float(torch.quantile(along, 0.95)),
    }


def _ratio_error(standard: Tensor) -> float:
    """Standard error of ``ratio``, from the spread of each sample's mean square."""
    squares = (standard - standard.mean(0)).square().mean(1)
    level = float(squares.mean())
    return float(squares.std()) / len(squares) ** 0.5 / (2 * max(level, 1e-30) ** 0.5)


def share(images: Tensor, problem: Problem) -> tuple[float, float] | None:
    """Share of real parts that are in the second mode of a mixture, and what it is exactly; None
    for other priors and for magnitudes."""
    if not isinstance(problem.prior, MixturePrior) or not images.is_complex():
        return None
    pattern = wave(problem.scan.grid, *STRIPES[0]).flatten()
    middle = torch.stack([c.mean for c in problem.prior.components]).mean(0).flatten() @ pattern
    exact = problem.law.draw(EXACT_DRAWS, torch.Generator().manual_seed(8))[:, : len(pattern)]
    found, wanted = images.real.flatten(1) @ pattern, exact @ pattern
    return float((found > middle).double().mean()), float((wanted > middle).double().mean())


def measure(
    entry: Entry, prior: str, gamma: float, samples: int, grid: tuple[int, int] = GRID,
    folder: Path | None = FOLDER,
) -> dict[str, Any] | None:
    """One cell of the table; None where the method does not exist or does not apply."""
    name = f"{entry.name}-{prior}-{gamma:g}"
    name = re.sub("[^A-Za-z0-9.-]+", "_", name)
    coils = entry.coils if prior == "gaussian" else 1  # several leave no doubt about the mode
    problem = make_problem(prior, gamma, coils, grid, not entry.real)
    recon = build(entry, problem)
    if recon is None:
        return None
    options = str(getattr(recon, "schedule", getattr(recon, "settings", "")))  # with defaults
    settings = [samples, list(grid), options]
    stored = cells.read(folder, name)
    if stored is not None and stored["settings"] == settings:
        return dict(stored)
    start = time.perf_counter()
    images, details = draw(recon, problem, samples)
    seconds = time.perf_counter() - start
    cell: dict[str, Any] = {
        "entry": entry.name, "prior": prior, "gamma": gamma, "coils": coils,
        "evaluations": details.get("evaluations"), "seconds": seconds,
        "share": share(images, problem), **compare(images, problem.law), "settings": settings,
    }
    cells.write(folder, name, cell)
    return cell


def run(
    settings: Sequence[tuple[str, float]] = SETTINGS,
    samples: int = 200,
    grid: tuple[int, int] = GRID,
    folder: Path | None = FOLDER,
    entries: Sequence[Entry] = ENTRIES,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """All cells."""
    found = []
    for prior, gamma in settings:
        for entry in entries:
            cell = measure(entry, prior, gamma, samples, grid, folder)
            if cell is not None:
                found.append(cell)
                if progress is not None:
                    progress(f"{entry.name}, {prior}, gamma {gamma:g}: {cell['seconds']:.0f} s")
    return found


def as_table(found: Sequence[dict[str, Any]]) -> str:
    """The cells as a table."""
    rows = [
        (
            c["prior"], f"{c['gamma']:g}", c["entry"], c["coils"],
            "-" if c["evaluations"] is None else c["evaluations"],
            f"{c['bias']:.3f} ({c['bias_error']:.3f})",
            f"{c['ratio']:.3f} +- {c['ratio_error']:.3f}", f"{c['low']:.2f} to {c['high']:.2f}",
            "-" if c["share"] is None else f"{c['share'][0]:.2f} ({c['share'][1]:.2f})",
        )
        for c in found
    ]
    header = ["prior", "gamma", "method", "coils", "evaluations", "bias of the mean / SD",
              "SD / exact SD", "along principal axes",
              "share of the second mode"]
    return table(header, rows)


def schedule_table(grid: tuple[int, int] = GRID) -> str:
    """Langevin dynamics under the Gaussian prior by their exact law, nothing random: bias and SD
    along the principal axes of the exact posterior."""
    rows = []
    for name, options in SCHEDULES.items():
        cells_of_row: list[object] = []
        for gamma in SCHEDULE_GAMMAS:
            problem = make_problem("gaussian", gamma, 3, grid)
            recon = Langevin(score=problem.prior, scale=problem.scale, **options)
            law = chain_law(problem, recon.schedule, recon.denoise)
            variances, axes = torch.linalg.eigh(problem.law.covariance)
            bias = (law.mean - problem.law.mean) @ axes / variances.sqrt()
            ratio = ((axes.T @ law.covariance @ axes).diagonal() / variances).sqrt()
            cells_of_row.append(
                f"{float(bias.square().mean().sqrt()):.3f}; "
                f"{float(ratio.min()):.2f} to {float(ratio.max()):.2f}")
        rows.append((name, recon.schedule.total + recon.denoise, *cells_of_row))
    return table(["schedule", "evaluations", *(f"gamma {g:g}" for g in SCHEDULE_GAMMAS)], rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing written")
    parser.add_argument("--fresh", action="store_true", help="do not use finished cells")
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    if args.fresh and not args.quick:
        cells.start_over(FOLDER)
    if args.quick:
        found = run((("gaussian", 0.1),), 50, (6, 6), None, ENTRIES[:3], print)
    else:
        found = run(samples=args.samples, progress=print)
    body = as_table(found)
    explained = (
        f"\n\n{found[0]['settings'][0]} samples of one measurement each, grid "
        f"{'x'.join(map(str, found[0]['settings'][1]))}. The bias is the root mean square over "
        "real and imaginary parts of voxels, sampling error subtracted; in brackets how large that "
        "sampling error is, below which a bias does not show. SD ratios are root mean squares, "
        "their errors a standard error; evaluations of the score are per sample."
    )
    schedules = schedule_table((6, 6) if args.quick else GRID)
    law = ("Langevin dynamics, by their exact law: root mean square bias over exact SD; smallest "
           "and largest SD over exact SD, along principal axes.\n\n")
    publish("toy_posterior", "Samplers against exact posteriors",
            f"{body}{explained}\n\n{law}{schedules}", keep=not args.quick)
    if not args.quick:
        cells.gather(FOLDER)
        insert(DOCUMENT, "samplers", body + explained)
        insert(DOCUMENT, "schedules", schedules)


if __name__ == "__main__":
    main()
