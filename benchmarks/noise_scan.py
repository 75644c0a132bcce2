"""A noise map from a noise-only scan against the noise seen in the image itself.

The phantom scan comes with its own noise scan. Fully sampled and reconstructed by the matched
filter, its sigma is in closed form. Against it stands a measurement that knows nothing of noise
scans: the fourth finite difference of the image along x and along y, which smooth signal does not
survive, scaled to unit response to white noise (``1, -4, 6, -4, 1`` over the root of 70), and its
median absolute deviation times 1.4826. Truncation ringing of the phantom's edge does survive it; it
dies away inwards, so the homogeneous interior is what lies deeper than half the largest depth. How
the factor depends on that depth is printed too.

The bandwidths of the noise scan and of the image are not stated, so one factor between them is
unknown. It is calibrated on the left half of the homogeneous interior and tested on the right, and
the other way round, and also on the upper and lower halves. The same factor from the corners of the
image, which hold no signal, shows what the receiver's filter does to them.

    python -m benchmarks.noise_scan [--quick]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.real_scans import full_scan
from benchmarks.table import publish, table
from snrecon.noise import noise_map
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.recon.registry import load

KERNEL = (1.0, -4.0, 6.0, -4.0, 1.0)
RESPONSE = float(np.sqrt(sum(k * k for k in KERNEL)))
CONSISTENT = 1.4826
"""Median absolute deviation of a Gaussian to its SD."""
DEEP = 0.5
"""The interior: deeper than this share of the largest depth."""
CORNER = 12
"""Side of each corner region, voxels."""


@dataclass(frozen=True)
class NoiseScan:
    """What was measured."""

    factors: dict[str, float]
    """Measured SD over sigma of the map in every region."""
    errors: dict[str, float]
    """Relative standard error of each, from bootstrap over blocks."""
    tests: dict[str, float]
    """Factor of one half over that of the half it was calibrated on."""
    voxels: dict[str, int]
    depths: dict[int, tuple[int, float, float]]
    """Depth in voxels: number of voxels, factor, right half over left half."""


def fourth_difference(image: Tensor, axis: int) -> Tensor:
    """Fourth finite difference, unit response to white noise; 2 voxels at either end are 0."""
    total = torch.zeros_like(image)
    for offset, weight in enumerate(KERNEL):
        total = total + weight * image.roll(2 - offset, axis)
    for index in (0, 1, image.shape[axis] - 2, image.shape[axis] - 1):
        total.select(axis, index).zero_()
    return total / RESPONSE


def depth(image: Tensor) -> Tensor:
    """Distance of every voxel of the object from its edge, voxels; 0 outside, ``(ky, kx)``."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image.abs().numpy(), 1.5)
    body = ndimage.binary_fill_holes(smooth > 0.5 * np.quantile(smooth, 0.9))
    return torch.from_numpy(ndimage.distance_transform_edt(body))


def robust_sd(values: Tensor) -> float:
    """SD of Gaussian values by their median absolute deviation."""
    values = values - values.median()
    return CONSISTENT * float(values.abs().median())


def ratio(image: Tensor, sigma: Tensor, region: Tensor) -> float:
    """Robust SD of the whitened fourth differences: measured noise over the map's, in a region.

    Both axes and both components are pooled. The map is that of one real component.
    """
    parts = []
    for axis in (0, 1):
        difference = fourth_difference(image, axis)
        # Variance of the difference where sigma varies: the kernel's squares weight sigma^2.
        variance = torch.zeros_like(sigma)
        for offset, weight in enumerate(KERNEL):
            variance = variance + (weight / RESPONSE) ** 2 * sigma.square().roll(2 - offset, axis)
        normal = difference / variance.sqrt().clamp_min(1e-30)
        chosen = normal[region]
        parts += [chosen.real, chosen.imag]
    return robust_sd(torch.cat(parts))


