"""Priors whose posterior is known in closed form, for checking samplers.

A sampler that is given one of these as its score can be compared with the truth: Gaussian priors,
and mixtures of them, which have posteriors that are no Gaussian. Complex images have independent
real and imaginary parts, each with the same prior, as samplers with a score of real images assume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.networks.score import PUBLISHED_RANGE
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.operators import Encoding, dense
from snrecon.recon.snr_units import SnrUnits

AXES = (-2, -1)
DENSE_VOXELS = 1024
"""Largest image of which dense covariances are made."""


class GaussianPrior:
    """Real images ``N(mean, C)``, with C diagonal in the voxels or in k-space; a
    :class:`~snrecon.networks.score.Score`.

    Args:
        mean: ``(ky, kx)`` real, in the unit of the prior's images (magnitudes in about [0, 1]).
        variance: ``(ky, kx)``, positive, in that unit squared: of the voxels, or with
            ``stationary=True`` of the orthonormal Fourier coefficients (the power spectrum), centre
            at ``n // 2``, equal at opposite frequencies as that of real images is.
        stationary: See above.
        sigma_range: Noise levels that the score claims to know.

    Raises:
        InputError: if the shapes differ, or the variance is not positive or not symmetric.
    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        stationary: bool = False,
        sigma_range: tuple[float, float] = PUBLISHED_RANGE,
    ) -> None:
        if mean.ndim != 2 or mean.shape != variance.shape or mean.is_complex():
            raise InputError("a prior needs a real mean (ky, kx) and a variance of that shape.")
        if not bool((variance > 0).all()) or not bool(torch.isfinite(variance).all()):
            raise InputError("the variance of a prior must be positive and finite.")
        if stationary and not torch.allclose(variance, _opposite(variance)):
            raise InputError("the power spectrum of real images is equal at opposite frequencies.")
        self.mean, self.variance, self.stationary = mean, variance, stationary
        self.sigma_range = sigma_range

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``-(C + sigma^2)^-1 (x - mean)`` for ``x`` ``(..., ky, kx)``, sigma ``()`` or ``(...)``.
        """
        return -self.filtered(x - self.mean.to(x), 1 / self._blurred(x, sigma))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logarithm of the density of images with noise of SD sigma, ``(..., ky, kx)`` to
        ``(...)``."""
        variance = self._blurred(x, sigma)
        parts = self._transformed(x - self.mean.to(x)).abs().square() / variance
        return -0.5 * (parts + (2 * math.pi * variance).log()).sum(dim=AXES)

    def filtered(self, x: Tensor, weights: Tensor) -> Tensor:
        """``x`` ``(..., ky, kx)``, real or complex, with its components times real ``weights``: in
        the basis in which C is diagonal, where C is ``variance``."""
        if not self.stationary:
            return x * weights
        image = ifft(weights * fft(x, AXES), AXES)
        return image if x.is_complex() else image.real

    def draw(self, count: int, generator: torch.Generator, complex_image: bool = True) -> Tensor:
        """Images ``(count, ky, kx)``; complex ones with independent parts."""
        parts = torch.randn(
            (2 if complex_image else 1, count, *self.mean.shape),
            dtype=self.mean.dtype,
            generator=generator,
        )
        images = self.mean + self.filtered(parts, self.variance.sqrt())
        return torch.complex(images[0], images[1]) if complex_image else images[0]

    def covariance(self) -> Tensor:
        """C, dense, ``(voxel, voxel)``."""
        count = self.mean.numel()
        eye = torch.eye(count, dtype=self.mean.dtype).reshape(count, *self.mean.shape)
        return self.filtered(eye, self.variance).reshape(count, count)

    def _transformed(self, x: Tensor) -> Tensor:
        return fft(x, AXES) if self.stationary else x

    def _blurred(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.variance.to(x) + torch.as_tensor(sigma).to(x)[..., None, None] ** 2


class MixturePrior:
    """Real images from one of several Gaussian priors, drawn with given probabilities; a
    :class:`~snrecon.networks.score.Score`.

    Args:
        components: The Gaussian priors, all of one shape.
        weights: Their probabilities, positive; normalised here. Equal ones by default.

    Raises:
        InputError: if there are not as many positive weights as components.
    """

    def __init__(
        self, components: Sequence[GaussianPrior], weights: Sequence[float] | None = None
    ) -> None:
        weights = [1.0] * len(components) if weights is None else list(weights)
        if not components or len(weights) != len(components) or min(weights) <= 0:
            raise InputError("a mixture needs components and a positive weight for each.")
        self.components = tuple(components)
        self.weights = tuple(w / sum(weights) for w in weights)
        self.sigma_range = components[0].sigma_range

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The components' scores, weighted by how likely each is for ``x`` ``(..., ky, kx)``."""
        logs = torch.stack([
            math.log(w) + c.log_density(x, sigma) for w, c in zip(self.weights, self.components)
        ])
        likely = torch.softmax(logs, dim=0)[..., None, None]
        return (likely * torch.stack([c(x, sigma) for c in self.components])).sum(dim=0)

    def draw(self, count: int, generator: torch.Generator, complex_image: bool = True) -> Tensor:
        """Images ``(count, ky, kx)``; real and imaginary parts choose their components apart."""
        parts = []
        for _ in range(2 if complex_image else 1):
            each = torch.stack([c.draw(count, generator, False) for c in self.components])
            chosen = torch.multinomial(
                torch.tensor(self.weights), count, replacement=True, generator=generator
            )
            parts.append(each[chosen, torch.arange(count)])
        return torch.complex(*parts) if complex_image else parts[0]


Prior = GaussianPrior | MixturePrior


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A law of real vectors: one Gaussian or several. Of complex images the vectors are all real
    parts, then all imaginary parts."""

    weights: Tensor
    """``(component,)``, sum 1."""
    means: Tensor
    """``(component, n)``."""
    covariances: Tensor
    """``(component, n, n)``."""

    @property
    def mean(self) -> Tensor:
        """``(n,)``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """``(n, n)``: within the components and between their means."""
        apart = self.means - self.mean
        between = torch.einsum("k,ka,kb->ab", self.weights, apart, apart)
        return torch.einsum("k,kab->ab", self.weights, self.covariances) + between

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent vectors ``(count, n)``, by Cholesky factors."""
        normal = torch.randn((count, self.means.shape[1]), dtype=self.means.dtype,
                             generator=generator)
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        factors = torch.linalg.cholesky(self.covariances)
        for index, factor in enumerate(factors):
            here = chosen == index
            normal[here] = normal[here] @ factor.T
        return self.means[chosen] + normal


def posterior_law(
    prior: Prior,
    matrix: Tensor,
    data: Tensor,
    noise_variance: float,
    complex_image: bool = True,
) -> GaussianMixture:
    """The exact posterior of an image given ``data = matrix @ image + noise``.

    By conjugacy, for every component (of complex images: pair of components) with mean m and
    covariance C: mean ``m + K (d - H m)`` and covariance ``C - K H C``, with
    ``K = C H^T (H C H^T + v)^-1``; weights in proportion to prior weight times ``N(d; H m,
    H C H^T + v)``.

    Args:
        prior: Of real images, or of each part of complex ones.
        matrix: ``(datum, voxel)`` complex.
        data: ``(datum,)`` complex.
        noise_variance: v, per real component of the data.
        complex_image: The image is complex; else real.

    Returns:
        Law of the voxels, or of their real and then their imaginary parts.

    Raises:
        InputError: for images too large for dense covariances.
    """
    voxels = matrix.shape[1]
    if voxels > DENSE_VOXELS:
        raise InputError(
            f"the dense posterior of {voxels} voxels is too large; take at most {DENSE_VOXELS}."
        )
    real, imaginary = matrix.real, matrix.imag
    operator = torch.cat([real, imaginary])
    if complex_image:
        operator = torch.cat([operator, torch.cat([-imaginary, real])], dim=1)
    measured = torch.cat([data.real, data.imag])
    logs, means, covariances = [], [], []
    for weight, mean, covariance in _components(prior, complex_image):
        mean, covariance = mean.to(measured), covariance.to(measured)
        crossed = operator @ covariance
        total = crossed @ operator.T
        total.diagonal().add_(noise_variance)
        factor = torch.linalg.cholesky(total)
        apart = measured - operator @ mean
        gain = torch.cholesky_solve(crossed, factor).T
        means.append(mean + gain @ apart)
        covariances.append(covariance - gain @ crossed)
        white = torch.linalg.solve_triangular(factor, apart[:, None], upper=False)
        logs.append(math.log(weight) - factor.diagonal().log().sum() - white.square().sum() / 2)
    weights = torch.softmax(torch.stack(logs), dim=0)
    return GaussianMixture(weights, torch.stack(means), torch.stack(covariances))


def scan_posterior(
    prior: Prior, scan: Scan, scale: float = 1.0, complex_image: bool = True
) -> GaussianMixture:
    """The exact posterior of the image of a small scan, in the prior's unit.

    The image is that in SNR units (:mod:`snrecon.recon.snr_units`: white noise of variance 1/2 per
    real component) divided by ``scale``, so the noise has variance ``1 / (2 scale^2)``.

    Raises:
        InputError: if the noise of the scan is not known, or the scan is large.
    """
    units = SnrUnits.of(scan)
    mask = units.model.mask
    matrix = dense(Encoding(units.normalised, mask), units.normalised.dtype)
    measured = mask.expand(scan.kspace.shape).flatten()
    data = units.model.whiten(scan.kspace).flatten()[measured] / scale
    return posterior_law(prior, matrix[measured], data, 0.5 / scale**2, complex_image)


def toy_scan(
    prior: Prior,
    mask: Tensor,
    gamma: float,
    coils: int = 1,
    seed: int = 0,
    complex_image: bool = True,
) -> tuple[Scan, float, Tensor]:
    """A measurement of an image drawn from a prior, by smooth coils with correlated noise.

    Args:
        prior: Of the real and of the imaginary part.
        mask: Boolean ``(ky, kx)``.
        gamma: SD of the noise per real component, in the prior's unit.
        coils: Number of coils; whitened maps are normalised to ``sum |S|^2 = 1``, that of a single
            coil is 1.
        seed: Of image, coils and noise.
        complex_image: The image is complex; else real.

    Returns:
        The scan (complex128, maps and noise covariance given), what 1 in the prior's images is in
        its SNR units, ``1 / (sqrt(2) gamma)``, and the true image in the prior's unit.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = prior.draw(1, generator, complex_image)[0].to(torch.complex128)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in mask.shape),
                          indexing="ij")
    angles = math.pi / 2 + 2 * math.pi * torch.arange(coils) / coils
    centred = torch.stack([(y - a.sin()) ** 2 + (x - a.cos()) ** 2 for a in angles])
    turns = (angles - angles[0])[:, None, None]
    maps = torch.polar(torch.exp(-centred / 2), (1 + x - y / 2) * turns)
    maps = maps / maps.abs().square().sum(dim=0).sqrt()
    mixing = torch.randn((coils, coils), dtype=torch.complex128, generator=generator)
    model = NoiseModel(mixing @ mixing.mH / coils + torch.eye(coils, dtype=torch.complex128))
    scale = 1 / (math.sqrt(2) * gamma)
    noise = torch.randn(maps.shape, dtype=torch.complex128, generator=generator)
    white = (fft(scale * maps * truth, AXES) + noise) * mask
    scan = Scan(model.unwhiten(white), mask, model.unwhiten(maps), model, source="toy scan")
    return scan, scale, truth


def as_vectors(images: Tensor) -> Tensor:
    """Complex images ``(..., ky, kx)`` as vectors of real and then imaginary parts."""
    flat = images.flatten(-2)
    return torch.cat([flat.real, flat.imag], dim=-1)


def _components(prior: Prior, complex_image: bool) -> list[tuple[float, Tensor, Tensor]]:
    """Weight, mean and covariance of every component of the image's law."""
    single = [(1.0, prior)] if isinstance(prior, GaussianPrior) else list(
        zip(prior.weights, prior.components))
    known = [(weight, one.mean.flatten(), one.covariance()) for weight, one in single]
    if not complex_image:
        return known
    return [
        (a[0] * b[0], torch.cat([a[1], b[1]]), torch.block_diag(a[2], b[2]))
        for a in known for b in known
    ]


def _opposite(spectrum: Tensor) -> Tensor:
    """The value at the opposite frequency, centre at ``n // 2``."""
    turned = spectrum.flip(AXES)
    return turned.roll([1 - n % 2 for n in spectrum.shape], AXES)
