"""The outside surface: what other work builds on, name by name."""

from __future__ import annotations

import inspect
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import snrecon
from snrecon.cli.main import parser
from snrecon.data import Scan
from snrecon.physics.phantom import simulate_scan
from snrecon.report.demo import save_scan

MAPS = ("sigma", "sigma_complex", "snr", "g_factor", "standard_error")
ATTRIBUTES = (
    "estimator", "passes", "seed", "convention", "frozen", "method", "units", "acceleration",
    "snrecon_version",
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = simulate_scan((32, 32), 4, 2, 8, "regular", with_maps=True)
    return save_scan(scan, tmp_path_factory.mktemp("surface") / "scan.npz")


@pytest.fixture(scope="module")
def scan(file: Path) -> Scan:
    return snrecon.load(file)


def test_names() -> None:
    for name in ("load", "recon", "noise", "noise_map", "NoiseMap", "Scan", "NoiseModel"):
        assert name in dir(snrecon)
        assert getattr(snrecon, name) is not None
    assert isinstance(snrecon.__version__, str)
    assert snrecon.Geometry((1e-3, 1e-3, 1e-3)).voxel_size == (1e-3, 1e-3, 1e-3)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = snrecon.nonsense


def test_versions_agree() -> None:
    from importlib.metadata import version

    assert version("snrecon") == snrecon.__version__


def test_signatures() -> None:
    load = inspect.signature(snrecon.load).parameters
    assert {"key", "slice", "undersample"} <= set(load)
    noise_map = inspect.signature(snrecon.noise_map).parameters
    assert list(noise_map)[:2] == ["recon_or_f", "scan"]
    defaults = {name: p.default for name, p in noise_map.items()}
    expected = {"estimator": "auto", "tolerance": 0.05, "max_passes": None, "seed": 0,
                "progress": None, "state": None}  # fmt: skip
    assert {name: defaults[name] for name in expected} == expected
    for name in expected:
        assert noise_map[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "name", ["zero_filled", "partial_fourier", "sense", "grappa", "tv", "wavelet", "varnet"]
)
def test_methods_by_name(name: str, scan: Scan) -> None:
    if name == "partial_fourier":
        from snrecon.physics.masks import make_mask

        full = simulate_scan((32, 32), 4, 1, with_maps=True)
        scan = full.undersample(make_mask("partial_fourier", full.grid, 1.5).tensor)
    image = snrecon.recon.load(name)(scan)
    assert image.shape == (32, 32)
    assert bool(torch.isfinite(torch.view_as_real(image)).all())


def test_a_result_from_start_to_end(scan: Scan, tmp_path: Path) -> None:
    recon = snrecon.recon.load("sense")
    assert type(recon) is snrecon.recon.Sense
    result = snrecon.noise_map(recon, scan, tolerance=0.05)
    for name in ("image", *MAPS, "sigma_phase"):
        assert getattr(result, name).shape == (32, 32)
    assert result.estimator == "analytic"
    assert result.passes == 0
    assert result.seed == 0
    assert "sigma" in result.convention
    assert isinstance(result.frozen, tuple)
    double = result.scale(2.0)
    torch.testing.assert_close(double.sigma, 2 * result.sigma)
    torch.testing.assert_close(double.image, 2 * result.image)
    torch.testing.assert_close(double.snr, result.snr)
    result.save(tmp_path / "out.h5")
    loaded = snrecon.NoiseMap.load(tmp_path / "out.h5")
    torch.testing.assert_close(loaded.sigma, result.sigma, check_dtype=False)
    assert loaded.convention == result.convention
    with h5py.File(tmp_path / "out.h5") as out:
        assert out["image"].dtype == np.complex64
        assert all(out[name].dtype == np.float32 for name in (*MAPS, "sigma_phase"))
        wanted = set(ATTRIBUTES) - {"seed"}  # there is nothing random in a closed form
        assert wanted <= set(out.attrs)
        assert out.attrs["snrecon_version"] == snrecon.__version__
        assert out.attrs["acceleration"] == pytest.approx(scan.acceleration)
    result.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        assert {"image", *MAPS, "sigma_phase", "estimator", "units"} <= set(out.files)


def test_attributes_of_a_random_estimate(scan: Scan, tmp_path: Path) -> None:
    recon = snrecon.recon.Sense()
    result = snrecon.noise_map(recon, scan, estimator="sketch", tolerance=0.3, seed=5)
    result.save(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as out:
        assert set(ATTRIBUTES) <= set(out.attrs)
        assert out.attrs["seed"] == 5
        assert out.attrs["passes"] == result.passes > 0
        assert float(out["standard_error"][()].max()) > 0


def test_regions_patterns_and_attribution(scan: Scan) -> None:
    recon = snrecon.recon.Sense()
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[14:18, 10:14] = True
    found = snrecon.noise.roi(recon, scan, region)
    one = torch.zeros(32, 32, dtype=torch.bool)
    one[16, 12] = True
    sigma = snrecon.noise_map(recon, scan).sigma[16, 12]
    assert snrecon.noise.roi(recon, scan, one).sd == pytest.approx(float(sigma), rel=1e-4)
    assert 0 < found.sd < float(sigma)
    assert float(snrecon.noise.psf(recon, scan, (16, 12))[16, 12]) == pytest.approx(1, rel=1e-4)
    shares = snrecon.noise.attribution(recon, scan, region)
    assert shares.shape == scan.kspace.shape
    assert float(shares.sum()) == pytest.approx(1, rel=1e-4)


def test_a_users_function_sees_the_data_as_loaded(scan: Scan) -> None:
    seen = []

    def f(kspace: torch.Tensor) -> torch.Tensor:
        seen.append(kspace.shape)
        return kspace.abs().sum(0)

    result = snrecon.noise_map(f, scan, estimator="replicas", max_passes=2, tolerance=0)
    assert set(seen) == {scan.kspace.shape}
    torch.testing.assert_close(result.image, scan.kspace.abs().sum(0))
    # Noise is put on sampled points only, and a real image has no phase.
    assert bool((result.sigma[~scan.sampled] == 0).all())
    assert result.sigma_phase is None
    torch.testing.assert_close(result.sigma_complex, result.sigma)


COMMANDS = [
    "demo",
    "demo --out DIR",
    "info SCAN",
    "recon SCAN --method NAME --out FILE",
    "noise SCAN --method NAME --estimator auto --tolerance 0.05 --max-passes 9 --seed 0 "
    "--state FILE --out FILE",
    "noise SCAN --command TEXT --out FILE",
    "merge STATE STATE STATE --out FILE",
    "posterior SCAN --method NAME --samples 5 --seed 0 --out FILE",
    "decompose SCAN --method NAME --rounds 4 --seeds 3 --seed 0 --out FILE",
    "sure SCAN --method NAME",
    "recon SCAN --method score --set algorithm=hybrid --set steps=10",
    "train CONFIG.toml",
]
COMMON = (
    " --key NAME --slice 0 --mask regular --acceleration 4 --calibration 24 --mask-seed 1"
    " --maps FILE --noise-covariance identity --debug"
)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines(line: str) -> None:
    assert parser().parse_args(line.split()).command_name == line.split()[0]
    if "SCAN" in line:
        extra = COMMON + (" --lambda 0.1" if "--method" in line else "")
        assert parser().parse_args((line + extra).split()).mask_seed == 1
