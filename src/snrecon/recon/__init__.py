"""Reconstruction methods: each binds to a scan and becomes a function of k-space."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snrecon.recon.base import Bound, Reconstructor
    from snrecon.recon.grappa import Grappa
    from snrecon.recon.partial_fourier import PartialFourier
    from snrecon.recon.registry import available, load
    from snrecon.recon.sense import Sense
    from snrecon.recon.tv import TotalVariation
    from snrecon.recon.varnet import VarNet
    from snrecon.recon.wavelet import WaveletL1
    from snrecon.recon.zero_filled import ZeroFilled

_HOME = {
    "Bound": "base",
    "Grappa": "grappa",
    "PartialFourier": "partial_fourier",
    "Reconstructor": "base",
    "Sense": "sense",
    "TotalVariation": "tv",
    "VarNet": "varnet",
    "WaveletL1": "wavelet",
    "ZeroFilled": "zero_filled",
    "available": "registry",
    "load": "registry",
}

__all__ = [
    "Bound",
    "Grappa",
    "PartialFourier",
    "Reconstructor",
    "Sense",
    "TotalVariation",
    "VarNet",
    "WaveletL1",
    "ZeroFilled",
    "available",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a method when it is first asked for, so that ``import snrecon`` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
