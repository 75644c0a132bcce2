"""Scores of every method on the two measured brains, against the best lambda of the baselines.

Each scan is undersampled with many mask seeds. Reference: the fully sampled matched filter with the
coil maps of the undersampled scan; maps, reference and head mask are the same for all methods
(``real_scans``). Scores are of magnitude images:

- NMSE ``|p - g|^2 / |g|^2`` and PSNR ``10 log10(max(g)^2 / MSE)`` over the head;
- SSIM with a uniform 7 x 7 window and the data range ``max(g)``, averaged over the head.

These are fastMRI's definitions (of scikit-image's SSIM), restricted to the head. The baselines'
lambda is searched on a grid of eighths of a decade for every scan, mask and score (oracle: no user
could), until both neighbours are worse; beside it stands what the method chooses by itself.
Intervals are paired 95 % t-intervals of the mean difference over mask seeds.

    python -m benchmarks.scores [--quick] [--settings 4:random:20 8:random:5] [--fresh] [--part 1/2]
                                [--networks modl:own.safetensors]

Finished cells are kept under ``build/benchmarks/scores``, and in ``results/scores.json`` once
gathered (:mod:`benchmarks.cells`), and reused, unless ``--fresh``; of the networks only those of
the same weights. ``--part 1/2`` shares the masks between processes, and writes no table.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import cells
from benchmarks.real_scans import BRAINS, ROOT, Case, case
from benchmarks.table import insert, publish, table
from snrecon import metrics
from snrecon.errors import SnreconWarning
from snrecon.networks.store import FOLDER, checksum, find_weights, shipped_weights
from snrecon.recon.registry import load

CACHE = ROOT / "build" / "benchmarks" / "scores"
IMAGES = ROOT / "docs" / "images"
STEPS = 8
"""Grid points of lambda per decade."""
START = {"sense": 0.03, "tv": 0.2, "wavelet": 0.25}
BASELINES = ("zero_filled", "sense", "tv", "wavelet")
NETWORKS = tuple(
    name if weights == "brain" else f"{name}:{weights}"
    for name in ("varnet", "modl", "e2e_varnet", "unet") for weights in shipped_weights(name)
)
"""Every network that ships; ``varnet`` is ``varnet:brain``."""
METHODS = (*BASELINES, *NETWORKS)
SHOWN = (*BASELINES, *(name for name in NETWORKS if ":" not in name))
"""In the pictures: of the networks those that had all targets."""
SCORES = ("nmse", "psnr", "ssim")
SETTINGS = ("4:random:20", "2:random:5", "8:random:5")
"""Accelerations, masks and mask seeds of the table."""
Cell = dict[str, Any]


def score(image: Tensor, reference: Tensor, head: Tensor) -> dict[str, float]:
    """NMSE, PSNR and SSIM of magnitudes inside the head.

    Args:
        image: ``(ky, kx)``, complex or real.
        reference: The same.
        head: Boolean ``(ky, kx)``.
    """
    found = metrics.score(image, reference, head)
    return {"nmse": found.nmse, "psnr": found.psnr, "ssim": found.ssim}


def climb(evaluate: Callable[[int], float], start: int) -> int:
    """Index on a grid whose value is larger than both neighbours', uphill from ``start``."""
    index = start
    while True:
        here, below, above = (evaluate(i) for i in (index, index - 1, index + 1))
        if here >= below and here >= above:
            return index
        index += 1 if above > below else -1


