"""Regions as users give them: checked, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snrecon.errors import InputError


def chosen(region: Any, image: Tensor, name: str = "the region") -> Tensor:
    """Where a region is not zero, boolean ``(*image)``, on the image's device.

    Args:
        region: Boolean or numbers, ``(*image)``.
        image: The image.
        name: What it is called, for the sentence.

    Raises:
        InputError: if it has another shape, is empty, or holds NaN.
    """
    return weights(region, image, name) != 0


def weights(region: Any, image: Tensor, name: str = "the region") -> Tensor:
    """A region's weights as they were given, ``(*image)``, on the image's device.

    Args:
        region: Boolean or numbers, ``(*image)``.
        image: The image.
        name: What it is called, for the sentence.

    Raises:
        InputError: if it has another shape, is empty, or holds NaN.
    """
    try:
        given = torch.as_tensor(region, device=image.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be an array, not {type(region).__name__}.") from None
    if given.shape != image.shape:
        raise InputError(
            f"{name} has shape {tuple(given.shape)}, the image {tuple(image.shape)}."
        )
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{name} holds NaN or infinite weights.")
    if not bool((given != 0).any()):
        raise InputError(f"{name} is empty.")
    return given
