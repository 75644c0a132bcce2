"""What a risk estimate consists of, and how it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snrecon.io.record import plain
from snrecon.io.staging import staged


@dataclass(frozen=True)
class RiskPart:
    """The estimated mean squared error over some elements: voxels of a region, or k-space samples.

    ``risk = residual + 2 penalty - noise``, all per element.
    """

    risk: float
    """Estimate of the mean of ``|error|^2``, complex error, per element. Unbiased, so it may be
    negative where the true one is small."""
    standard_error: float
    """Standard error of ``risk`` from the finite number of probes."""
    residual: float
    """Mean of ``|h - T y|^2``: squared distance of the image from the data's own."""
    penalty: float
    """Mean of ``Re<T n, h>``: how far the image follows the noise (half the divergence in units of
    the noise)."""
    noise: float
    """Mean of ``|T n|^2``: noise of the data's own image."""
    signal: float
    """Estimate of the mean of ``|T m|^2``, the signal that the error is measured against."""
    elements: int
    """Voxels or samples that the means are over."""

    @property
    def nmse(self) -> float:
        """``risk / signal``: the part's normalised mean squared error; NaN without any signal."""
        return self.risk / self.signal if self.signal > 0 else float("nan")

    @property
    def nmse_error(self) -> float:
        """Standard error of ``nmse`` from the probes."""
        return self.standard_error / self.signal if self.signal > 0 else float("nan")

    def __str__(self) -> str:
        return f"{self.risk:.4g} +- {self.standard_error:.2g}, NMSE {self.nmse:.3g}"


@dataclass(frozen=True)
class RiskEstimate:
    """Squared error of a reconstruction, estimated from its data alone."""

    kind: str
    """``"projected"``, ``"prediction"`` or ``"published"``."""
    overall: RiskPart
    """Over the whole support of the coil maps, or all samples."""
    regions: Mapping[str, RiskPart]
    """By name; empty for risks that live in k-space."""
    noise_error: float | None
    """RMS distance of ``overall.risk`` from the actual squared error of this one image, from the
    noise of the measurement; no number of probes lowers it. None if not asked for, or unknown."""
    degrees_of_freedom: float
    """Divergence of the fit of the data, ``tr_R(d(A x) / dy)``: real components of the data that
    the image is free to follow. At most twice the number of voxels (and of samples)."""
    degrees_of_freedom_error: float
    """Its standard error from the probes."""
    components: int
    """Real components of the data: twice the number of complex samples of all coils."""
    statement: str
    """What is compared with what, and which part of the image it says nothing about."""
    units: str
    """Unit of the image, in words; the risk has its square."""
    method: str
    probes: int
    passes: int
    """Jacobian products."""
    seed: int
    frozen: tuple[str, ...] = ()
    """What was estimated from the data but is treated as known: the estimate is unbiased for the
    method with these fixed."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the metadata."""

    @property
    def risk(self) -> float:
        """Estimated mean squared error per element; see :class:`RiskPart`."""
        return self.overall.risk

    @property
    def standard_error(self) -> float:
        """Standard error of ``risk`` from the finite number of probes."""
        return self.overall.standard_error

    @property
    def nmse(self) -> float:
        """``risk`` over the signal's mean square, both of what the risk compares."""
        return self.overall.nmse

    def save(self, path: str | Path) -> None:
        """Write every number and fact as JSON.

        Raises:
            InputError: if the file cannot be written.
        """
        facts = asdict(self)
        for part, numbers in ((self.overall, facts["overall"]),
                              *((self.regions[name], facts["regions"][name])
                                for name in self.regions)):
            numbers["nmse"] = part.nmse
        with staged() as staging:
            text = json.dumps(plain(facts), indent=2)
            staging.path(path).write_text(text + "\n", encoding="utf-8")

    def __str__(self) -> str:
        whole, unit = self.overall, "sample" if self.kind == "prediction" else "voxel"
        rows = [
            ("method", self.method or "callable"),
            ("risk", f"{self.kind}: {self.statement}"),
            (f"MSE per {unit}", f"{whole.risk:.4g} +- {whole.standard_error:.2g} (probes)"
             + ("" if self.noise_error is None else f" +- {self.noise_error:.2g} (noise)")),
            ("NMSE", f"{whole.nmse:.4g} +- {whole.nmse_error:.2g} (probes)"),
            ("made of", f"residual {whole.residual:.4g} + 2 x penalty {whole.penalty:.4g} - noise "
             f"{whole.noise:.4g}, {whole.elements} {unit}s"),
            ("degrees of freedom", f"{self.degrees_of_freedom:.5g} +- "
             f"{self.degrees_of_freedom_error:.2g} of {self.components} real data"),
        ]  # fmt: skip
        rows += [(f"  {name}", str(part)) for name, part in self.regions.items()]
        rows.append(("probes", f"{self.probes}, {self.passes} Jacobian products, seed {self.seed}"))
        rows.append(("units", f"squared, of {self.units}"))
        rows.append(("frozen", ", ".join(self.frozen) or "nothing"))
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)
