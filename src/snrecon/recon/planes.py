"""Reconstructions of 2D scans on 3D ones, plane by plane.

Planes share neither data nor noise (:mod:`snrecon.physics.slicing`), so the reconstruction of a
volume, its derivatives and its noise are those of its planes. What would grow with the volume are
the activations that derivatives need, so they are made for one plane at a time and made again for
the next product: reverse mode costs one more forward pass a product, and nothing for planes that it
does not touch. Networks that bring tangents of their own keep the linearisations of as many planes
as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.jacobian import Linearization
from snrecon.physics.memory import available_bytes, held_bytes
from snrecon.physics.slicing import AXES, plane_noise_levels, plane_scans, slice_axis, to_planes
from snrecon.recon.base import Bound, Reconstructor

PROBES_AT_ONCE = 8
"""Perturbations at once, which share the linearisations of planes that are not kept."""
KEPT_SHARE = 4
"""Kept linearisations take at most one in so many parts of the memory at hand."""


def bind_planes(recon: Reconstructor, scan: Scan) -> Bound:
    """k-space ``(..., coil, kz, ky, kx)`` to image ``(..., kz, ky, kx)`` by a method for 2D scans.

    The volume is taken apart along the first of kz, ky, kx along which the mask does not change
    (:func:`snrecon.physics.slicing.slice_axis`), and ``recon`` is bound to every plane: coil maps
    are estimated and sizes normalised in each for itself, as in a stack of slices. Constants of all
    planes (maps and what is made of them, about four times the size of k-space) are held; the
    activations of a network are held for one plane at a time. A product with the transposed
    Jacobian evaluates again those planes that it touches.

    ``linearize`` keeps the linearisation of a plane where the method has tangents of its own, as
    long as all of them stay within a quarter of the memory that is free at the first product (a
    VarNet of 24 features and 8 unrolls: about 18 MB for a plane of 128x128). The other planes are
    linearised anew for every batch of tangents, at a forward pass each.

    Planes off the support of coil maps that are given or frozen, and planes of zeros alone that
    would have to make maps of them, are left out: image and derivatives are exactly zero there.

    Args:
        recon: Binds to 2D scans; called for every plane.
        scan: A 3D grid.

    Raises:
        InputError: if the mask changes along all three axes, or the method does not fit the planes.
    """
    axis = slice_axis(scan.sampled)
    if axis is None:
        raise InputError(
            f"{scan.source}: {recon.name} reconstructs planes, so a 3D grid needs an axis along "
            "which the mask does not change (a fully sampled readout), but this one changes along "
            "kz, ky and kx; use sense, tv or wavelet."
        )
    planes = _bound_planes(recon, plane_scans(scan, axis))
    maps = _joined_maps(planes, plane_noise_levels(scan, axis), axis)
    # The volume has the maps now: those of the planes need not be held twice.
    planes = [None if bound is None else replace(bound, maps=None) for bound in planes]
    volume = _Volume(axis, planes)
    bounds = [bound for bound in planes if bound is not None]
    first = bounds[0]
    return Bound(
        volume.function,
        first.method,
        frozen=tuple(dict.fromkeys(name for bound in bounds for name in bound.frozen)),
        linear=all(bound.linear for bound in bounds),
        maps=maps,
        linearize=volume.linearize,
        batched=all(bound.batched for bound in bounds),
        units=first.units,
        at_once=PROBES_AT_ONCE,
        differentiable=all(bound.differentiable for bound in bounds),
        details={**first.details, "slices": len(planes), "sliced": f"along {AXES[axis]}"},
    )


def _bound_planes(recon: Reconstructor, scans: Sequence[Scan]) -> list[Bound | None]:
    """The method bound to every plane; None where the image is zero whatever the noise."""
    # Without given maps a plane of zeros would have to make maps of nothing.
    empty = [one.maps is None and not bool(one.kspace.any()) for one in scans]
    if all(empty):
        empty = [False] * len(scans)
    planes: list[Bound | None] = []
    for one, nothing in zip(scans, empty, strict=True):
        bound = None if nothing else recon.bind(one)
        planes.append(None if bound is None or _off_support(bound, one) else bound)
    if not any(planes):  # one plane says what an image is
        planes[0] = recon.bind(scans[0])
    return planes


def _off_support(bound: Bound, scan: Scan) -> bool:
    """Maps that no noise can change are zero everywhere."""
    fixed = scan.maps is not None or "coil maps" in bound.frozen
    return fixed and bound.maps is not None and not bool(bound.maps.any())


def _joined_maps(planes: Sequence[Bound | None], levels: Tensor, axis: int) -> Tensor | None:
    """The planes' maps as ``(coil, kz, ky, kx)``, zero where planes are left out; None if a plane
    has none. Each is whitened by the noise of its plane, whose variance is ``levels`` ``(slice,)``
    times that of the scan; together they are whitened by the scan's."""
    parts = [None if bound is None else bound.maps for bound in planes]
    known = [part for part in parts if part is not None]
    if len(known) < sum(bound is not None for bound in planes):
        return None
    nothing = torch.zeros_like(known[0])
    stacked = torch.stack([nothing if part is None else part for part in parts])
    return (stacked * levels.sqrt().to(stacked).reshape(-1, 1, 1, 1)).movedim(0, axis)


