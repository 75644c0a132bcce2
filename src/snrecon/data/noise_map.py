"""An image and what is known about its noise, as one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.data.geometry import Geometry

CONVENTION = (
    "Thermal noise is circular complex Gaussian with E[n n^H] = Psi per k-space sample; centred "
    "orthonormal Fourier transform. sigma: standard deviation of the magnitude image to first "
    "order, SD(Re(conj(u) dx)) with u = exp(i arg x). sigma_complex: sqrt(E|dx|^2). sigma_phase: "
    "SD(Im(conj(u) dx)) / |x|, radians. snr = |x| / sigma. g_factor = sigma / (sigma_full sqrt(R)) "
    "with sigma_full of optimal fully sampled SENSE and R = grid points over sampled points. "
    "standard_error: absolute standard error of sigma."
)

LOW_SNR = 3.0
"""Below this SNR the first-order sigma is not the SD of the Rician magnitude."""

FLOOR = "rss_floor"
"""Key in ``details`` of what noise alone gives a root sum of squares: ``mean`` and ``sd`` of its
square, image units squared. The magnitude of one image has no such entry."""
FLOOR_SPREAD = 2.0
"""So many of these SDs above the mean the square of a root sum of squares is taken as signal."""


@dataclass(frozen=True, eq=False)
class NoiseMap:
    """Image, noise maps and how they were found; what rescales one rescales all.

    All maps have the shape of the image: ``(*grid)``, or ``(slice, ky, kx)`` for a stack.
    A quantity that does not exist for the method is None.
    """

    image: Tensor
    """Complex (or real, for methods defined on magnitudes), in image units."""
    sigma: Tensor
    """SD of the magnitude image to first order, real, image units."""
    sigma_complex: Tensor
    """``sqrt(E|dx|^2)``, real, image units."""
    snr: Tensor
    """``|image| / sigma``; 0 where the image is exactly zero by construction."""
    sigma_phase: Tensor | None = None
    """SD of the phase, radians."""
    g_factor: Tensor | None = None
    """Noise amplification against optimal fully sampled SENSE beyond sqrt(R)."""
    standard_error: Tensor | None = None
    """Absolute standard error of ``sigma``, image units; zero for exact and analytic maps."""
    covariance: Tensor | None = None
    """``(3, ...)`` real: Var of the component along the image's phase, Var of the component across
    it, and their covariance: the 2x2 covariance of ``conj(u) dx``, (image units)^2."""
    dithered: Tensor | None = None
    """A copy of the image with noise added for display (:func:`snrecon.noise.dither`); nothing else
    belongs to it."""
    estimator: str = ""
    """``analytic``, ``exact``, ``certified``, ``corrected``, ``sketch`` or ``replicas``."""
    passes: float = 0.0
    """Network-pass equivalents: a JVP or a replica is 1, a VJP counts at its measured cost."""
    seed: int | None = None
    """Seed of the probes; without effect on the analytic and exact estimators."""
    convention: str = CONVENTION
    """What the quantities mean."""
    frozen: tuple[str, ...] = ()
    """What was treated as known instead of as computed from the noisy data."""
    method: str = ""
    """The reconstruction."""
    units: str = "as the reconstruction returns them"
    """Unit of image and sigma, in words."""
    acceleration: float = 1.0
    """True acceleration R."""
    geometry: Geometry | None = None
    """Voxel size and orientation."""
    layout: str = "grid"
    """``"grid"`` or ``"stack"``."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts: why an estimator was chosen, tolerance reached, noise source, lambda."""

    @property
    def low_snr(self) -> Tensor:
        """Boolean: voxels with ``|x| < 3 sigma``, where first order is not the Rician SD.

        The noise of many coils alone gives a root sum of squares far above 3 sigma. Where the
        result knows this floor (``details["rss_floor"]``), it is taken off ``|x|^2`` first, and
        what is left must also exceed twice the SD that ``|x|^2`` has in noise alone.
        """
        return weak(self.image, self.sigma, self.details.get(FLOOR)) & (self.sigma > 0)

    @property
    def relative_error(self) -> float:
        """RMS over voxels that are not :attr:`low_snr` of the relative standard error of sigma. Of
        a certified map, whose standard errors are rather too large than too small, it is near the
        limit in ``details["certificate"]``."""
        if self.standard_error is None:
            return 0.0
        return relative_error(
            self.image, self.sigma, self.standard_error, self.details.get(FLOOR)
        )

    def scale(self, factor: float) -> NoiseMap:
        """The same result for an image multiplied by a real ``factor`` (of either sign).

        Images, sigma, sigma_complex, standard error and covariance follow; SNR, g-factor and
        phase noise do not change.
        """
        size = abs(factor)
        if not (0 < size < float("inf")):
            raise ValueError(f"the factor must be finite and not zero, not {factor}.")
        details = self.details
        if isinstance(floor := details.get(FLOOR), Mapping):
            scaled = {name: value * factor**2 for name, value in floor.items()}
            details = {**details, FLOOR: scaled}
        return replace(
            self,
            image=self.image * factor,
            sigma=self.sigma * size,
            sigma_complex=self.sigma_complex * size,
            standard_error=None if self.standard_error is None else self.standard_error * size,
            covariance=None if self.covariance is None else self.covariance * factor**2,
            dithered=None if self.dithered is None else self.dithered * factor,
            units=self.units if factor == 1 else f"{factor:g} x ({self.units})",
            details=details,
        )

    def save(self, path: str | Path) -> None:
        """Write to ``.h5``, ``.npz``, ``.nii.gz`` or BART ``.cfl`` by the name's ending."""
        from importlib import import_module  # the file formats lie above this layer

        import_module("snrecon.io").save(self, path)

    @staticmethod
    def load(path: str | Path) -> NoiseMap:
        """Read a result written as ``.h5`` or ``.npz``."""
        from importlib import import_module

        result = import_module("snrecon.io").load_result(path)
        assert isinstance(result, NoiseMap)
        return result

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.image.shape)
        optional = ("sigma_phase", "g_factor", "standard_error")
        maps = ["sigma", "sigma_complex", "snr"]
        maps += [name for name in optional if getattr(self, name) is not None]
        inside = ~self.low_snr & (self.sigma > 0)
        if not bool(inside.any()):
            inside = self.sigma > 0
        median = float(self.sigma[inside].median()) if bool(inside.any()) else float("nan")
        return (
            f"NoiseMap({shape}, method={self.method or 'callable'}, estimator={self.estimator}, "
            f"passes={self.passes:g}, median sigma={median:.4g}, relative error="
            f"{self._error_text}, with {', '.join(maps)})"
        )

    @property
    def _error_text(self) -> str:
        certificate = self.details.get("certificate")
        if self.estimator != "certified" or not isinstance(certificate, Mapping):
            return f"{self.relative_error:.2%}"
        return f"{certificate['error']:.2%}, at most {certificate['bound']:.2%} (95 %)"


