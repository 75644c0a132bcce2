"""How strongly the compressed-sensing methods regularise when nobody says."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.gram import varying_axes
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.zero_filled import map_power

NOISE_FACTOR = {"tv": 0.3, "wavelet": 0.4}
"""lambda over the noise of the zero-filled image."""
ALIASING_FACTOR = {"tv": 0.05, "wavelet": 0.0}
"""lambda over the signal that is missing outside the centre of k-space; an l1 penalty of wavelet
coefficients gained nothing from it in the calibration."""
CENTRE = 1 / 6
"""Share of each undersampled axis, around the centre of k-space, that is not counted there."""


def automatic_lambda(model: ForwardModel, scan: Scan, method: str) -> float:
    """lambda from the noise level and from what the undersampling leaves out.

    With whitened data (``E|n|^2 = 1`` per sample), sampled fraction f and mean map power p over the
    support, ``lambda = sqrt(p) (a sqrt(f) + b sqrt((1 - f) e))``: ``sqrt(p f)`` is the SD of the
    noise of the zero-filled image, e the mean signal power of a sample outside the centre of
    k-space, measured above the noise, whose absence makes the aliasing. The factors a and b come
    from a calibration on simulated and measured brains, R = 2 to 8 and noise over a decade, where
    the error was mostly within a tenth of that of the best lambda, and within a fifth elsewhere.

    Args:
        model: Of the scan.
        scan: With known noise.
        method: ``"tv"`` or ``"wavelet"``.

    Raises:
        InputError: if the noise of the scan is not known.
    """
    if scan.noise is None:
        why = f", because {scan.noise_unknown}" if scan.noise_unknown else ""
        raise InputError(
            f"{scan.source}: {method} chooses lambda from the noise level, but the noise of this "
            f"scan is not known{why}; give --lambda, or the covariance with --noise-covariance "
            "FILE."
        )
    if not bool(model.support.any()):
        return 0.0
    power = float(map_power(model.maps)[model.support].double().mean())
    fraction = float(model.mask.double().mean())
    signal = _outer_signal(model.whiten(scan.kspace), model.mask)
    noise, aliasing = fraction**0.5, ((1 - fraction) * signal) ** 0.5
    return power**0.5 * (NOISE_FACTOR[method] * noise + ALIASING_FACTOR[method] * aliasing)


def _outer_signal(white: Tensor, mask: Tensor) -> float:
    """Mean signal power per coil and sample, noise subtracted, outside the centre of k-space."""
    centre = torch.ones_like(mask)
    for axis in varying_axes(mask):
        n = mask.shape[axis]
        offset = (torch.arange(n, device=mask.device) - n // 2).abs() <= CENTRE * n / 2
        centre = centre & offset.reshape([-1 if i - mask.ndim == axis else 1
                                          for i in range(mask.ndim)])
    outer = mask & ~centre
    if not bool(outer.any()):
        return 0.0
    power = (white[:, outer].abs().double() ** 2).mean()
    return max(float(power) - 1.0, 0.0)


def check_settings(lamda: float | None, iterations: int) -> None:
    """Raises InputError for a lambda or an iteration count that makes no sense."""
    if lamda is not None and not 0 <= lamda < float("inf"):
        raise InputError(f"lambda must be zero or positive and finite, not {lamda}.")
    if iterations < 1:
        raise InputError(f"at least one iteration is needed, not {iterations}.")
