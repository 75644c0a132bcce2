"""The noise of a region's mean, and where in k-space it comes from.

Neighbouring voxels share noise, so the error of a mean does not follow from sigma alone. One
backward pass gives it exactly (to first order), with the share of every measured sample.
"""

from __future__ import annotations

import torch

import snrecon
from snrecon.physics.phantom import simulate_scan

scan = simulate_scan((64, 64), coils=6, acceleration=3, calibration=12, mask="regular")
recon = snrecon.recon.Sense()
region = torch.zeros(64, 64, dtype=torch.bool)
region[28:36, 18:26] = True

found = snrecon.noise.roi(recon, scan, region)
result = snrecon.noise_map(recon, scan)
as_if_independent = float(result.sigma[region].square().sum().sqrt()) / int(region.sum())
print(f"mean of {found.voxels} voxels: {found.value:.4g} +- {found.sd:.2g}")
print(f"were the voxels independent, it would be +- {as_if_independent:.2g}")

lines = found.attribution.sum(dim=(0, 2))  # share of each phase-encoding line
for line in lines.topk(3).indices.tolist():
    print(f"line {line - 32:+d} from the centre carries {float(lines[line]):.1%} of the variance")

pattern = snrecon.noise.psf(recon, scan, (32, 22))
aliased = pattern.abs().flatten().topk(4).indices.tolist()
print("the noise of voxel (32, 22) is shared most with", [divmod(i, 64) for i in aliased[1:]])
