"""What a prior for diffusion and Langevin sampling is: a score at every noise level."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from snrecon.errors import InputError

PUBLISHED_RANGE = (0.01, 378.0)
"""Noise levels of score-MRI (Chung and Ye, Med Image Anal 80:102479, 2022), taken for scores that
do not state theirs."""


@runtime_checkable
class Score(Protocol):
    """Gradient of the logarithm of a density of real images, blurred with white Gaussian noise.

    A network of this package is one; so is any callable of a user. An attribute ``sigma_range``,
    ``(smallest, largest)``, tells which noise levels it knows (:func:`sigma_range`).
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score; ``x + sigma^2 score`` is the mean of the images that ``x`` may have come from.

        Args:
            x: Real images ``(batch, ky, kx)`` in a unit in which magnitudes lie in about [0, 1],
                with noise of standard deviation ``sigma``.
            sigma: ``()``, or ``(batch,)``.

        Returns:
            ``(batch, ky, kx)``, in the inverse of that unit.
        """


def sigma_range(score: Score) -> tuple[float, float]:
    """The smallest and the largest noise level that a score knows.

    Raises:
        InputError: if its attribute ``sigma_range`` is not such a pair.
    """
    stated = getattr(score, "sigma_range", PUBLISHED_RANGE)
    try:
        low, high = (float(level) for level in stated)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "the sigma_range of a score must be a pair of numbers, its smallest and its largest "
            f"noise level, not {stated!r}."
        ) from error
    if not 0 < low < high < float("inf"):
        raise InputError(f"the noise levels of a score must be 0 < low < high, not {low}, {high}.")
    return low, high
