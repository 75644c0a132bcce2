"""The decoders of one scan: fitted when they are first asked for, and kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snrecon.errors import SnreconWarning
from snrecon.networks.conv_decoder import ConvDecoder as Network
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.recon.base import seed_of
from snrecon.recon.decoder_data import DecoderData, held_out_samples
from snrecon.recon.decoder_fit import Fit, continued, fit, training
from snrecon.recon.decoder_optimum import Optimum, optimum

if TYPE_CHECKING:
    from snrecon.recon.convdecoder import ConvDecoder

Progress = Callable[[int, int, Tensor], None]
"""``progress(iteration, iterations, image)``."""
CONVERGED = 1e-6
"""Largest relative gradient of what counts as a minimum."""


def restart_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the restarts: the first is the seed itself."""
    generator = torch.Generator().manual_seed(seed)
    return [seed, *(seed_of(generator) for _ in range(count - 1))]


@dataclass
class Fits:
    """Decoders fitted to one scan, one for each seed."""

    recon: ConvDecoder
    """Where the settings are."""
    scan_kspace: Tensor
    """``(coil, ky, kx)``."""
    data: DecoderData
    """The measurement."""
    made: dict[int, int] = field(default_factory=dict)
    """Iterations that the weights of a seed have seen."""
    _starts: dict[int, tuple[Fit, float]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of restarts."""
        return self.recon.restarts

    def mean(self, kspace: Tensor, seed: int) -> Tensor:
        """Mean image over the restarts of a seed."""
        images = [self.image(kspace, one) for one in restart_seeds(seed, self.count)]
        return torch.stack(images).mean(dim=0)

    def image(self, kspace: Tensor, seed: int) -> Tensor:
        """``(coil, ky, kx)`` to ``(ky, kx)``, of one decoder."""
        _require_plain(kspace)
        recon, data = self.recon, self.data
        with training():
            measured = data.measured(kspace.detach().clone())
            if recon.implicit:
                best, scale = self._optimum(measured, seed)
                image = data.image(best.value / scale, measured).detach()
                return image.to(kspace.dtype if image.is_complex() else kspace.real.dtype)
            if recon.warm_start:
                started, scale = self._started(data, seed)
            else:
                started, scale = self._fit(data, measured, seed, None)
            decoded = continued(
                started.network,
                data.kspace,
                measured * scale,
                data.model.mask,
                iterations=recon.warm_iterations,
                rate=recon.warm_rate,
            )
            self.made[seed] = started.chosen
            return data.image(decoded / scale, measured).detach()

    def linearize(self, kspace: Tensor, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Image ``(ky, kx)`` of one decoder at its optimum, and its derivative, which takes
        ``(batch, coil, ky, kx)``."""
        data = self.data
        with training():
            measured = data.measured(kspace.detach().clone())
            best, scale = self._optimum(measured, seed)
            decoded = best.value / scale
            image = data.image(decoded, measured)

        def one(tangent: Tensor) -> Tensor:
            with training():
                moved = data.measured(tangent.detach().clone())
                pushed, converged = best.derivative(moved * scale)
                if not converged:
                    warnings.warn(
                        "the derivative of convdecoder at its optimum is not accurate; raise "
                        "tether, or use the estimator 'replicas'.",
                        SnreconWarning,
                        stacklevel=2,
                    )
                tangents = (pushed / scale, moved.to(pushed.dtype))
                points = (decoded, measured.to(decoded.dtype))
                return torch.func.jvp(data.image, points, tangents)[1].detach()

        def jvp(tangents: Tensor) -> Tensor:
            return torch.stack([one(tangent) for tangent in tangents]).to(image_type)

        image_type = kspace.dtype if image.is_complex() else kspace.real.dtype
        return image.to(image_type).detach(), jvp

    def _optimum(self, measured: Tensor, seed: int) -> tuple[Optimum, float]:
        """The optimum near the fit to the scan, in double precision."""
        started, scale = self._started(self.data, seed)
        self.made[seed] = started.chosen
        best = optimum(
            started.network,
            self.data.kspace,
            (measured * scale).to(torch.complex128),
            self.data.model.mask,
            size=scale,
            tether=self.recon.tether,
        )
        if best.residual > CONVERGED:
            warnings.warn(
                "the fit of convdecoder did not converge (relative size of the gradient "
                f"{best.residual:.0e}), so its derivative is not exact; raise tether.",
                SnreconWarning,
                stacklevel=2,
            )
        return best, scale

    def _started(self, data: DecoderData, seed: int) -> tuple[Fit, float]:
        if seed not in self._starts:
            measured = data.measured(self.scan_kspace.clone())
            self._starts[seed] = self._fit(data, measured, seed, self.recon._progress)
        return self._starts[seed]

    def _fit(
        self, data: DecoderData, measured: Tensor, seed: int, progress: Progress | None
    ) -> tuple[Fit, float]:
        """A decoder fitted to whitened samples, and the factor that brings these to its size."""
        recon, mask = self.recon, data.model.mask
        generator = torch.Generator().manual_seed(seed)
        rows, columns = mask.shape
        network = Network(
            (rows, columns),
            data.outputs,
            recon.layers,
            recon.channels,
            recon.start,
            generator,
            recon.activation,
        ).to(device=mask.device, dtype=measured.real.dtype)
        held = held_out_samples(mask, recon.held_out, generator)
        size = float(measured.norm())
        with torch.no_grad():
            scale = float(data.kspace(network()).norm()) / size if size > 0 else 1.0

        def report(made: int, kspace: Tensor) -> None:
            assert progress is not None
            progress(made, recon.iterations, data.image(kspace / scale, measured))

        done = fit(
            network,
            data.kspace,
            measured * scale,
            mask & ~held,
            held,
            iterations=recon.iterations,
            patience=recon.patience,
            rate=recon.rate,
            report=None if progress is None else report,
        )
        return done, scale


def _require_plain(kspace: Tensor) -> None:
    """NotDifferentiableError inside of ``torch.func``, where a fit would lose its derivative."""
    plain = torch.autograd.forward_ad.unpack_dual(kspace).tangent is None
    try:
        kspace.data_ptr()
    except RuntimeError:
        plain = False
    if not plain:
        raise NotDifferentiableError("convdecoder is fitted to its data and has no derivative")
