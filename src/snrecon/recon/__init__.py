"""Reconstruction methods: each binds to a scan and becomes a function of k-space."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snrecon.recon.adapters import ImageModule, KspaceModule, direct_varnet, monai_varnet
    from snrecon.recon.base import Bound, Reconstructor
    from snrecon.recon.convdecoder import ConvDecoder
    from snrecon.recon.e2e_varnet import E2EVarNet
    from snrecon.recon.grappa import Grappa
    from snrecon.recon.langevin import Langevin
    from snrecon.recon.latent import Latent
    from snrecon.recon.modl import MoDL
    from snrecon.recon.partial_fourier import PartialFourier
    from snrecon.recon.registry import available, load
    from snrecon.recon.score import Score
    from snrecon.recon.sense import Sense
    from snrecon.recon.tv import TotalVariation
    from snrecon.recon.unet import UNet
    from snrecon.recon.varnet import VarNet
    from snrecon.recon.wavelet import WaveletL1
    from snrecon.recon.zero_filled import ZeroFilled

_HOME = {
    "Bound": "base",
    "ConvDecoder": "convdecoder",
    "E2EVarNet": "e2e_varnet",
    "Grappa": "grappa",
    "ImageModule": "adapters",
    "KspaceModule": "adapters",
    "Langevin": "langevin",
    "Latent": "latent",
    "MoDL": "modl",
    "PartialFourier": "partial_fourier",
    "Reconstructor": "base",
    "Score": "score",
    "Sense": "sense",
    "TotalVariation": "tv",
    "UNet": "unet",
    "VarNet": "varnet",
    "WaveletL1": "wavelet",
    "ZeroFilled": "zero_filled",
    "available": "registry",
    "direct_varnet": "adapters",
    "load": "registry",
    "monai_varnet": "adapters",
}

__all__ = [
    "Bound",
    "ConvDecoder",
    "E2EVarNet",
    "Grappa",
    "ImageModule",
    "KspaceModule",
    "Langevin",
    "Latent",
    "MoDL",
    "PartialFourier",
    "Reconstructor",
    "Score",
    "Sense",
    "TotalVariation",
    "UNet",
    "VarNet",
    "WaveletL1",
    "ZeroFilled",
    "available",
    "direct_varnet",
    "load",
    "monai_varnet",
]


def __getattr__(name: str) -> Any:
    """Import a method when it is first asked for, so that ``import snrecon`` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
