"""The network of a learned reconstruction, and whether a scan suits it."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.convert import convert, is_torch_file
from snrecon.networks.store import load_weights

Combine = Literal["matched", "rss"]
"""Coils by the matched filter, or as root sum of squares."""


TAKES = {
    "unet": ("images",),
    "varnet": ("b", "gram", "support"),
    "modl": ("b", "gram", "support"),
    "e2e_varnet": ("kspace", "mask", "calibration"),
}
"""What a network of each method is called with."""


def require_size(network: nn.Module, grid: tuple[int, ...], scan: Scan, method: str) -> None:
    """InputError if a network that pools says that ``grid`` is too small for it."""
    fits = getattr(network, "fits", None)
    if fits is not None and not fits(grid):
        raise InputError(
            f"{scan.source}: an image of {'x'.join(map(str, grid))} voxels is too small for the "
            f"poolings of this {method}; use a network with fewer, or sense, tv or wavelet."
        )


def named_network(method: str, weights: str | Path | nn.Module) -> tuple[str, nn.Module]:
    """What to call the weights, and the network: the user's own (put into evaluation mode), that of
    a published torch file (``.pt``, ``.pth``, ``.ckpt``), or that of a ``.safetensors`` file or a
    shipped name.

    Raises:
        InputError: for unknown or damaged weights, or a network that is called otherwise than those
            of this method.
    """
    if isinstance(weights, nn.Module):
        _require_call(method, weights)
        return type(weights).__name__, weights.eval()
    if is_torch_file(weights):
        return str(weights), convert(method, weights)
    return str(weights), load_weights(method, weights)


def _require_call(method: str, network: nn.Module) -> None:
    """InputError for a network of one's own that does not take what the method hands it."""
    call = getattr(network, "predict", None) if method == "e2e_varnet" else network.forward
    given = TAKES[method]
    try:
        if call is None:
            raise TypeError
        inspect.signature(call).bind(*given)
    except TypeError as error:
        form = f"{'predict' if method == 'e2e_varnet' else 'a call'} with ({', '.join(given)})"
        raise InputError(
            f"{method} needs a network that takes {form}, which {type(network).__name__} does not; "
            "ImageModule and KspaceModule wrap other networks of images and of k-space."
        ) from error
    except ValueError:
        return  # no signature to be read: the call itself will tell


def coil_options(
    method: str,
    weights: str | Path | nn.Module,
    combine: Combine | None,
    published: bool | None,
    crop: tuple[int, int] | None,
) -> tuple[bool, Combine]:
    """Whether weights are used as published, and how coils are combined, where it is not said.

    Raises:
        InputError: for an unknown combination, or a crop of anything but ``"rss"``.
    """
    if published is None:
        published = (getattr(weights, "published", False) is True
                     if isinstance(weights, nn.Module) else is_torch_file(weights))
    if combine not in (None, "matched", "rss"):
        raise InputError(f"{method} combines coils by 'matched' or 'rss', not {combine!r}.")
    combine = combine or ("rss" if published else "matched")
    if crop is not None and not (isinstance(crop, tuple | list) and len(crop) == 2):
        raise InputError(f"{method} crops to (rows, columns), not {crop!r}.")
    if crop is not None and combine != "rss":
        raise InputError(f"{method} crops images of combine='rss' only.")
    return published, combine


def fitted(network: nn.Module, like: Tensor) -> nn.Module:
    """The network where ``like`` is, in its precision: a copy unless it is there and has it, for
    the network that was given stays what and where it is."""
    real, complex_ = like.real.dtype, like.dtype

    def wanted(tensor: Tensor) -> torch.dtype:
        if tensor.is_complex():
            return complex_
        return real if tensor.is_floating_point() else tensor.dtype

    if all(tensor.dtype == wanted(tensor) and tensor.device == like.device
           for tensor in (*network.parameters(), *network.buffers())):
        return network
    # Module.double leaves complex parameters as they are.
    return copy.deepcopy(network)._apply(lambda tensor: tensor.to(like.device, wanted(tensor)))


def centre_crop(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The central ``shape`` of the last two axes, as fastMRI crops.

    Raises:
        InputError: if the image is smaller.
    """
    rows, columns = image.shape[-2:]
    if not (0 < shape[0] <= rows and 0 < shape[1] <= columns):
        raise InputError(
            f"an image of {rows}x{columns} voxels has no centre of {shape[0]}x{shape[1]}; give a "
            "smaller crop."
        )
    top, left = (rows - shape[0]) // 2, (columns - shape[1]) // 2
    return image[..., top : top + shape[0], left : left + shape[1]]
