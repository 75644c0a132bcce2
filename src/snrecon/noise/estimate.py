"""The noise map of any reconstruction: one door to every estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data import NoiseMap, Scan
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError, SnreconWarning
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.noise.analytic import analytic, unsupported
from snrecon.noise.certified import certified_map
from snrecon.noise.corrected import corrected_map
from snrecon.noise.exact import exact
from snrecon.noise.options import chosen
from snrecon.noise.own_function import require_repeatable
from snrecon.noise.predicted import load_predictor
from snrecon.noise.problem import Problem, Progress, Reconstruction
from snrecon.noise.replicas import replicas
from snrecon.noise.sampling import StateFile
from snrecon.noise.sketch import sketch
from snrecon.noise.state import Stack, State
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.physics.memory import available_bytes
from snrecon.recon.option_types import number, seed_number, whole_number

Estimator = Literal["auto", "analytic", "exact", "certified", "corrected", "sketch", "replicas"]
ESTIMATORS = ("auto", "analytic", "exact", "certified", "corrected", "sketch", "replicas")
SAMPLED = ("certified", "corrected", "sketch", "replicas")

FOLD_BYTES = 1200
"""Memory that certifying takes for every voxel: the folds' sums, features, maps of every pair."""

TAKES = {"certified": ("predictor", "regions"), "corrected": ("predictor",)}
"""What some estimators can be given besides."""
JACOBIAN: dict[str, Callable[..., State]] = {
    "certified": certified_map, "corrected": corrected_map, "sketch": sketch}