def baseline(
    method: str, chosen: Case, start: float, search: bool = True
) -> dict[str, dict[str, float]]:
    """``oracle`` (each score at its own best lambda) and ``automatic`` scores."""
    scan, found = chosen.scan, {}

    def at(lamda: float | None) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SnreconWarning)  # small lambdas are ill-conditioned
            bound = load(method, lamda=lamda).bind(scan)
        image = bound(scan.kspace)
        return {
            **score(image, chosen.reference, chosen.head),
            "lambda": float(bound.details.get("lambda", 0.0)),
        }

    def grid(index: int) -> dict[str, float]:
        if index not in found:
            found[index] = at(10 ** (index / STEPS))
        return found[index]

    automatic = at(None)
    if method == "zero_filled" or not search:
        return {"oracle": automatic, "automatic": automatic}
    first = round(STEPS * np.log10(start))
    by_error = climb(lambda i: -grid(i)["nmse"], first)
    by_similarity = climb(lambda i: grid(i)["ssim"], by_error)
    oracle = {
        "nmse": grid(by_error)["nmse"],
        "psnr": grid(by_error)["psnr"],
        "ssim": grid(by_similarity)["ssim"],
        "lambda_nmse": 10 ** (by_error / STEPS),
        "lambda_ssim": 10 ** (by_similarity / STEPS),
    }
    return {"oracle": oracle, "automatic": automatic}


def weights_checksum(method: str = "varnet") -> str:
    """Of the weights of a network, shipped or a file (``varnet:path.safetensors``)."""
    name, _, weights = method.partition(":")
    return checksum(find_weights(name, weights or "brain"))


def cell(
    name: str,
    kind: str,
    acceleration: float,
    seed: int,
    cache: Path | None = CACHE,
    methods: Sequence[str] = METHODS,
    start: dict[str, float] = START,
    search: bool = True,
) -> Cell:
    """Scores of all methods with one mask; from the cache where it has them."""
    key = f"{name}-{kind}-{acceleration:g}-{seed}"
    result: Cell = cells.read(cache, key) or {"scores": {}}
    old = result.get("weights", {})
    weights = {"varnet": old} if isinstance(old, str) else dict(old)
    networks = [m for m in methods if m not in BASELINES]
    for method in networks:
        if weights.get(method) != weights_checksum(method):
            result["scores"].pop(method, None)
    missing = [m for m in methods if m not in result["scores"]]
    if missing:
        chosen = case(name, kind, acceleration, seed)
        weights |= {method: weights_checksum(method) for method in networks}
        result |= {"acceleration": chosen.scan.acceleration, "weights": weights}
        for method in missing:
            if method in networks:
                image = load(method)(chosen.scan)
                found = score(image, chosen.reference, chosen.head)
                result["scores"][method] = {"oracle": found, "automatic": found}
            else:
                result["scores"][method] = baseline(method, chosen, start.get(method, 1), search)
        cells.write(cache, key, result)
    return result


def run(
    names: Sequence[str] = BRAINS,
    seeds: int = 20,
    acceleration: float = 4,
    kind: str = "random",
    cache: Path | None = CACHE,
    methods: Sequence[str] = METHODS,
    search: bool = True,
    progress: Callable[[str], None] | None = None,
    part: tuple[int, int] = (1, 1),
) -> dict[str, list[Cell]]:
    """Cells of each scan, one a mask seed; of ``part`` ``(i, n)`` every n-th."""
    results: dict[str, list[Cell]] = {}
    for name in names:
        start = dict(START)
        results[name] = []
        for seed in range(part[0] - 1, seeds, part[1]):
            found = cell(name, kind, acceleration, seed, cache, methods, start, search)
            for method in START:  # the next mask's optimum is near
                oracle = found["scores"].get(method, {}).get("oracle", {})
                start[method] = oracle.get("lambda_nmse", start[method])
            results[name].append(found)
            if progress is not None:
                progress(f"{name} {kind} R={acceleration:g} seed {seed}")
    return results


def values(found: list[Cell], method: str, which: str, name: str) -> np.ndarray:
    """One score of a method over the seeds."""
    return np.array([c["scores"][method][which][name] for c in found])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return float(differences.mean()), float("nan")
    width = t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    return float(differences.mean()), float(width)


def _text(name: str, value: float) -> str:
    if name == "nmse" and value > 10:
        return f"{100 * value:.0e}"
    return {"nmse": f"{100 * value:.3f}", "psnr": f"{value:.2f}", "ssim": f"{value:.4f}"}[name]


