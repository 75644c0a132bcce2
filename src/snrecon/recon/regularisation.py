"""How strongly the compressed-sensing methods regularise when nobody says."""

from __future__ import annotations

from snrecon.errors import InputError
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.zero_filled import map_power

FACTORS = {"tv": 0.4, "wavelet": 0.5}
"""lambda over the noise level of the zero-filled image."""


def automatic_lambda(model: ForwardModel, method: str) -> float:
    """lambda in proportion to the noise of the zero-filled image."""
    power = map_power(model.maps)[model.support]
    fraction = float(model.mask.double().mean())
    level = (fraction * float(power.double().mean())) ** 0.5 if power.numel() else 0.0
    return FACTORS[method] * level


def check_settings(lamda: float | None, iterations: int) -> None:
    """Raises InputError for a lambda or an iteration count that makes no sense."""
    if lamda is not None and not 0 <= lamda < float("inf"):
        raise InputError(f"lambda must be zero or positive and finite, not {lamda}.")
    if iterations < 1:
        raise InputError(f"at least one iteration is needed, not {iterations}.")