@dataclass(frozen=True, eq=False)
class _Volume:
    """The planes of a volume as one function."""

    axis: int
    planes: Sequence[Bound | None]
    """None: left out, zero."""

    def function(self, kspace: Tensor) -> Tensor:
        """``(..., coil, kz, ky, kx)`` to ``(..., kz, ky, kx)``."""
        points = to_planes(kspace, self.axis)
        images = _Images.apply(points.reshape(-1, *points.shape[-4:]), self)
        return self.joined(images.reshape(*points.shape[:-4], *images.shape[1:]))

    def linearize(self, kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The image at k-space ``(coil, kz, ky, kx)`` and the derivative there, from
        ``(batch, coil, kz, ky, kx)`` to ``(batch, kz, ky, kx)``; both without gradients."""
        with torch.no_grad():
            image = self.function(kspace)
        products = _Products(self, to_planes(kspace, self.axis))
        return image, lambda tangents: self.joined(products(to_planes(tangents, self.axis)))

    def joined(self, planes: Tensor) -> Tensor:
        """``(..., slice, *plane)`` to ``(..., kz, ky, kx)``."""
        return planes.movedim(-3, self.axis)

    def images(self, points: Tensor) -> Tensor:
        """``f`` at ``(batch, slice, coil, *plane)``: ``(batch, slice, *image)``."""

        def image(i: int, bound: Bound) -> Tensor:
            parts = points[:, i]
            return bound(parts) if bound.batched else torch.stack([bound(one) for one in parts])

        return self.of_each(image)

    def pushed(self, points: Tensor, tangents: Tensor) -> Tensor:
        """``J v`` at ``points`` for ``(batch, tangent, slice, coil, *plane)``:
        ``(batch, tangent, slice, *image)``."""
        return self.of_each(
            lambda i, bound: torch.stack(
                [_linearized(bound, y).jvp(v) for y, v in zip(points[:, i], tangents[:, :, i])]
            )
        )

    def pulled(self, points: Tensor, cotangents: Tensor) -> Tensor:
        """``J^T u`` at ``points`` for ``(batch, cotangent, slice, *image)``:
        ``(batch, cotangent, slice, coil, *plane)``; planes where ``u`` is zero cost nothing."""
        found = points.new_zeros((*cotangents.shape[:2], *points.shape[1:]))
        for i, bound in enumerate(self.planes):
            for b, y in enumerate(points[:, i]):
                u = cotangents[b, :, i]
                if bound is not None and bool(u.any()):
                    found[b, :, i] = Linearization(bound.function, y).vjp(u)
        return found

    def of_each(self, apply: Callable[[int, Bound], Tensor]) -> Tensor:
        """``apply(i, plane)``, ``(..., *image)``, of one plane after the other, stacked to
        ``(..., slice, *image)``; zeros for planes that are left out."""
        found = {i: apply(i, bound) for i, bound in enumerate(self.planes) if bound is not None}
        nothing = torch.zeros_like(next(iter(found.values())))
        return torch.stack([found.get(i, nothing) for i in range(len(self.planes))], dim=-3)


class _Products:
    """Jacobian products at one point, whose linearisations are kept where there is room."""

    def __init__(self, volume: _Volume, point: Tensor) -> None:
        self.volume, self.point = volume, point
        self._kept: dict[int, Linearization] = {}
        self._room: int | None = None  # planes whose linearisations fit; None before the first

    def __call__(self, tangents: Tensor) -> Tensor:
        """``(batch, slice, coil, *plane)`` to ``(batch, slice, *image)``."""
        return self.volume.of_each(lambda i, bound: self._of(i, bound).jvp(tangents[:, i]))

    def _of(self, i: int, bound: Bound) -> Linearization:
        if i in self._kept:
            return self._kept[i]
        point = self.point[i]
        if bound.linearize is None:
            return _linearized(bound, point)
        if self._room is None:
            made, size = held_bytes(lambda: _linearized(bound, point))
            self._room = available_bytes(point.device) // KEPT_SHARE // max(size, 1)
        else:
            made = _linearized(bound, point)
        if len(self._kept) < self._room:
            self._kept[i] = made
        return made


def _linearized(bound: Bound, point: Tensor) -> Linearization:
    """One plane at ``point`` ``(coil, *plane)``, for a few products."""
    return Linearization(
        bound.function,
        point,
        linear=bound.linear,
        batched=bound.batched,
        own=bound.linearize,
        traced=False,
    )


class _Images(torch.autograd.Function):
    """The images of planes ``(batch, slice, coil, *plane)``, of which nothing but the planes is
    kept for derivatives."""

    @staticmethod
    def forward(points: Tensor, volume: _Volume) -> Tensor:
        return volume.images(points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        points, ctx.volume = inputs
        ctx.save_for_backward(points)
        ctx.save_for_forward(points)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        return _Pulled.apply(points, gradients[0].unsqueeze(1), ctx.volume).squeeze(1), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (points,) = ctx.saved_tensors
        pushed: Tensor = _Pushed.apply(points, tangents[0].unsqueeze(1), ctx.volume)
        return pushed.squeeze(1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], points: Tensor, volume: _Volume) -> Any:
        if in_dims[0] is None:
            return _Images.apply(points, volume), None
        points = points.movedim(in_dims[0], 0)
        images = _Images.apply(points.flatten(0, 1), volume)
        return images.unflatten(0, points.shape[:2]), 0


class _Pushed(torch.autograd.Function):
    """Products with the Jacobian of :class:`_Images`."""

    @staticmethod
    def forward(points: Tensor, tangents: Tensor, volume: _Volume) -> Tensor:
        return volume.pushed(points, tangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _mapped(_Pushed, info.batch_size, in_dims, *inputs)


class _Pulled(torch.autograd.Function):
    """Products with its transpose."""

    @staticmethod
    def forward(points: Tensor, cotangents: Tensor, volume: _Volume) -> Tensor:
        return volume.pulled(points, cotangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _mapped(_Pulled, info.batch_size, in_dims, *inputs)


def _mapped(
    product: type[torch.autograd.Function],
    size: int,
    in_dims: tuple[int | None, ...],
    points: Tensor,
    vectors: Tensor,
    volume: _Volume,
) -> tuple[Tensor, int]:
    """``product`` for ``size`` items: more vectors at the same points, or more points."""
    at, along = in_dims[:2]
    if at is None:
        assert along is not None
        vectors = vectors.movedim(along, 1)
        return product.apply(points, vectors.flatten(1, 2), volume).unflatten(1, (size, -1)), 1
    points = points.movedim(at, 0).flatten(0, 1)
    vectors = vectors.expand(size, *vectors.shape) if along is None else vectors.movedim(along, 0)
    return product.apply(points, vectors.flatten(0, 1), volume).unflatten(0, (size, -1)), 0
