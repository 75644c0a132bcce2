"""A decomposition in numbers, as text."""

from __future__ import annotations

from snrecon.uncertainty import Decomposition
from snrecon.uncertainty.rounds import PARTS

MEANS = {
    "thermal": "the mean of the draws from scan to scan",
    "posterior": "draws at the data of one scan",
    "total": "their sum",
    "fixed_seed": "one seed from scan to scan, no part of the sum",
}


def describe_parts(result: Decomposition) -> str:
    """A table: method, rounds, what each part is on average, and its SD relative to the image."""
    rows = [("method", result.method or "callable"),
            ("estimator", f"{result.estimator}, {result.details.get('why', 'as asked')}"),
            ("rounds", f"{result.rounds} of {result.seeds} seeds, seed {result.seed}"),
            ("acceleration", f"{result.acceleration:.3f}")]
    size = float(result.mean.abs().double().square().mean().sqrt())
    for part in PARTS:
        for region, (*_, variance, error) in getattr(result, part).regions.items():
            where = "" if region == "all" else f" in {region}"
            share = f", {max(variance, 0) ** 0.5 / size:.2%} of the image (RMS)" if size else ""
            rows.append((f"{part.replace('_', ' ')}{where}",
                         f"{variance:.4g} +- {error:.2g}: {MEANS[part]}{share}"))
    if "finite_over_first_order" in result.details:
        ratio, error = result.details["finite_over_first_order"]
        rows.append(("check", f"finite differences give {ratio:.3f} +- {error:.2g} of the thermal "
                              "part to first order"))
    rows.append(("units", f"({result.units})^2, complex variance, mean over voxels"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)
