"""Partial Fourier: one side of k-space is cut short, and a smooth phase fills it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.gram import encoding_gram, varying_axes
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.zero_filled import map_power, matched_filter, matched_filter_maps

Kind = Literal["homodyne", "pocs", "zero_filled"]
KINDS = ("homodyne", "pocs", "zero_filled")
SMALLEST_CENTRE = 2
"""Lines needed on the short side of the centre: with fewer there is no phase to go by."""


class PartialFourier(Reconstructor):
    """Partial Fourier reconstruction along the one axis where a side of k-space was cut short.

    With the matched filter's combination ``C`` of whitened coils (see :class:`ZeroFilled`, whose
    units the image has) and the unit phase ``u`` of the object:

    - ``"homodyne"`` (Noll et al. 1991): ``u Re(conj(u) C(w y))``, with weights ``w(k) + w(-k) = 2``
      that are 2 where the conjugate partner was not measured;
    - ``"pocs"`` (Haacke et al. 1991): a fixed number of alternations between the data and the
      images of phase ``u``, ending with the latter. The projection is ``u Re(conj(u) x)``, which
      is real-linear, not the non-linear ``u |x|``;
    - ``"zero_filled"``: ``C(y)``, whose noise is ``sqrt(sampled fraction)`` of the full scan's.

    The first two have noise along ``u`` only, so it is not circular.

    The phase is that of the symmetric centre of k-space (Hann window), taken from the scan at
    binding and frozen, or given. With ``freeze_phase=False`` it follows the data (and the
    reconstruction is no longer linear).

    Args:
        kind: See above.
        iterations: POCS iterations.
        weighting: ``"ramp"`` or ``"step"``: homodyne weights across the symmetric centre.
        phase: Radians, tensor or array ``(*grid)``, e.g. from a scan of the object; None takes it
            from the data.
        freeze_phase: See above.

    Raises:
        InputError: for unknown options, or (when bound) a mask that is not partial Fourier or a
            phase of another shape.
    """

    name = "partial_fourier"

    def __init__(
        self,
        kind: Kind = "homodyne",
        iterations: int = 20,
        weighting: Literal["ramp", "step"] = "ramp",
        phase: Tensor | None = None,
        freeze_phase: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"partial_fourier is one of {', '.join(KINDS)}, not {kind!r}.")
        if weighting not in ("ramp", "step"):
            raise InputError(f"homodyne weights are 'ramp' or 'step', not {weighting!r}.")
        if iterations < 1:
            raise InputError(f"POCS needs at least one iteration, not {iterations}.")
        phase = None if phase is None else torch.as_tensor(phase)
        if phase is not None and phase.is_complex():
            raise InputError("the phase must be real, in radians; give image.angle().")
        self.kind, self.iterations, self.weighting = kind, iterations, weighting
        self.phase, self.freeze_phase = phase, freeze_phase

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        sampling = asymmetric_sampling(scan.sampled)
        if self.phase is not None and tuple(self.phase.shape) != scan.grid:
            raise InputError(
                f"the phase has shape {tuple(self.phase.shape)}, but the image has {scan.grid}."
            )
        model = forward_model(scan)
        unit = self._unit_phase(model, scan, sampling)
        details: dict[str, Any] = {"maps": model.maps_source, "axis": sampling.axis}
        frozen = model.frozen
        if self.kind != "zero_filled":
            details["phase"] = "from the data" if self.phase is None else "given"
            details |= (
                {"weighting": self.weighting} if self.kind == "homodyne"
                else {"iterations": self.iterations}
            )
            if self.phase is None and self.freeze_phase:
                frozen = ("low-resolution phase", *frozen)
        return Bound(
            self._function(model, sampling, unit),
            f"{self.name}:{self.kind}",
            frozen=frozen,
            linear=self.kind == "zero_filled" or unit is not None,
            maps=matched_filter_maps(model.maps),
            units=model.matched_filter_units,
            details=details,
        )

    def _function(
        self, model: ForwardModel, sampling: AsymmetricSampling, unit: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        window, weights = sampling.window(), sampling.weights(self.weighting)

        def phase_of(y: Tensor) -> Tensor:
            if unit is not None:
                return unit.to(y.dtype)
            return _unit(matched_filter(model, y * window.to(y.real.dtype)))

        def zero_filled(y: Tensor) -> Tensor:
            return matched_filter(model, y)

        def homodyne(y: Tensor) -> Tensor:
            return along(matched_filter(model, y * weights.to(y.real.dtype)), phase_of(y))

        if self.kind == "zero_filled":
            return zero_filled
        return homodyne if self.kind == "homodyne" else _alternate(model, phase_of, self.iterations)

    def _unit_phase(
        self, model: ForwardModel, scan: Scan, sampling: AsymmetricSampling
    ) -> Tensor | None:
        """Fixed ``u``, ``(*grid)`` complex; None when it is to follow the data."""
        if self.phase is not None:
            phase = self.phase.to(scan.kspace.real)
            return torch.polar(torch.ones_like(phase), phase)
        if not self.freeze_phase or self.kind == "zero_filled":
            return None
        window = sampling.window().to(scan.kspace.real)
        return _unit(matched_filter(model, scan.kspace * window))


def along(image: Tensor, unit: Tensor) -> Tensor:
    """The part of a complex image along the phase ``unit``: ``u Re(conj(u) x)``."""
    return unit * (unit.conj() * image).real


def _unit(image: Tensor) -> Tensor:
    """``image / |image|``, and 1 where the image is zero."""
    square = image.real**2 + image.imag**2
    there = square > 0
    return torch.where(there, image * torch.where(there, square, 1).rsqrt(), 1)


def _alternate(
    model: ForwardModel, phase_of: Callable[[Tensor], Tensor], iterations: int
) -> Callable[[Tensor], Tensor]:
    """POCS for maps of any size: in ``z = sqrt(sum |S|^2) x`` the maps are normalised, and putting
    back the measured samples of every coil is ``z + S^H F^-1 (y - M F S z)``."""
    power = map_power(model.maps)
    root = power.sqrt()
    normalised = torch.where(power > 0, model.maps / torch.where(power > 0, root, 1), 0)
    gram = encoding_gram(normalised, model.mask)
    inverse_root = torch.where(power > 0, 1 / torch.where(power > 0, root, 1), 0)

    def function(y: Tensor) -> Tensor:
        unit = phase_of(y)
        target = matched_filter(model, y) * inverse_root
        image = along(target, unit)
        for _ in range(iterations - 1):
            image = along(image + target - gram(image), unit)
        return image * root

    return function


@dataclass(frozen=True)
class AsymmetricSampling:
    """A contiguous block of lines around the centre of k-space that is cut short on one side."""

    axis: int
    """Negative."""
    dimensions: int
    """Of the grid."""
    profile: Tensor
    """Boolean, the mask along the axis."""

    @property
    def half_width(self) -> int:
        """Lines measured on the short side of the centre."""
        lines = self.profile.nonzero().flatten()
        centre = self.profile.shape[0] // 2
        return min(centre - int(lines[0]), int(lines[-1]) - centre)

    def _broadcast(self, line: Tensor) -> Tensor:
        return line.reshape([-1 if i - self.dimensions == self.axis else 1
                             for i in range(self.dimensions)])

    def weights(self, kind: str = "ramp") -> Tensor:
        """Homodyne weights along the axis, broadcasting to the grid, with ``w(k) + w(-k) = 2``
        wherever one of the two was measured and 0 where the line was not."""
        n = self.profile.shape[0]
        index = torch.arange(n, device=self.profile.device)
        partner = (2 * (n // 2) - index) % n
        offset = index - n // 2
        if kind == "step":
            weight = torch.ones(n, dtype=torch.float64, device=index.device)
        else:
            after = bool(self.profile[offset > 0].sum() >= self.profile[offset < 0].sum())
            slope = (1.0 if after else -1.0) / (self.half_width + 1)
            weight = 1 + slope * offset.double().clamp(-self.half_width, self.half_width)
        weight = torch.where(self.profile[partner], weight, 2.0)
        # The highest frequency of an even grid is its own partner.
        weight = torch.where(partner == index, 1.0, weight)
        return self._broadcast(weight * self.profile)

    def window(self) -> Tensor:
        """Hann window over the symmetric centre, zero outside, broadcasting to the grid."""
        n = self.profile.shape[0]
        offset = torch.arange(n, device=self.profile.device) - n // 2
        width = self.half_width + 1
        hann = 0.5 + 0.5 * torch.cos(torch.pi * offset.double() / width)
        return self._broadcast(torch.where(offset.abs() < width, hann, 0))


def asymmetric_sampling(mask: Tensor) -> AsymmetricSampling:
    """Find the axis and the centre of a partial Fourier mask ``(*grid)``.

    Raises:
        InputError: if the sampled lines are not one block, along one axis, that holds the centre
            of k-space and reaches further on one side than on the other.
    """
    axes = varying_axes(mask)
    advice = "partial_fourier needs a mask that is cut short on one side along one axis"
    if len(axes) != 1:
        found = "none" if not axes else f"{len(axes)} axes"
        raise InputError(
            f"{advice}, but it changes along {found}; use "
            f"{'zero_filled' if not axes else 'sense'} instead."
        )
    axis = axes[0]
    profile = mask.movedim(axis, -1).reshape(-1, mask.shape[axis])[0]
    lines = profile.nonzero().flatten()
    first, last = int(lines[0]), int(lines[-1])
    n = profile.shape[0]
    centre = n // 2
    if last - first + 1 != len(lines):
        raise InputError(f"{advice}, but lines are missing inside; use sense instead.")
    short, long = sorted((centre - first, last - centre))
    if short < SMALLEST_CENTRE:
        raise InputError(
            f"{advice} and holds at least {SMALLEST_CENTRE} lines on both sides of the centre "
            f"(line {centre}), but lines {first} to {last} were measured; use zero_filled instead."
        )
    # A full even grid has one line more before the centre than after it.
    if long - short <= 1:
        raise InputError(f"{advice}, but this one is symmetric; use zero_filled instead.")
    return AsymmetricSampling(axis, mask.ndim, profile)
