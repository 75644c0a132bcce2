"""Which squared error of a reconstruction noisy data can tell without the truth, and how.

Stein's unbiased risk estimate (C. Stein, Ann. Stat. 9 (1981) 1135). Data ``y = m + n`` with noise
``n = L w``, w white, circular, ``E[w w^H] = I``: half a unit of variance in each of its real
components. A risk compares a linear image ``h = H f(y)`` of the reconstruction with the same
quantity of the noiseless data, ``T m``, where T is a linear map of k-space. Then

    E|h - T m|^2 = E[ |h - T y|^2 + 2 Re<T n, h> - |T n|^2 ]
                 = E[ |h - T y|^2 + 2 Re<T L v, H J L v> - |T L v|^2 ]

with probes v, ``E[v v^H] = I`` and ``E[v v^T] = 0``. The second line is Stein's lemma over all real
components: ``E Re<T n, h> = (1/2) tr_R(L^H T^H H J L)`` with the trace of the real matrix, twice
the size of a complex one, and ``E Re<v, B v> = (1/2) tr_R(B)`` for any real-linear B. So the two
halves cancel, and no factor is left that J would have to be complex-linear for. Taken over some
voxels only, every term is local: the same probes serve all regions.

T and H must not depend on the data; of what was estimated from them (coil maps, lambda) the
dependence is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from snrecon.physics.gram import DENSE_LIMIT, varying_axes
from snrecon.physics.solvers import linear_solve
from snrecon.recon.forward_model import ForwardModel
from snrecon.recon.line_inverse import LineInverse
from snrecon.recon.zero_filled import map_power, matched_filter

CUTOFF = 1e-2
"""Default weight below which a direction of the image counts as not measured, as a share of the
largest map power: noise in a direction of that weight has 100 times the variance of full sampling.
"""


class Risk(ABC):
    """A squared error that can be estimated from the data: H and T of the module's head."""

    name: str
    model: ForwardModel
    """The measurement of which the image is the object."""
    local: bool
    """Elements are voxels, so that regions of the image have risks of their own."""
    statement: str
    """What is compared with what, and which part of the image it says nothing about."""
    counted: Tensor
    """Boolean, shape of ``h``: the elements that the risk is a mean over."""

    @abstractmethod
    def data(self, kspace: Tensor) -> Tensor:
        """``T y``: k-space ``(..., coil, *grid)`` of the scan to ``(..., *counted.shape)``."""

    @abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """``H x``: image ``(..., *grid)`` to ``(..., *counted.shape)``."""

    @abstractmethod
    def back(self, values: Tensor) -> Tensor:
        """``T^H u``: ``(..., *counted.shape)`` to k-space ``(..., coil, *grid)`` of the scan."""


class PredictionRisk(Risk):
    """``|A f(y) - A x|^2`` over the whitened samples: T whitens, H is the encoding A.

    It needs no inverse, and does not even need the coil maps to be right: the target is the
    noiseless data, whatever they are. It lives in k-space, so it has no regions.

    Args:
        model: Its maps are those that turn the image of f into k-space.
    """

    name = "prediction"
    local = False
    statement = (
        "error of the predicted k-space samples against noiseless ones, in units of the noise "
        "variance; it says nothing of k-space that was not sampled"
    )

    def __init__(self, model: ForwardModel) -> None:
        self.model, self._encoding = model, model.encoding
        self.counted = model.mask.expand(model.maps.shape)

    def data(self, kspace: Tensor) -> Tensor:
        """Whitened samples."""
        return self.model.whiten(kspace) * self.model.mask

    def image(self, x: Tensor) -> Tensor:
        """The samples that the image predicts."""
        return self._encoding(x)

    def back(self, values: Tensor) -> Tensor:
        """``W^H M u``."""
        return _whiten_adjoint(self.model, values)


