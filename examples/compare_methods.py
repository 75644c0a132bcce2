"""Noise beside signal: the same scan through several reconstructions.

Low noise alone says nothing good about a method: it may pass little signal. So the local response
stands beside sigma: how much of a small true change at a voxel comes through (1 is all of it).
"""

from __future__ import annotations

import warnings

import snrecon
from snrecon.errors import SnreconWarning
from snrecon.physics.phantom import simulate_scan

warnings.simplefilter("ignore", SnreconWarning)
scan = simulate_scan((64, 64), coils=8, acceleration=4, calibration=12, mask="regular")
voxel = (32, 22)

print(f"{scan.source}, R = {scan.acceleration:.2f}")
print(f"{'method':<22}{'estimator':<12}{'sigma':>8}{'SNR':>8}{'g':>8}{'response':>10}")
for name, lamda in (("zero_filled", None), ("sense", 0.0), ("sense", 0.01), ("sense", 0.1)):
    recon = snrecon.recon.load(name, lamda=lamda)
    result = snrecon.noise_map(recon, scan, tolerance=0.1)
    response = snrecon.noise.local_response(recon, scan, voxel)
    assert result.g_factor is not None
    print(
        f"{name if lamda is None else f'{name}, lambda {lamda:g}':<22}{result.estimator:<12}"
        f"{float(result.sigma[voxel]):>8.3g}{float(result.snr[voxel]):>8.3g}"
        f"{float(result.g_factor[voxel]):>8.3g}{float(response[voxel].abs()):>10.3g}"
    )
