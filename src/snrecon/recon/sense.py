"""SENSE: least-squares image of undersampled multi-coil data, with or without Tikhonov term."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.fourier import grid_axes, ifft
from snrecon.physics.gram import DENSE_LIMIT, varying_axes
from snrecon.physics.solvers import least_squares, linear_solve
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.lattice import regular_lattice, unfold_matrices
from snrecon.recon.line_inverse import LineInverse
from snrecon.recon.regularisation import Lambda, Weight, check_lambda
from snrecon.recon.sure_lambda import FROZEN, SOURCE, lambda_by_sure
from snrecon.recon.zero_filled import map_power, matched_filter

Solver = Literal["auto", "cg", "unfold", "lines"]
SOLVERS = ("auto", "cg", "unfold", "lines")
START = 0.03
"""Where the search for the best lambda begins, over the largest map power."""
ILL_CONDITIONED = 1e5
"""Condition number of the normal equations beyond which the user is warned: some combination of
voxels then carries 300 times the noise of the best-determined one."""


class Sense(Reconstructor):
    """``argmin_x |A x - y|^2 + lamda |x|^2`` for whitened data and maps (Pruessmann et al. 1999,
    2001), which makes the data term the metric of ``Psi^-1``. The image is the object itself,
    exactly zero where all maps are.

    Solvers, all for the same minimiser:

    - ``"unfold"``: closed form for regular undersampling (any lattice, without extra calibration
      lines);
    - ``"lines"``: masks that vary along one axis; the normal equations fall apart into one dense
      matrix per line of voxels, which is inverted exactly;
    - ``"cg"``: conjugate gradients on the normal equations, for any mask; its derivative is that
      of the solution, another solve;
    - ``"auto"``: the first of these that the mask allows and memory holds.

    With ``lamda = 0`` and more unknowns than data the image is the minimum-norm solution.

    Args:
        lamda: Weight of ``|x|^2``, not negative; 1 is the weight of white noise of SD 1 in the
            image. ``"sure"`` chooses it by :func:`snrecon.recon.sure_lambda.lambda_by_sure`.
        solver: See above.
        iterations: Most CG iterations.
        tolerance: CG stops when the residual is this small relative to the right-hand side. None:
            1e-6 in single, 1e-12 in double precision.

    Raises:
        InputError: for a negative or non-finite ``lamda``, an unknown solver, or (when bound) a
            mask that the solver cannot treat, or if lamda is to be chosen and the noise of the
            scan is not known.
    """

    name = "sense"

    def __init__(
        self,
        lamda: Lambda = 0.0,
        solver: Solver = "auto",
        iterations: int = 500,
        tolerance: float | None = None,
    ) -> None:
        check_lambda(lamda)
        if solver not in SOLVERS:
            raise InputError(f"the solver of sense is one of {', '.join(SOLVERS)}, not {solver!r}.")
        if iterations < 1:
            raise InputError(f"sense needs at least one iteration, not {iterations}.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise InputError(f"the tolerance of sense must lie between 0 and 1, not {tolerance}.")
        self.lamda: Lambda = "sure" if lamda == "sure" else float(lamda)
        self.solver = solver
        self.iterations, self.tolerance = iterations, tolerance

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        model = forward_model(scan)
        if self.lamda != "sure":
            return self._with(Weight(self.lamda, "given"), model)

        def tried(lamda: float) -> Bound:
            return self._with(Weight(lamda, "tried"), model)

        start = START * float(map_power(model.maps).max())
        choice = lambda_by_sure(model, scan, tried, start)
        return self._with(Weight(choice.lamda, SOURCE, (FROZEN,), choice.facts), model)

    def _with(self, weight: Weight, model: ForwardModel) -> Bound:
        """Bound with a lambda."""
        function, details = self._solver(model, weight.value)
        told = weight.details if weight.frozen else {"lambda": weight.value}
        return Bound(
            function,
            self.name,
            frozen=weight.frozen + model.frozen,
            linear=True,
            maps=model.maps,
            units=model.units,
            at_once=8,
            details={**told, "maps": model.maps_source, **details},
        )

    def _solver(
        self, model: ForwardModel, lamda: float
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """The function and what to say about it."""
        axes = varying_axes(model.mask)
        if self.solver in ("auto", "unfold"):
            unfold = self._unfold(model, lamda)
            if unfold is not None:
                return unfold, {"solver": "unfold"}
            if self.solver == "unfold":
                raise InputError(
                    "sense by unfolding needs regular undersampling whose step divides the matrix "
                    "size, without extra calibration lines; use solver='auto'."
                )
        if self.solver == "lines" and len(axes) > 1:
            raise InputError(
                "sense line by line needs a mask that varies along one axis only; use solver='cg'."
            )
        if self.solver != "cg" and len(axes) <= 1:
            axis = axes[0] if axes else -model.mask.ndim
            size = model.mask.numel() * model.mask.shape[axis] * model.maps.element_size()
            if self.solver == "lines" or size <= DENSE_LIMIT:
                inverse = LineInverse(model.maps, model.mask, axis, lamda)
                if inverse.condition > ILL_CONDITIONED:
                    warnings.warn(
                        "sense is ill-conditioned with this mask (condition number "
                        f"{inverse.condition:.0e}), so noise is strongly amplified: give a larger "
                        "lambda (--lambda 0.03 is a start, in units of the whitened noise).",
                        SnreconWarning,
                        stacklevel=2,
                    )
                return (
                    lambda y: inverse(matched_filter(model, y, inverse.dtype)).to(y.dtype),
                    {"solver": "lines", "condition": inverse.condition},
                )
        return self._conjugate_gradient(model, lamda)

    def _unfold(self, model: ForwardModel, lamda: float) -> Callable[[Tensor], Tensor] | None:
        lattice = regular_lattice(model.mask)
        if lattice is None:
            return None
        unfolding = unfold_matrices(model.maps, lattice, lamda)
        grid = tuple(model.mask.shape)

        def reconstruct(y: Tensor) -> Tensor:
            aliased = ifft(model.whiten(y) * model.mask, grid_axes(len(grid)))
            batch = y.shape[: -1 - len(grid)]
            return unfolding(aliased.flatten(-len(grid))).reshape(*batch, *grid)

        return reconstruct

    def _conjugate_gradient(
        self, model: ForwardModel, lamda: float
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        operator, dtype = model.encoding, model.maps.dtype
        gram = operator.gram
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-6 if dtype == torch.complex64 else 1e-12

        def reconstruct(y: Tensor) -> Tensor:
            if lamda == 0:
                white = model.whiten(y).to(dtype)
                return least_squares(
                    operator, white, self.iterations, tolerance, gram).to(y.dtype)
            right = matched_filter(model, y).to(dtype)
            return linear_solve(gram, right, lamda, self.iterations, tolerance).to(y.dtype)

        return reconstruct, {
            "solver": "cg", "iterations": self.iterations, "tolerance": tolerance
        }
