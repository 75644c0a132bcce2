"""Random probes until an average is known well enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.errors import InputError, SnreconWarning
from snrecon.noise.memory import chunk_size, peak_bytes
from snrecon.noise.problem import Problem, Progress
from snrecon.recon.option_types import number, whole_number

Sampler = Callable[[range], Tensor]
"""Numbers of the probes to what each of them found, ``(len, column)`` in double precision."""


@dataclass(frozen=True)
class Plan:
    """How many probes are drawn.

    Raises:
        InputError: for fewer than two probes, or a tolerance that is not above 0.
    """

    probes: int
    """Probes at least, and between two looks at the error."""
    tolerance: float | None
    """Stop at this relative standard error; None stops after ``probes``."""
    most: int
    """Probes at most."""

    def __post_init__(self) -> None:
        for name, value in (("probes", self.probes), ("max_probes", self.most)):
            whole_number(name, value)
        if self.probes < 2:
            raise InputError(
                f"at least 2 probes are needed for an error bar, not {self.probes} (--probes N)."
            )
        if self.tolerance is not None and not number("the tolerance", self.tolerance) > 0:
            raise InputError(f"the tolerance must lie above 0, not {self.tolerance:g}.")


def probed(
    problem: Problem,
    sampler: Sampler,
    plan: Plan,
    error: Callable[[Tensor], float],
    progress: Progress | None = None,
) -> Tensor:
    """What the probes found, ``(probe, column)``.

    As many at once as fit in memory: the first one is drawn alone and measured.

    Args:
        problem: Says where the probes are drawn and how many at once suit it.
        sampler: See :data:`Sampler`.
        plan: How many.
        error: Relative standard error of the wanted number, from the probes so far.
        progress: Called after every chunk.
    """
    first, size = peak_bytes(lambda: sampler(range(1)))
    chunk = chunk_size(size, problem.scan.kspace.device, problem.bound.at_once)
    rows = [first]
    done, goal = 1, plan.probes
    while True:
        while done < goal:
            indices = range(done, min(done + chunk, goal))
            rows.append(sampler(indices))
            done = indices.stop
            if progress is not None:
                progress(done, goal if plan.tolerance is None else None, "probes")
        found = torch.cat(rows)
        if plan.tolerance is None or error(found) <= plan.tolerance:
            return found
        if done >= plan.most:
            warnings.warn(
                f"the standard error of the risk is {error(found):.1%} of it after {done} probes, "
                f"above the tolerance of {plan.tolerance:.1%}; allow more probes.",
                SnreconWarning,
                stacklevel=2,
            )
            return found
        goal = min(done + plan.probes, plan.most)
