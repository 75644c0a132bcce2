"""What the commands print and write."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import snrecon as package
from snrecon.cli import output
from snrecon.data import Scan
from snrecon.physics.fourier import fft
from snrecon.physics.phantom import simulate_scan
from snrecon.physics.thermal import NoiseColouring
from snrecon.report.demo import save_scan

Run = Callable[..., object]


def test_noise_writes_the_result_file(snrecon: Run, scan_file: Path, out: Path) -> None:
    done = snrecon("noise", scan_file, "--method", "sense", "--out", out / "r.h5")
    assert done.code == 0, done.err
    assert done.err == ""
    for word in ("analytic", "sigma", "SNR", "g-factor", "frozen", f"wrote {out / 'r.h5'}"):
        assert word in done.out
    with h5py.File(out / "r.h5") as file:
        assert file["image"].dtype == np.complex64
        for name in ("sigma", "sigma_complex", "snr", "g_factor", "standard_error"):
            assert file[name].dtype == np.float32
            assert file[name].shape == (32, 32)
            assert np.isfinite(file[name][()]).all()
        assert file.attrs["estimator"] == "analytic"
        assert file.attrs["method"] == "sense"
    assert sorted(p.name for p in out.iterdir()) == ["r.h5"]


def test_options_reach_the_computation(snrecon: Run, scan_file: Path, out: Path) -> None:
    done = snrecon(
        "noise", scan_file, "--method", "sense", "--estimator", "sketch", "--tolerance", "0.2",
        "--seed", "7", "--lambda", "0.01", "--out", out / "r.h5",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = package.NoiseMap.load(out / "r.h5")
    assert (result.estimator, result.seed) == ("sketch", 7)
    assert 0.1 < result.relative_error <= 0.2
    assert result.details["lambda"] == 0.01
    exact = package.noise_map(
        package.recon.load("sense", lamda=0.01), package.load(scan_file), estimator="analytic"
    )
    inside = exact.snr > 3
    ratio = (result.sigma[inside] / exact.sigma[inside]).mean()
    assert float(ratio) == pytest.approx(1, abs=0.1)


def test_max_passes_and_its_warning(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = (
        "noise",
        scan_file,
        "--method",
        "sense",
        "--estimator",
        "replicas",
        "--max-passes",
        "8",
    )
    done = snrecon(*words, "--out", out / "r.npz")
    assert done.code == 0, done.err
    assert package.NoiseMap.load(out / "r.npz").passes == 8
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("warning: ")


def test_states_resume_and_merge(snrecon: Run, scan_file: Path, out: Path) -> None:
    common = (
        "noise",
        scan_file,
        "--method",
        "sense",
        "--estimator",
        "sketch",
        "--tolerance",
        "0.3",
    )
    for seed in (1, 2):
        done = snrecon(
            *common, "--seed", seed, "--state", out / f"{seed}.state", "--out", out / f"{seed}.h5"
        )
        assert done.code == 0, done.err
    merged = snrecon("merge", out / "1.state", out / "2.state", "--out", out / "both.h5")
    assert merged.code == 0, merged.err
    results = [package.NoiseMap.load(out / f"{name}.h5") for name in (1, 2, "both")]
    assert results[2].passes == results[0].passes + results[1].passes
    assert "seeds 1, 2" in merged.out
    assert results[2].seed == 1
    drawn = {str(seed): results[seed - 1].passes for seed in (1, 2)}
    assert results[2].details["seeds"] == drawn
    assert results[2].relative_error < min(results[0].relative_error, results[1].relative_error)
    again = snrecon("merge", out / "1.state", out / "1.state", "--out", out / "twice.h5")
    assert again.code == 2
    assert not (out / "twice.h5").exists()


def test_the_analytic_map_has_no_state(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = ("noise", scan_file, "--method", "sense", "--state", out / "s.h5")
    done = snrecon(*words, "--out", out / "r.h5")
    assert done.code == 0, done.err
    said = f"warning: the analytic map has no state; {out / 's.h5'} is not written."
    assert done.err.splitlines() == [said]
    assert "s.h5" not in done.out
    assert sorted(p.name for p in out.iterdir()) == ["r.h5"]


def test_recon_writes_an_image(snrecon: Run, scan_file: Path, out: Path, scan: Scan) -> None:
    done = snrecon("recon", scan_file, "--method", "zero_filled", "--out", out / "x.h5")
    assert done.code == 0, done.err
    with h5py.File(out / "x.h5") as file:
        assert file["image"].shape == (32, 32)
        assert "sigma" not in file
        image = file["image"][()]
    expected = package.recon.load("zero_filled")(scan).numpy()
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("command", ["noise", "recon"])
def test_results_have_a_default_name(
    command: str, snrecon: Run, scan_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out)
    done = snrecon(command, scan_file, "--method", "zero_filled:rss")
    assert done.code == 0, done.err
    name = {"noise": "scan_zero_filled-rss.h5", "recon": "scan_zero_filled-rss_image.h5"}[command]
    assert f"wrote {name}" in done.out.splitlines()
    assert [p.name for p in out.iterdir()] == [name]


@pytest.mark.parametrize(
    ("scan", "method", "expected"),
    [
        ("data/scan.h5", "sense", "scan_sense.h5"),
        ("scan.cfl", "varnet:brain", "scan_varnet-brain.h5"),
        ("a.b.npz", "varnet:/runs/own net.safetensors", "a.b_varnet-own-net.h5"),
        ("scan", "wavelet:../db4", "scan_wavelet-db4.h5"),
        ("scan.npz", "command", "scan_command.h5"),
    ],
)
def test_default_names_stay_in_the_working_directory(
    scan: str, method: str, expected: str
) -> None:
    assert output.default(Path(scan), method) == Path(expected)
    other = Path(expected.replace(".h5", "_slice2_image.h5"))
    assert output.default(Path(scan), method, 2, "image") == other


def test_nifti_names(snrecon: Run, scan_file: Path, out: Path) -> None:
    pytest.importorskip("nibabel")
    done = snrecon("noise", scan_file, "--method", "zero_filled", "--out", out / "r.nii.gz")
    assert done.code == 0, done.err
    names = {p.name for p in out.iterdir()}
    assert {"r_image.nii.gz", "r_sigma.nii.gz", "r_sigma.json"} <= names
    for name in names:
        assert f"wrote {out / name}" in done.out
    json.loads((out / "r_sigma.json").read_text())


def test_external_command(snrecon: Run, scan_file: Path, out: Path, tmp_path: Path) -> None:
    script = tmp_path / "recon.py"
    script.write_text(
        "import sys, numpy as np\n"
        "kspace, image = sys.argv[1:]\n"
        "dims = [int(n) for n in open(kspace + '.hdr').read().split('\\n')[1].split()]\n"
        "k = np.fromfile(kspace + '.cfl', 'c8').reshape(dims, order='F')\n"
        "x = abs(np.fft.ifft2(k, axes=(0, 1), norm='ortho')) ** 2\n"
        "x = np.sqrt(x.sum(3, keepdims=True)).astype('c8')\n"
        "open(image + '.hdr', 'w').write('# Dimensions\\n' + ' '.join(map(str, x.shape)) + '\\n')\n"
        "x.flatten(order='F').tofile(image + '.cfl')\n"
    )
    command = f"{sys.executable} {script} {{kspace}} {{image}}"
    done = snrecon("noise", scan_file, "--command", command, "--max-passes", "2",
                   "--out", out / "r.h5")  # fmt: skip
    assert done.code == 0, done.err
    result = package.NoiseMap.load(out / "r.h5")
    assert (result.estimator, result.passes) == ("replicas", 2)


def test_a_stack_and_one_of_its_slices(snrecon: Run, out: Path) -> None:
    slices = [simulate_scan((24, 24), 3, 2, 6, "regular", seed=s, with_maps=True) for s in (0, 1)]
    noise = slices[0].require_noise()
    np.savez(
        out / "stack.npz",
        kspace=np.stack([s.kspace.numpy() for s in slices]),
        maps=np.stack([s.maps.numpy() for s in slices]),  # type: ignore[union-attr]
        noise_covariance=noise.covariance.numpy(),
        layout="stack",
    )
    for extra, shape in (((), (2, 24, 24)), (("--slice", "1"), (24, 24))):
        done = snrecon(
            "noise", out / "stack.npz", "--method", "sense", *extra, "--out", out / "r.h5"
        )
        assert done.code == 0, done.err
        assert package.NoiseMap.load(out / "r.h5").sigma.shape == shape
    info = snrecon("info", out / "stack.npz")
    assert "slices" in info.out
    assert "24 x 24 (ky x kx)" in info.out


def test_retrospective_undersampling(snrecon: Run, out: Path) -> None:
    full = save_scan(simulate_scan((32, 32), 4, 1, with_maps=True), out / "full.npz")
    words = ("--mask", "regular", "--acceleration", "4", "--calibration", "0", "--mask-seed", "3")
    done = snrecon("noise", full, "--method", "zero_filled", *words, "--out", out / "r.h5")
    assert done.code == 0, done.err
    assert package.NoiseMap.load(out / "r.h5").acceleration == pytest.approx(4)
    info = snrecon("info", full, *words)
    assert "every 4th" in info.out
    assert "4.000" in info.out


def test_maps_and_covariance_from_files(snrecon: Run, out: Path, scan: Scan) -> None:
    np.savez(out / "bare.npz", kspace=scan.kspace.numpy())
    np.save(out / "maps.npy", scan.maps.numpy())  # type: ignore[union-attr]
    np.save(out / "psi.npy", scan.require_noise().covariance.numpy())
    done = snrecon(
        "noise", out / "bare.npz", "--method", "sense", "--maps", out / "maps.npy",
        "--noise-covariance", out / "psi.npy", "--out", out / "r.h5",
    )  # fmt: skip
    assert done.code == 0, done.err
    whole = save_scan(scan, out / "whole.npz")
    assert snrecon("noise", whole, "--method", "sense", "--out", out / "w.h5").code == 0
    a, b = (package.NoiseMap.load(out / name).sigma for name in ("r.h5", "w.h5"))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_info_takes_every_common_option(snrecon: Run, scan_file: Path, out: Path) -> None:
    full = save_scan(simulate_scan((32, 32), 4, 1), out / "full.npz")
    np.save(out / "maps.npy", package.load(scan_file).maps.numpy())  # type: ignore[union-attr]
    done = snrecon(
        "info", full, "--key", "kspace", "--slice", "0", "--mask", "regular", "--acceleration",
        "2", "--calibration", "8", "--mask-seed", "1", "--lambda", "0.1", "--maps",
        out / "maps.npy", "--noise-covariance", "identity", "--debug",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")


def test_help_and_version(snrecon: Run) -> None:
    assert snrecon("--help").code == 0
    done = snrecon("--version")
    assert (done.code, done.out.strip()) == (0, f"snrecon {package.__version__}")
    for command in ("demo", "info", "recon", "noise", "merge", "train"):
        assert snrecon(command, "--help").code == 0


def test_as_a_module_and_as_a_script(scan_file: Path) -> None:
    script = shutil.which("snrecon", path=str(Path(sys.executable).parent))
    assert script is not None
    for words in ([sys.executable, "-m", "snrecon", "--version"], [script, "info", str(scan_file)]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.err
        assert ("32 x 32" if "info" in words else package.__version__) in done.stdout
        assert done.stderr == ""


def test_repetitions_check_the_map(
    snrecon: Run, scan_file: Path, out: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan with repetitions prints how their spread compares with the map."""
    noise = NoiseColouring.of(scan)
    generator = torch.Generator().manual_seed(1)
    repeats = torch.stack([scan.kspace + noise.sample(generator) for _ in range(8)])
    monkeypatch.setattr("snrecon.cli.noise.load_scan", lambda _: replace(scan, repetitions=repeats))
    done = snrecon("noise", scan_file, "--method", "sense", "--out", out / "r.h5")
    assert done.code == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("repetitions"))
    assert float(line.split("=")[1].split("+-")[0]) == pytest.approx(1, abs=0.06)


