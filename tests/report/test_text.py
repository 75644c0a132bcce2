"""Descriptions of scans and results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snrecon.data import Geometry, NoiseMap, NoiseModel, Scan
from snrecon.physics.masks import make_mask
from snrecon.physics.phantom import simulate_scan
from snrecon.report import describe_result, describe_scan
from snrecon.report.result_text import describe_repetitions


@pytest.fixture(scope="module")
def full() -> Scan:
    return simulate_scan((48, 40), coils=4, acceleration=1)


def fact(text: str, name: str) -> str:
    """What stands after a name in the table."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    assert len(lines) == 1, text
    return lines[0][len(name) :].strip()


def test_facts_of_a_full_scan(full: Scan) -> None:
    text = describe_scan(full)
    assert fact(text, "matrix") == "48 x 40 (ky x kx)"
    assert fact(text, "coils") == "4"
    assert fact(text, "sampling") == "full"
    assert fact(text, "calibration") == "all of k-space"
    assert fact(text, "SNR units") == "yes"
    assert fact(text, "readout colour") == "white"
    assert fact(text, "voxel").startswith("5 x 4.58 x 5.5 mm")
    off = full.require_noise().correlation()[~torch.eye(4, dtype=torch.bool)]
    assert f"largest {float(off.max()):.2f}" in fact(text, "coil correlation")


@pytest.mark.parametrize(
    ("kind", "acceleration", "calibration", "sampling", "lines"),
    [
        ("regular", 2, 0, "24 of 48 lines, every second", "none"),
        ("regular", 3, 0, "16 of 48 lines, every third", "none"),
        ("regular", 4, 11, "20 of 48 lines", "11 fully sampled central lines"),
        ("partial_fourier", 1.5, None, "a contiguous part", "fully sampled central lines"),
        ("poisson", 4, 9, "along ky and kx: 480 of 1920 points", "fully sampled central block"),
    ],
)
def test_sampling(
    full: Scan, kind: str, acceleration: float, calibration: int | None, sampling: str, lines: str
) -> None:
    mask = make_mask(kind, full.grid, acceleration, calibration)
    text = describe_scan(full.undersample(mask.tensor))
    assert sampling in fact(text, "sampling")
    assert lines in fact(text, "calibration")
    assert fact(text, "acceleration").startswith(f"{mask.acceleration:.3f}")
    assert "sampled points" in text


def test_readiness_says_what_is_missing(full: Scan) -> None:
    bare = replace(full, noise=None)
    assert "missing: the noise covariance" in fact(describe_scan(bare), "SNR units")
    assert "--noise-covariance" in fact(describe_scan(bare), "noise")
    lattice = bare.undersample(make_mask("regular", full.grid, 2, 0).tensor)
    assert "and coil maps or calibration lines" in fact(describe_scan(lattice), "SNR units")
    background = replace(full.require_noise(), source="background")
    assert "only estimated" in fact(describe_scan(replace(full, noise=background)), "SNR units")


def test_colour_repetitions_geometry_and_header(full: Scan) -> None:
    spectrum = torch.linspace(0.5, 1.5, 40)
    scan = replace(
        full,
        noise=NoiseModel(full.require_noise().covariance, spectrum, "noise scan", {"samples": 99}),
        repetitions=torch.stack([full.kspace] * 3),
        geometry=Geometry((0.003, 0.001, 0.001), position=(0.01, 0.0, -0.02)),
        attributes={"field_strength": 2.893, "table": {"a": 1, "b": "x"}, "array": [1, 2]},
    )
    text = describe_scan(scan)
    assert fact(text, "readout colour") == "coloured, noise variance x 0.50 to x 1.50"
    assert "noise scan (samples 99)" in fact(text, "noise")
    assert fact(text, "repetitions") == "3"
    assert fact(text, "centre").startswith("10.0, 0.0, -20.0 mm")
    assert fact(text, "field strength") == "2.893"
    assert fact(text, "table") == "a 1, b x"
    assert "array" not in text


def test_stack_and_volume(full: Scan) -> None:
    mask = torch.stack([make_mask("random", (48, 40), 2, 8, seed=s).tensor for s in (0, 1)])
    kspace = torch.stack([full.kspace] * 2)
    text = describe_scan(Scan(kspace, mask, noise=full.noise, layout="stack"))
    assert fact(text, "slices") == "2"
    assert "different in every slice" in fact(text, "sampling")
    volume = simulate_scan((6, 16, 12), coils=3, acceleration=1)
    assert fact(describe_scan(volume), "matrix") == "6 x 16 x 12 (kz x ky x kx)"
    assert fact(describe_scan(volume), "slices") == "a 3D volume"


