"""The solvers of the package under one name."""

from __future__ import annotations

from snrecon.physics.conjugate_gradient import Solution, conjugate_gradient, linear_solve

__all__ = ["Solution", "conjugate_gradient", "linear_solve"]
