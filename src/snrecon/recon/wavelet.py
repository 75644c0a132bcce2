"""Wavelet compressed sensing: the image of fewest wavelet coefficients that explains the data."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.proximal import soft_threshold
from snrecon.physics.solvers import fista
from snrecon.physics.wavelets import Wavelet
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.regularisation import Lambda, Weight, check_settings, chosen_weight
from snrecon.recon.tangents import side_by_side, soft_threshold_tangents
from snrecon.recon.zero_filled import map_power, matched_filter


class WaveletL1(Reconstructor):
    """``argmin_x 1/2 |A x - y|^2 + lamda |D W x|_1`` with whitened data and maps (Lustig et al.
    2007).

    W is an orthogonal wavelet transform with periodic boundary, D keeps its detail coefficients:
    those of the coarsest approximation are not penalised. After whitening the noise of a sample
    has ``E|n|^2 = 1``, which sets the unit of ``lamda``. Minimised by a fixed number of steps of
    :func:`snrecon.physics.solvers.fista`. The image is the object itself; it is set to zero where
    all maps are, where no data speak.

    Args:
        lamda: Weight; None chooses it by :func:`snrecon.recon.regularisation.automatic_lambda`,
            ``"sure"`` by :func:`snrecon.recon.sure_lambda.lambda_by_sure`.
        iterations: Number of steps.
        wavelet: An orthogonal wavelet of PyWavelets, ``"haar"``, ``"db4"``, ``"sym4"``, ...

    Raises:
        InputError: for a negative lamda, or (when bound) an unknown wavelet, or if lamda is to be
            chosen and the noise of the scan is not known.
    """

    name = "wavelet"

    def __init__(
        self, lamda: Lambda | None = None, iterations: int = 100, wavelet: str = "db4"
    ) -> None:
        check_settings(lamda, iterations)
        self.lamda, self.iterations, self.wavelet = lamda, iterations, wavelet

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        transform = Wavelet(scan.grid, self.wavelet)
        model = forward_model(scan)

        def tried(lamda: float) -> Bound:
            return self._with(Weight(lamda, "tried"), model, transform)

        chosen = chosen_weight(self.lamda, model, scan, self.name, tried)
        return self._with(chosen, model, transform)

    def _with(self, weight: Weight, model: ForwardModel, transform: Wavelet) -> Bound:
        """Bound with a lambda."""
        gram, support = model.encoding.gram, model.support
        step = 1 / max(float(map_power(model.maps).max()), torch.finfo(torch.float32).tiny)
        # A threshold for every coefficient: none for the approximation.
        penalty = torch.full(
            transform.domain, weight.value, dtype=model.maps.real.dtype, device=support.device
        )
        penalty[transform.approximation] = 0

        def solve(rhs: Tensor, tangents: bool) -> Tensor:
            threshold = soft_threshold_tangents if tangents else soft_threshold
            weights = penalty.to(rhs.real.dtype)

            def prox(v: Tensor, step: float) -> Tensor:
                return transform.H(threshold(transform(v), step * weights))

            return fista(gram, rhs, prox, step, self.iterations) * support

        def prepare(y: Tensor) -> Tensor:
            return matched_filter(model, y)

        return Bound(
            lambda y: solve(prepare(y), False),
            self.name,
            frozen=weight.frozen + model.frozen,
            maps=model.maps,
            units=model.units,
            linearize=side_by_side(prepare, solve),
            at_once=16,
            details={
                **weight.details,
                "iterations": self.iterations,
                "wavelet": self.wavelet,
                "maps": model.maps_source,
            },
        )