def test_a_plain_terminal_gets_plain_text(full: Scan) -> None:
    scan = full.undersample(make_mask("poisson", full.grid, 4, 8).tensor)
    describe_scan(replace(scan, source="Schädel.h5"), "ascii").encode("ascii")


def result(**changes: object) -> NoiseMap:
    image = torch.tensor([[10.0 + 0j, 20.0], [1.0, 0.0]])
    sigma = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    base = NoiseMap(
        image=image,
        sigma=sigma,
        sigma_complex=sigma * 2**0.5,
        snr=torch.tensor([[10.0, 10.0], [1.0, 0.0]]),
        g_factor=torch.tensor([[1.2, 1.6], [9.0, 0.0]]),
        standard_error=0.1 * sigma,
        estimator="sketch",
        passes=50,
        seed=3,
        frozen=("coil maps",),
        method="tv",
        details={"why": "sketch, because it is cheap"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_numbers_of_a_result() -> None:
    text = describe_result(result())
    assert fact(text, "estimator") == "sketch, because it is cheap"
    assert fact(text, "passes") == "50, seed 3"
    assert fact(text, "relative error").startswith("10.00%")
    assert fact(text, "SNR") == "10 (median)"
    # One of three voxels with noise is below 3 sigma; voxels without noise do not count.
    assert fact(text, "low SNR").startswith("33.3%")
    assert fact(text, "g-factor") == "median 1.200, largest 1.600"
    assert fact(text, "frozen") == "coil maps"


@pytest.mark.parametrize(
    ("details", "lamda", "maps"),
    [
        (
            {"lambda": 0.23021, "lambda_source": "noise level and aliasing", "maps": "given"},
            "0.2302 (noise level and aliasing)",
            "given",
        ),
        ({"lambda": 0.5, "lambda_source": "given", "slices": 3}, "0.5 (given)", None),
        (
            {"lambda": 0.5, "lambda_source": "noise level", "maps": "ESPIRiT", "slices": 3},
            "0.5 (noise level, the first of 3 slices)",
            "ESPIRiT (the first of 3 slices)",
        ),
        ({"lambda": 0.0, "maps": "ones (single coil)"}, "0", "ones (single coil)"),
        ({}, None, None),
    ],
)
def test_lambda_and_maps_say_where_they_come_from(
    details: dict[str, object], lamda: str | None, maps: str | None
) -> None:
    text = describe_result(result(details=details))
    for name, expected in (("lambda", lamda), ("coil maps", maps)):
        if expected is None:
            assert f"\n{name} " not in text
        else:
            assert fact(text, name) == expected


def test_a_merged_result_names_all_its_seeds() -> None:
    text = describe_result(result(seed=2, details={"seeds": {"10": 18, "2": 32}}))
    assert fact(text, "passes") == "50, seeds 2, 10"
    alone = describe_result(result(seed=2, details={"seeds": {"2": 50}}))
    assert fact(alone, "passes") == "50, seed 2"


def test_exact_results_and_odd_ones() -> None:
    zeros = torch.zeros(2, 2)
    exact = result(estimator="exact", standard_error=zeros, g_factor=None, frozen=(), details={})
    text = describe_result(exact)
    assert fact(text, "relative error") == "none: the map is exact"
    assert fact(text, "estimator") == "exact"
    assert fact(text, "frozen") == "nothing"
    assert "g-factor" not in text
    silent = result(sigma=zeros, image=zeros)
    assert fact(describe_result(silent), "sigma") == "0 everywhere"


def test_repetitions_agree_with_the_map(generator: torch.Generator) -> None:
    import snrecon
    from snrecon.physics.thermal import NoiseColouring

    scan = simulate_scan((32, 32), coils=3, acceleration=1, with_maps=True)
    noise = NoiseColouring.of(scan)
    repeats = torch.stack([scan.kspace + noise.sample(generator) for _ in range(12)])
    scan = replace(scan, repetitions=repeats)
    recon = snrecon.recon.load("sense")
    text = describe_repetitions(recon, scan, snrecon.noise_map(recon, scan))
    ratio = float(text.split("=")[1].split("+-")[0])
    assert ratio == pytest.approx(1, abs=0.05)
