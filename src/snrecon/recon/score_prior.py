"""The score that a diffusion sampler works with: loaded, in the right precision, a few images at a
time."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.score import Score, sigma_range
from snrecon.recon.own_network import fitted, named_network


def named_score(weights: str | Path | Score) -> tuple[str, Score]:
    """What to call a score, and the score: a callable of the user's own (a network is put into
    evaluation mode), or that of shipped weights or of a file.

    Raises:
        InputError: for unknown or damaged weights, something that is not called as a score is, or
            noise levels that are not positive and ascending.
    """
    if isinstance(weights, str | Path):
        name, network = named_network("ncsnpp", weights)
        score: Any = network
    elif callable(weights):
        name, score = getattr(weights, "__name__", type(weights).__name__), weights
        _require_call(name, score)
        if isinstance(score, nn.Module):
            score.eval()  # with dropout on it would be another score at every call
    else:
        raise InputError(
            "the prior of a score method is the name of weights, a file, or a callable "
            f"score(x, sigma), not {weights!r}."
        )
    sigma_range(score)  # raises if it is none
    return name, score


def _require_call(name: str, score: Any) -> None:
    """InputError for a callable that does not take ``(x, sigma)``."""
    try:
        signature = inspect.signature(score.forward if isinstance(score, nn.Module) else score)
    except (TypeError, ValueError):
        return  # no signature to be read: the call itself will tell
    try:
        signature.bind("x", "sigma")
    except TypeError as error:
        raise InputError(
            f"a score is called with (x, sigma), images and their noise level, which {name} does "
            "not take."
        ) from error


class Prior:
    """A score on the real and imaginary parts of images.

    Args:
        score: See :class:`snrecon.networks.score.Score`. A network is moved to where ``like`` is,
            with parameters that take no gradients, and copied to double precision where the data
            are.
        like: Complex data.
        at_once: Most real images that go through the score together.
    """

    def __init__(self, score: Score, like: Tensor, at_once: int) -> None:
        if isinstance(score, nn.Module):
            network = fitted(score, like)
            if any(p.requires_grad for p in network.parameters()):
                # A graph through all steps would fill the memory, and nobody asked for one.
                network = copy.deepcopy(network).requires_grad_(False)
            score = network
        self.score, self.at_once = score, at_once

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The score of every image of ``x`` ``(..., ky, kx)``, real.

        Raises:
            InputError: if what the score returns is not real images like those it was given.
        """
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        images = x.reshape(-1, *x.shape[-2:])
        parts = [_checked(self.score(some, level), some) for some in images.split(self.at_once)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(x.shape)

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """``x + sigma^2 score``: the mean of the images that ``x`` may have come from."""
        return x + sigma**2 * self(x, sigma)


def _checked(found: Any, images: Tensor) -> Tensor:
    """What a score returned, in the precision of the images."""
    wanted = tuple(images.shape)
    if isinstance(found, Tensor) and found.is_floating_point() and tuple(found.shape) == wanted:
        return found.to(images.dtype)
    told = type(found).__name__
    if isinstance(found, Tensor):
        told = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
    raise InputError(
        f"a score must return a real tensor of the shape (batch, ky, kx) of its images, {wanted}, "
        f"not {told}."
    )


def split(image: Tensor) -> Tensor:
    """Complex ``(..., ky, kx)`` to real ``(..., 2, ky, kx)``."""
    return torch.stack([image.real, image.imag], dim=-3)


def join(parts: Tensor) -> Tensor:
    """The inverse of :func:`split`."""
    real, imaginary = parts.unbind(dim=-3)
    return torch.complex(real, imaginary)