def weak(image: Tensor, sigma: Tensor, floor: Any = None) -> Tensor:
    """Boolean: voxels with ``|x| < 3 sigma``, or that noise alone explains.

    Args:
        image: Complex or real.
        sigma: SD of the magnitude to first order, same shape and units.
        floor: ``mean`` and ``sd`` of ``|x|^2`` in noise alone, of a root sum of squares; None: of
            one image, which 3 sigma are enough to tell from noise.
    """
    if not isinstance(floor, Mapping) or not {"mean", "sd"} <= set(floor):
        return image.abs() < LOW_SNR * sigma
    signal = image.abs().double() ** 2 - float(floor["mean"])
    least = (LOW_SNR * sigma.double()) ** 2
    return signal < least.clamp_min(FLOOR_SPREAD * float(floor["sd"]))


def relative_error(
    image: Tensor, sigma: Tensor, standard_error: Tensor, floor: Any = None
) -> float:
    """RMS over voxels that are not :func:`weak` of ``standard_error / sigma``.

    When no voxel reaches that SNR, over all voxels with noise; 0 when there is no noise at all.
    """
    noisy = sigma > 0
    chosen = noisy & ~weak(image, sigma, floor)
    if not bool(chosen.any()):
        chosen = noisy
    if not bool(chosen.any()):
        return 0.0
    ratio = standard_error[chosen] / sigma[chosen]
    return float(torch.sqrt(torch.mean(ratio.double() ** 2)))
