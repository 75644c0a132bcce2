"""Jacobian products of a reconstruction at one point, many at a time.

Networks see real and imaginary channels, so ``J`` is real-linear, not complex-linear. With the real
inner product ``<a, b> = Re sum conj(a) b`` the products satisfy ``<u, J v> = <J^T u, v>``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class NotDifferentiableError(RuntimeError):
    """No way was found to differentiate the function; replicas still work."""


TRACED = 1e-2
"""Largest relative difference of traced products, above what rounding makes in single precision."""


class Linearization:
    """``f`` at ``y``: the value once, then batched products with the Jacobian and its transpose.

    The cheapest way that works is found at the first product and kept in ``strategy``:

    * ``linear``: ``f`` is real-linear, ``J v = f(v)``;
    * ``own``: the function brought its own linearisation;
    * ``linearize``: ``torch.func.linearize`` under ``vmap`` (primal evaluated once, ever);
    * ``jvp``: ``vmap`` of ``torch.func.jvp`` (primal evaluated once a batch);
    * ``jvp loop``: one tangent at a time, for operations that cannot be batched;
    * ``double vjp``: reverse mode twice, for operations without a forward-mode rule.

    Args:
        f: k-space ``(coil, *grid)`` to image.
        y: The point, ``(coil, *grid)``.
        linear: ``f`` is real-linear.
        batched: ``f`` takes leading batch axes.
        own: Optional ``y -> (value, jvp)``, ``jvp`` taking batches.
        traced: Allow ``linearize``, whose tracing pays for itself over many products only.
    """

    def __init__(
        self,
        f: Function,
        y: Tensor,
        *,
        linear: bool = False,
        batched: bool = False,
        own: Callable[[Tensor], tuple[Tensor, Function]] | None = None,
        traced: bool = True,
    ) -> None:
        self.f, self.y = f, y
        self._linear, self._batched, self._traced = linear, batched, traced
        self._own: Function | None = None
        self.strategy = ""
        self._vjp: Function | None = None
        self._vjp_batched = True
        if own is not None and not linear:
            self.value, self._own = own(y)
        self._jvp: Function | None = None

    @cached_property
    def value(self) -> Tensor:
        """``f(y)``."""
        with torch.no_grad():
            return self.f(self.y)

    def jvp(self, tangents: Tensor) -> Tensor:
        """``J v`` for a batch of tangents ``(batch, coil, *grid)``; returns ``(batch, *image)``.

        Raises:
            NotDifferentiableError: if no strategy works.
        """
        with torch.no_grad():
            if self._jvp is not None:
                return self._jvp(tangents)
            reasons, last = [], ""
            for name, make in self._strategies():
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # of torch's own tracing
                        warnings.simplefilter("ignore", DeprecationWarning)
                        product = make()
                        result = product(tangents)
                except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                    if _final(error):
                        raise
                    reasons.append(name)
                    last = first_line(error)
                    continue
                if name == "linearize" and not self._trusted(product, result, tangents):
                    reasons.append(name)
                    last = "its derivative is not that of torch.func.jvp"
                    continue
                self._jvp, self.strategy = product, name
                return result
        raise NotDifferentiableError(
            f"the reconstruction cannot be differentiated (tried {', '.join(reasons)}; the last "
            f"one said: {last[:120].rstrip('.')})"
        )

    def _trusted(self, product: Function, result: Tensor, tangents: Tensor) -> bool:
        """Whether traced products ``result`` are those of ``torch.func.jvp``, and it has some, and
        whether the next ones will be the same.

        Tracing takes whatever leaves torch (numpy) for a constant, and constants that the function
        changes in place for what they were before, or changes them again with every product, all
        without an error.
        """
        if not bool(result.any()):
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                again = product(tangents[:1])[0]
                change = torch.linalg.vector_norm(result[0] - again)
                if not bool(change <= TRACED * torch.linalg.vector_norm(again)):
                    return False
                wanted = torch.func.jvp(self.f, (self.y,), (tangents[0],))[1]
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if _final(error):
                raise
            return False
        distance = torch.linalg.vector_norm(result[0] - wanted)
        return bool(distance <= TRACED * torch.linalg.vector_norm(wanted))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """``J^T u`` for cotangents ``(batch, *image)``; returns ``(batch, coil, *grid)``.

        Raises:
            NotDifferentiableError: if reverse mode does not work.
        """
        try:
            if self._vjp is None:
                pullback = torch.func.vjp(self.f, self.y)[1]
                self._vjp = lambda u: pullback(u)[0]
            if self._vjp_batched:
                try:
                    return torch.vmap(self._vjp)(cotangents).detach()
                except (RuntimeError, ValueError) as error:
                    if _final(error):
                        raise
                    self._vjp_batched = False
            return torch.stack([self._vjp(u).detach() for u in cotangents])
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if _final(error):
                raise
            raise NotDifferentiableError(
                f"the reconstruction has no reverse mode ({first_line(error)})"
            ) from error

    def _strategies(self) -> list[tuple[str, Callable[[], Function]]]:
        f, y = self.f, self.y
        if self._linear:
            return [("linear", lambda: f if self._batched else torch.vmap(f))]
        ways: list[tuple[str, Callable[[], Function]]] = []
        if self._own is not None:
            own = self._own
            ways.append(("own", lambda: own))

        def linearized() -> Function:
            _, product = torch.func.linearize(f, y)
            return torch.vmap(product)

        def one(v: Tensor) -> Tensor:
            return torch.func.jvp(f, (y,), (v,))[1]

        def twice() -> Function:
            pullback = torch.func.vjp(f, y)[1]
            zero = torch.zeros_like(self.value)

            def product(v: Tensor) -> Tensor:
                # J^T u is linear in u, so the transpose of its own derivative is J.
                return torch.func.vjp(lambda u: pullback(u)[0], zero)[1](v)[0]

            return lambda vs: torch.stack([product(v) for v in vs])

        if self._traced:
            ways.append(("linearize", linearized))
        ways += [
            ("jvp", lambda: torch.vmap(one)),
            ("jvp loop", lambda: lambda vs: torch.stack([one(v) for v in vs])),
            ("double vjp", twice),
        ]
        return ways


def _final(error: Exception) -> bool:
    """No other way will do: memory ran out, or the function tried all ways by itself."""
    short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return short or isinstance(error, NotDifferentiableError)


def first_line(error: Exception) -> str:
    """What an error says first; its name if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
