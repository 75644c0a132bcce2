"""Noise readouts to the covariance of the image data, end to end through real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ismrmrd")

import mrd_files as mrd
from snrecon.errors import InputError, SnreconWarning
from snrecon.io.load import load
from snrecon.io.mrd import load_mrd
from snrecon.io.mrd_assemble import remove_oversampling

NY, NX, COILS = 16, 256, 3
POINTS = 2 * NX
MIXING = np.array([[1.0, 0, 0], [0.5 + 0.3j, 0.9, 0], [-0.2j, 0.4, 0.7]])
DENSITY = MIXING @ MIXING.conj().T
"""Noise covariance of a sample of one microsecond with a flat band."""


def thermal(rng: np.random.Generator, lines: int, samples: int, interval: float) -> np.ndarray:
    """Receiver noise ``(line, coil, samples)``; the variance grows as the bandwidth, 1/interval."""
    shape = (lines, COILS, samples)
    white = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return np.einsum("ab,lbn->lan", MIXING, white) / np.sqrt(interval)


def filtered(noise: np.ndarray) -> tuple[np.ndarray, float]:
    """Through a receiver filter, flat in the middle half of the band; and its equivalent width."""
    f = np.abs(np.fft.fftfreq(noise.shape[-1]))
    response = np.where(f <= 0.26, 1.0, np.cos(np.pi / 2 * (f - 0.26) / 0.24))
    spectrum = np.fft.fft(noise, axis=-1) * response
    return np.fft.ifft(spectrum, axis=-1), float(np.mean(response**2))


def noise_lines(noise: np.ndarray, interval: float) -> list[Any]:
    return [mrd.readout(n, "IS_NOISE_MEASUREMENT", sample_time_us=interval) for n in noise]


def image_lines(noise: np.ndarray, interval: float, **fields: Any) -> list[Any]:
    return [mrd.readout(n, y=y, sample_time_us=interval, **fields) for y, n in enumerate(noise)]


def assert_white(scan: Any, samples: int) -> None:
    """Whitened noise has SD 1/sqrt(2) on each channel of every coil, and no correlation."""
    white = scan.noise.whiten(scan.kspace)[:, scan.sampled]
    real = torch.view_as_real(white)
    assert float(real.std()) == pytest.approx(np.sqrt(0.5), rel=0.01)
    covariance = (white @ white.mH / white.shape[1]).numpy()
    error = 4 * np.sqrt(1 / white.shape[1] + 1 / samples)
    assert np.abs(covariance - np.eye(COILS)).max() < error


@pytest.mark.parametrize(("own", "image"), [(5.0, 5.0), (8.0, 2.5), (2.5, 8.0)])
def test_covariance_follows_the_sampling_interval(tmp_path: Path, own: float, image: float) -> None:
    rng = np.random.default_rng(1)
    scan = load_mrd(
        mrd.write(
            tmp_path / "noise.h5",
            mrd.header((POINTS, NY, 1)),
            noise_lines(thermal(rng, 16, 2048, own), own)
            + image_lines(thermal(rng, NY, POINTS, image), image),
        )
    )
    assert scan.noise is not None
    assert scan.noise.source == "noise scan"
    wanted = DENSITY / image
    error = np.abs(scan.noise.covariance.numpy() - wanted).max() / np.abs(wanted).max()
    assert error < 4 / np.sqrt(16 * 2048)
    assert_white(scan, 16 * 2048)


def test_bandwidth_factor_of_a_filter_that_rolls_off(tmp_path: Path) -> None:
    """The image lies in the flat middle of the band and is noisier than the band on average."""
    rng = np.random.default_rng(2)
    noise, width = filtered(thermal(rng, 16, 2048, 4.0))
    data, _ = filtered(thermal(rng, NY, POINTS, 6.0))
    assert 0.7 < width < 0.85
    path = mrd.write(
        tmp_path / "filter.h5",
        mrd.header((POINTS, NY, 1), bandwidth=width),
        noise_lines(noise, 4.0) + image_lines(data, 6.0),
    )
    scan = load_mrd(path)
    assert scan.noise is not None
    error = (
        np.abs(scan.noise.covariance.numpy() - DENSITY / 6.0).max() * 6.0 / np.abs(DENSITY).max()
    )
    assert error < 4 / np.sqrt(16 * 2048 * width)
    assert_white(scan, 16 * 2048)
    assert scan.noise.details["relative_receiver_noise_bandwidth"] == pytest.approx(width)


def test_two_averages_halve_the_covariance(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    readouts = noise_lines(thermal(rng, 16, 2048, 5.0), 5.0)
    for average in range(2):
        readouts += image_lines(thermal(rng, NY, POINTS, 5.0), 5.0, average=average)
    scan = load_mrd(mrd.write(tmp_path / "a.h5", mrd.header((POINTS, NY, 1)), readouts))
    assert scan.noise is not None
    wanted = DENSITY / 10.0
    assert np.abs(scan.noise.covariance.numpy() - wanted).max() < 0.03 * np.abs(wanted).max()
    assert_white(scan, 16 * 2048)


def test_unequal_averages_take_the_mean_variance(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    readouts = noise_lines(thermal(rng, 16, 2048, 5.0), 5.0)
    readouts += image_lines(thermal(rng, NY, POINTS, 5.0), 5.0)
    readouts += image_lines(thermal(rng, NY // 2, POINTS, 5.0), 5.0, average=1)
    path = mrd.write(tmp_path / "a.h5", mrd.header((POINTS, NY, 1)), readouts)
    with pytest.warns(SnreconWarning, match="between 1 and 2 times"):
        scan = load_mrd(path)
    assert scan.noise is not None
    wanted = DENSITY / 5.0 * 0.75
    assert np.abs(scan.noise.covariance.numpy() - wanted).max() < 0.03 * np.abs(wanted).max()
    assert scan.attributes["averages"] == "1 to 2"
    power = torch.view_as_real(scan.noise.whiten(scan.kspace)).square().mean()
    assert float(power) == pytest.approx(0.5, rel=0.02)


def test_noise_readouts_of_different_intervals_and_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    readouts = noise_lines(thermal(rng, 8, 2048, 2.0), 2.0)
    readouts += noise_lines(thermal(rng, 8, 1024, 6.0), 6.0)
    readouts += image_lines(thermal(rng, NY, POINTS, 3.0), 3.0)
    scan = load_mrd(mrd.write(tmp_path / "n.h5", mrd.header((POINTS, NY, 1)), readouts))
    assert scan.noise is not None
    wanted = DENSITY / 3.0
    assert np.abs(scan.noise.covariance.numpy() - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("points", "target", "start", "length"),
    [(32, 16, 0, 32), (30, 15, 0, 30), (24, 18, 0, 24), (32, 16, 7, 25), (32, 16, 0, 21)],
)
def test_removing_oversampling_keeps_white_noise_white(
    points: int, target: int, start: int, length: int
) -> None:
    """Its matrix has orthonormal rows, so the covariance of white noise is unchanged exactly."""
    rows, _ = remove_oversampling(np.eye(length, dtype=complex), start, points, target)
    np.testing.assert_allclose(rows.T @ rows.conj(), np.eye(rows.shape[1]), atol=1e-12)


def test_partial_echo_is_white_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    cut = 160
    readouts = noise_lines(thermal(rng, 16, 2048, 5.0), 5.0)
    readouts += image_lines(
        thermal(rng, 2 * NY, POINTS - cut, 5.0), 5.0, center_sample=POINTS // 2 - cut
    )
    scan = load_mrd(mrd.write(tmp_path / "p.h5", mrd.header((POINTS, 2 * NY, 1)), readouts))
    assert int(scan.sampled[0].sum()) == NX - cut // 2
    assert_white(scan, 16 * 2048)


def test_missing_interval_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    readouts = noise_lines(thermal(rng, 4, 256, 1.0), 0.0)
    readouts += image_lines(thermal(rng, NY, POINTS, 1.0), 5.0)
    path = mrd.write(tmp_path / "n.h5", mrd.header((POINTS, NY, 1)), readouts)
    with pytest.warns(SnreconWarning, match="sampling interval is not stated"):
        scan = load_mrd(path)
    assert scan.noise is not None
    assert np.abs(scan.noise.covariance.numpy() - DENSITY).max() < 0.3


@pytest.mark.parametrize("samples", [2, 0])
def test_useless_noise_scan_does_not_keep_the_file_from_loading(
    tmp_path: Path, samples: int
) -> None:
    """Too few samples for a covariance: the noise is unknown, with a warning."""
    rng = np.random.default_rng(8)
    readouts = [
        mrd.readout(thermal(rng, 1, 4, 5.0)[0], "IS_NOISE_MEASUREMENT", discard_pre=4 - samples)
    ]
    readouts += image_lines(thermal(rng, NY, POINTS, 1.0), 5.0)
    path = mrd.write(tmp_path / "n.h5", mrd.header((POINTS, NY, 1)), readouts)
    with pytest.warns(SnreconWarning, match="noise readouts are not usable"):
        assert load_mrd(path).noise is None


def unfit(fault: str) -> list[Any]:
    """Noise and image readouts of three coils of which the noise readouts are of no use."""
    rng = np.random.default_rng(9)
    data = image_lines(thermal(rng, NY, POINTS, 5.0), 5.0)
    if fault == "coils":
        return [mrd.readout(np.ones((2, 64)), "IS_NOISE_MEASUREMENT"), *data]
    if fault == "nan":
        return [mrd.readout(np.full((3, 64), np.nan), "IS_NOISE_MEASUREMENT"), *data]
    fine = noise_lines(thermal(rng, 1, 64, 5.0), 5.0)
    if fault == "interval":
        data[3].sample_time_us = 7.0
    else:
        fine[0].sample_time_us = -1.0
    return fine + data


UNFIT = {
    "coils": "they have 2 coils, but the image readouts 3",
    "nan": "readout 0 contains NaN or infinite values",
    "interval": "the image readouts do not share one valid sampling interval",
    "own": "they have a sampling interval that is not valid",
}


@pytest.mark.parametrize("fault", UNFIT)
def test_noise_readouts_that_do_not_fit(tmp_path: Path, fault: str) -> None:
    """The file loads, with its noise given or not; where the noise is needed one sentence says why
    it is not known."""
    path = mrd.write(tmp_path / "n.h5", mrd.header((POINTS, NY, 1)), unfit(fault))
    told = f"n.h5: the noise readouts are not usable: {UNFIT[fault]}."
    with pytest.warns(SnreconWarning) as caught:
        scan = load_mrd(path)
    assert [str(w.message).endswith(told) for w in caught] == [True]
    assert scan.noise is None
    assert scan.noise_unknown == f"the noise readouts are not usable: {UNFIT[fault]}"
    with pytest.raises(InputError, match=f"is not known, because the noise .*{UNFIT[fault]}; give"):
        scan.require_noise()
    with pytest.warns(SnreconWarning, match="not usable"):
        given = load(path, noise_covariance="identity")
    assert given.noise is not None
    assert given.noise.source == "identity"
    assert given.noise_unknown == ""


def test_reason_is_kept_where_the_background_shows_no_noise_either(tmp_path: Path) -> None:
    readouts = [line for y, line in enumerate(unfit("coils")) if y == 0 or y % 2]
    path = mrd.write(tmp_path / "n.h5", mrd.header((POINTS, NY, 1)), readouts)
    with pytest.warns(SnreconWarning, match="not usable"):
        scan = load(path)
    assert scan.noise is None
    assert scan.noise_unknown.startswith("the noise readouts are not usable: they have 2 coils")
