"""What every reconstruction is: it binds to a scan and becomes a function of k-space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import naming


@dataclass(frozen=True, eq=False)
class Bound:
    """A reconstruction bound to one scan: ``f``, k-space ``(..., coil, *grid)`` to image
    ``(..., *grid)``, with what the noise estimators need to know about it.

    ``f`` takes k-space in the scan's own coil basis and units, and is usable under ``torch.func``
    jvp, vjp and vmap.
    """

    function: Callable[[Tensor], Tensor]
    """The function itself; leading batch axes as ``batched`` says."""
    method: str
    """Name of the method, as on the command line."""
    frozen: tuple[str, ...] = ()
    """What was computed from the data but is treated as known."""
    linear: bool = False
    """f is real-linear in k-space, so that ``J v = f(v)`` exactly."""
    maps: Tensor | None = None
    """Whitened coil maps ``(coil, *grid)`` that set the image's units; they define the optimal
    fully sampled noise and so the g-factor. None when the image has other units (RSS)."""
    linearize: Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]] | None = None
    """Optional fast path: k-space to ``(image, jvp)`` where ``jvp`` maps a batch of tangents
    ``(batch, coil, *grid)`` to ``(batch, *grid)``."""
    batched: bool = True
    """f takes leading batch axes."""
    units: str = "as the reconstruction returns them"
    """Unit of the image, in words."""
    at_once: int | None = None
    """How many perturbations at once suit a CPU: more than one where they share work in every
    batch, such as reading a large matrix. None: as few as keep them near its caches."""
    differentiable: bool = True
    """f is made of tensor operations; False for external programs."""
    stochastic: bool = False
    """f draws: binding with another generator gives another f. A bound f has one set of draws,
    the same for every entry of a batch."""
    sample: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    """Optional fast path of stochastic methods: k-space ``(coil, *grid)`` and seeds to samples
    ``(seed, *grid)``, several at once; each is what f gives when bound with
    ``torch.Generator().manual_seed(seed)``."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts for the metadata: lambda, iterations, source of the maps, weights. Under ``options``, a
    mapping, stands what the user set: those that draw need it to know their own state files."""

    def __call__(self, kspace: Tensor) -> Tensor:
        """Reconstruct ``kspace`` ``(..., coil, *grid)``."""
        return self.function(kspace)


def seed_of(generator: torch.Generator | None) -> int:
    """The seed of a stochastic method's draws: one number from the generator, 0 without one."""
    if generator is None:
        return 0
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


class Reconstructor(ABC):
    """A reconstruction method with its settings.

    ``recon.bind(scan)`` fixes everything that belongs to the scan (mask, maps, noise covariance,
    lambda) and returns the function of k-space; ``recon(scan)`` applies it to ``scan.kspace``.
    """

    name: str = ""
    _progress: Callable[[int, int, Tensor], None] | None = None

    def watch(self, tell: Callable[[int, int, Tensor], None]) -> None:
        """Have ``tell(step, steps, image)`` called with intermediate images by methods that take
        long; the others ignore it."""
        self._progress = tell

    @abstractmethod
    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """Bind to a scan of one slice or one 3D grid (not a stack: bind each slice).

        Args:
            scan: What is reconstructed.
            generator: Source of randomness for methods that draw; the others ignore it.
        """

    def __call__(self, scan: Scan) -> Tensor:
        """Image ``(*grid)``, or ``(slice, ky, kx)`` for a stack.

        Raises:
            InputError: if the method does not fit the scan, which the sentence names.
        """
        return self.reconstruct(scan)[0]

    def reconstruct(
        self, scan: Scan, generator: torch.Generator | None = None
    ) -> tuple[Tensor, str, dict[str, Any]]:
        """The image, ``(*grid)`` or ``(slice, ky, kx)`` for a stack, its unit in words, and what
        the method says of itself (weights, lambda, what was frozen; of a stack's last slice).
        Without gradients: who wants them calls what ``bind`` returns.

        Args:
            scan: What is reconstructed.
            generator: Source of randomness for methods that draw.

        Raises:
            InputError: if the method does not fit the scan, which the sentence names.
        """
        images, units = [], ""
        details: dict[str, Any] = {}
        for index, one in enumerate(scan):
            with naming(scan.source, f"slice {index}" if scan.slices > 1 else ""):
                bound = self.bind(one, generator)
                images.append(bound(one.kspace).detach())
                units = bound.units
                details = {**bound.details, "frozen": list(bound.frozen)}
        if "undersampling" in scan.attributes:
            details["undersampling"] = scan.attributes["undersampling"]
        return images[0] if scan.layout == "grid" else torch.stack(images), units, details

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({settings})"
