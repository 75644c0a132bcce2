"""What every estimator works on: a function of k-space, the point, and the noise that enters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, naming
from snrecon.noise.own_function import require_evaluation, undisturbed
from snrecon.physics.jacobian import Linearization
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon.base import Bound

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

Reconstruction = Any
"""A Reconstructor (anything with ``bind``) or a callable from k-space to image."""
SETTINGS = (
    "algorithm", "as_published", "cg_steps", "channels", "combine", "consistency",
    "corrector_steps", "decode", "eta", "held_out", "images", "iterations", "kernel", "lambda",
    "lambda_end", "lambda_source", "lambda_start", "lamda_calibration", "layers", "m", "options",
    "output", "seed", "snr", "start", "stop", "tether", "warm_iterations", "warm_start", "wavelet",
    "weights",
)
"""Details of a bound method that define its function; others, such as condition numbers and counts
of steps, are results and may differ between machines."""
Progress = Callable[[int, int | None, str], None]
"""``progress(done, total, message)``; total is None while it is not known."""


def bind(recon: Reconstruction, scan: Scan) -> Bound:
    """Bind a Reconstructor to the scan, or wrap a user's ``f(kspace)``, which gets a copy.

    Raises:
        InputError: if it is neither, the method does not fit the scan, which is named, or its
            network is in training mode.
    """
    if isinstance(recon, Bound):
        return recon
    if hasattr(recon, "bind"):
        with naming(scan.source):
            bound = recon.bind(scan)
        if not (isinstance(bound, Bound) and bound.stochastic):
            require_evaluation(recon)
        if isinstance(bound, Bound):
            return bound
        return Bound(function=undisturbed(bound), method=_name(recon), batched=False)
    if callable(recon):
        require_evaluation(recon)
        return Bound(function=undisturbed(recon), method=_name(recon), batched=False)
    raise InputError(
        f"{recon!r} is no reconstruction: give a method, or a callable from k-space to image."
    )


def _name(recon: Any) -> str:
    return str(getattr(recon, "name", "") or getattr(recon, "__name__", type(recon).__name__))


@dataclass(frozen=True, eq=False)
class Problem:
    """``x = f(y)`` at the measured ``y`` with noise ``n = L_w w``; one slice or one 3D grid."""

    bound: Bound
    scan: Scan

    @staticmethod
    def of(recon: Reconstruction, scan: Scan) -> Problem:
        """Bind ``recon`` to a scan that is not a stack and whose noise is known.

        Raises:
            InputError: if the scan is a stack, its noise is unknown, or f returns no finite image.
        """
        if scan.layout == "stack":
            raise InputError(f"{scan.source}: choose one slice of the stack (slice=N, --slice N).")
        scan.require_noise()
        return Problem(bind(recon, scan), scan)

    @cached_property
    def linearization(self) -> Linearization:
        """f at the measured k-space."""
        return Linearization(
            self.bound.function,
            self.scan.kspace,
            linear=self.bound.linear,
            batched=self.bound.batched,
            own=self.bound.linearize,
        )

    @cached_property
    def image(self) -> Tensor:
        """``x = f(y)``.

        Raises:
            InputError: if it is not a finite tensor with as many axes as the grid.
        """
        x = self.linearization.value
        if not isinstance(x, Tensor):
            raise InputError(f"the reconstruction returned {type(x).__name__}, not a tensor.")
        if not (x.is_floating_point() or x.is_complex()):
            raise InputError(f"the reconstruction returned whole numbers ({x.dtype}), in which "
                             "noise drowns; let it return the image before it is rounded.")
        if not bool(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all()):
            raise InputError(f"{self.scan.source}: the reconstruction has NaN or infinite voxels.")
        coils, *grid = self.scan.kspace.shape
        if tuple(x.shape) == (coils, *grid):
            raise InputError(
                f"the function returned coil images of shape {tuple(x.shape)}; combine the coils "
                f"to one image {tuple(grid)}."
            )
        if x.ndim != len(grid):
            raise InputError(
                f"the function returned an array of shape {tuple(x.shape)}, but an image on the "
                f"grid {tuple(grid)}, or a part of it, has {len(grid)} axes."
            )
        return x.detach()

    @cached_property
    def direction(self) -> Tensor:
        """``u = exp(i arg x)``; 1 where the image is 0. For a real image its sign."""
        x = self.image
        size = x.abs()
        return torch.where(size > 0, x / size.clamp_min(torch.finfo(size.dtype).tiny), 1)

    @cached_property
    def colouring(self) -> NoiseColouring:
        """``L_w``: white noise to noise of the scan, on sampled points only."""
        return NoiseColouring.of(self.scan)

    @cached_property
    def full_sigma(self) -> Tensor | None:
        """SD (real component) of optimal fully sampled SENSE, ``(*grid)``, 0 off the maps' support;
        None when the image's units are not those of the maps."""
        maps = self.bound.maps
        if maps is None or tuple(self.image.shape) != tuple(maps.shape[1:]):
            return None
        power = (maps.abs() ** 2).sum(dim=0)
        variance = torch.where(power > 0, 1 / (2 * power.clamp_min(1e-30)), 0)
        spectrum = self.scan.require_noise().spectrum
        return (variance if spectrum is None else variance * spectrum).sqrt()

    def noise(self, seed: int, indices: range, stream: int) -> Tensor:
        """Draws of the scan's noise ``(len, coil, *grid)``, each with a generator of its own."""
        return torch.stack([
            self.colouring.sample(probe_generator(seed, k, stream), self.scan.kspace.dtype)
            for k in indices
        ])

    def project(self, dx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Components of ``dx`` ``(..., *image)`` along the image's phase and across it.

        The second is None for real images.
        """
        if not self.image.is_complex():
            return dx * self.direction, None
        turned = dx * self.direction.conj()
        return turned.real, turned.imag

    @property
    def details(self) -> dict[str, Any]:
        """What the method says of itself by now, and which scan and which mask it was given."""
        told = {**self.bound.details, "source": self.scan.source}
        if "undersampling" in self.scan.attributes:
            told["undersampling"] = self.scan.attributes["undersampling"]
        return told

    @cached_property
    def fingerprint(self) -> str:
        """Identifies scan and method, so that states of different problems are never mixed.

        The image is compared apart: its last bits depend on the machine.
        """
        noise, scan = self.scan.require_noise(), self.scan
        digest = digest_of(
            scan.kspace, scan.sampled, noise.covariance, noise.spectrum, scan.maps)
        settings = [(name, _told(self.bound.details[name])) for name in SETTINGS
                    if name in self.bound.details]
        digest.update(repr((self.bound.method, self.bound.frozen, settings)).encode())
        return digest.hexdigest()


def digest_of(*tensors: Tensor | None) -> Digest:
    """A digest of tensors; also of which are absent, or a spectrum could pass for maps."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"-" if tensor is None else repr(tuple(tensor.shape)).encode())
        if tensor is not None:
            values = tensor.detach().cpu().resolve_conj().contiguous()
            digest.update(values.numpy().tobytes())
    return digest


def _told(value: object) -> str:
    """A setting in words; floats, which may have been computed, but for their last digits."""
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


def probe_generator(seed: int, index: int, stream: int) -> torch.Generator:
    """An own generator for every probe, so that results do not depend on how probes are batched.

    Args:
        seed: The user's seed.
        index: Number of the probe.
        stream: Separates estimators that share a seed.
    """
    mixed = (seed & (2**64 - 1)) ^ (0x9E3779B97F4A7C15 * (stream + 1) & (2**64 - 1))
    for word in (index + 1, stream):
        mixed = (mixed + 0x9E3779B97F4A7C15 * (word + 1)) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & (2**63 - 1))
