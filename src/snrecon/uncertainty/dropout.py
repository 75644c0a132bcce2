"""Monte Carlo dropout: a network with dropout layers as a reconstruction that draws.

Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016: with dropout left on, every set
of dropped units is a draw of the network's weights. One draw holds for the whole reconstruction: a
layer that is used several times (unrolled networks that share weights) drops the same units each
time, as weights would be the same each time, and so do all entries of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.recon.adapters import ImageModule
from snrecon.recon.base import Bound, Reconstructor, seed_of

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SINGLE = (nn.Dropout,)


class _Seed:
    """The seed of the masks, one for all layers of one bound network, also of its copies."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seed:
        return self


class FixedDropout(nn.Module):
    """Dropout whose mask follows from a seed, the layer's number and the shape alone.

    A pure function of its input at one seed, therefore, usable under ``torch.func``; active in
    evaluation mode. Units are dropped with probability ``p`` and the others divided by ``1 - p``.

    Args:
        p: Probability.
        channels: Drop whole channels (the axis after the batch) instead of single units.
        number: Of the layer in its network.
        seed: Of the draw.
    """

    def __init__(self, p: float, channels: bool, number: int, seed: _Seed) -> None:
        super().__init__()
        self.p, self.channels, self.number, self.seed = p, channels, number, seed
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...)`` to the same, every entry of the batch with the same units dropped."""
        shape = tuple(x.shape[1:]) if x.ndim > 1 else tuple(x.shape)
        if self.channels:
            shape = (*shape[:1], *(1 for _ in shape[1:]))
        key = (self.seed.value, *shape)
        if key not in self._drawn:
            # Drawn outside torch, which refuses random numbers under vmap.
            generator = np.random.default_rng([self.seed.value, self.number, *shape])
            kept = generator.random(shape) >= self.p
            scale = 1 / (1 - self.p) if self.p < 1 else 0.0
            self._drawn.clear()  # one draw at a time is in use
            self._drawn[key] = torch.from_numpy(kept * scale)
        return x * self._drawn[key].to(device=x.device, dtype=x.real.dtype)


class Dropout(Reconstructor):
    """A reconstruction by a network whose dropout layers stay on: it draws.

    Everything else of the network is in evaluation mode (batch norms use their running averages).
    Layers that count are ``nn.Dropout``, ``nn.Dropout1d``, ``nn.Dropout2d`` and ``nn.Dropout3d``
    with a probability above 0; a functional dropout inside ``forward`` cannot be found.

    Args:
        recon: A Reconstructor that holds a network (:class:`snrecon.recon.ImageModule`,
            :class:`snrecon.recon.KspaceModule`, ``UNet``, ...), or an ``nn.Module`` of images,
            which is put into an ImageModule.
        options: Of that ImageModule: ``channels``, ``normalise``.

    Raises:
        InputError: for what holds no network, or a network without dropout.
    """

    name = "dropout"

    def __init__(self, recon: Reconstructor | nn.Module, **options: Any) -> None:
        if isinstance(recon, nn.Module):
            recon = ImageModule(recon, **options)
        elif options:
            raise InputError(
                f"the options {', '.join(options)} are for a bare network; give them to the "
                "reconstruction instead."
            )
        if not isinstance(recon, Reconstructor):
            raise InputError(
                f"dropout needs a network or a reconstruction that holds one, not "
                f"{type(recon).__name__}."
            )
        layers = sum(_drops(part) for network in _networks(recon).values()
                     for part in network.modules())
        if not layers:
            raise InputError(
                f"{type(recon).__name__} has no network with a dropout layer of a probability "
                "above 0, so it cannot draw; use the spread over several networks "
                "(uncertainty.ensemble) instead."
            )
        self.recon, self.layers = recon, layers

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(..., coil, *grid)`` to image ``(..., *grid)`` at one draw of the layers."""
        seed = _Seed(seed_of(generator))
        bound = _with_fixed(self.recon, seed).bind(scan)

        def sample(kspace: Tensor, seeds: Sequence[int]) -> Tensor:
            own, images = seed.value, []
            try:
                for one in seeds:
                    seed.value = seed_of(torch.Generator().manual_seed(one))
                    images.append(bound.function(kspace))
            finally:
                seed.value = own
            return torch.stack(images)

        return replace(
            bound, method=f"{self.name}:{bound.method}", stochastic=True, linear=False,
            linearize=None, sample=sample,
            details={**bound.details, "dropout_layers": self.layers})


def _networks(recon: Reconstructor) -> dict[str, nn.Module]:
    return {name: held for name, held in vars(recon).items() if isinstance(held, nn.Module)}


def _drops(layer: nn.Module) -> bool:
    return isinstance(layer, (*_CHANNELS, *_SINGLE)) and layer.p > 0


def _with_fixed(recon: Reconstructor, seed: _Seed) -> Reconstructor:
    """The reconstruction with its dropout layers drawn; the one given stays as it is."""
    drawn = copy.copy(recon)
    number = 0
    for name, network in _networks(recon).items():
        network = copy.deepcopy(network).eval()
        if _drops(network):
            network = nn.Sequential(network)
        fixed: dict[nn.Module, FixedDropout] = {}  # a layer shared by several places is one layer
        for parent in list(network.modules()):
            for place, layer in list(parent._modules.items()):
                if layer is None or not _drops(layer):
                    continue
                if layer not in fixed:
                    p = float(layer.p)  # type: ignore[arg-type]
                    fixed[layer] = FixedDropout(p, isinstance(layer, _CHANNELS), number, seed)
                    number += 1
                setattr(parent, place, fixed[layer])
        setattr(drawn, name, network)
    return drawn
