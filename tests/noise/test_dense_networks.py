"""Noise maps of the learned reconstructions against a dense Jacobian built without autodiff."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import covariance_maps, difference_matrix
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan

import networks_at_hand as nets
from snrecon.data import Scan
from snrecon.noise import noise_map
from snrecon.recon import E2EVarNet, MoDL, UNet
from snrecon.recon.base import Reconstructor

RECONS = {
    "unet complex": lambda: UNet(nets.unet(2)),
    "unet magnitude": lambda: UNet(nets.unet(1)),
    "unet published": lambda: UNet(nets.unet(1), published=True, crop=(10, 11)),
    "e2e_varnet": lambda: E2EVarNet(nets.e2e_varnet()),
    "e2e_varnet published": lambda: E2EVarNet(nets.e2e_varnet(), published=True),
    "modl": lambda: MoDL(nets.modl()),
    "modl implicit": lambda: MoDL(nets.modl(1)),
}


@cache
def solved(name: str) -> tuple[Reconstructor, Scan, np.ndarray]:
    recon = RECONS[name]()
    scan = small_scan(plane_mask() if name == "modl" else irregular_mask(), coloured="e2e" in name)
    bound = recon.bind(scan)
    image = bound(scan.kspace)
    return recon, scan, covariance_maps(difference_matrix(bound.function, scan), scan, image)


@pytest.mark.parametrize("name", RECONS)
def test_exact_rows_equal_the_dense_matrix(name):
    recon, scan, dense = solved(name)
    result = noise_map(recon, scan, estimator="exact")
    scale = np.abs(dense[:2]).max()
    assert scale > 0
    np.testing.assert_allclose(result.sigma.numpy() ** 2, dense[0], rtol=0, atol=1e-6 * scale)
    total = dense[0] + dense[1]
    np.testing.assert_allclose(result.sigma_complex.numpy() ** 2, total, rtol=0, atol=1e-6 * scale)
    if result.image.is_complex():
        np.testing.assert_allclose(result.covariance.numpy(), dense, rtol=0, atol=1e-6 * scale)
    else:
        assert result.sigma_phase is None


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
@pytest.mark.parametrize("name", RECONS)
def test_sampling_estimators_agree_within_their_error_bars(name, estimator):
    recon, scan, dense = solved(name)
    result = noise_map(
        recon, scan, estimator=estimator, tolerance=0, max_passes=400, noise_scale=0.005
    )
    sigma = np.sqrt(dense[0])
    noisy = sigma > 1e-6 * sigma.max()
    deviation = (result.sigma.numpy() - sigma)[noisy] / result.standard_error.numpy()[noisy]
    # Instance normalisation couples all voxels, so that their deviations are more alike than those
    # of other methods; an error of 10 % in sigma would still give a mean of 2.8.
    assert 0.3 < np.mean(deviation**2) < 2.2
    assert abs(np.mean(deviation)) < 0.9


def test_noise_of_the_sensitivity_network_is_in_the_map():
    """With the maps held at their value the map is another one, beyond any sampling error."""
    recon, scan, dense = solved("e2e_varnet")
    whole = recon.bind(scan)
    network = nets.e2e_varnet().double()
    from snrecon.networks.sensitivity import calibration_samples

    white = scan.noise.whiten(scan.kspace)
    _, maps = network.predict(white, scan.sampled, calibration_samples(scan.sampled))

    class Held(torch.nn.Module):
        def forward(self, measured, calibration):
            return maps.unsqueeze(0)

    network.sens_net = Held()
    held = E2EVarNet(network)
    image = held.bind(scan)(scan.kspace)
    torch.testing.assert_close(image, whole(scan.kspace), rtol=1e-8, atol=1e-8)
    without = noise_map(held, scan, estimator="exact").sigma_complex.numpy()
    total = np.sqrt(dense[0] + dense[1])
    inside = total > 0
    ratio = total[inside] / without[inside]
    assert np.sqrt(np.mean((ratio - 1) ** 2)) > 0.02
