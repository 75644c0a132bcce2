"""Total variation: the image of fewest edges that explains the data."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.physics.differences import Gradient
from snrecon.physics.proximal import group_projection
from snrecon.physics.solvers import pdhg
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.regularisation import Lambda, Weight, check_settings, chosen_weight
from snrecon.recon.tangents import group_projection_tangents, side_by_side
from snrecon.recon.zero_filled import map_power, matched_filter


class TotalVariation(Reconstructor):
    """``argmin_x 1/2 |A x - y|^2 + lamda sum_r |(G x)(r)|_2`` with whitened data and maps.

    ``(G x)(r)`` are the forward differences of the complex image along all axes at voxel r,
    periodic at the edges: isotropic total variation (Rudin, Osher and Fatemi 1992; Block, Uecker
    and Frahm 2007 for coil arrays). After whitening the noise of a sample has ``E|n|^2 = 1``,
    which sets the unit of ``lamda``. Minimised by a fixed number of steps of
    :func:`snrecon.physics.solvers.pdhg`. The image is the object itself; it is set to zero where
    all maps are, where no data speak.

    Args:
        lamda: Weight; None chooses it by :func:`snrecon.recon.regularisation.automatic_lambda`,
            ``"sure"`` by :func:`snrecon.recon.sure_lambda.lambda_by_sure`.
        iterations: Number of steps.

    Raises:
        InputError: for a negative lamda, or (when bound) if it is to be chosen and the noise of
            the scan is not known.
    """

    name = "tv"

    def __init__(self, lamda: Lambda | None = None, iterations: int = 150) -> None:
        check_settings(lamda, iterations)
        self.lamda, self.iterations = lamda, iterations

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        model = forward_model(scan)

        def tried(lamda: float) -> Bound:
            return self._with(Weight(lamda, "tried"), model)

        return self._with(chosen_weight(self.lamda, model, scan, self.name, tried), model)

    def _with(self, weight: Weight, model: ForwardModel) -> Bound:
        """Bound with a lambda."""
        lamda = weight.value
        gram, support = model.encoding.gram, model.support
        gradient = Gradient(tuple(model.mask.shape))
        bound = max(float(map_power(model.maps).max()), torch.finfo(torch.float32).tiny)

        def solve(rhs: Tensor, tangents: bool) -> Tensor:
            project = group_projection_tangents if tangents else group_projection
            image = pdhg(gram, rhs, gradient, lamda, bound, self.iterations, project=project)
            return image * support

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
                "maps": model.maps_source,
            },
        )
