"""GRAPPA: missing k-space samples as fixed linear combinations of measured neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.physics.coils import calibration_region
from snrecon.physics.fourier import ifft
from snrecon.physics.gram import varying_axes
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import forward_model
from snrecon.recon.grappa_kernels import (
    READOUT_LIMIT,
    Pattern,
    fit_weights,
    source_patterns,
)
from snrecon.recon.zero_filled import matched_filter_maps


class Grappa(Reconstructor):
    """GRAPPA (Griswold et al. 2002) on whitened coils, then the SNR-optimal combination.

    Every missing sample is predicted from its nearest measured lines (two on each side by
    default) times a few readout samples; the weights come from the calibration lines by ridge
    regression and stay fixed. Any pattern along one axis will do, and regular ones in the
    ``(kz, ky)`` plane. Measured samples are kept. Missing samples beyond the reach of the
    calibration block (as in partial Fourier) stay zero.

    The coils are combined as ``sum_c conj(S_c) x_c / sum_c |S_c|^2``, whitened: the image has the
    units of :class:`~snrecon.recon.sense.Sense` and is zero where the maps are.

    Args:
        kernel: Lines (both sides together) and readout samples of the kernel. In a plane half as
            many samples as lines are taken from each quadrant.
        lamda_calibration: Tikhonov weight of the calibration, relative to the mean diagonal of its
            normal equations.

    Raises:
        InputError: for bad options, or (when bound) without calibration lines, with a mask that
            leaves no axis fully sampled, or one that is too irregular.
    """

    name = "grappa"

    def __init__(self, kernel: tuple[int, int] = (4, 5), lamda_calibration: float = 1e-2) -> None:
        if not isinstance(kernel, tuple | list) or len(kernel) != 2 or min(kernel) < 1:
            raise InputError(f"the kernel is (lines, readout samples), not {kernel}.")
        if int(kernel[0]) != kernel[0] or kernel[0] % 2 or int(kernel[1]) != kernel[1]:
            raise InputError("the kernel takes an even number of lines, half on either side, and a "
                             f"whole number of readout samples, not {kernel}.")
        if not 0 <= lamda_calibration < float("inf"):
            raise InputError(
                f"lamda_calibration must be zero or positive, not {lamda_calibration}."
            )
        self.kernel, self.lamda_calibration = (int(kernel[0]), int(kernel[1])), lamda_calibration

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        mask = scan.sampled
        layout = _Layout.of(mask)
        region = calibration_region(mask, minimum=_needed_lines(mask))
        model = forward_model(scan)
        combination = layout.arrange(matched_filter_maps(model.maps)).conj()
        data = layout.arrange(model.whiten(scan.kspace) * mask)
        if layout.slices > 1:
            data = ifft(data, (-4,))
        block = data[:, :, region_of(layout.plane[0], region), region_of(layout.plane[1], region)]
        plane = layout.arrange(mask.expand(1, *mask.shape))[0, 0, ..., 0]
        taps = min(self.kernel[1], data.shape[-1])
        per_side = max(1, self.kernel[0] // 2)
        equations = min(data.shape[-1], READOUT_LIMIT) - taps + 1
        patterns = source_patterns(
            plane, (block.shape[2], block.shape[3]), per_side, scan.coils * taps, equations
        )
        weights = [
            torch.stack(
                [fit_weights(block[:, b], p.offsets, taps, self.lamda_calibration)
                 for b in range(layout.slices)]
            ).to(scan.kspace.dtype)
            for p in patterns
        ]
        filler = _Filler(plane, patterns, weights)

        def reconstruct(y: Tensor) -> Tensor:
            hybrid = layout.arrange(model.whiten(y) * mask)
            hybrid = ifft(hybrid, (-4, -1) if layout.slices > 1 else (-1,))
            images = ifft(filler(hybrid), (-3, -2))
            return layout.restore((combination.to(y.dtype) * images).sum(dim=-5))

        return Bound(
            reconstruct,
            self.name,
            frozen=("GRAPPA kernel", *model.frozen),
            linear=True,
            maps=model.maps,
            units=model.units,
            details={
                "kernel": self.kernel,
                "lamda_calibration": self.lamda_calibration,
                "calibration": tuple(block.shape[2:4]),
                "patterns": len(patterns),
                "maps": model.maps_source,
            },
        )


def region_of(axis: int | None, region: tuple[slice, ...]) -> slice:
    """The calibration lines along an axis of the grid; all of an axis that is not there."""
    return slice(None) if axis is None else region[axis]


def _needed_lines(mask: Tensor) -> int:
    """Calibration lines for a kernel that reaches across the widest gap of a 1D pattern."""
    axes = varying_axes(mask)
    if len(axes) != 1:
        return 2
    lines = mask.movedim(axes[0], -1).reshape(-1, mask.shape[axes[0]])[0].nonzero().flatten()
    return int(lines.diff().max()) + 1 if len(lines) > 1 else 2


@dataclass(frozen=True)
class _Layout:
    """Arranges ``(..., coil, *grid)`` as ``(..., coil, slice, p1, p2, readout)``: a fully sampled
    axis treated slice by slice, the plane of phase encodings, the axis of the kernel's taps."""

    grid: tuple[int, ...]
    order: tuple[int | None, ...]
    """Negative grid axes that become (slice, p1, p2, readout); None where there is none."""

    @staticmethod
    def of(mask: Tensor) -> _Layout:
        axes = varying_axes(mask) or (-2,)
        full = [axis for axis in range(-mask.ndim, 0) if axis not in axes]
        if not full or len(axes) > 2:
            raise InputError("grappa needs one fully sampled axis of k-space; use sense instead.")
        readout = full.pop()
        first = axes[0] if len(axes) == 2 else None
        return _Layout(tuple(mask.shape), (full[0] if full else None, first, axes[-1], readout))

    @property
    def plane(self) -> tuple[int | None, int | None]:
        """Grid axes of the phase-encoding plane."""
        return self.order[1], self.order[2]

    @property
    def slices(self) -> int:
        """Points along the slice axis, 1 if there is none."""
        return 1 if self.order[0] is None else self.grid[self.order[0]]

    def arrange(self, x: Tensor) -> Tensor:
        """``(..., *grid)`` to ``(..., slice, p1, p2, readout)``."""
        there = [axis for axis in self.order if axis is not None]
        lead = x.ndim - len(self.grid)
        x = x.permute(*range(lead), *(axis + x.ndim for axis in there))
        return x.reshape(*x.shape[:lead], *(1 if a is None else self.grid[a] for a in self.order))

    def restore(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`arrange`."""
        there = [axis for axis in self.order if axis is not None]
        lead = x.ndim - 4
        x = x.reshape(*x.shape[:lead], *(self.grid[axis] for axis in there))
        back = [there.index(axis) for axis in range(-len(self.grid), 0)]
        return x.permute(*range(lead), *(lead + i for i in back))


class _Filler:
    """Fills the missing points of ``(..., coil, slice, p1, p2, x)``, readout in image space: there
    the kernel's convolution along the readout is a product."""

    def __init__(self, plane: Tensor, patterns: list[Pattern], weights: list[Tensor]) -> None:
        device = plane.device
        self.shape = tuple(plane.shape)
        self.patterns = [(p.targets.to(device), p.sources.to(device)) for p in patterns]
        self.weights = weights  # (slice, coil, coil * source, taps) each
        measured = plane.flatten().nonzero().flatten()
        filled = torch.cat([measured, *(targets for targets, _ in self.patterns)])
        rest = torch.ones(plane.numel(), dtype=torch.bool, device=device)
        rest[filled] = False
        self.measured, self.rest = measured, int(rest.sum())
        self.order = torch.argsort(torch.cat([filled, rest.nonzero().flatten()]))

    def __call__(self, hybrid: Tensor) -> Tensor:
        flat = hybrid.flatten(-3, -2)  # (..., coil, slice, point, x)
        parts = [flat[..., self.measured, :]]
        for (targets, sources), weights in zip(self.patterns, self.weights, strict=True):
            parts.append(self._predict(flat, len(targets), sources, weights.to(flat.dtype)))
        if self.rest:
            parts.append(torch.zeros_like(flat[..., : self.rest, :]))
        full = torch.cat(parts, dim=-2)[..., self.order, :]
        return full.reshape(*flat.shape[:-2], *self.shape, flat.shape[-1])

    @staticmethod
    def _predict(flat: Tensor, targets: int, sources: Tensor, weights: Tensor) -> Tensor:
        """Missing points ``(..., coil, slice, target, x)`` of one pattern."""
        n, taps = flat.shape[-1], weights.shape[-1]
        position = torch.arange(n, device=flat.device, dtype=torch.float64) - n // 2
        offset = torch.arange(taps, device=flat.device, dtype=torch.float64) - taps // 2
        turn = -2 * torch.pi * offset[:, None] * position / n
        response = weights @ torch.polar(torch.ones_like(turn), turn).to(weights.dtype)
        response = response.permute(0, 3, 1, 2)  # (slice, x, coil, coil * source)
        gathered = flat[..., sources.flatten(), :]
        gathered = gathered.reshape(*flat.shape[:-2], targets, sources.shape[1], n)
        # (..., coil, slice, target, source, x) to (slice, x, coil, source, ..., target)
        lead = flat.ndim - 4
        moved = gathered.permute(lead + 1, lead + 4, lead, lead + 3, *range(lead), lead + 2)
        product = response @ moved.reshape(*moved.shape[:2], response.shape[-1], -1)
        product = product.reshape(*product.shape[:3], *flat.shape[:lead], targets)
        # (slice, x, coil, ..., target) to (..., coil, slice, target, x)
        return product.permute(*range(3, 3 + lead), 2, 0, 3 + lead, 1)
