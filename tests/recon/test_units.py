"""The unit that stands in the metadata is that of the image."""

import pytest
import torch

from snrecon import recon
from snrecon.data import NoiseModel, Scan
from snrecon.io import load_result, save
from snrecon.noise import noise_map
from snrecon.physics.fourier import fft

COMPONENT = 0.5**0.5


def scan_with(scale: float, maps: bool = True, noise: bool = True) -> Scan:
    """An object of 3 in maps with ``sum |S|^2 = 4 scale^2``, noise covariance ``scale^2``."""
    generator = torch.Generator().manual_seed(0)
    phases = torch.rand(4, 1, 1, generator=generator) * 6
    profile = torch.polar(torch.ones(4, 24, 24), phases.expand(4, 24, 24)) * scale
    image = torch.full((24, 24), 3.0, dtype=torch.complex64)
    image[:4] = image[20:] = image[:, :4] = image[:, 20:] = 0
    model = NoiseModel(torch.eye(4, dtype=torch.complex64) * scale**2, source="given")
    return Scan(kspace=fft(profile * image, (-2, -1)), mask=torch.ones(24, 24, dtype=torch.bool),
                maps=profile if maps else None, noise=model if noise else None)


@pytest.mark.parametrize("name", ["sense", "tv", "varnet"])
def test_given_maps_set_the_scale_of_the_object(name):
    result = noise_map(recon.load(name), scan_with(10.0), max_passes=2, tolerance=0)
    assert result.units.startswith("the object in the scale of the given maps")
    assert float(result.image[12, 12].abs()) == pytest.approx(3, rel=0.05)


def test_a_matched_filter_is_not_divided_by_the_power_of_the_maps():
    result = noise_map(recon.load("zero_filled"), scan_with(10.0))
    assert result.units.startswith("sum |S|^2 of the whitened maps x the object")
    assert float(result.image[12, 12].abs()) == pytest.approx(3 * 4, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_estimated_maps_count_in_noise(scale):
    result = noise_map(recon.load("sense"), scan_with(scale, maps=False))
    assert result.units.startswith("multiples of the noise: complex noise SD 1")
    inside = result.image.abs() > 1
    assert torch.allclose(result.sigma[inside], torch.tensor(COMPONENT), rtol=1e-4)


def test_a_root_of_squares_is_in_units_of_k_space():
    result = noise_map(recon.load("zero_filled:rss"), scan_with(10.0), max_passes=2, tolerance=0)
    assert result.units.startswith("k-space units")
    assert float(result.image[12, 12]) == pytest.approx(3 * 2 * 10, rel=1e-4)


def test_without_noise_estimated_maps_keep_the_units_of_k_space():
    image, units, _ = recon.load("sense").reconstruct(scan_with(10.0, maps=False, noise=False))
    assert units.startswith("k-space units")
    assert float(image[12, 12].abs()) == pytest.approx(3 * 2 * 10, rel=0.05)


def test_a_function_of_ones_own_has_units_of_its_own():
    scan = scan_with(1.0)
    result = noise_map(lambda y: y.sum(0), scan, max_passes=2, tolerance=0)
    assert result.units == "as the reconstruction returns them"


def test_the_unit_is_kept_in_files(tmp_path):
    result = noise_map(recon.load("sense"), scan_with(10.0))
    save(result, tmp_path / "out.h5")
    assert load_result(tmp_path / "out.h5").units == result.units
