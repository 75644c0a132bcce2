"""The solvers of the package under one name."""

from __future__ import annotations

from snrecon.physics.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    least_squares,
    linear_solve,
    linearized_steps,
)
from snrecon.physics.proximal import (
    fista,
    group_projection,
    group_threshold,
    pdhg,
    power_iteration,
    soft_threshold,
)

__all__ = [
    "Solution",
    "conjugate_gradient",
    "fista",
    "group_projection",
    "group_threshold",
    "least_squares",
    "linear_solve",
    "linearized_steps",
    "pdhg",
    "power_iteration",
    "soft_threshold",
]