def noise_map(
    recon_or_f: Reconstruction,
    scan: Scan,
    *,
    estimator: Estimator = "auto",
    tolerance: float = 0.05,
    max_passes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state: str | Path | None = None,
    voxels: Tensor | None = None,
    chunk: int | None = None,
    noise_scale: float = 1.0,
    compress: float | None = None,
    predictor: str | Path | NoisePredictor | None = None,
    regions: Mapping[str, Tensor] | None = None,
) -> NoiseMap:
    """Reconstruct and map the noise of every voxel.

    Args:
        recon_or_f: A Reconstructor (an object with ``bind``), or any callable from k-space
            ``(coil, *grid)`` to an image ``(*grid)`` or a crop of it with as many axes, which
            receives ``scan.kspace`` exactly as loaded.
        scan: One slice, a 3D grid, or a stack (each slice on its own); its noise must be known.
        estimator: ``analytic`` (closed form), ``exact`` (one VJP a row), ``sketch`` (Jacobian
            products of random-phase probes), ``certified`` (the same products, more made of them,
            and their error measured on probes held out), ``corrected`` (that map, corrected by a
            few noisy reconstructions for what first order leaves out), ``replicas`` (Monte Carlo),
            or ``auto``: the first of analytic, certified, replicas that the method allows;
            ``details["why"]`` says why.
        tolerance: Relative RMS error of sigma over voxels with ``|x| >= 3 sigma`` at which to stop;
            0 runs to ``max_passes``, which is needed then except for exact and closed forms. Of the
            certified estimator it is the upper 95 % limit; sketch and replicas take their standard
            error.
        max_passes: Largest number of probes or replicas, each slice.
        seed: Seed of probes and replicas; same seed, same result.
        progress: ``progress(done, total, message)``.
        state: File to save to and resume from (exact, sketch and replicas); the analytic map needs
            none and warns.
        voxels: Boolean ``(*image)``: rows wanted from ``exact``; others are 0.
        chunk: Probes at once; by default from the memory at hand.
        noise_scale: Replicas only: noise of this many times its SD, the result divided by it.
        compress: Exact rows only: voxels share VJPs where at most this share of a row's energy,
            1e-4 say, lies in a neighbour's part.
        predictor: Certified and corrected maps only: a network trained to predict the noise of this
            reconstruction (scheme ``noise_predictor``), a shipped one by name or one from a file.
            What it is worth the certificate finds out.
        regions: Certified maps only: boolean, shaped as the maps, by name; each gets a certificate
            of its own, ``details["certificate"]["regions"]``. Regions without noise get none, with
            a warning; there is one too where ``auto`` chooses what takes no regions, or predictor.

    Returns:
        NoiseMap with image, maps and what was frozen.

    Raises:
        InputError: if the noise is unknown, an option does not fit, the callable returns no such
            image, draws at random or is a network in training mode, or the estimator does not apply
            to the method.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}.")
    tolerance, noise_scale = number("tolerance", tolerance), number("noise_scale", noise_scale)
    seed = seed_number(seed)
    max_passes = None if max_passes is None else whole_number("max_passes", max_passes, least=1)
    chunk = None if chunk is None else whole_number("chunk", chunk, least=1)
    if tolerance < 0:
        raise InputError(f"tolerance must be 0 or a positive number, not {tolerance}.")
    if estimator != "auto":
        _require_end(estimator, tolerance, max_passes)
    if noise_scale <= 0:
        raise InputError(f"noise_scale must be positive, not {noise_scale}.")
    if voxels is not None and estimator not in ("auto", "exact"):
        raise InputError("a choice of voxels is for the exact estimator only.")
    if compress is not None and estimator != "exact":
        raise InputError("compressed rows (compress) are for the exact estimator only.")
    if predictor is not None and estimator not in ("auto", *TAKES):
        raise InputError("a noise predictor is for the certified and corrected estimators only.")
    if regions and estimator not in ("auto", "certified"):
        raise InputError("regions are for the certified estimator only.")
    scan.require_noise()
    if scan.maps is not None and not bool(scan.maps.any()):
        raise InputError(f"{scan.source}: the coil maps are zero everywhere: there is no image.")
    options: dict[str, Any] = {
        "tolerance": tolerance,
        "max_passes": max_passes,
        "seed": seed,
        "chunk": chunk,
    }
    results = []
    for index, one in enumerate(scan):
        problem = Problem.of(recon_or_f, one)
        report = progress if scan.slices == 1 else _prefixed(progress, index, scan.slices)
        results.append(
            _slice_map(
                problem,
                estimator,
                options | {"progress": report},
                StateFile.at(state, index, Stack(scan.slices, scan.layout)),
                _voxels(voxels, scan, index),
                noise_scale,
                compress,
                {"predictor": predictor, "regions": _regions(regions or {}, scan, index)},
            )
        )
    if state is not None and any(result.estimator == "analytic" for result in results):
        warnings.warn(
            f"the analytic map has no state; {state} is not written.", SnreconWarning, stacklevel=2
        )
    return results[0] if scan.layout == "grid" else stacked(results)


def _require_end(estimator: str, tolerance: float, max_passes: int | None) -> None:
    """InputError where nothing would end a run."""
    if tolerance == 0 and max_passes is None and estimator in SAMPLED:
        raise InputError("with tolerance 0 the number of passes must be given (max_passes).")


def _voxels(voxels: Tensor | None, scan: Scan, index: int) -> Tensor | None:
    """Those of one slice."""
    if voxels is None:
        return None
    voxels = torch.as_tensor(voxels)
    if scan.layout != "stack":
        return voxels
    if voxels.ndim != 3 or voxels.shape[0] != scan.slices:
        raise InputError(f"the voxels have shape {tuple(voxels.shape)}, but the scan has "
                         f"{scan.slices} slices.")
    return voxels[index]


def _regions(regions: Mapping[str, Tensor], scan: Scan, index: int) -> dict[str, Tensor]:
    """Those of one slice; of a stack, only those that reach into it."""
    given = {name: torch.as_tensor(region) for name, region in regions.items()}
    if scan.layout != "stack":
        return given
    for name, region in given.items():
        if region.ndim != 3 or region.shape[0] != scan.slices:
            raise InputError(f"the region {name!r} has shape {tuple(region.shape)}, but the scan "
                             f"has {scan.slices} slices.")
        if not bool(region.any()):
            raise InputError(f"the region {name!r} is empty.")
    return {name: region[index] for name, region in given.items() if bool(region[index].any())}


def _checked(problem: Problem, more: dict[str, Any]) -> dict[str, Any]:
    """Predictor and regions, whatever becomes of them.

    Raises:
        InputError: if the predictor cannot be read, or a region does not fit.
    """
    if more["predictor"] is not None:
        load_predictor(more["predictor"])
    regions = {name: chosen(region, problem.image, f"the region {name!r}")
               for name, region in more["regions"].items()}
    return more | {"regions": regions}


def _warn_unused(estimator: str, more: dict[str, Any]) -> None:
    """Say what the estimator that was chosen can make no use of."""
    unused = [key for key, value in more.items()
              if key not in TAKES.get(estimator, ()) and value is not None and value != {}]
    for key in unused:
        warnings.warn(f"{key} without effect: the estimator chosen is {estimator}.",
                      SnreconWarning, stacklevel=4)


def _warn_quiet(regions: dict[str, Tensor], result: NoiseMap) -> None:
    """Say which regions hold no noise that could be certified."""
    certificate = result.details.get("certificate")
    if not certificate:
        return
    for name in regions:
        if name not in certificate.get("regions", {}):
            warnings.warn(f"the region {name!r} has no noise, and so no certificate.",
                          SnreconWarning, stacklevel=4)


def _slice_map(
    problem: Problem,
    estimator: str,
    options: dict[str, Any],
    state_file: StateFile | None,
    voxels: Tensor | None,
    noise_scale: float,
    compress: float | None,
    more: dict[str, Any],
) -> NoiseMap:
    more = _checked(problem, more)
    taken, why = (estimator, "as asked") if estimator != "auto" else _choose(problem, voxels)
    _require_end(taken, options["tolerance"], options["max_passes"])
    _warn_unused(taken, more)
    facts = {**_facts(problem), "why": why}
    progress, chunk = options["progress"], options["chunk"]
    if taken == "analytic":
        return replace(analytic(problem, details=facts), seed=options["seed"])
    if taken == "replicas":
        require_repeatable(problem)
    try:
        if taken == "exact":
            rows = exact(
                problem,
                voxels=voxels,
                compress=compress,
                progress=progress,
                state_file=state_file,
                chunk=chunk,
                details=facts,
            )
            return replace(rows, seed=options["seed"])
        if taken in JACOBIAN:
            run = JACOBIAN[taken]
            fitting = {key: more[key] for key in TAKES.get(taken, ())}
            result = run(
                problem, **options, state_file=state_file, details=facts, **fitting).result()
            _warn_quiet(fitting.get("regions", {}), result)
            return result
    except NotDifferentiableError as error:
        require_repeatable(problem)  # of what draws at random there are no replicas either
        if estimator != "auto":
            source = problem.scan.source
            raise InputError(f"{source}: {error}; use the estimator 'replicas'.") from error
        facts["why"] = f"replicas, because {error}"
        warnings.warn(f"using replicas: {error}.", SnreconWarning, stacklevel=3)
        _warn_unused("replicas", more if taken in TAKES else {})
    state = replicas(
        problem, **options, state_file=state_file, noise_scale=noise_scale, details=facts
    )
    return state.result()


def _choose(problem: Problem, voxels: Tensor | None) -> tuple[str, str]:
    if voxels is not None:
        return "exact", "exact, because single voxels were asked for"
    reason = unsupported(problem)
    if reason is None:
        return "analytic", "analytic, because there is a closed form, exact and without passes"
    if not problem.bound.differentiable:
        return "replicas", f"replicas, because {reason} and it cannot be differentiated"
    free = available_bytes(problem.image.device)
    if FOLD_BYTES * problem.image.numel() > free / 2:
        return "sketch", (f"sketch, because {reason}, and what certifies a map of this size takes "
                          "more memory than there is")
    return "certified", f"certified, because {reason}, and few Jacobian products do"


def _facts(problem: Problem) -> dict[str, object]:
    noise = problem.scan.require_noise()
    facts: dict[str, object] = dict(problem.details)
    facts["noise_source"] = noise.source
    facts["noise_coloured"] = noise.spectrum is not None
    return facts


def _prefixed(progress: Progress | None, index: int, slices: int) -> Progress | None:
    if progress is None:
        return None

    def report(done: int, total: int | None, message: str) -> None:
        assert progress is not None
        progress(done, total, f"slice {index + 1}/{slices}, {message}")

    return report


def stacked(results: list[NoiseMap]) -> NoiseMap:
    """The slices' results as one, maps ``(slice, ky, kx)``."""
    first = results[0]

    def stack(name: str, axis: int = 0) -> Tensor | None:
        maps = [getattr(r, name) for r in results]
        return None if any(m is None for m in maps) else torch.stack(maps, dim=axis)

    names = ("image", "sigma", "sigma_complex", "snr", "sigma_phase", "g_factor", "standard_error")
    kinds = {r.estimator for r in results}
    return replace(
        first,
        **{name: stack(name) for name in names},  # type: ignore[arg-type]
        covariance=stack("covariance", 1),
        estimator=first.estimator if len(kinds) == 1 else ", ".join(sorted(kinds)),
        passes=sum(r.passes for r in results),
        acceleration=len(results) / sum(1 / r.acceleration for r in results),
        layout="stack",
        details={**first.details, **_worst(results), "slices": len(results)},
    )


def _worst(results: list[NoiseMap]) -> dict[str, object]:
    """What the slices know of their error, the largest of each figure."""
    worst: dict[str, object] = {}
    if all("compression_error" in r.details for r in results):
        worst["compression_error"] = max(r.details["compression_error"] for r in results)
    if all(FLOOR in r.details for r in results):
        worst[FLOOR] = _largest([r.details[FLOOR] for r in results])
    certificates = [r.details.get("certificate") for r in results]
    if any(certificates):  # one slice without a certificate leaves all without
        known = [c for c in certificates if c]
        worst["certificate"] = _largest(known) if len(known) == len(results) else None
    return worst


def _largest(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest of every number, in tables within tables too."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        found[key] = _largest(values) if isinstance(values[0], dict) else max(values)
    return found