class ProjectedRisk(Risk):
    """``|P (f(y) - x)|^2`` over the image, P onto what the samples determine (Y. C. Eldar, IEEE
    Trans. Signal Process. 57 (2009) 471).

    Directions of the image (eigenvectors of ``A^H A``) that no sample sees have a weight of zero,
    and their error cannot be known. Those of small weight could be, at the price of noise that
    grows without bound, so the projector is regularised: ``P = (A^H A + mu)^-1 A^H A``, which keeps
    a direction of weight s by the factor ``s / (s + mu)``, and ``T = (A^H A + mu)^-1 A^H``. For
    this P the estimate is unbiased, whatever mu; for mu to 0 it is the orthogonal projector onto
    the range of ``A^H``. Fully sampled data determine everything: then mu is 0, P the identity on
    the maps' support, and the risk the mean squared error of the image itself.

    Solved line by line where the mask varies along one axis, else by conjugate gradients.

    Args:
        model: Its maps are those that turn the image of f into k-space.
        cutoff: mu over the largest map power ``sum |S|^2``; without effect on full sampling.
    """

    name = "projected"
    local = True

    def __init__(self, model: ForwardModel, cutoff: float = CUTOFF) -> None:
        self.model = model
        self.counted = model.support
        self.complete = not varying_axes(model.mask)
        self.shift = 0.0 if self.complete else cutoff * float(map_power(model.maps).max())
        self._solve = self._inverse()
        self._encoding = model.encoding
        self._gram = self._encoding.gram
        self.statement = (
            "mean squared error of the image: full sampling determines all of it"
            if self.complete
            else "error of the part of the image that the samples determine, P (f - x) with P = "
            f"(A^H A + mu)^-1 A^H A, mu = {cutoff:g} of the largest map power; the rest of the "
            "image cannot be judged from these data"
        )

    def data(self, kspace: Tensor) -> Tensor:
        """Regularised least-squares image of the data."""
        return self._solve(matched_filter(self.model, kspace))

    def image(self, x: Tensor) -> Tensor:
        """``P x``."""
        return x * self.model.support if self.complete else self._solve(self._gram(x))

    def back(self, values: Tensor) -> Tensor:
        """``W^H A (A^H A + mu)^-1 u``."""
        return _whiten_adjoint(self.model, self._encoding(self._solve(values)))

    def _inverse(self) -> Callable[[Tensor], Tensor]:
        """``(A^H A + mu)^-1``, zero off the support."""
        maps, mask, support = self.model.maps, self.model.mask, self.model.support
        if self.complete:
            power = map_power(maps)
            weights = torch.where(support, 1 / torch.where(support, power, 1), 0)
            return lambda b: b * weights
        axes = varying_axes(mask)
        if len(axes) == 1:
            size = mask.numel() * mask.shape[axes[0]] * maps.element_size()
            if size <= DENSE_LIMIT:
                return LineInverse(maps, mask, axes[0], self.shift)
        gram = self.model.encoding.gram
        tolerance = 1e-6 if maps.dtype == torch.complex64 else 1e-12

        def solve(b: Tensor) -> Tensor:
            # Off the support b is zero, and so is every step of the iteration.
            return linear_solve(gram, b, self.shift, 1000, tolerance)

        return solve


def _whiten_adjoint(model: ForwardModel, data: Tensor) -> Tensor:
    """``W^H M u`` for ``(..., coil, *grid)``."""
    masked = data * model.mask
    flat = masked.flatten(start_dim=data.ndim - model.mask.ndim)
    return (model.whitening.mH.to(data.dtype) @ flat).reshape(data.shape)


def random_phases(like: Tensor, generator: torch.Generator) -> Tensor:
    """One probe of the shape and precision of ``like``, entries drawn from {1, i, -1, -i}.

    ``E[v v^H] = I`` and ``E[v v^T] = 0``.
    """
    table = torch.tensor([1, 1j, -1, -1j], dtype=like.dtype)
    return table[torch.randint(0, 4, like.shape, generator=generator)].to(like.device)


def inner(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """``Re <a, b>`` over the elements in ``where``: ``(batch, *shape)`` to ``(batch,)``, in double
    precision."""
    product = (a.real * b.real + a.imag * b.imag).double()
    return (product * where).flatten(1).sum(1)
