"""Whether the Jacobian products of a reconstruction are those of its function."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from snrecon.errors import SnreconWarning
from snrecon.noise.problem import Problem, probe_generator
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.physics.precision import full_precision

STREAM = 3
DISAGREEMENT = 0.3
"""More than this and the Jacobian products are not those of f."""
LONGEST = 0.5
"""Longest step of a difference, in units of the noise: for images in half precision."""
SMALLER = (1.0, 0.25, 0.06)
"""Steps that are tried, where larger ones disagree: a network whose curvature shows at a thousandth
of the noise has the right products all the same; wrong ones disagree at every step."""


def require_derivative(
    problem: Problem,
    seed: int = 0,
    *,
    transposed: bool = False,
    known: tuple[Tensor, Tensor] | None = None,
) -> dict[str, object]:
    """Compare Jacobian products with a small difference of f along one draw of the noise.

    A user's function that leaves automatic differentiation on the way (``detach``, ``no_grad``,
    numpy) has products that are wrong without any error: this is where it shows. Linear functions
    are their own derivative and are not checked.

    Args:
        problem: Function, scan and noise.
        seed: Of the draw.
        transposed: Check ``J^T`` instead of ``J``: with the difference d along the noise n,
            ``<J^T d, n>`` must be ``|d|^2``.
        known: A draw of the noise ``(coil, *grid)`` and its Jacobian product, if there is one
            already; else one is drawn.

    Returns:
        The relative disagreement as ``derivative_check``, for the metadata; empty for linear ones.

    Raises:
        NotDifferentiableError: if f has no such products, they are not finite, or they disagree by
            more than 30 %. From 10 % there is a warning.
    """
    if problem.bound.linear:
        return {}
    if known is None:
        noise = problem.colouring.sample(
            probe_generator(seed, 0, STREAM), problem.scan.kspace.dtype)
    else:
        noise = known[0]
    product = None
    if not transposed:
        product = problem.linearization.jvp(noise[None])[0] if known is None else known[1]
        _require_finite(product, f" at {int((~torch.isfinite(product)).sum())} voxels")
    kind = _coarse(problem.image)
    # Rounding asks for long steps and curvature for short ones: any may be the best.
    enough = DISAGREEMENT if kind is None else DISAGREEMENT / 3
    found = float("inf")
    for smaller in SMALLER:
        found = min(found, _disagreement(problem, noise, product, smaller))
        if found <= enough:
            break
    if kind is not None and not found <= DISAGREEMENT and _hidden(problem, noise, kind):
        raise NotDifferentiableError(
            f"the image was rounded to {str(kind).removeprefix('torch.')}, which hides what the "
            "noise changes, and with it whether the derivative is right; let it be single precision"
        )
    if not found <= DISAGREEMENT:
        raise NotDifferentiableError(
            "the Jacobian products of the reconstruction disagree with finite differences by "
            f"{found:.0%}: it may detach its data, run under no_grad, or draw at random"
        )
    if found > DISAGREEMENT / 3:
        warnings.warn(
            "Jacobian products and finite differences of the reconstruction differ by "
            f"{found:.0%}; see noise.linearity_check.",
            SnreconWarning,
            stacklevel=3,
        )
    return {"derivative_check": found}


def _disagreement(
    problem: Problem, noise: Tensor, product: Tensor | None, smaller: float
) -> float:
    """Relative to the difference of f; of the transposed product if no ``product`` is given."""
    difference = _difference(problem, noise, smaller)
    scale = float(torch.linalg.vector_norm(difference))
    if product is None:
        back = problem.linearization.vjp(difference[None])[0]
        _require_finite(back, "")
        missing = abs(float((back.conj() * noise).real.sum()) - scale**2)
        scale = scale**2
    else:
        missing = float(torch.linalg.vector_norm(product - difference))
    if scale > 0:
        return missing / scale
    return 0.0 if missing == 0 else float("inf")


def _coarse(image: Tensor) -> torch.dtype | None:
    """The half precision that the image was rounded to, whatever it is stored as; None if it was
    not."""
    values = torch.view_as_real(image) if image.is_complex() else image
    for kind in (torch.bfloat16, torch.float16):  # numbers of the first are mostly of the second
        if bool(values.any()) and torch.equal(values.to(kind).to(values.dtype), values):
            return kind
    return None


def _hidden(problem: Problem, noise: Tensor, kind: torch.dtype) -> bool:
    """Whether the image's rounding is no small part of all differences but the longest, which
    curvature may spoil."""
    shorter = SMALLER[1]
    change = shorter * LONGEST * torch.linalg.vector_norm(_difference(problem, noise, shorter))
    # Two roundings, each uniform within half a unit that is three quarters of eps on average.
    rounding = 0.3 * torch.finfo(kind).eps * torch.linalg.vector_norm(problem.image)
    return bool(rounding > DISAGREEMENT / 3 * change)


def _require_finite(product: Tensor, where: str) -> None:
    if not bool(torch.isfinite(product).all()):
        raise NotDifferentiableError(
            f"the derivative of the reconstruction is not finite{where} (a root or modulus of 0? "
            "add a small number to what it is taken of)"
        )


def _difference(problem: Problem, noise: Tensor, smaller: float = 1.0) -> Tensor:
    """The forward difference of f along a draw of the noise; ``smaller`` than the step that suits
    most."""
    kspace = problem.scan.kspace
    f = problem.bound.function
    # Small enough for curvature to vanish, large enough for rounding: sqrt of the unit roundoff
    # relative to the data, but never more than the noise itself.
    # Double precision of the data says nothing of what f computes in; its image says a little.
    image_dtype = problem.image.real.dtype if problem.image.is_complex() else problem.image.dtype
    eps = max(torch.finfo(kspace.real.dtype).eps, torch.finfo(image_dtype).eps)
    ratio = float(torch.linalg.vector_norm(kspace) / torch.linalg.vector_norm(noise))
    step = min(max(eps**0.5 * ratio, 1e-3), LONGEST)
    if _coarse(problem.image) is not None:
        step = LONGEST
    step *= smaller
    with torch.no_grad(), full_precision():
        # The image at hand may have been rounded otherwise.
        image = problem.image if kspace.device.type == "cpu" else f(kspace)
        return (f(kspace + step * noise) - image) / step
