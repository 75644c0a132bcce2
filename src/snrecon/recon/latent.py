"""Latent generative prior: the image that a trained decoder can make and that explains the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.networks.store import load_weights
from snrecon.physics.operators import Encoding
from snrecon.physics.solvers import linear_solve
from snrecon.recon.base import Bound, Reconstructor, seed_of
from snrecon.recon.forward_model import ForwardModel, forward_model
from snrecon.recon.latent_fit import DONE, LatentFit
from snrecon.recon.latent_image import Decoder, LatentImage, latent_image
from snrecon.recon.latent_optimum import Fitter
from snrecon.recon.latent_search import LatentSearch, hold_out
from snrecon.recon.own_network import fitted
from snrecon.recon.planes import bind_planes
from snrecon.recon.regularisation import outer_signal
from snrecon.recon.zero_filled import map_power, matched_filter

Stop = Literal["optimum", "held_out"]
TOLERANCE = {torch.complex64: 1e-6, torch.complex128: 1e-12}
"""Of the conjugate gradients of the refinement."""
SMALLEST = 1e-3
"""Least mean square error of the decoder's image that is believed, in units of the noise."""


class Latent(Reconstructor):
    """``x = exp(s + i p) u R G(z)`` with a decoder ``G``: of all images that it can make, the one
    that explains the data best; 3D scans plane by plane (:mod:`snrecon.recon.planes`).

    ``argmin |A x - y|^2 + lamda |theta|^2`` over ``theta = (z, s, p)``, for whitened data and maps
    (Bora et al., Compressed sensing using generative models, ICML 2017). The decoder makes
    magnitudes; ``u`` is the phase of the low-resolution image, ``p`` a smooth correction of it,
    ``s`` the logarithm of scale and smooth shading (:mod:`snrecon.recon.latent_image`). Entries of
    theta have the prior N(0, 1), but for the scale, whose prior is flat.

    *Starts.* Adam from ``restarts`` latent vectors drawn from the prior, all at once, with one part
    in twenty of the samples held out; each start keeps the point that predicts those best and all
    stop when none improves. The start that predicts them best is taken.

    *Stop.* ``"optimum"``: from there Newton steps to the minimum with all samples. The image is
    a function of the data that is differentiated at the minimum (implicit differentiation), and
    other data (replicas) start from the minimum of the scan. ``"held_out"``: the point itself,
    which is what a latent vector as long as the image needs, whose minimum would fit the noise; the
    function is then that many steps of Adam, differentiated step by step.

    *Refinement.* ``argmin_x |A x - y|^2 + mu |x - x_G|^2`` brings back what the decoder cannot
    make. By default ``1 / mu`` is the mean square error of ``x_G`` that its misfit to the
    samples outside the centre of k-space shows.

    The method draws the starts; where all of them end in one minimum, its spread is zero.

    Args:
        weights: Name of shipped weights, path of a ``.safetensors`` file, or a decoder of one's
            own (:class:`snrecon.recon.latent_image.Decoder`).
        lamda: Not negative; 1/2 makes the minimum the most probable theta. None: 1/2 times the mean
            square misfit of a sample held out, which is 1 for noise alone and counts what the
            decoder cannot make as noise; 1/2 with ``stop="held_out"``.
        restarts: Number of starts.
        iterations: Most steps of Adam.
        stop: See above.
        refine: Whether to refine; a positive number is ``mu``.

    Raises:
        InputError: for unknown or damaged weights, options out of range, and (when bound) an
            unsuitable decoder, a scan whose noise is not known, or a 3D grid without an axis along
            which the mask is constant.
    """

    name = "latent"

    def __init__(
        self,
        weights: str | Path | Decoder = "brain",
        lamda: float | None = None,
        restarts: int = 10,
        iterations: int = 100,
        stop: Stop = "optimum",
        refine: bool | float = True,
    ) -> None:
        if lamda is not None and not 0 <= lamda < float("inf"):
            raise InputError(f"lambda must be zero or positive and finite, not {lamda}.")
        if restarts < 1 or iterations < 1:
            raise InputError("latent needs at least one restart and one iteration, not "
                             f"{restarts} and {iterations}.")
        if stop not in ("optimum", "held_out"):
            raise InputError(f"latent stops at the 'optimum' or by samples 'held_out', not at "
                             f"{stop!r}.")
        if not isinstance(refine, bool) and not 0 < refine < float("inf"):
            raise InputError(f"refine is true, false or a positive weight, not {refine}.")
        self.weights, self._decoder = _decoder(weights)
        self.lamda, self.restarts, self.iterations = lamda, restarts, iterations
        self.stop, self.refine = stop, refine

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)``."""
        seed = seed_of(generator)
        if len(scan.grid) == 3:
            return replace(bind_planes(_Seeded(self, seed), scan), stochastic=True)
        return self.bind_seed(scan, seed)

    def bind_seed(self, scan: Scan, seed: int) -> Bound:
        """:meth:`bind` of one slice with the seed of its draws."""
        scan.require_noise()
        model = forward_model(scan)
        latent, precise = (
            latent_image(_fitted(self._decoder, like), model, scan, like.real)
            for like in (model.maps, model.maps.to(torch.complex128)))
        bound = self._bound(model, latent, precise, scan, seed)

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            draws = (seed_of(torch.Generator().manual_seed(int(one))) for one in seeds)
            return torch.stack(
                [self._bound(model, latent, precise, scan, draw).function(kspace)
                 for draw in draws])

        return replace(bound, sample=sample)

    def _bound(
        self, model: ForwardModel, latent: LatentImage, precise: LatentImage, scan: Scan, seed: int
    ) -> Bound:
        """``latent`` in the data's precision for the search, ``precise`` in double for the fit."""
        generator = torch.Generator().manual_seed(seed)
        white, mask = model.whiten(scan.kspace), model.mask
        if not bool(white.any()):
            raise InputError(f"{scan.source}: the k-space is zero, to which latent fits nothing.")
        held_out = hold_out(mask, generator)
        z = torch.randn(self.restarts, latent.latent, generator=generator, dtype=white.real.dtype)
        gram = model.encoding.gram
        with torch.no_grad():
            search = LatentSearch(
                latent, model.encoding, held_out, 0.5 if self.lamda is None else self.lamda)
            start = search.start(z.to(white.device), white)
            found = search.run(start, white, self.iterations)
            frozen, lamda = ["low-resolution phase"], self.lamda
            if lamda is None:
                # In the end what the decoder cannot make counts as noise.
                lamda = 0.5
                if self.stop == "optimum":
                    lamda *= max(1.0, float(found.misfits.min()))
                    frozen.append("lambda")
            best, steps = found.theta[found.best], int(found.steps[found.best])
            details: dict[str, Any] = {"distance_from_optimum": None}
            if self.stop == "optimum":
                exact = Encoding(model.maps.to(torch.complex128), mask).gram
                single = white.dtype == torch.complex64
                coarse = LatentFit(latent, gram, lamda) if single else None
                fit = LatentFit(precise, exact, lamda, DONE[white.dtype], coarse)
                b = matched_filter(model, scan.kspace).to(torch.complex128)
                optimum = fit.optimum(best.double(), b)
                details = {"distance_from_optimum": optimum.distance}
                made, image = Fitter(fit, optimum), optimum.image.to(white.dtype)
            else:
                # The start's size and phase are fitted to the data, which choose it as well.
                frozen += ["start of the fit", "number of steps"]
                image = latent(best[None])[0]
            mu = self._weight(model, image, white)
        descent = (search, start[found.best], steps)

        def generated(y: Tensor) -> Tensor:
            if self.stop == "optimum":
                return made(matched_filter(model, y))
            return _descended(*descent, latent, model.whiten(y))

        def refined(image: Tensor, b: Tensor) -> Tensor:
            if mu is None:
                return image
            # Solved for what is missing, which is smaller than the image, and so is the error.
            missing = b - gram(image)
            return image + linear_solve(gram, missing, mu, tolerance=TOLERANCE[b.dtype])

        def function(y: Tensor) -> Tensor:
            return refined(generated(y), matched_filter(model, y))

        def linearize(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            if self.stop == "held_out":  # too many steps to be traced
                return function(y), torch.vmap(lambda t: torch.func.jvp(function, (y,), (t,))[1])
            known = made.at(matched_filter(model, y).to(torch.complex128))

            def product(tangents: Tensor) -> Tensor:
                right = matched_filter(model, tangents)
                change = known.response(right.to(torch.complex128)).to(right.dtype)
                return refined(change, right)

            return function(y), product

        if mu is not None and isinstance(self.refine, bool):
            frozen.append("weight of the refinement")
        return Bound(
            function,
            self.name,
            frozen=(*frozen, *model.frozen),
            maps=model.maps,
            units=model.units,
            linearize=linearize,
            stochastic=True,
            at_once=8,
            details={
                "weights": self.weights,
                "options": {"lamda": self.lamda, "restarts": self.restarts,
                            "iterations": self.iterations, "stop": self.stop,
                            "refine": self.refine},
                "seed": seed,
                "stop": self.stop,
                "steps": steps,
                "restarts": [round(float(m), 4) for m in found.misfits],
                "lambda": lamda,
                "refinement": mu,
                "maps": model.maps_source,
                **details,
            },
        )

    def _weight(self, model: ForwardModel, image: Tensor, white: Tensor) -> float | None:
        """mu of the refinement; None without one."""
        if not self.refine:
            return None
        if not isinstance(self.refine, bool):
            return float(self.refine)
        # What is missing in k-space lies outside its centre, and so does what its error is told by.
        missed = outer_signal(white - model.encoding(image), model.mask)
        power = float(map_power(model.maps).double().mean()) / len(white)
        return power / max(missed, SMALLEST)


class _Seeded(Reconstructor):
    """The method with its seed, for planes of a volume."""

    name = Latent.name

    def __init__(self, method: Latent, seed: int) -> None:
        self.method, self.seed = method, seed

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """Bind to one plane, with the draws of the seed."""
        return self.method.bind_seed(scan, self.seed)


def _descended(
    search: LatentSearch, start: Tensor, steps: int, latent: LatentImage, white: Tensor
) -> Tensor:
    """Images ``(..., ky, kx)`` after so many steps of Adam, of data ``(..., coil, ky, kx)``."""
    data = white.reshape(-1, *white.shape[-3:])
    theta = search.descend(start.expand(len(data), -1), data, steps)
    return latent(theta).reshape(*white.shape[:-3], *white.shape[-2:])


def _decoder(weights: str | Path | Decoder) -> tuple[str, Decoder]:
    """What to call the decoder, and the decoder.

    Raises:
        InputError: for unknown or damaged weights, or an object that is no decoder.
    """
    if isinstance(weights, str | Path):
        network: Any = load_weights("autoencoder", weights)
        return str(weights), network
    if not callable(getattr(weights, "decode", None)) or not (
            isinstance(getattr(weights, "latent", None), int) and weights.latent > 0):
        raise InputError(
            f"latent needs a decoder with a method decode and the length of its vectors as latent, "
            f"which {type(weights).__name__} has not.")
    return type(weights).__name__, weights


def _fitted(decoder: Decoder, like: Tensor) -> Decoder:
    """The decoder where ``like`` is and in its precision."""
    if not isinstance(decoder, nn.Module):
        return decoder
    found: Any = fitted(decoder, like)
    return cast(Decoder, found)
