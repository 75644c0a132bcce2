"""Reconstruction methods by name, as on the command line."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from snrecon.errors import InputError
from snrecon.recon.base import Reconstructor
from snrecon.recon.option_types import check_types

# name: (module, class, what the part after a colon sets)
_METHODS: dict[str, tuple[str, str, str | None]] = {
    "zero_filled": ("zero_filled", "ZeroFilled", "combine"),
    "partial_fourier": ("partial_fourier", "PartialFourier", "kind"),
    "sense": ("sense", "Sense", None),
    "grappa": ("grappa", "Grappa", None),
    "tv": ("tv", "TotalVariation", None),
    "wavelet": ("wavelet", "WaveletL1", "wavelet"),
    "unet": ("unet", "UNet", "weights"),
    "varnet": ("varnet", "VarNet", "weights"),
    "e2e_varnet": ("e2e_varnet", "E2EVarNet", "weights"),
    "modl": ("modl", "MoDL", "weights"),
    "score": ("score", "Score", "weights"),
    "langevin": ("langevin", "Langevin", "weights"),
    "latent": ("latent", "Latent", "weights"),
    "convdecoder": ("convdecoder", "ConvDecoder", None),
}
_WITH_LAMBDA = ("sense", "tv", "wavelet", "latent")
_WITH_SURE = ("sense", "tv", "wavelet")


def available() -> tuple[str, ...]:
    """Names of the methods."""
    return tuple(_METHODS)


def load(
    name: str, lamda: float | Literal["sure"] | None = None, **options: Any
) -> Reconstructor:
    """A reconstruction method by name.

    Args:
        name: A method of :func:`available`, with its variant after a colon: ``"zero_filled:rss"``,
            ``"partial_fourier:pocs"``, ``"wavelet:sym4"``, ``"varnet:brain"``, or a weights file,
            ``"varnet:path.safetensors"``, ``"e2e_varnet:published.pt"``.
        lamda: Weight of the penalty, for the methods that have one; ``"sure"`` takes that of the
            least estimated error.
        options: Further settings of the method's class.

    Raises:
        InputError: for an unknown name, variant or option, an option of a wrong type, or a lambda
            the method does not have.
    """
    base, colon, variant = name.partition(":")
    if base not in _METHODS:
        near = get_close_matches(base, _METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"there is no method {base!r}: {hint}the methods are {', '.join(_METHODS)}."
        )
    module, class_name, setting = _METHODS[base]
    if colon:
        if setting is None:
            raise InputError(f"{base} has no variants: write {base!r} instead of {name!r}.")
        if not variant:
            raise InputError(f"{name!r} names no variant after the colon: leave the colon out.")
        if setting in options:
            raise InputError(f"{name!r} sets {setting} already: leave out the colon, or {setting}.")
        options[setting] = variant
    if lamda is not None:
        if base not in _WITH_LAMBDA:
            raise InputError(
                f"{base} has no lambda; the methods that have one are {', '.join(_WITH_LAMBDA)}."
            )
        if lamda == "sure" and base not in _WITH_SURE:
            raise InputError(
                f"{base} takes a number for lambda; 'sure' is for {', '.join(_WITH_SURE)}."
            )
        options["lamda"] = lamda
    method = getattr(import_module(f"snrecon.recon.{module}"), class_name)
    check_types(base, method, options)
    try:
        built = method(**options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        known = ", ".join(inspect.signature(method).parameters)
        raise InputError(f"{base} has no option {unknown}; its options: {known}.") from error
    assert isinstance(built, Reconstructor)
    return built
