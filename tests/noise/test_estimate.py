"""noise_map: the choice of estimator, stopping, seeds, callables, stacks, bad options."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan
from torch import Tensor

from real_files import full_scan
from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import load
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.noise import estimate, linearity_check, noise_map, roi
from snrecon.physics.fourier import ifft
from snrecon.recon import TotalVariation
from snrecon.recon.sense import Sense
from snrecon.recon.zero_filled import ZeroFilled
from snrecon.report.demo import save_scan
from snrecon.uncertainty import sure


@pytest.fixture(scope="module")
def scan() -> Scan:
    return small_scan(irregular_mask())


class SmallNetwork(torch.nn.Module):
    """Somebody's reconstruction: coil images through a convolution and a nonlinearity."""

    def __init__(self, coils: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = torch.nn.Conv2d(2 * coils, 2, 3, padding=1).double()

    def forward(self, kspace: Tensor) -> Tensor:
        images = torch.view_as_real(ifft(kspace, (-2, -1))).movedim(-1, 0).flatten(0, 1)
        out = torch.tanh(self.conv(images[None])[0])
        return torch.complex(out[0], out[1])


def test_auto_takes_the_closed_form_and_says_why(scan: Scan) -> None:
    result = noise_map(Sense(), scan)
    assert result.estimator == "analytic"
    assert "closed form" in result.details["why"]
    assert result.details["noise_source"] == "given"


def test_auto_certifies_what_has_no_closed_form(scan: Scan) -> None:
    result = noise_map(Sense(lamda=0.1, solver="cg"), small_scan(plane_mask()), tolerance=0.1)
    assert result.estimator == "certified"
    assert "irregularly" in result.details["why"]
    assert result.details["certificate"]["bound"] <= 0.1


def test_auto_sketches_what_is_too_large_to_certify(monkeypatch: pytest.MonkeyPatch) -> None:
    recon, scan = Sense(lamda=0.1, solver="cg"), small_scan(plane_mask())
    voxels = scan.kspace[0].numel()
    for share, chosen in ((1.9, "sketch"), (2.1, "certified")):
        free = int(share * voxels * estimate.FOLD_BYTES)
        monkeypatch.setattr(estimate, "available_bytes", lambda device, n=free: n)
        result = noise_map(recon, scan, tolerance=0, max_passes=8)
        assert result.estimator == chosen
        assert ("memory" in result.details["why"]) == (chosen == "sketch")


def test_a_users_network_gets_a_map(scan: Scan) -> None:
    network = SmallNetwork(scan.coils)
    sketched = noise_map(network, scan, tolerance=0.04)
    rows = noise_map(network, scan, estimator="exact")
    assert sketched.estimator == "certified"
    assert sketched.method == "SmallNetwork"
    assert sketched.g_factor is None  # nobody knows the units of its image
    ratio = sketched.sigma / rows.sigma
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)
    assert float(ratio.std()) < 0.06
    assert sketched.relative_error <= 0.04


def test_the_users_function_sees_the_kspace_as_loaded(scan: Scan) -> None:
    seen = []

    def f(kspace: Tensor) -> Tensor:
        seen.append(kspace.detach().clone())
        return ifft(kspace, (-2, -1)).sum(0)

    noise_map(f, scan, estimator="replicas", tolerance=0, max_passes=2)
    assert seen[0].shape == scan.kspace.shape
    torch.testing.assert_close(seen[0], scan.kspace, rtol=0, atol=0)
    off = ~scan.sampled
    assert all(float(k[:, off].abs().max()) == 0 for k in seen), "noise on unsampled points"


@pytest.mark.parametrize("way", ["no_grad", "detach", "numpy"])
def test_a_function_that_loses_its_derivative_falls_back_to_replicas(scan: Scan, way: str) -> None:
    inner = Sense(lamda=0.3).bind(scan)

    def f(kspace: Tensor) -> Tensor:
        if way == "no_grad":
            with torch.no_grad():
                return inner(kspace)
        if way == "detach":
            return inner(kspace.detach())
        return torch.from_numpy(inner(kspace).numpy())

    expected = noise_map(Sense(lamda=0.3), scan).sigma
    try:
        with pytest.warns(SnreconWarning, match="replicas"):
            result = noise_map(f, scan, tolerance=0.05)
    except pytest.fail.Exception:
        assert way == "no_grad", "only no_grad may leave forward mode intact"
        result = noise_map(f, scan, tolerance=0.05)
    inside = expected > 0
    ratio = (result.sigma[inside] / expected[inside]).mean()
    assert float(ratio) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_exact_rows_of_a_detached_function_are_refused(scan: Scan, share: float) -> None:
    """All of the derivative lost, or half of it."""
    inner = ZeroFilled("rss").bind(scan)

    def broken(kspace: Tensor) -> Tensor:
        return inner(share * kspace + (1 - share) * kspace.detach())

    with pytest.raises(InputError, match="disagree with finite differences"):
        noise_map(broken, scan, estimator="exact")
    with pytest.raises(InputError, match="disagree with finite differences"):
        roi(broken, scan, torch.ones(scan.grid, dtype=torch.bool))


