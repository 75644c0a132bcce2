"""Sketch against pseudo-replicas on the measured brains at R = 4.

For each scan and method two independent maps of sigma are compared inside the head: ``a`` from
Jacobian products of random-phase probes, ``b`` from replicas at the true noise level, and for
nonlinear methods once more from replicas with the noise scaled by 0.01. Both scatter
about their expectation by a sampling error, which each map states for every voxel; ``e`` is its
root mean square relative to sigma, ``CV`` the coefficient of variation over voxels of sigma itself,
with the sampling error's share taken out: ``CV^2 = var(sigma) / mean(sigma)^2 - e^2``.

- raw: Pearson correlation of both maps;
- ceiling ``1 / (1 + e^2 / CV^2)``: what two perfect estimators of this error would show, with the
  mean ``e^2`` and ``CV^2`` of both maps;
- corrected: raw divided by ``sqrt(r_a r_b)``, where ``r = 1 - mean(SE^2) / var(map)`` is the share
  of a map's variance over voxels that is not its sampling error. (Spearman's correction for
  attenuation; it may exceed 1 by its own error, which is given: sampling errors of neighbouring
  voxels are correlated, so it is found from the spread over blocks of 32 x 32 voxels.)

Mean ratio ``mean(a) / mean(b)``: 1 within 1 % for linear methods, whose maps are the same thing;
for nonlinear ones replicas with the noise scaled by 0.01 stay in the linear range (1 %). At the
true noise level the ratio of the root mean squares of both maps is held against the prediction of
the linearity check, from pairs +-n that are not those of the replicas. The errors of the ratios are
from the same blocks.

    python -m benchmarks.agreement [--quick] [--passes 500] [--fresh]

Interrupted runs go on from the states under ``build/benchmarks/agreement``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.real_scans import BRAINS, ROOT, Case, case
from benchmarks.scores import IMAGES, weights_checksum
from benchmarks.table import publish, table
from snrecon.data import NoiseMap
from snrecon.noise import linearity_check
from snrecon.noise.problem import Problem
from snrecon.noise.replicas import replicas
from snrecon.noise.sampling import StateFile
from snrecon.noise.sketch import sketch
from snrecon.noise.state import State
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "agreement"
METHODS = ("sense", "tv", "wavelet", "varnet")
LAMBDA = {"sense": 0.01}
"""sense without regularisation amplifies noise without bound at random masks; this is about the
lambda of least error (``scores``). The others choose their own."""
BLOCK = 32
SCALE = 0.01
PAIRS = 24


@dataclass(frozen=True)
class Agreement:
    """One row: a scan and a method."""

    scan: str
    method: str
    raw: float
    ceiling: float
    corrected: float
    corrected_error: float
    error: tuple[float, float]
    """Relative RMS sampling error of the sketch and of the replicas."""
    variation: float
    """CV of sigma in the head."""
    ratio: float
    """Mean sigma of the sketch over that of the replicas at the true noise level."""
    ratio_error: float
    rms_ratio: float
    """The same of root mean squares over the head."""
    rms_error: float
    predicted: float
    """``rms_ratio`` as the linearity check predicts it."""
    predicted_error: float
    small: float
    """As ``ratio``, replicas with the noise scaled by 0.01 (linear methods: the same as ratio)."""
    small_error: float
    small_corrected: float
    """Corrected correlation with those replicas."""
    small_corrected_error: float
    passes: tuple[int, int, int]
    """Probes, replicas, replicas at the small scale."""


def compare(first: NoiseMap, second: NoiseMap, where: Tensor) -> dict[str, Any]:
    """Correlation, its ceiling and correction, and the mean ratio over the voxels ``where``."""
    a, b = first.sigma[where].double(), second.sigma[where].double()
    assert first.standard_error is not None
    assert second.standard_error is not None
    ea, eb = first.standard_error[where].double(), second.standard_error[where].double()
    block = _blocks(where)

    def statistics(chosen: Tensor) -> np.ndarray:
        x, y, ex, ey = (v[chosen] for v in (a, b, ea, eb))
        raw = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        shares = [1 - float((e**2).mean() / v.var()) for v, e in ((x, ex), (y, ey))]
        corrected = raw / max(shares[0] * shares[1], 1e-12) ** 0.5
        rms = float((x**2).mean() / (y**2).mean()) ** 0.5
        return np.array([raw, corrected, float(x.mean() / y.mean()), rms])

    everything = torch.ones_like(a, dtype=torch.bool)
    raw, corrected, ratio, rms = statistics(everything)
    # Jackknife over blocks of voxels.
    names = block.unique()
    left_out = np.array([statistics(block != name) for name in names])
    n = len(names)
    spread = (n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0)
    errors = [float((e**2 / v.mean() ** 2).mean() ** 0.5) for v, e in ((a, ea), (b, eb))]
    e2 = (errors[0] ** 2 + errors[1] ** 2) / 2
    variations = [float(v.var() / v.mean() ** 2) - e**2 for v, e in zip((a, b), errors)]
    cv2 = max(sum(variations) / 2, 1e-12)
    return {
        "raw": raw, "corrected": corrected, "ratio": ratio, "error": tuple(errors),
        "corrected_error": spread[1] ** 0.5, "ratio_error": spread[2] ** 0.5,
        "rms_ratio": rms, "rms_error": spread[3] ** 0.5,
        "ceiling": 1 / (1 + e2 / cv2), "variation": cv2**0.5,
    }


def _blocks(where: Tensor) -> Tensor:
    """Number of the block in which each voxel of ``where`` lies."""
    y, x = torch.nonzero(where).unbind(1)
    size = min(BLOCK, max(where.shape) // 4)
    return (y // size) * 1000 + x // size


def measure(
    chosen: Case,
    method: str,
    passes: int,
    small_passes: int,
    pairs: int = PAIRS,
    cache: Path | None = CACHE,
    progress: Callable[[str], None] | None = None,
) -> tuple[Agreement, NoiseMap]:
    """Both maps of one scan and method, compared inside the head."""
    problem = Problem.of(load(method, lamda=LAMBDA.get(method)), chosen.scan)
    linear = problem.bound.linear

    def state(name: str, estimator: Callable[..., State], count: int, **options: Any) -> State:
        file = None
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            which = f"-{weights_checksum()[:12]}" if method == "varnet" else ""
            path = cache / f"{chosen.name}-{method}{which}-{name}.h5"
            file = StateFile.at(path)
        begun = time.perf_counter()
        result = estimator(
            problem, tolerance=0, max_passes=count, state_file=file, **options
        )
        if progress is not None:
            took = time.perf_counter() - begun
            progress(f"{chosen.name} {method} {name}: {count} passes in {took:.0f} s")
        return result

    first = state("sketch", sketch, passes, seed=1).result()
    first = replace(first, details={**problem.bound.details, **first.details})
    second = state("replicas", replicas, passes, seed=2).result()
    where = chosen.head & (first.sigma > 0)
    both = compare(first, second, where)
    near, count = both, 0
    predicted, predicted_error = 1.0, 0.0
    if not linear:
        third = state("small", replicas, small_passes, seed=3, noise_scale=SCALE).result()
        near, count = compare(first, third, where), small_passes
        predicted, predicted_error = prediction(problem, chosen, pairs)
    row = Agreement(
        chosen.name, method, predicted=predicted, predicted_error=predicted_error,
        small=near["ratio"], small_error=near["ratio_error"], small_corrected=near["corrected"],
        small_corrected_error=near["corrected_error"], passes=(passes, passes, count), **both,
    )
    return row, first


def prediction(problem: Problem, chosen: Case, pairs: int) -> tuple[float, float]:
    """Sketch over replicas, root mean squares over the head, as the linearity check predicts it,
    and its standard error."""
    checked = linearity_check(problem.bound, chosen.scan, draws=pairs, seed=4, region=chosen.head)
    return 1 / checked.ratio, checked.ratio_error / checked.ratio**2


def run(
    names: Sequence[str] = BRAINS,
    methods: Sequence[str] = METHODS,
    passes: int = 500,
    small_passes: int = 500,
    pairs: int = PAIRS,
    cache: Path | None = CACHE,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[tuple[Agreement, NoiseMap]]]:
    """Rows and sketched maps of each scan."""
    results = {}
    for name in names:
        chosen = case(name)
        results[name] = [
            measure(chosen, m, passes, small_passes, pairs, cache, progress) for m in methods
        ]
    return results


def picture(name: str, maps: Sequence[NoiseMap], path: Path) -> None:
    """Image, sigma, SNR and g-factor of every method, a row each, in the head.

    The maps are estimated, so that images count in the complex noise SD of full sampling.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    head = case(name).head
    rows, columns = (torch.nonzero(head.any(d)).flatten() for d in (1, 0))
    window = (
        slice(max(int(rows[0]) - 3, 0), int(rows[-1]) + 4),
        slice(max(int(columns[0]) - 3, 0), int(columns[-1]) + 4),
    )

    def top(values: Sequence[Tensor], quantile: float) -> float:
        return max(float(np.quantile(v[head].numpy(), quantile)) for v in values)

    snr = [m.snr for m in maps]
    shared_image = top([m.image.abs() for m in maps[1:]], 0.985)
    shape = head[window].shape
    width, bar, height = 2.3, 0.75, 2.3 * shape[0] / shape[1]
    total = (4 * (width + bar) + 0.45, len(maps) * (height + 0.33) + 0.1)
    drawing = Figure(figsize=total)
    FigureCanvasAgg(drawing)
    for row, result in enumerate(maps):
        factor = result.g_factor
        assert factor is not None
        panels = [
            ("|x| / noise SD", result.image.abs(), "gray", shared_image, False),
            ("sigma / noise SD", result.sigma, "viridis", top([result.sigma], 0.99), True),
            ("SNR", result.snr, "magma", top([snr[row]], 0.98), True),
            ("g-factor", factor, "inferno", top([factor], 0.99), True),
        ]
        for column, (title, values, colours, limit, masked) in enumerate(panels):
            axes = drawing.add_axes(
                (
                    (0.4 + column * (width + bar)) / total[0],
                    1 - ((row + 1) * (height + 0.33)) / total[1],
                    width / total[0],
                    height / total[1],
                )
            )
            shown = np.ma.masked_where(~head[window].numpy() & masked, values[window].numpy())
            axes.set_facecolor("0.82")
            drawn = axes.imshow(shown, cmap=colours, vmin=0, vmax=limit, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=11)
            drawing.colorbar(drawn, cax=axes.inset_axes((1.02, 0, 0.05, 1)))
            if column == 0:
                lamda = result.details.get("lambda")
                extra = "" if lamda is None else f", lambda {lamda:.2g}"
                axes.set_ylabel(f"{result.method}{extra}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=75)


def tables(rows: Sequence[Agreement]) -> str:
    """Markdown: correlations, then mean ratios."""
    correlations = table(
        ["scan", "method", "SE of sketch, replicas, %", "CV of sigma", "raw r", "ceiling",
         "corrected r", "corrected r, noise x 0.01"],
        [
            (
                r.scan, r.method, ", ".join(f"{100 * e:.2f}" for e in r.error),
                f"{r.variation:.3f}", f"{r.raw:.4f}", f"{r.ceiling:.4f}",
                f"{r.corrected:.4f} +- {r.corrected_error:.4f}",
                "linear" if r.passes[2] == 0
                else f"{r.small_corrected:.4f} +- {r.small_corrected_error:.4f}",
            )
            for r in rows
        ],
    )
    ratios = table(
        ["scan", "method", "mean ratio, noise x 0.01", "mean ratio, true noise",
         "RMS ratio, true noise", "predicted by the linearity check"],
        [
            (
                r.scan, r.method,
                "linear" if r.passes[2] == 0 else f"{r.small:.4f} +- {r.small_error:.4f}",
                f"{r.ratio:.4f} +- {r.ratio_error:.4f}",
                f"{r.rms_ratio:.4f} +- {r.rms_error:.4f}",
                "1 (linear)" if r.passes[2] == 0
                else f"{r.predicted:.4f} +- {r.predicted_error:.4f}",
            )
            for r in rows
        ],
    )
    return f"{correlations}\n\n{ratios}"


def main() -> None:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 passes on pulseq, nothing written")
    parser.add_argument("--passes", type=int, default=500)
    parser.add_argument("--fresh", action="store_true", help="do not go on from earlier states")
    parser.add_argument("--scans", nargs="*", default=BRAINS, help="others: no table is kept")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="others: no table is kept")
    args = parser.parse_args()
    whole = not args.quick and (*args.scans, *args.methods) == (*BRAINS, *METHODS)
    if args.fresh and CACHE.is_dir():
        for path in CACHE.glob("*.h5"):
            path.unlink()
    if args.quick:
        results = run(("pulseq",), passes=20, small_passes=20, pairs=4, cache=None, progress=print)
    else:
        results = run(args.scans, args.methods, args.passes, args.passes, progress=print)
    rows = [row for found in results.values() for row, _ in found]
    counts = rows[-1].passes
    body = (
        f"Inside the head, R = 4 (random mask), {counts[0]} probes, {counts[1]} replicas, "
        f"{counts[2]} replicas at the small scale. Wanted: corrected r at least 0.99 and the "
        "ratio of sketch over replicas within 1 % where first order holds (linear methods, and "
        "the small noise), the RMS ratio at the true noise as predicted. A corrected r below 0.99 "
        f"at the true noise is the nonlinearity of the method.\n\n{tables(rows)}"
    )
    publish("agreement", "Sketch against replicas on the measured brains", body, whole)
    if whole:
        for name, found in results.items():
            picture(name, [m for _, m in found], IMAGES / f"real_noise_{name}.png")


if __name__ == "__main__":
    main()
