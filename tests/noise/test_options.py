"""Numbers, seeds, voxels and regions as users give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise import linearity_check, noise_map, psf, roi
from snrecon.noise.options import chosen, weights
from snrecon.recon import Sense, ZeroFilled
from snrecon.recon.option_types import number, whole_number

SCAN = small_scan(irregular_mask())
RECON = ZeroFilled()
REGION = torch.zeros(SCAN.grid, dtype=torch.bool)
REGION[5:8, 5:7] = True


def test_numbers_of_any_library_are_numbers():
    assert whole_number("n", np.int64(3)) == whole_number("n", torch.tensor(3)) == 3
    assert isinstance(whole_number("n", np.int64(3)), int)
    assert number("x", np.float32(0.5)) == number("x", torch.tensor(0.5)) == 0.5
    for value in (1.5, None, "3", 20.0):
        with pytest.raises(InputError, match="n must be a whole number"):
            whole_number("n", value)
    with pytest.raises(InputError, match="n must be a whole number of at least 2, not 1"):
        whole_number("n", 1, least=2)
    for value in ("0.1", None, [1, 2], torch.zeros(2), True, 10**400, float("inf")):
        with pytest.raises(InputError, match="x must be a finite number"):
            number("x", value)


def test_regions_of_any_library_are_regions():
    image = torch.zeros(2, 2)
    found = chosen([[0, 2], [0, 0]], image)
    assert torch.equal(found, torch.tensor([[False, True], [False, False]]))
    assert float(weights(np.eye(2), image).sum()) == 2
    for region, sentence in ((torch.ones(3, 2), r"shape \(3, 2\)"), (image, "is empty"),
                             (image / 0, "NaN"), ("all", "must be an array")):
        with pytest.raises(InputError, match=sentence):
            chosen(region, image)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"max_passes": 20.5}, "max_passes must be a whole number"),
    ({"seed": None}, "seed must be a whole number"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"tolerance": "0.1"}, "tolerance must be a finite number"),
    ({"noise_scale": None}, "noise_scale must be a finite number"),
    ({"chunk": 0}, "chunk must be a whole number of at least 1"),
    ({"seed": 2**70}, "the seed must be below"),
    ({"voxels": np.ones((2, 2), bool)}, "shape"),
])
def test_what_is_no_option_says_so(options, sentence):
    with pytest.raises(InputError, match=sentence):
        noise_map(Sense(lamda=0.1), SCAN, **options)


def test_numpy_seeds_and_voxels():
    options = {"estimator": "sketch", "tolerance": 0, "max_passes": 4}
    first = noise_map(RECON, SCAN, seed=np.int64(3), **options)
    assert first.seed == 3
    assert torch.equal(first.sigma, noise_map(RECON, SCAN, seed=3, **options).sigma)
    rows = noise_map(RECON, SCAN, voxels=REGION.numpy())
    assert torch.equal(rows.sigma, noise_map(RECON, SCAN, voxels=REGION).sigma)
    assert bool((rows.sigma[REGION] > 0).all())
    stack = Scan(torch.stack([SCAN.kspace] * 2), SCAN.mask, torch.stack([SCAN.maps] * 2),
                 SCAN.noise, layout="stack")
    with pytest.raises(InputError, match=r"voxels have shape \(12, 12\).*2 slices"):
        noise_map(RECON, stack, voxels=REGION)
    both = noise_map(RECON, stack, voxels=torch.stack([REGION] * 2).numpy())
    assert torch.equal(both.sigma[1], rows.sigma)


def test_places_that_are_none_say_so():
    for voxel in (5, (5.0, 3), (5, None), "ab"):
        with pytest.raises(InputError, match="must be 2 whole numbers"):
            psf(RECON, SCAN, voxel)
    pattern = psf(RECON, SCAN, torch.tensor([6, 5]))
    assert torch.equal(pattern, psf(RECON, SCAN, (np.int64(6), 5)))
    with pytest.raises(InputError, match="NaN"):
        roi(RECON, SCAN, torch.full(SCAN.grid, float("nan")))


def test_linearity_of_bad_regions_and_draws():
    with pytest.raises(InputError, match="draws must be a whole number of at least 1"):
        linearity_check(RECON, SCAN, draws=0)
    with pytest.raises(InputError, match="noise_scale"):
        linearity_check(RECON, SCAN, draws=2, noise_scale=0)
    for region, sentence in ((REGION[:3], "shape"), (REGION & False, "empty")):
        with pytest.raises(InputError, match=sentence):
            linearity_check(RECON, SCAN, draws=2, region=region)
    corner = torch.zeros(SCAN.grid)
    corner[0, 0] = 1
    with pytest.raises(InputError, match="any noise"):
        linearity_check(RECON, SCAN, draws=2, region=corner)
    one = linearity_check(RECON, SCAN, draws=2, region=REGION.numpy())
    assert one.ratio == linearity_check(RECON, SCAN, draws=2, region=REGION).ratio
