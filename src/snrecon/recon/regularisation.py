"""How strongly the compressed-sensing methods regularise when nobody says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.gram import varying_axes
from snrecon.recon.base import Bound
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.sure_lambda import FROZEN, SOURCE, lambda_by_sure
from snrecon.recon.zero_filled import map_power

Lambda = float | Literal["sure"]
"""A weight, or "sure": the one of least estimated risk."""
NOISE_FACTOR = {"tv": 0.3, "wavelet": 0.4}
"""lambda over the noise of the zero-filled image."""
ALIASING_FACTOR = {"tv": 0.05, "wavelet": 0.0}
"""lambda over the signal that is missing outside the centre of k-space; an l1 penalty of wavelet
coefficients gained nothing from it in the calibration."""
CENTRE = 1 / 6
"""Share of each undersampled axis, around the centre of k-space, that is not counted there."""


RULE_SOURCE = {"tv": "noise level and aliasing", "wavelet": "noise level"}


@dataclass(frozen=True)
class Weight:
    """lambda, where it came from, and what of it is treated as known."""

    value: float
    source: str
    frozen: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """Further entries for the details."""

    @property
    def details(self) -> dict[str, Any]:
        """lambda and its source, for the metadata."""
        return {"lambda": self.value, "lambda_source": self.source, **self.facts}


def chosen_weight(
    given: Lambda | None,
    model: ForwardModel,
    scan: Scan,
    method: str,
    bound: Callable[[float], Bound],
) -> Weight:
    """The lambda of a compressed-sensing method.

    Args:
        given: A number; None for :func:`automatic_lambda`; "sure" for
            :func:`snrecon.recon.sure_lambda.lambda_by_sure`, which begins there.
        model: Of the scan.
        scan: With known noise, unless a number is given.
        method: ``"tv"`` or ``"wavelet"``.
        bound: lambda to the method bound to the scan.

    Raises:
        InputError: if lambda is to be chosen and the noise of the scan is not known.
    """
    if given is not None and given != "sure":
        return Weight(float(given), "given")
    start = automatic_lambda(model, scan, method)
    if given is None:
        return Weight(start, RULE_SOURCE[method], ("lambda",))
    choice = lambda_by_sure(model, scan, bound, start)
    return Weight(choice.lamda, SOURCE, (FROZEN,), choice.facts)


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
    signal = outer_signal(model.whiten(scan.kspace), model.mask)
    noise, aliasing = fraction**0.5, ((1 - fraction) * signal) ** 0.5
    return power**0.5 * (NOISE_FACTOR[method] * noise + ALIASING_FACTOR[method] * aliasing)


def outer_signal(white: Tensor, mask: Tensor) -> float:
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


def check_settings(lamda: Lambda | None, iterations: int) -> None:
    """Raises InputError for a lambda or an iteration count that makes no sense."""
    check_lambda(lamda)
    if iterations < 1:
        raise InputError(f"at least one iteration is needed, not {iterations}.")


def check_lambda(lamda: Lambda | None) -> None:
    """Raises InputError for a lambda that is neither a non-negative finite number nor "sure"."""
    if isinstance(lamda, str):
        if lamda != "sure":
            raise InputError(f"lambda must be a number or 'sure', not {lamda!r}.")
    elif lamda is not None and not 0 <= lamda < float("inf"):
        raise InputError(f"lambda must be zero or positive and finite, not {lamda}.")