def test_sketch_of_a_detached_function_is_an_error_not_a_zero_map(scan: Scan) -> None:
    inner = Sense(lamda=0.3).bind(scan)
    with pytest.raises(InputError, match="replicas"):
        noise_map(lambda k: inner(k.detach()), scan, estimator="sketch")


def test_a_function_that_draws_at_random_is_found_out(scan: Scan) -> None:
    inner = Sense(lamda=0.3).bind(scan)
    for estimator in ("auto", "exact", "sketch", "certified", "replicas"):
        with pytest.raises(InputError, match="draws at random"):
            noise_map(
                lambda k: inner(k) + 50 * torch.randn(12, 12, dtype=torch.complex128),
                scan,
                estimator=estimator,
            )


@pytest.mark.parametrize("estimator", ["auto", "exact", "sketch", "replicas"])
@pytest.mark.parametrize(
    ("shape_of", "message"),
    [
        (lambda x: x, r"coil images of shape \(3, 12, 12\); combine the coils"),
        (lambda x: x.sum(0).mean(0), r"shape \(12,\).*\(12, 12\).*2 axes"),
        (lambda x: x.sum(0)[None], r"shape \(1, 12, 12\).*\(12, 12\).*2 axes"),
        (lambda x: x.abs().sum(), r"shape \(\).*\(12, 12\).*2 axes"),
    ],
)
def test_only_images_are_accepted(scan: Scan, shape_of, message, estimator) -> None:
    with pytest.raises(InputError, match=message):
        noise_map(lambda k: shape_of(ifft(k, (-2, -1))), scan, estimator=estimator)
    with pytest.raises(InputError, match=message):
        linearity_check(lambda k: shape_of(ifft(k, (-2, -1))), scan)


def test_a_crop_of_the_image_is_accepted(scan: Scan) -> None:
    def crop(kspace: Tensor) -> Tensor:
        return ifft(kspace, (-2, -1)).sum(0)[2:10, 3:9]

    assert noise_map(crop, scan, tolerance=0, max_passes=16).sigma.shape == (8, 6)


def test_same_seed_same_result_whatever_the_chunk(scan: Scan) -> None:
    recon = ZeroFilled("rss")
    kwargs = {"estimator": "sketch", "tolerance": 0, "max_passes": 40}
    first = noise_map(recon, scan, seed=3, chunk=1, **kwargs)
    again = noise_map(recon, scan, seed=3, chunk=1, **kwargs)
    other = noise_map(recon, scan, seed=3, chunk=7, **kwargs)
    different = noise_map(recon, scan, seed=4, chunk=1, **kwargs)
    assert torch.equal(first.sigma, again.sigma)
    torch.testing.assert_close(first.sigma, other.sigma, rtol=1e-12, atol=0)
    assert float((first.sigma / different.sigma - 1).abs().mean()) > 0.02
    assert first.passes == 40
    assert first.seed == 3


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
def test_stops_at_the_tolerance(scan: Scan, estimator: str) -> None:
    loose = noise_map(ZeroFilled("rss"), scan, estimator=estimator, tolerance=0.1)
    tight = noise_map(ZeroFilled("rss"), scan, estimator=estimator, tolerance=0.05)
    assert loose.relative_error <= 0.1
    assert tight.relative_error <= 0.05
    assert loose.passes == pytest.approx(50, abs=20)  # 1 / (2 tolerance^2)
    assert tight.passes == pytest.approx(200, abs=40)


def test_running_out_of_passes_warns(scan: Scan) -> None:
    with pytest.warns(SnreconWarning, match="above the tolerance"):
        result = noise_map(
            ZeroFilled("rss"), scan, tolerance=0.01, max_passes=32, estimator="sketch"
        )
    assert result.passes == 32


def test_progress_is_reported(scan: Scan) -> None:
    calls: list[tuple[int, int | None, str]] = []
    noise_map(
        ZeroFilled("rss"),
        scan,
        estimator="sketch",
        tolerance=0,
        max_passes=48,
        progress=lambda *call: calls.append(call),
    )
    assert calls[-1][0] == calls[-1][1] == 48
    assert all(a[0] < b[0] for a, b in pairwise(calls))


def test_a_stack_is_mapped_slice_by_slice(scan: Scan) -> None:
    other = small_scan(irregular_mask(), seed=9)
    stack = Scan(
        torch.stack([scan.kspace, other.kspace]),
        scan.sampled,
        torch.stack([scan.maps, other.maps]),
        scan.noise,
        layout="stack",
    )
    result = noise_map(Sense(lamda=0.2), stack)
    assert result.image.shape == (2, 12, 12)
    assert result.layout == "stack"
    one = noise_map(Sense(lamda=0.2), other)
    torch.testing.assert_close(result.sigma[1], one.sigma)
    torch.testing.assert_close(result.image[1], one.image)
    assert result.covariance.shape == (3, 2, 12, 12)