def test_a_network_on_a_volume(snrecon: Run, out: Path) -> None:
    """Undersampled over the phase-encoding plane: sliced along the readout, in both commands."""
    grid = (16, 16, 3)
    scan = simulate_scan(grid[:2], 3, 2, 8, "poisson", with_maps=True)
    kspace = torch.stack([scan.kspace, 2 * scan.kspace, 0 * scan.kspace], dim=-1)
    maps = scan.maps
    assert maps is not None
    np.savez(
        out / "volume.npz",
        kspace=fft(kspace, (-1,)).numpy(),
        mask=scan.sampled.unsqueeze(-1).expand(grid).numpy(),
        maps=maps.unsqueeze(-1).expand(*maps.shape, 3).numpy(),
        noise_covariance=scan.require_noise().covariance.numpy(),
    )
    words = (out / "volume.npz", "--method", "varnet")
    done = snrecon("recon", *words, "--out", out / "x.h5")
    assert done.code == 0, done.err
    done = snrecon("noise", *words, "--max-passes", "16", "--tolerance", "0", "--out", out / "n.h5")
    assert done.code == 0, done.err
    assert "3, the volume sliced along kx" in done.out
    result = package.NoiseMap.load(out / "n.h5")
    assert (result.estimator, result.details["sliced"]) == ("certified", "along kx")
    assert result.sigma.shape == grid
    with h5py.File(out / "x.h5") as file:
        np.testing.assert_allclose(file["image"][()], result.image.numpy(), rtol=1e-4, atol=1e-5)
    plane = package.recon.load("varnet")(scan)
    torch.testing.assert_close(result.image[..., 0], plane, rtol=1e-3, atol=1e-3)


def test_recon_says_what_made_the_image(snrecon: Run, scan_file: Path, out: Path) -> None:
    done = snrecon("recon", scan_file, "--method", "modl", "--out", out / "image.h5")
    assert done.code == 0, done.err
    with h5py.File(out / "image.h5") as file:
        details = json.loads(file.attrs["details"])
    assert details["weights"] == "brain"
    assert "frozen" in details
