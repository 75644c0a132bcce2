"""Fitting the weights of a decoder to samples of k-space, and when to stop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Measure = Callable[[Tensor], Tensor]
"""Channels of the decoder ``(outputs, ky, kx)`` to k-space ``(coil, ky, kx)``."""
Report = Callable[[int, Tensor], None]
"""``report(iterations made, decoder's k-space)``."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A decoder with the weights that predicted best what it had not seen."""

    network: nn.Module
    """The decoder."""
    iterations: int
    """Iterations made."""
    chosen: int
    """Iterations that the weights have seen."""
    error: float
    """Mean ``|k - y|^2`` of the samples that decided, in the unit of ``y``."""


@contextmanager
def training() -> Iterator[None]:
    """Gradients, wherever the reconstruction is called from."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def fit(
    network: nn.Module,
    measure: Measure,
    target: Tensor,
    seen: Tensor,
    held_out: Tensor,
    *,
    iterations: int,
    patience: int,
    rate: float,
    report: Report | None = None,
    every: int = 50,
) -> Fit:
    """Minimise ``mean |measure(network()) - target|^2`` over the samples ``seen`` by Adam.

    The weights kept are those with the smallest error on the samples ``held_out``, or on those
    seen where none are held out.

    Args:
        network: Fitted in place, and left with the weights that are kept.
        measure: See :data:`Measure`.
        target: ``(coil, ky, kx)``.
        seen: Boolean ``(ky, kx)``.
        held_out: Boolean ``(ky, kx)``.
        iterations: Most of them.
        patience: Stop after so many iterations without a smaller error.
        rate: Learning rate.
        report: Called every ``every`` iterations and at the end.
        every: See ``report``.
    """
    decides = held_out if bool(held_out.any()) else seen
    wanted, wanted_of_decides = target[:, seen], target[:, decides]
    best, best_error, best_at = _weights(network), math.inf, 0
    made = 0
    optimiser = torch.optim.Adam(network.parameters(), rate)
    for made in range(1, iterations + 1):
        optimiser.zero_grad()
        kspace = measure(network())
        error = float(_mean_square(kspace.detach()[:, decides] - wanted_of_decides))
        if error < best_error:  # of the weights before this step
            best, best_error, best_at = _weights(network), error, made - 1
        if report is not None and (made % every == 0 or made == iterations):
            report(made, kspace.detach())
        if made - 1 - best_at >= patience:
            break
        _mean_square(kspace[:, seen] - wanted).backward()
        optimiser.step()
    optimiser.zero_grad()  # frees the gradients
    network.load_state_dict(best)
    return Fit(network, made, best_at, best_error)


def continued(
    network: nn.Module,
    measure: Measure,
    target: Tensor,
    seen: Tensor,
    *,
    iterations: int,
    rate: float,
) -> Tensor:
    """The decoder's k-space ``(coil, ky, kx)`` after some more iterations from its weights.

    All samples count, and the learning rate falls to zero: the result depends on the data much
    less erratically than the last of many steps of equal size.

    Args:
        network: A start, left as it is.
        measure: See :data:`Measure`.
        target: ``(coil, ky, kx)``.
        seen: Boolean ``(ky, kx)``.
        iterations: Number of them; with 0 the decoder stays as it is.
        rate: Learning rate of the first.
    """
    network = copy.deepcopy(network)
    wanted = target[:, seen]
    optimiser = torch.optim.Adam(network.parameters(), rate)
    for made in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * made / iterations)) / 2
        optimiser.zero_grad()
        _mean_square(measure(network())[:, seen] - wanted).backward()
        optimiser.step()
    with torch.no_grad():
        return measure(network())


def _mean_square(difference: Tensor) -> Tensor:
    return (difference.real**2 + difference.imag**2).mean()


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