def spread(image: Tensor, sigma: Tensor, region: Tensor, draws: int) -> float:
    """Relative standard error of :func:`ratio` by bootstrap over 8 x 8 blocks."""
    generator = np.random.default_rng(0)
    parts = []
    for axis in (0, 1):
        normal = fourth_difference(image, axis) / sigma
        parts.append(torch.stack([normal[region].real, normal[region].imag], 1))
    values = torch.cat(parts, 1).numpy()
    y, x = torch.nonzero(region).unbind(1)
    names = ((y // 8) * 1000 + x // 8).numpy()
    groups = [values[names == n].ravel() for n in np.unique(names)]
    found = []
    for _ in range(draws):
        chosen = generator.integers(len(groups), size=len(groups))
        found.append(np.median(np.abs(np.concatenate([groups[i] for i in chosen]))))
    return float(np.std(found) / np.mean(found))


def run(draws: int = 200) -> NoiseScan:
    """Measure every region."""
    scan = full_scan("cloudmr")
    result = noise_map(load("zero_filled"), scan)
    assert result.estimator == "analytic"
    deep = depth(result.image)
    inside = deep > DEEP * deep.max()
    rows, columns = torch.nonzero(inside).unbind(1)
    middle_y, middle_x = int(rows.median()), int(columns.median())
    y, x = torch.meshgrid(*(torch.arange(n) for n in inside.shape), indexing="ij")
    regions = {
        "interior": inside,
        "left": inside & (x < middle_x),
        "right": inside & (x >= middle_x),
        "upper": inside & (y < middle_y),
        "lower": inside & (y >= middle_y),
    }
    factors = {k: ratio(result.image, result.sigma, r) for k, r in regions.items()}
    errors = {k: spread(result.image, result.sigma, r, draws) for k, r in regions.items()}
    voxels = {k: int(r.sum()) for k, r in regions.items()}
    # In the corners there are no maps: coil by coil, whitened, the noise scan predicts SD 1.
    near_x = (x < CORNER) | (x >= x.shape[1] - CORNER)
    near_y = (y < CORNER) | (y >= x.shape[0] - CORNER)
    edges = {"corners": near_x & near_y, "top and bottom, centre of the readout":
             near_y & ((x - x.shape[1] // 2).abs() < CORNER)}
    white = ifft(scan.require_noise().whiten(scan.kspace), grid_axes(2))
    for name, region in edges.items():
        ones = torch.full(region.shape, 0.5**0.5)
        found = torch.tensor([ratio(coil, ones, region) for coil in white])
        factors[name] = float(found.square().mean().sqrt())
        errors[name] = float(found.std() / len(found) ** 0.5 / factors[name])
        voxels[name] = int(region.sum())
    tests = {
        f"{a}, tested on {b}": factors[b] / factors[a]
        for a, b in (("left", "right"), ("right", "left"), ("upper", "lower"), ("lower", "upper"))
    }
    depths = {}
    for least in range(8, int(deep.max()) - 14, 4):
        chosen = deep > least
        halves = [
            ratio(result.image, result.sigma, chosen & side)
            for side in (x < middle_x, x >= middle_x)
        ]
        whole = ratio(result.image, result.sigma, chosen)
        depths[least] = (int(chosen.sum()), whole, halves[1] / halves[0])
    return NoiseScan(factors, errors, tests, voxels, depths)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few bootstrap draws, nothing written")
    quick = parser.parse_args().quick
    found = run(20 if quick else 500)
    body = table(
        ["region", "voxels", "SD in the image / sigma of the map", "+-"],
        [
            (k, found.voxels[k], f"{v:.4f}", f"{v * found.errors[k]:.4f}")
            for k, v in found.factors.items()
        ],
    )
    body += "\n\n" + table(
        ["scale calibrated on", "measured / predicted"],
        [(k, f"{v:.4f}") for k, v in found.tests.items()],
    )
    body += "\n\n" + table(
        ["deeper than, voxels", "voxels", "SD in the image / sigma of the map", "right / left"],
        [(k, n, f"{v:.4f}", f"{h:.4f}") for k, (n, v, h) in found.depths.items()],
    )
    worst = max(abs(v - 1) for v in found.tests.values())
    corner = found.factors["corners"] / found.factors["interior"]
    body += (
        f"\n\nWorst half against half: {worst:.1%} (5 % wanted). A scale taken from the corners "
        f"would be off by {corner - 1:+.0%}: the receiver's filter attenuates them."
    )
    publish("noise_scan", "Noise map from a noise scan", body, keep=not quick)


if __name__ == "__main__":
    main()