def test_chosen_voxels_get_exact_rows(scan: Scan) -> None:
    wanted = torch.zeros(12, 12, dtype=torch.bool)
    wanted[5, 5:8] = True
    result = noise_map(Sense(lamda=0.2), scan, voxels=wanted)
    full = noise_map(Sense(lamda=0.2), scan)
    assert result.estimator == "exact"
    torch.testing.assert_close(result.sigma[wanted], full.sigma[wanted])
    assert float(result.sigma[~wanted].abs().max()) == 0


def test_units_and_g_factor_of_fully_sampled_sense() -> None:
    full = small_scan(torch.ones(12, 12, dtype=torch.bool))
    result = noise_map(Sense(), full)
    inside = result.sigma > 0
    torch.testing.assert_close(result.g_factor[inside], torch.ones_like(result.g_factor[inside]))
    power = (full.noise.whiten(full.maps).abs() ** 2).sum(0)
    torch.testing.assert_close(result.sigma[inside], (1 / (2 * power[inside])).sqrt())
    torch.testing.assert_close(result.snr, result.image.abs() / result.sigma.clamp_min(1e-300))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "guess"}, "estimator must be one of"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"max_passes": 0}, "max_passes"),
        ({"tolerance": 0, "estimator": "sketch"}, "max_passes"),
        ({"estimator": "replicas", "max_passes": 1}, "at least two passes, not 1"),
        ({"noise_scale": 0}, "noise_scale"),
        ({"estimator": "exact", "voxels": torch.ones(3, 3, dtype=torch.bool)}, "shape"),
        ({"estimator": "sketch", "voxels": torch.ones(12, 12, dtype=torch.bool)}, "exact"),
    ],
)
def test_bad_options(scan: Scan, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        noise_map(Sense(), scan, **options)


def test_unknown_noise_and_no_reconstruction(scan: Scan) -> None:
    with pytest.raises(InputError, match="--noise-covariance"):
        noise_map(Sense(), Scan(scan.kspace, scan.sampled, scan.maps))
    with pytest.raises(InputError, match="no reconstruction"):
        noise_map(3, scan)
    with pytest.raises(InputError, match="not a tensor"):
        noise_map(lambda k: [1], scan)
    with pytest.raises(InputError, match="NaN"):
        noise_map(lambda k: k[0] * float("nan"), scan)


def test_auto_validates_what_it_has_no_use_for_and_says_so(scan: Scan) -> None:
    region = torch.ones(scan.grid, dtype=torch.bool)
    plain = noise_map(Sense(), scan)
    with pytest.warns(SnreconWarning, match=r"regions without effect.*analytic"):
        found = noise_map(Sense(), scan, regions={"all": region})
    torch.testing.assert_close(found.sigma, plain.sigma)
    predictor = NoisePredictor(8)
    with pytest.warns(SnreconWarning, match=r"predictor without effect.*analytic"):
        noise_map(Sense(), scan, predictor=predictor)
    with pytest.raises(InputError, match="'nothere'"):
        noise_map(Sense(), scan, predictor="nothere")
    with pytest.raises(InputError, match=r"region 'a' has shape \(3, 12\)"):
        noise_map(Sense(), scan, regions={"a": region[:3]})
    with pytest.raises(InputError, match="region 'a' is empty"):
        noise_map(Sense(), scan, regions={"a": ~region})
    inner = Sense(lamda=0.3).bind(scan)
    with pytest.warns(SnreconWarning) as said:
        noise_map(lambda k: inner(k.detach()), scan, regions={"all": region}, tolerance=0.3)
    assert any("regions without effect: the estimator chosen is replicas" in str(one.message)
               for one in said)


def test_closed_forms_need_no_passes(scan: Scan) -> None:
    assert noise_map(Sense(), scan, tolerance=0).estimator == "analytic"
    with pytest.raises(InputError, match="max_passes"):
        noise_map(SmallNetwork(scan.coils), scan, tolerance=0)


def test_regions_without_noise_are_named(scan: Scan) -> None:
    air = (scan.maps == 0).all(0)
    with pytest.warns(SnreconWarning, match="region 'air' has no noise"):
        found = noise_map(Sense(0.1, "cg"), scan, estimator="certified", tolerance=0,
                          max_passes=16, regions={"air": air, "head": (~air).numpy()})
    assert set(found.details["certificate"]["regions"]) == {"head"}


def test_a_result_says_which_scan_and_mask_it_is_of(tmp_path: Path) -> None:
    scan = load(save_scan(full_scan(), tmp_path / "s.npz"),
                undersample={"kind": "random", "acceleration": 2, "seed": 7})
    details = noise_map(Sense(lamda=0.1), scan).details
    assert details["source"] == str(tmp_path / "s.npz")
    assert (details["undersampling"]["kind"], details["undersampling"]["seed"]) == ("random", 7)
    assert details["undersampling"]["calibration"] > 0
    assert Sense(lamda=0.1).reconstruct(scan)[2]["undersampling"] == details["undersampling"]
    estimated = sure(TotalVariation(lamda=1.0, iterations=5), scan).details
    assert (estimated["source"], estimated["undersampling"]) == (
        details["source"], details["undersampling"])
