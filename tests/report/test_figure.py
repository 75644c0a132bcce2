"""The figure, and the demonstration that draws it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import snrecon
from snrecon.data import NoiseMap
from snrecon.errors import InputError
from snrecon.physics.phantom import simulate_scan
from snrecon.report import figure
from snrecon.report.demo import Demo


@pytest.fixture(scope="module")
def results() -> tuple[NoiseMap, NoiseMap]:
    scan = simulate_scan((32, 32), 4, 2, 8, "regular", with_maps=True)
    recon = snrecon.recon.load("sense")
    options = {"max_passes": 16, "tolerance": 0}
    return (
        snrecon.noise_map(recon, scan, estimator="sketch", **options),
        snrecon.noise_map(recon, scan, estimator="replicas", **options),
    )


def pixels(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_panels_follow_what_is_there(results: tuple[NoiseMap, NoiseMap], tmp_path: Path) -> None:
    from snrecon.report.figure import _panels

    sketch, replicas = results
    assert len(_panels(sketch, None, None)) == 5
    assert len(_panels(sketch, replicas, replicas)) == 8
    exact = replace(sketch, standard_error=torch.zeros(32, 32), g_factor=None)
    assert len(_panels(exact, None, None)) == 3
    small, large = figure(exact, tmp_path / "a.png"), figure(sketch, tmp_path / "b.png", replicas)
    assert pixels(large)[1] > 1.5 * pixels(small)[1]


def test_volumes_and_silence_can_be_drawn(
    results: tuple[NoiseMap, NoiseMap], tmp_path: Path
) -> None:
    sketch = results[0]
    names = ("image", "sigma", "sigma_complex", "snr", "sigma_phase", "g_factor", "standard_error")
    volume = replace(sketch, **{n: torch.stack([getattr(sketch, n)] * 3) for n in names})
    figure(volume, tmp_path / "volume.png", monte_carlo=volume)
    zeros = torch.zeros(8, 8)
    silent = NoiseMap(image=zeros + 0j, sigma=zeros, sigma_complex=zeros, snr=zeros)
    figure(silent, tmp_path / "silent.pdf")
    assert (tmp_path / "silent.pdf").read_bytes().startswith(b"%PDF")


def test_drawing_leaves_matplotlib_as_it_was(
    results: tuple[NoiseMap, NoiseMap], tmp_path: Path
) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure(results[0], tmp_path / "a.png", title="own title")
    assert dict(matplotlib.rcParams) == before


def test_the_demonstration(tmp_path: Path) -> None:
    stages: list[str] = []
    demo = Demo.run(
        tmp_path / "new", shape=(48, 48), passes=48, method="zero_filled", stage=stages.append
    )  # fmt: skip
    for path in demo.files:
        assert list(path.parent.glob(path.name)), path
        assert str(path) in str(demo)
    assert demo.check.mean_ratio == pytest.approx(1, abs=0.02)
    assert len(stages) >= 4
    names = {p.name for p in (tmp_path / "new").iterdir() if not p.name.endswith((".gz", ".json"))}
    assert names == {
        "scan.npz", "demo.png", "zero_filled.h5", "zero_filled_monte_carlo.h5", "sense.h5",
    }  # fmt: skip
    again = snrecon.load(tmp_path / "new" / "scan.npz")
    assert again.coils == 8
    assert again.acceleration == pytest.approx(demo.network.acceleration)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        Demo.run(tmp_path / "file")