def score_table(found: list[Cell], methods: Sequence[str] = METHODS) -> str:
    """Means over seeds: oracle lambda and, after the stroke, the automatic one."""
    rows = []
    for method in methods:
        row = [method]
        for name in SCORES:
            best, own = (values(found, method, w, name).mean() for w in ("oracle", "automatic"))
            both = method in ("tv", "wavelet", "sense")
            row.append(_text(name, best) + (f" / {_text(name, own)}" if both else ""))
        lamda = ""
        if method in START:
            ends = values(found, method, "oracle", "lambda_nmse")
            own = values(found, method, "automatic", "lambda").mean()
            lamda = f"{ends.min():.2g} to {ends.max():.2g} / {own:.2g}"
        rows.append([*row, lamda])
    return table(["method", "NMSE, %", "PSNR, dB", "SSIM", "lambda"], rows)


def difference_table(found: list[Cell], network: str = "varnet") -> tuple[str, bool]:
    """Paired differences of a network from every baseline at its oracle lambda, and whether all of
    them favour it with certainty in NMSE and SSIM."""
    rows, wins = [], True
    for method in BASELINES:
        row = [f"{network} - {method}"]
        for name in SCORES:
            other = values(found, method, "oracle", name)
            mean, width = interval(values(found, network, "oracle", name) - other)
            scale = 100 if name == "nmse" else 1
            digits = {"nmse": 3, "psnr": 2, "ssim": 4}[name]
            row.append(f"{scale * mean:+.{digits}f} +- {scale * width:.{digits}f}")
            if name == "nmse":
                wins &= mean + width < 0
            if name == "ssim":
                wins &= mean - width > 0
        rows.append(row)
    return table(["difference", "NMSE, %", "PSNR, dB", "SSIM"], rows), wins


def report(
    settings: list[tuple[float, str, int]], cache: Path | None = CACHE,
    networks: Sequence[str] = NETWORKS, progress: Callable[[str], None] | None = print,
) -> str:
    """All tables as markdown."""
    parts, methods = [], (*BASELINES, *networks)
    for acceleration, kind, seeds in settings:
        results = run(BRAINS, seeds, acceleration, kind, cache, methods, progress=progress)
        for name, found in results.items():
            achieved = np.mean([c["acceleration"] for c in found])
            part = (
                f"### {name}, {kind} masks, R = {acceleration:g} (achieved {achieved:.2f} on "
                f"average), {len(found)} mask seeds\n\n{score_table(found, methods)}"
            )
            for network in networks:
                differences, wins = difference_table(found, network)
                verdict = (
                    "better than all four in NMSE and SSIM" if wins else "**not** better than all"
                )
                part += f"\n\n{differences}\n\n{network}: {verdict} (95 % paired intervals)."
            parts.append(part)
    head = (
        "Magnitude images inside the head; oracle lambda, then / automatic lambda. The lambda "
        "column gives the range of the NMSE oracle over masks, then / the mean automatic one. "
        "That of sense is 0: the exact solution, which random masks leave nearly undetermined "
        "(the package warns), so that its second figure shows a condition number and no "
        "reconstruction anyone would use. Means and 95 % intervals (+- half their width) are "
        "over masks of one slice of one head: they tell chance in the mask from a difference, "
        "not how another head would do."
    )
    return "\n\n".join([head, *parts])


