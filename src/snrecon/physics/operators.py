"""Linear operators of the measurement ``y = M F S x`` and their algebra.

Every operator acts on the last axes of its input and carries leading batch axes along. They are
plain tensor functions inside, so ``torch.func`` jvp, vjp and vmap pass through them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from snrecon.physics.fourier import fft, grid_axes, ifft

Shape = tuple[int, ...]


class LinearOperator(ABC):
    """A complex-linear map between arrays of fixed shape, with its adjoint.

    ``A(x)`` applies it, ``A.H`` is the adjoint, ``A.gram`` is ``A.H @ A``; ``A @ B`` composes,
    ``A + B`` adds, ``2 * A`` scales.
    """

    domain: Shape
    """Shape of the input's last axes."""
    range: Shape
    """Shape of the output's last axes."""

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``x`` of shape ``(..., *domain)``; ValueError for any other shape."""
        _check(x, self.domain, self)
        return self._forward(x)

    @property
    def H(self) -> LinearOperator:
        """The adjoint: ``<A x, y> = <x, A.H y>``."""
        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """``A.H @ A``; subclasses give faster forms."""
        return self.H @ self

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __mul__(self, scalar: complex) -> LinearOperator:
        return Scaled(self, scalar)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_shape(self.domain)} -> {_shape(self.range)})"


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _check(x: Tensor, wanted: Shape, operator: LinearOperator) -> None:
    if len(wanted) > x.ndim or tuple(x.shape[x.ndim - len(wanted) :]) != tuple(wanted):
        raise ValueError(
            f"{operator} takes arrays of shape (..., {', '.join(map(str, wanted))}), "
            f"not {tuple(x.shape)}."
        )


class Adjoint(LinearOperator):
    """Adjoint of an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain, self.range = operator.range, operator.domain

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._forward(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """``left @ right``: right acts first."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if tuple(left.domain) != tuple(right.range):
            raise ValueError(f"cannot compose {left} with {right}: the shapes between them differ.")
        self.left, self.right = left, right
        self.domain, self.range = right.domain, left.range

    def _forward(self, x: Tensor) -> Tensor:
        return self.left._forward(self.right._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.right._adjoint(self.left._adjoint(y))


class Sum(LinearOperator):
    """``left + right``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if (tuple(left.domain), tuple(left.range)) != (tuple(right.domain), tuple(right.range)):
            raise ValueError(f"cannot add {left} and {right}: their shapes differ.")
        self.left, self.right = left, right
        self.domain, self.range = left.domain, left.range

    def _forward(self, x: Tensor) -> Tensor:
        return self.left._forward(x) + self.right._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.left._adjoint(y) + self.right._adjoint(y)


class Scaled(LinearOperator):
    """``scalar * operator``."""

    def __init__(self, operator: LinearOperator, scalar: complex) -> None:
        self.operator, self.scalar = operator, scalar
        self.domain, self.range = operator.domain, operator.range

    def _forward(self, x: Tensor) -> Tensor:
        return self.scalar * self.operator._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return complex(self.scalar).conjugate() * self.operator._adjoint(y)


class Identity(LinearOperator):
    """``x -> x``."""

    def __init__(self, shape: Shape) -> None:
        self.domain = self.range = tuple(shape)

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        return y


class Fourier(LinearOperator):
    """Centred orthonormal Fourier transform over the last ``dimensions`` axes; unitary."""

    def __init__(self, shape: Shape, dimensions: int | None = None) -> None:
        self.domain = self.range = tuple(shape)
        self.axes = grid_axes(len(shape) if dimensions is None else dimensions)

    def _forward(self, x: Tensor) -> Tensor:
        return fft(x, self.axes)

    def _adjoint(self, y: Tensor) -> Tensor:
        return ifft(y, self.axes)

    @property
    def gram(self) -> LinearOperator:
        return Identity(self.domain)


class Sensitivity(LinearOperator):
    """Image ``(*grid)`` to coil images ``(coil, *grid)`` by multiplication with coil maps."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self.domain, self.range = tuple(maps.shape[1:]), tuple(maps.shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self.maps * x.unsqueeze(-1 - len(self.domain))

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * y).sum(dim=-1 - len(self.domain))


class Sampling(LinearOperator):
    """Sets points off the boolean mask ``(*grid)`` to zero; an orthogonal projection.

    ``shape`` is the shape of the data, ending in the mask's grid.
    """

    def __init__(self, mask: Tensor, shape: Shape | None = None) -> None:
        self.mask = mask
        self.domain = self.range = tuple(mask.shape if shape is None else shape)

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask

    @property
    def gram(self) -> LinearOperator:
        return self


class Encoding(LinearOperator):
    """The Cartesian multi-coil measurement ``A = M F S``.

    Args:
        maps: ``(coil, *grid)`` complex; whitened maps for whitened data.
        mask: Boolean ``(*grid)``.
    """

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if tuple(maps.shape[1:]) != tuple(mask.shape):
            raise ValueError(
                f"coil maps {tuple(maps.shape)} and mask {tuple(mask.shape)} have different grids."
            )
        self.maps, self.mask = maps, mask
        self.domain, self.range = tuple(maps.shape[1:]), tuple(maps.shape)
        self.axes = grid_axes(len(self.domain))

    def _forward(self, x: Tensor) -> Tensor:
        return fft(self.maps * x.unsqueeze(-1 - len(self.domain)), self.axes) * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * ifft(y * self.mask, self.axes)).sum(dim=-1 - len(self.domain))

    @property
    def gram(self) -> LinearOperator:
        from snrecon.physics.gram import encoding_gram

        return encoding_gram(self.maps, self.mask)


def dense(operator: LinearOperator, dtype: torch.dtype = torch.complex128) -> Tensor:
    """The matrix ``(prod(range), prod(domain))`` of a small operator, column by column."""
    n = 1
    for size in operator.domain:
        n *= size
    eye = torch.eye(n, dtype=dtype).reshape(n, *operator.domain)
    return operator(eye).reshape(n, -1).mT
