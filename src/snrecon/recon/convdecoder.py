"""ConvDecoder: an untrained network, fitted to the samples of one scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.conv_decoder import Activation
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.decoder_data import Combine, Decode, DecoderData
from snrecon.recon.decoder_fits import Fits, Progress, restart_seeds
from snrecon.recon.forward_model import KSPACE
from snrecon.recon.option_types import whole_number


class ConvDecoder(Reconstructor):
    """The decoder of Darestani and Heckel (2020), fitted to whitened k-space, 2D scans:

    ``x = G(w)``, ``w`` from a minimisation of ``mean |A G(w) - y|^2`` over the samples, by Adam.

    No training, no ground truth. The fit is stopped, and its weights are chosen, by samples that it
    is not shown. Then all samples are used in a few iterations more, with a rate that falls to
    zero, and measured samples replace those of the decoder. Weights, the decoder's input and the
    samples held out come from the seed: the method is stochastic.

    A bound f fits once to ``scan.kspace``, when it is first called, and for every k-space that it
    is given makes only those last iterations, from there (``warm_start``). f is a deterministic
    function for a given seed; its derivative is not to be had, so its noise map is made by
    replicas. Those show how the last iterations answer to noise: the start is frozen. With
    ``warm_start=False`` every k-space is fitted from the beginning, and nothing is frozen but the
    seed.

    ``implicit=True`` puts a minimisation to convergence in the place of the last iterations:
    ``1/2 sum |A G(w) - y|^2 + tether/2 |w - w0|^2``, ``w0`` the weights of the fit, which stay
    frozen, in units in which the noise of a sample has ``E|n|^2 = 1``. The derivative of f is then
    that of the minimum, by the implicit function theorem (:mod:`snrecon.recon.decoder_optimum`),
    and f has a sketch. It takes a smooth activation, and double precision, which it sees to.

    Args:
        decode: ``"image"``: one complex image, of which the coil maps make coil images.
            ``"coils"``: all coil images, as published; needs no maps with ``"rss"``.
        combine: ``"matched"``: by the coil maps; the object in the units of the maps. ``"rss"``:
            real, root sum of squares of the coils as stored. None: matched for ``"image"``, rss for
            ``"coils"``, as published.
        layers: 3x3 convolutions, at least 2.
        channels: Channels between them; published: 160.
        start: Size of the decoder's input, ``"8x4"`` as published, or a pair. None: 8 along the
            longer side, in the grid's proportion along the other.
        iterations: Most iterations of the fit; published: up to 25000.
        rate: Learning rate.
        held_out: Share of the samples that decides when to stop; with 0 the error of the fit
            itself decides which weights are kept, as published.
        patience: Stop after so many iterations without a smaller error.
        warm_start: See above.
        warm_iterations: Iterations after the fit, with all samples; 0 leaves them out, and then
            the image hardly depends on the k-space it is given.
        warm_rate: Learning rate of the first of them.
        consistency: Measured samples replace the decoder's.
        restarts: The image is the mean over so many seeds (drawn from the one given).
        activation: ``"relu"`` as published, or ``"silu"``.
        implicit: See above; needs ``activation="silu"`` and ``warm_start``.
        tether: Inverse of the variance that weights are granted about those of the fit; with
            ``implicit`` only.
        progress: ``progress(iteration, iterations, image)``, every 50 iterations of a fit to
            the scan. What it raises ends the fit; nothing is kept of it.

    Raises:
        InputError: for options that make no sense, and (when bound) a 3D grid, or a scan without
            maps and too few calibration lines to estimate them, where they are needed.
    """

    name = "convdecoder"

    def __init__(
        self,
        decode: Decode = "image",
        combine: Combine | None = None,
        *,
        layers: int = 7,
        channels: int = 32,
        start: str | tuple[int, int] | None = None,
        iterations: int = 2000,
        rate: float = 8e-3,
        held_out: float = 0.05,
        patience: int = 300,
        warm_start: bool = True,
        warm_iterations: int = 100,
        warm_rate: float = 1e-3,
        consistency: bool = True,
        restarts: int = 1,
        activation: Activation = "relu",
        implicit: bool = False,
        tether: float = 1000.0,
        progress: Progress | None = None,
    ) -> None:
        if decode not in get_args(Decode):
            raise InputError(f"convdecoder decodes 'image' or 'coils', not {decode!r}.")
        if combine is not None and combine not in get_args(Combine):
            raise InputError(f"convdecoder combines coils by 'matched' or 'rss', not {combine!r}.")
        layers, channels, iterations, patience, restarts, warm_iterations = (
            whole_number(f"{name} of convdecoder", value, least)
            for name, value, least in (
                ("layers", layers, 2),
                ("channels", channels, 1),
                ("iterations", iterations, 1),
                ("patience", patience, 1),
                ("restarts", restarts, 1),
                ("warm_iterations", warm_iterations, 0),
            )
        )
        if activation not in get_args(Activation):
            raise InputError(
                f"the activation of convdecoder is 'relu' or 'silu', not {activation!r}."
            )
        if implicit and (activation != "silu" or not warm_start):
            raise InputError(
                "implicit differentiation of convdecoder needs activation='silu', because fits "
                "with 'relu' end on edges where there is no derivative, and warm_start."
            )
        for name, number in (("rate", rate), ("warm_rate", warm_rate), ("tether", tether)):
            if not _number(number) or not 0 < number < float("inf"):
                raise InputError(f"{name} of convdecoder is a number above 0, not {number!r}.")
        for name, chosen in (
            ("warm_start", warm_start), ("consistency", consistency), ("implicit", implicit)
        ):
            if not isinstance(chosen, bool):
                raise InputError(f"{name} of convdecoder is true or false, not {chosen!r}.")
        if not _number(held_out) or not 0 <= held_out <= 0.5:
            raise InputError(
                f"held_out is a share of the samples, from 0 to 0.5, not {held_out!r}."
            )
        self.decode = decode
        self.combine: Combine = combine or ("matched" if decode == "image" else "rss")
        self.layers, self.channels, self.start = layers, channels, _pair(start)
        self.iterations, self.rate = iterations, rate
        self.held_out, self.patience = held_out, patience
        self.warm_start = warm_start
        self.warm_iterations, self.warm_rate = warm_iterations, warm_rate
        self.consistency, self.restarts = consistency, restarts
        self.activation, self.implicit, self.tether = activation, implicit, tether
        self._progress = progress

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(coil, ky, kx)`` to image ``(ky, kx)``; one at a time, fitted when called."""
        fits = self._fits(scan)
        model, matched = fits.data.model, self.combine == "matched"
        seed = seed_of(generator)
        details: dict[str, Any] = {
            "decode": self.decode,
            "combine": self.combine,
            "layers": self.layers,
            "channels": self.channels,
            "iterations": self.iterations,
            "held_out": self.held_out,
            "warm_start": self.warm_start,
            **({"tether": self.tether} if self.implicit else
               {"warm_iterations": self.warm_iterations}),
            "consistency": self.consistency,
            "restarts": self.restarts,
            "seed": seed,
            "options": {k: value for k, value in vars(self).items() if not k.startswith("_")},
        }
        used = matched or self.decode == "image"
        if used:
            details["maps"] = model.maps_source

        def function(kspace: Tensor) -> Tensor:
            image = fits.mean(kspace, seed)
            details["fitted_iterations"] = [fits.made[s] for s in restart_seeds(seed, fits.count)]
            return image

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            drawn = [seed_of(torch.Generator().manual_seed(one)) for one in seeds]
            return torch.stack([fits.mean(kspace, one) for one in drawn])

        def linearize(kspace: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            parts = [fits.linearize(kspace, one) for one in restart_seeds(seed, fits.count)]
            image = torch.stack([value for value, _ in parts]).mean(dim=0)
            return image, lambda v: torch.stack([jvp(v) for _, jvp in parts]).mean(dim=0)

        return Bound(
            function,
            self.name,
            frozen=(model.frozen if used else ())
            + (("start of the fit",) if self.warm_start else ()),
            maps=model.maps if matched else None,
            units=model.units if matched else KSPACE,
            batched=False,
            linearize=linearize if self.implicit else None,
            differentiable=self.implicit,
            stochastic=True,
            sample=sample,
            details=details,
        )

    def restart_images(self, scan: Scan, generator: torch.Generator | None = None) -> Tensor:
        """The images of the single restarts, ``(restarts, ky, kx)``: their mean is the image, and
        their spread what the seed decides.

        Args:
            scan: One slice.
            generator: As for :meth:`bind`.
        """
        fits, seed = self._fits(scan), seed_of(generator)
        return torch.stack([fits.image(scan.kspace, s) for s in restart_seeds(seed, fits.count)])

    def _fits(self, scan: Scan) -> Fits:
        if len(scan.grid) == 3:
            raise InputError(
                f"{scan.source}: convdecoder reconstructs 2D scans, not a grid of "
                f"{'x'.join(map(str, scan.grid))}; use sense, tv or wavelet."
            )
        return Fits(
            self, scan.kspace, DecoderData.of(scan, self.decode, self.combine, self.consistency))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pair(start: str | tuple[int, int] | None) -> tuple[int, int] | None:
    if start is None:
        return None
    try:
        first, second = map(int, start.split("x") if isinstance(start, str) else start)
    except (ValueError, TypeError):
        first = second = 0
    if min(first, second) < 1:
        raise InputError(f"the start of convdecoder is a size such as '8x4', not {start!r}.")
    return first, second
