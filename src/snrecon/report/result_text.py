"""A noise map in numbers, as text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from snrecon.data import NoiseMap, Scan
from snrecon.data.noise_map import FLOOR
from snrecon.noise import repetition_check
from snrecon.noise.problem import Reconstruction


def inside(result: NoiseMap) -> Tensor:
    """Boolean: voxels with noise that are not of low SNR; all with noise if none reaches that."""
    noisy = result.sigma > 0
    chosen = noisy & ~result.low_snr
    return chosen if bool(chosen.any()) else noisy


def describe_result(result: NoiseMap) -> str:
    """A table: estimator and why, lambda, maps, passes, sigma, SNR, error, g-factor, frozen parts.

    Medians are over voxels with ``|x| >= 3 sigma``.
    """
    rows: list[tuple[str, str]] = [("method", result.method or "callable")]
    why = str(result.details.get("why", ""))
    named = why.startswith(result.estimator)
    rows.append(("estimator", why if named else f"{result.estimator} ({why})".replace(" ()", "")))
    rows += _settings(result)
    rows.append(("passes", f"{result.passes:g}{_seeds(result)}"))
    rows.append(("acceleration", f"{result.acceleration:.3f}"))
    where = inside(result)
    noisy = result.sigma > 0
    if bool(where.any()):
        rows.append(("sigma", f"{float(result.sigma[where].median()):.4g} (median)"))
        rows.append(("SNR", f"{float(result.snr[where].median()):.4g} (median)"))
        rows.append(("relative error", _error(result)))
        low = float((result.low_snr & noisy).sum()) / float(noisy.sum())
        weak = "do not rise above the noise of the coils" if FLOOR in result.details else (
            "have |x| < 3 sigma")
        rows.append(("low SNR", f"{low:.1%} of voxels {weak}"))
    else:
        rows.append(("sigma", "0 everywhere"))
    if result.g_factor is not None and bool(where.any()):
        g = result.g_factor[where]
        rows.append(("g-factor", f"median {float(g.median()):.3f}, largest {float(g.max()):.3f}"))
    rows.append(("units", result.units))
    if result.dithered is not None:
        facts = result.details.get("dither", {})
        rows.append(("dithered", f"a copy for display, with noise of {facts.get('fraction')} sigma "
                     f"added: SD {facts.get('total_sd_over_sigma', float('nan')):.4g} sigma"))
    rows.append(("frozen", ", ".join(result.frozen) or "nothing"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def describe_repetitions(recon: Reconstruction, scan: Scan, result: NoiseMap) -> str:
    """The map against the standard deviation over the scan's repetitions.

    Raises:
        InputError: if the scan has fewer than two.
    """
    check = repetition_check(recon, scan, result)
    return (
        f"repetitions    SD over {check.repetitions} repetitions / sigma = {check.ratio:.3f} +- "
        f"{check.ratio_error:.3f}"
    )


def _settings(result: NoiseMap) -> list[tuple[str, str]]:
    """How a volume was sliced; lambda and the coil maps, each with where it comes from; what
    predicted the noise."""
    details, rows = result.details, []
    slices = details.get("slices")
    note = f"the first of {slices} slices" if isinstance(slices, int) and slices > 1 else ""
    if sliced := details.get("sliced"):
        rows.append(("planes", f"{slices}, the volume sliced {sliced}"))
    lamda = details.get("lambda")
    if isinstance(lamda, float | int):
        source = str(details.get("lambda_source", ""))
        # A given lambda is the same in all slices.
        facts = [source, note] if source not in ("", "given") else [source]
        told = ", ".join(fact for fact in facts if fact)
        rows.append(("lambda", f"{lamda:.4g}" + (f" ({told})" if told else "")))
    if maps := str(details.get("maps", "")):
        estimated = note and not maps.startswith(("given", "ones", "none"))
        rows.append(("coil maps", f"{maps} ({note})" if estimated else maps))
    if predictor := details.get("predictor"):
        rows.append(("predictor", str(predictor)))
    return rows


def _seeds(result: NoiseMap) -> str:
    """The seed; after a merge every seed that was used, of which ``result.seed`` is only one."""
    drawn = result.details.get("seeds")
    if isinstance(drawn, Mapping) and len(drawn) > 1:
        return f", seeds {', '.join(map(str, sorted(map(int, drawn))))}"
    return "" if result.seed is None else f", seed {result.seed}"


def _error(result: NoiseMap) -> str:
    packed = result.details.get("compression_error")
    if isinstance(packed, float):
        return f"{packed:.2%} of sigma, found at voxels whose rows were taken alone"
    if result.standard_error is None or result.estimator in ("analytic", "exact"):
        return "none: the map is exact"
    certificate = result.details.get("certificate")
    if isinstance(certificate, Mapping) and result.estimator == "certified":
        # Measured as a difference, it can come out below zero, which stands as zero.
        error = certificate["error"]
        found = f"{error:.2%} of sigma" if error else "too small to see"
        return (f"{found}, at most {certificate['bound']:.2%} (95 %), "
                "measured on probes held out (RMS where |x| >= 3 sigma)")
    return f"{result.relative_error:.2%} of sigma (RMS where |x| >= 3 sigma)"
