"""Repeated scans: the noise itself, an independent check of any map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError
from snrecon.noise.problem import Reconstruction, bind


@dataclass(frozen=True, eq=False)
class RepetitionCheck:
    """SD over repeated measurements against the map."""

    sd: Tensor
    """``(*image)``: SD over repetitions of the component along the mean image's phase."""
    ratio: float
    """Root of the ratio of mean variances, repetitions over map, where SNR is at least 3."""
    ratio_error: float
    """Standard error of ``ratio`` from the number of repetitions and voxels, neighbours taken as
    independent (a lower limit when they are not)."""
    repetitions: int

    def __repr__(self) -> str:
        return (
            f"RepetitionCheck(SD over {self.repetitions} repetitions / sigma = {self.ratio:.3f} "
            f"+- {self.ratio_error:.3f})"
        )


def repetition_check(recon: Reconstruction, scan: Scan, result: NoiseMap) -> RepetitionCheck:
    """Reconstruct every repetition with the same (frozen) maps and compare their spread with sigma.

    Physiological change and drift between repetitions add to the spread; the map is of thermal
    noise alone.

    Raises:
        InputError: if the scan has fewer than two repetitions.
    """
    if scan.repetitions is None or scan.repetitions.shape[0] < 2:
        raise InputError(f"{scan.source}: there are no repetitions to compare with.")
    images = []
    with torch.no_grad():
        if scan.layout == "stack":
            bounds = [bind(recon, one) for one in scan]
            for repetition in scan.repetitions:
                images.append(torch.stack([f(k) for f, k in zip(bounds, repetition, strict=True)]))
        else:
            f = bind(recon, scan)
            images = [f(repetition) for repetition in scan.repetitions]
    stack = torch.stack(images)
    n = stack.shape[0]
    mean = stack.mean(0)
    size = mean.abs()
    direction = torch.where(size > 0, mean / size.clamp_min(1e-30), 1)
    along = (stack * direction.conj()).real
    variance = along.double().var(dim=0)
    inside = (result.snr >= 3) & (result.sigma > 0)
    if not bool(inside.any()):
        inside = result.sigma > 0
    expected = (result.sigma[inside].double() ** 2).mean()
    ratio = float((variance[inside].mean() / expected).sqrt())
    error = ratio / (2 * (n - 1) * int(inside.sum())) ** 0.5
    return RepetitionCheck(variance.sqrt().to(result.sigma), ratio, error, n)
