"""The optimum of a latent fit as a differentiable function of the data.

The measurement enters through ``b = A^H y`` alone, and the optimum's image is (minus half) the
gradient in b of the smallest objective, so its derivative is symmetric: one rule serves forward and
reverse mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snrecon.recon.latent_fit import LatentFit, Optimum
from snrecon.recon.latent_image import TOGETHER


class FittedImage(torch.autograd.Function):
    """``b -> x(theta*(b))``, ``(batch, ky, kx)``, differentiated at the optimum."""

    @staticmethod
    def forward(b: Tensor, fitter: Fitter) -> Tensor:
        return fitter.images(b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fitter = inputs[1]
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        changed: Tensor = FittedChange.apply(gradients[0], ctx.saved_tensors[0], ctx.fitter)
        return changed, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        changed: Tensor = FittedChange.apply(tangents[0], ctx.saved_tensors[0], ctx.fitter)
        return changed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], b: Tensor, fitter: Fitter) -> Any:
        moved = b.movedim(in_dims[0] or 0, 0)
        images = FittedImage.apply(moved.flatten(0, 1), fitter)
        return images.unflatten(0, moved.shape[:2]), 0


class FittedChange(torch.autograd.Function):
    """Change ``(..., batch, ky, kx)`` of the optimum's images with that of b ``(batch, ky, kx)``;
    its own transpose."""

    @staticmethod
    def forward(change: Tensor, b: Tensor, fitter: Fitter) -> Tensor:
        return fitter.changes(change, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fitter = inputs[2]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        changed: Tensor = FittedChange.apply(gradients[0], ctx.saved_tensors[0], ctx.fitter)
        return changed, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        changed: Tensor = FittedChange.apply(tangents[0], ctx.saved_tensors[0], ctx.fitter)
        return changed

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], change: Tensor, b: Tensor, fitter: Fitter
    ) -> Any:
        if in_dims[1] is None:
            return FittedChange.apply(change.movedim(in_dims[0] or 0, 0), b, fitter), 0
        several = [change] * info.batch_size if in_dims[0] is None else change.unbind(in_dims[0])
        changed = [
            FittedChange.apply(one, where, fitter)
            for one, where in zip(several, b.unbind(in_dims[1]), strict=True)]
        return torch.stack(changed), 0


class Fitter:
    """Optima for data around those of a scan.

    Args:
        fit: What is minimised.
        start: The optimum of the scan itself, from which all others begin.
    """

    def __init__(self, fit: LatentFit, start: Optimum) -> None:
        self.fit, self.start = fit, start
        self._last = start

    def __call__(self, b: Tensor) -> Tensor:
        """``b`` ``(..., ky, kx)`` to images of the same shape and precision, differentiable."""
        precise = b.to(self.start.b.dtype).reshape(-1, *b.shape[-2:])
        images: Tensor = FittedImage.apply(precise, self)
        return images.reshape(b.shape).to(b.dtype)

    def images(self, b: Tensor) -> Tensor:
        """Of ``(batch, ky, kx)``."""
        known = torch.tensor([torch.equal(one, self.start.b) for one in b], device=b.device)
        images = self.start.image.expand(b.shape).clone()
        if not bool(known.all()):
            theta = self.fit.nearby(self.start, b[~known])
            images[~known] = torch.cat([self.fit.image(part) for part in theta.split(TOGETHER)])
        return images

    def changes(self, change: Tensor, b: Tensor) -> Tensor:
        """As :class:`FittedChange`."""
        answer = torch.empty_like(change)
        for item, where in enumerate(b):
            part = change[..., item, :, :]
            answer[..., item, :, :] = self.at(where).response(
                part.reshape(-1, *where.shape)).reshape(part.shape)
        return answer

    def at(self, b: Tensor) -> Optimum:
        """The optimum for ``b`` ``(ky, kx)``; that of the scan and the last one are kept."""
        for known in (self.start, self._last):
            if torch.equal(known.b, b):
                return known
        theta = self.fit.nearby(self.start, b[None])[0]
        self._last = self.fit.optimum(theta, b)
        return self._last
