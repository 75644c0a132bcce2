"""The check of Jacobian products against differences of the function."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan
from torch import Tensor

from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import noise_map
from snrecon.noise.derivative import DISAGREEMENT, STREAM, require_derivative
from snrecon.noise.problem import Problem
from snrecon.physics.fourier import ifft
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.recon.zero_filled import ZeroFilled


def test_curvature_at_a_thousandth_of_the_noise_is_no_wrong_derivative() -> None:
    """The first step of the difference is too long for it, a shorter one is not."""
    scan = small_scan(irregular_mask())

    def wavy(kspace: Tensor) -> Tensor:
        z = 1500 * ifft(kspace, (-2, -1)).sum(-3)
        return torch.complex(z.real.sin(), z.imag.sin()) / 1500

    problem = Problem.of(wavy, scan)
    noise = problem.noise(0, range(1), STREAM)[0]
    product = problem.linearization.jvp(noise[None])[0]
    far = (wavy(scan.kspace + 1e-3 * noise) - problem.image) / 1e-3
    assert float((far - product).norm() / far.norm()) > DISAGREEMENT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)
        assert 0 < require_derivative(problem)["derivative_check"] < DISAGREEMENT
        assert 0 < require_derivative(problem, transposed=True)["derivative_check"] < DISAGREEMENT
        with pytest.raises(NotDifferentiableError, match="disagree with finite differences"):
            require_derivative(problem, known=(noise, 2 * product))


@pytest.mark.parametrize("estimator", ["sketch", "certified", "exact"])
def test_a_derivative_that_is_not_finite_says_so(estimator: str) -> None:
    """The modulus by hand, of an image that is 0 in a corner: the slope of a root at 0."""
    scan = small_scan(irregular_mask())
    inside = torch.ones(scan.grid)
    inside[:2, :3] = 0

    def rooted(kspace: Tensor) -> Tensor:
        return ((ifft(kspace, (-2, -1)) * inside).abs() ** 2).sum(-3).sqrt()

    with pytest.raises(InputError, match=r"derivative of the reconstruction is not finite.*root"):
        noise_map(rooted, scan, estimator=estimator, tolerance=0.2)
    with pytest.warns(SnreconWarning, match=r"using replicas.*not finite at 6 voxels"):
        found = noise_map(rooted, scan, tolerance=0, max_passes=4)
    assert found.estimator == "replicas"
    assert "not finite at 6 voxels" in found.details["why"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision(dtype: torch.dtype) -> None:
    """At low SNR their derivative is checked with steps that rounding leaves; at high SNR nothing
    can be checked, and that is what is said."""
    for snr in (5.0, 1000.0):
        scan = small_scan(irregular_mask(), snr=snr).to(torch.complex64)
        bound = ZeroFilled("rss").bind(scan).function

        def half(kspace: Tensor, bound: Callable[[Tensor], Tensor] = bound) -> Tensor:
            return bound(kspace).to(dtype)

        if snr < 10:
            found = noise_map(half, scan, estimator="certified", tolerance=0, max_passes=16)
            wanted = noise_map(lambda k, f=bound: f(k), scan, estimator="certified", tolerance=0,
                               max_passes=16)
            assert found.sigma.dtype == torch.float32
            torch.testing.assert_close(found.sigma, wanted.sigma, rtol=0.05, atol=1e-3)
        else:
            name = str(dtype).removeprefix("torch.")
            with pytest.raises(InputError, match=f"rounded to {name}.*single precision"):
                noise_map(half, scan, estimator="sketch", tolerance=0, max_passes=8)
    with pytest.raises(InputError, match=r"disagree|rounded"):
        noise_map(lambda k: half(k.detach()), small_scan(irregular_mask(), snr=5.0),
                  estimator="sketch", tolerance=0, max_passes=8)


def test_squares_of_half_precision_do_not_overflow() -> None:
    scan = small_scan(irregular_mask(), snr=5.0).to(torch.complex64)
    bound = ZeroFilled("rss").bind(scan).function
    scale = 2e4 / float(bound(scan.kspace).max())
    found = noise_map(lambda k: (scale * bound(k)).half(), scan, estimator="certified",
                      tolerance=0, max_passes=16)
    assert bool(torch.isfinite(found.covariance).all())
    assert bool(torch.isfinite(found.standard_error).all())
