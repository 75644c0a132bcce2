"""The mean of several images of one scan, and how far they spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from snrecon.data import Geometry
from snrecon.uncertainty.intervals import ORDER, checked_level
from snrecon.uncertainty.sample_moments import SampleMoments

POSTERIOR, ENSEMBLE = "posterior", "ensemble"
CONVENTIONS = {
    POSTERIOR: (
        "Spread of a stochastic reconstruction over its own random draws, at fixed data. It is not "
        "thermal noise (the spread over repeated scans), and not the error against the truth. "
    ),
    ENSEMBLE: (
        "Spread of several reconstructions of the same data. It is not thermal noise (the spread "
        "over repeated scans), and not the error against the truth. "
    ),
}
QUANTITIES = (
    "image: mean. magnitude: mean of |x|. spread: standard deviation of |x| (n - 1). spread_error: "
    "its absolute standard error. spread_complex: sqrt(E|x - mean|^2). lower, upper: equal-tailed "
    "interval of |x| into which one more sample falls with probability 'level'."
)


@dataclass(frozen=True, eq=False)
class SpreadMap:
    """Mean and spread of samples (or of an ensemble's members); what rescales one rescales all.

    All maps have the shape of the image, ``(*grid)``, and its units.
    """

    mean: Tensor
    """Mean image, complex (real for methods defined on magnitudes)."""
    magnitude: Tensor
    """Mean of ``|x|``, not below the magnitude of the mean."""
    spread: Tensor
    """SD of ``|x|``, n - 1 in the denominator."""
    spread_error: Tensor
    """Its standard error, from the fourth moments of the samples."""
    spread_complex: Tensor
    """``sqrt(E|x - mean|^2)``: both components together."""
    lower: Tensor
    """Lower limit of the equal-tailed interval of ``|x|`` (:mod:`snrecon.uncertainty.intervals`).
    """
    upper: Tensor
    """Upper limit."""
    level: float
    """What the interval covers, of samples drawn like these."""
    interval: str
    """``"order statistics"``, or ``"student"`` (a normal approximation) for few samples."""
    count: int
    """Samples."""
    kind: str = POSTERIOR
    """``"posterior"`` or ``"ensemble"``."""
    seed: int | None = None
    """The user's seed."""
    seeds: tuple[int, ...] = ()
    """Of each sample: ``recon.bind(scan, torch.Generator().manual_seed(seeds[k]))`` repeats it.
    Of an ensemble, where members draw: of each member."""
    samples: Tensor | None = None
    """``(sample, *grid)``, where they were kept."""
    method: str = ""
    units: str = ""
    frozen: tuple[str, ...] = ()
    acceleration: float = 1.0
    geometry: Geometry | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of the method."""

    @property
    def convention(self) -> str:
        """What the quantities mean."""
        return CONVENTIONS[self.kind] + QUANTITIES

    @staticmethod
    def of(moments: SampleMoments, level: float, **facts: Any) -> SpreadMap:
        """The map of some samples, in their precision.

        Raises:
            InputError: if the level is no probability, or too few outer magnitudes were kept.
        """
        lower, upper, interval = moments.limits(checked_level(level))
        spread, error = moments.magnitude.sigma()
        real = moments.origin.abs().dtype
        return SpreadMap(
            mean=moments.mean(), magnitude=moments.mean_magnitude().to(real),
            spread=spread.to(real), spread_error=error.to(real),
            spread_complex=moments.spread_complex().to(real),
            lower=lower.to(real), upper=upper.to(real), level=level, interval=interval,
            count=moments.samples, samples=moments.images, **facts)

    def scale(self, factor: float) -> SpreadMap:
        """The same for images multiplied by a real ``factor`` above 0."""
        if not 0 < factor < float("inf"):
            raise ValueError(f"the factor must be positive and finite, not {factor}.")
        names = ("mean", "magnitude", "spread", "spread_error", "spread_complex", "lower", "upper")
        scaled: dict[str, Any] = {name: getattr(self, name) * factor for name in names}
        return replace(
            self, **scaled, samples=None if self.samples is None else self.samples * factor,
            units=self.units if factor == 1 else f"{factor:g} x ({self.units})")

    def save(self, path: str | Path) -> None:
        """Write to ``.h5``, ``.npz``, ``.nii.gz`` or ``.cfl`` by the name's ending
        (:func:`snrecon.uncertainty.files.save_spread`)."""
        from snrecon.uncertainty.files import save_spread

        save_spread(self, path)

    @staticmethod
    def load(path: str | Path) -> SpreadMap:
        """Read what :meth:`save` wrote as ``.h5`` or ``.npz``."""
        from snrecon.uncertainty.files import load_spread

        return load_spread(path)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.mean.shape))
        how = "" if self.interval == ORDER else ", normal approximation"
        what = self.method or "callable"
        if not what.startswith(f"{self.kind} of "):
            what = f"{self.kind} of {what}"
        return (
            f"SpreadMap({shape}, {what}, {self.count} samples, "
            f"median spread={float(self.spread.median()):.4g}, {self.level:.3g} intervals{how})"
        )