def picture(name: str, path: Path, seed: int = 0, cache: Path | None = CACHE) -> None:
    """Reference, every method at its oracle lambda, and error maps in a fifth of the window.

    The maps are estimated, so that images count in the complex noise SD of full sampling.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = cell(name, "random", 4, seed, cache)["scores"]
    chosen = case(name, "random", 4, seed)
    rows, columns = (torch.nonzero(chosen.head.any(d)).flatten() for d in (1, 0))
    window = (
        slice(max(int(rows[0]) - 3, 0), int(rows[-1]) + 4),
        slice(max(int(columns[0]) - 3, 0), int(columns[-1]) + 4),
    )
    reference = chosen.reference.abs()
    top = float(np.quantile(reference[chosen.head].numpy(), 0.985))
    shape = reference[window].shape
    width, height = 2.6, 2.6 * shape[0] / shape[1]
    total = (width * (len(SHOWN) + 1) + 0.75, 2 * height + 1.0)
    drawing = Figure(figsize=total)
    FigureCanvasAgg(drawing)

    def place(row: int, column: int) -> Any:
        axes = drawing.add_axes(
            (column * width / total[0], (1 - row) * (height + 0.42) / total[1] + 0.05 / total[1],
             0.97 * width / total[0], height / total[1])
        )
        axes.set(xticks=[], yticks=[])
        return axes

    axes = place(0, 0)
    axes.imshow(reference[window], cmap="gray", vmin=0, vmax=top)
    axes.set_title("fully sampled", fontsize=11)
    mask = place(1, 0)
    mask.imshow(chosen.scan.sampled.float()[window], cmap="gray", interpolation="nearest")
    mask.set_title(f"mask (part), R = {chosen.scan.acceleration:.2f}", fontsize=10)
    for column, method in enumerate(SHOWN, start=1):
        best = found[method]["oracle"]
        image = load(method, lamda=best.get("lambda_nmse"))(chosen.scan).abs()
        axes = place(0, column)
        shown_image = axes.imshow(image[window], cmap="gray", vmin=0, vmax=top)
        lamda = f", lambda {best['lambda_nmse']:.2g}" if "lambda_nmse" in best else ""
        axes.set_title(f"{method}{lamda}", fontsize=11)
        below = place(1, column)
        error = (image - reference).abs()[window]
        shown_error = below.imshow(error, cmap="gray", vmin=0, vmax=top / 5)
        shown = score(image, chosen.reference, chosen.head)
        below.set_title(f"NMSE {100 * shown['nmse']:.2f} %, SSIM {shown['ssim']:.3f}", fontsize=10)
        if column == len(SHOWN):
            for panel, drawn, label in ((axes, shown_image, "|x| / noise SD"),
                                        (below, shown_error, "error / noise SD")):
                bar = drawing.colorbar(drawn, cax=panel.inset_axes((1.03, 0, 0.05, 1)))
                bar.set_label(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=80)


def setting(text: str, seeds: int) -> tuple[float, str, int]:
    """``R:KIND[:SEEDS]`` as numbers; ``seeds`` where it gives none."""
    acceleration, kind, *more = text.split(":")
    return float(acceleration), kind, int(more[0]) if more else seeds


def main() -> None:
    """Print the tables, draw the pictures and update the model cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 masks at R = 4, nothing written")
    parser.add_argument("--seeds", type=int, default=20, help="masks where --settings gives none")
    parser.add_argument("--fresh", action="store_true", help="do not use finished cells")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, metavar="R:KIND[:SEEDS]")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="NAME[:WEIGHTS]",
                        help="others: nothing is written")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th mask")
    args = parser.parse_args()
    if args.fresh and args.part != "1/1":
        parser.error("--fresh forgets what other parts have done: give it without --part first.")
    if args.fresh:
        cells.start_over(CACHE)
    settings = [setting(text, 2 if args.quick else args.seeds)
                for text in (args.settings if not args.quick else ["4:random:2"])]
    part, parts = (int(number) for number in args.part.split("/"))
    if parts > 1:
        for (acceleration, kind, seeds), name in itertools.product(settings, BRAINS):
            run([name], seeds, acceleration, kind, methods=(*BASELINES, *args.networks),
                progress=print, part=(part, parts))
        return
    body = report(settings, networks=args.networks)
    whole = not args.quick and tuple(args.networks) == NETWORKS
    publish("scores", "Scores on the measured brains", body, keep=whole)
    if whole:
        for network in NETWORKS:
            method, _, weights = network.partition(":")
            own = report(settings, networks=(network,), progress=None)
            card = FOLDER / f"{method}-{weights or 'brain'}.md"
            section = own.replace("### ", "#### ")
            insert(card, "scores", f"## Scores on the real test scans\n\n{section}")
        for name in BRAINS:
            picture(name, IMAGES / f"real_scores_{name}.png")


if __name__ == "__main__":
    main()
