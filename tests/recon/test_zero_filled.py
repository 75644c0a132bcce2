"""Zero-filled reconstructions against the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.recon import ZeroFilled
from snrecon.recon.zero_filled import linearize_root_sum_of_squares


@pytest.mark.parametrize("grid", [(8, 10), (4, 6, 5)])
def test_matched_filter_is_the_adjoint(grid, small_scan, lines, dense_encoding, white) -> None:
    scan = small_scan(lines(grid, [0, 2, 3, 5]), coils=3)
    bound = ZeroFilled().bind(scan)
    expected = dense_encoding(scan).conj().T @ white(scan)
    image = bound(scan.kspace).numpy().ravel()
    assert np.abs(image - expected).max() < 1e-12 * np.abs(expected).max()


def test_matched_filter_is_linear(small_scan, lines, check_linear) -> None:
    scan = small_scan(lines((8, 6), [1, 4, 5]), coils=3)
    check_linear(ZeroFilled().bind(scan), scan)


def test_maps_give_the_optimal_noise_in_the_images_units(small_scan, lines, dense_encoding) -> None:
    scan = small_scan(lines((8, 6), list(range(8))), coils=3)
    bound = ZeroFilled().bind(scan)
    a = dense_encoding(scan)
    variance = (np.abs(a) ** 2).sum(0)  # diagonal of A^H A
    power = (bound.maps.abs() ** 2).sum(0).numpy().ravel()
    inside = power > 0
    assert np.allclose(1 / power[inside], variance[inside], rtol=1e-10)
    assert inside.sum() == 48 - 4


def test_rss_uses_the_coils_as_stored(small_scan, lines) -> None:
    scan = small_scan(lines((8, 6), [1, 4, 5, 6]), coils=3)
    bound = ZeroFilled("rss").bind(scan)
    shifted = np.fft.ifftshift(scan.kspace.numpy(), axes=(1, 2))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(1, 2))
    expected = np.sqrt((np.abs(coils) ** 2).sum(0))
    image = bound(scan.kspace)
    assert not image.is_complex()
    assert np.allclose(image.numpy(), expected, rtol=1e-12)
    assert bound.maps is None


def test_rss_derivative(small_scan, lines, check_linear) -> None:
    scan = small_scan(lines((8, 6), [1, 4, 5]), coils=3)
    bound = ZeroFilled("rss").bind(scan)
    check_linear(bound, scan, linear=False)
    v = torch.randn_like(scan.kspace)
    _, tangent = torch.func.jvp(bound.function, (scan.kspace,), (v,))
    step = 1e-5
    central = (bound(scan.kspace + step * v) - bound(scan.kspace - step * v)) / (2 * step)
    assert (tangent - central).abs().max() < 1e-7
    _, at_zero = torch.func.jvp(bound.function, (torch.zeros_like(v),), (v,))
    assert torch.equal(at_zero, torch.zeros_like(at_zero))


def test_rss_of_what_is_no_number(small_scan, lines) -> None:
    """A failed computation before it is not made a black image, nor one without noise."""
    scan = small_scan(lines((8, 6), [1, 4, 5]), coils=3)
    failed = torch.full_like(scan.kspace, torch.nan)
    assert ZeroFilled("rss").bind(scan)(failed).isnan().all()
    image, product = linearize_root_sum_of_squares(failed, scan.sampled)
    assert image.isnan().all()
    assert product(torch.ones_like(failed)[None]).isnan().all()
    empty = torch.zeros_like(failed)
    image, product = linearize_root_sum_of_squares(empty, scan.sampled)
    assert not image.any()
    assert not product(torch.ones_like(empty)[None]).any()


def test_precision_follows_the_data(small_scan, lines) -> None:
    scan = small_scan(lines((8, 6), [1, 4, 5]), dtype=torch.complex64)
    assert ZeroFilled()(scan).dtype == torch.complex64
    assert ZeroFilled("rss")(scan).dtype == torch.float32


def test_unknown_combination() -> None:
    with pytest.raises(InputError, match="matched"):
        ZeroFilled("sum")
