"""Functions and networks of somebody else's: what has to be sure before their noise is mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from snrecon.errors import InputError

if TYPE_CHECKING:
    from snrecon.noise.problem import Problem

WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32,
        torch.complex32: torch.complex64}
ROUNDING = 1e-4
"""Relative difference of two images of the same k-space above which it is no rounding. Iterations
may amplify the rounding of sums that are not always taken in the same order."""


def undisturbed(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``f`` on a copy of its k-space, so that what it changes in place is nobody else's, with its
    image in memory of its own, which the next call may not write to, and in single precision where
    it is in half: squares of it would overflow."""

    def function(kspace: Tensor) -> Tensor:
        image = f(kspace.clone())
        if not isinstance(image, Tensor):
            return image  # said to be wrong where its noise is mapped
        image = image.resolve_conj().resolve_neg().clone()
        wide = WIDE.get(image.dtype)
        return image if wide is None else image.to(wide)

    return function


def require_evaluation(recon: Any) -> None:
    """Refuse a network in training mode whose layers draw at random, or learn from every image.

    Looked at are a module, and those that a function or an object holds: its attributes, what it
    closes over, and globals that it names.

    Args:
        recon: What is to be reconstructed with.

    Raises:
        InputError: if there is such a layer.
    """
    for module in _modules(recon):
        for layer in module.modules():
            if not layer.training:
                continue
            if isinstance(layer, _DropoutNd) and layer.p > 0:
                does = "draws at random"
            elif isinstance(layer, _NormBase) and layer.track_running_stats:
                does = "changes with every image"
            else:
                continue
            raise InputError(
                f"the network {type(module).__name__} is in training mode, in which its "
                f"{type(layer).__name__} {does}: call its eval() first."
            )


def _modules(recon: Any) -> Iterator[nn.Module]:
    """Modules in plain sight; a list of everything reachable would hold other people's too."""
    if isinstance(recon, nn.Module):
        yield recon
        return
    if isinstance(recon, partial):
        held = [recon.func, *recon.args, *recon.keywords.values()]
    else:
        held = list(getattr(recon, "__dict__", {}).values())
    function = getattr(recon, "__func__", recon)
    held.append(getattr(recon, "__self__", None))
    code = getattr(function, "__code__", None)
    if code is not None:
        for cell in getattr(function, "__closure__", None) or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # a variable that has no value yet
                continue
        names = getattr(function, "__globals__", {})
        held += [names[name] for name in code.co_names if name in names]
    yield from (one for one in held if isinstance(one, nn.Module))


def require_repeatable(problem: Problem) -> None:
    """Refuse a function that gives another image of the same k-space, at one more evaluation.

    Replicas would show the spread of its own draws as noise. Methods that are known not to draw,
    and those that are known to (whose draws are fixed when bound), are not evaluated.

    Args:
        problem: Function and scan.

    Raises:
        InputError: if the images differ by more than rounding.
    """
    bound, image = problem.bound, problem.image
    if bound.linear or bound.stochastic or bound.linearize is not None:
        return
    with torch.no_grad():
        again = bound.function(problem.scan.kspace)
    distance = float(torch.linalg.vector_norm((again - image).flatten()))
    size = float(torch.linalg.vector_norm(image.flatten()))
    if not distance <= ROUNDING * size:
        raise InputError(
            f"{problem.scan.source}: the reconstruction draws at random: two images of the same "
            f"k-space differ by {distance / size if size > 0 else float('inf'):.2g} of their size; "
            "turn dropout off (eval()), or fix its seed in every call."
        )
