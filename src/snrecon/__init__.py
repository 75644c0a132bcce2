"""snrecon: MRI reconstructions, each with a trustworthy voxel-wise map of its noise.

    import snrecon

    scan = snrecon.load("scan.h5")
    recon = snrecon.recon.load("varnet")
    result = snrecon.noise_map(recon, scan, tolerance=0.05)
    result.save("result.h5")

Names are loaded on first use, so that ``import snrecon`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snrecon import noise, recon, uncertainty
    from snrecon.data import Geometry, NoiseMap, NoiseModel, Scan
    from snrecon.io import load
    from snrecon.noise import noise_map

__version__ = "0.1.0"

__all__ = [
    "Geometry",
    "NoiseMap",
    "NoiseModel",
    "Scan",
    "__version__",
    "load",
    "noise",
    "noise_map",
    "recon",
    "uncertainty",
]

_HOMES = {
    "Geometry": "snrecon.data",
    "NoiseMap": "snrecon.data",
    "NoiseModel": "snrecon.data",
    "Scan": "snrecon.data",
    "load": "snrecon.io",
    "noise_map": "snrecon.noise",
}
_PACKAGES = (
    "cli", "data", "io", "metrics", "networks", "noise", "physics", "recon", "report", "training",
    "uncertainty",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _PACKAGES:
        value = import_module(f"snrecon.{name}")
    else:
        raise AttributeError(f"module 'snrecon' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
