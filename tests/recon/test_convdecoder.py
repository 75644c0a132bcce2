"""The untrained decoder: fit, early stopping, restarts, consistency, noise, derivative."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import snrecon
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.noise.problem import Problem
from snrecon.physics.fourier import fft
from snrecon.physics.masks import make_mask
from snrecon.physics.phantom import brain_phantom, coil_maps, simulate_scan
from snrecon.recon import load
from snrecon.recon.convdecoder import ConvDecoder
from snrecon.recon.decoder_data import DecoderData, held_out_samples
from snrecon.recon.forward_model import forward_model
from snrecon.recon.zero_filled import root_sum_of_squares

SMALL = {"layers": 3, "channels": 6, "iterations": 60, "warm_iterations": 10}
EVERYWHERE = torch.ones(16, 16, dtype=torch.bool)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half_scan(snr: float = 20.0) -> Scan:
    return simulate_scan((16, 16), 3, 2.0, 4, snr=snr, with_maps=True)


def error(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((image - truth).norm() / truth.norm()) ** 2)


def smooth_scan() -> tuple[Scan, torch.Tensor]:
    """Noiseless, fully sampled."""
    line = torch.linspace(-1, 1, 16)
    y, x = torch.meshgrid(line, line, indexing="ij")
    image = torch.polar(torch.exp(-2 * (y**2 + x**2)), x + 0.5 * y)
    maps = coil_maps(2, (16, 16))
    noise = NoiseModel(1e-6 * torch.eye(2, dtype=torch.complex64))
    return Scan(kspace=fft(maps * image, (-2, -1)), maps=maps, noise=noise), image


@pytest.mark.parametrize("decode", ["image", "coils"])
def test_a_smooth_image_is_fitted(decode: str) -> None:
    scan, image = smooth_scan()
    recon = ConvDecoder(
        decode, "matched", layers=3, channels=8, iterations=400, held_out=0, consistency=False)
    assert error(recon(scan), image) < 1e-3
    start = ConvDecoder(
        decode, "matched", layers=3, channels=8, iterations=1, warm_iterations=0, held_out=0,
        consistency=False)
    assert error(start(scan), image) > 0.1, "the initial network would pass"


def test_root_sum_of_squares_is_of_the_coils_as_stored() -> None:
    scan = half_scan()
    full = DecoderData.of(replace(scan, maps=None), "coils", "rss", False)
    kspace = fft(scan.maps, (-2, -1))
    image = full.image(full.model.whiten(kspace), torch.zeros_like(kspace))
    torch.testing.assert_close(image, root_sum_of_squares(kspace, EVERYWHERE))
    assert full.model.maps_source == "given", "maps were estimated"
    bound = ConvDecoder("coils", **SMALL).bind(scan)
    assert not bound(scan.kspace).is_complex()
    assert bound.maps is None


@pytest.mark.parametrize(("decode", "channels"), [("image", 2), ("coils", 6)])
def test_channels_become_kspace_and_the_object_comes_back(decode: str, channels: int) -> None:
    scan = half_scan()
    scan = replace(scan, maps=scan.maps.clone() * 3)
    scan.maps[:, :2] = 0
    model = forward_model(scan)
    data = DecoderData.of(scan, decode, "matched", False)
    assert data.outputs == channels
    truth = brain_phantom((16, 16), seeded(0))
    decoded = truth / data.inverse.clamp_min(1e-9) if decode == "image" else model.maps * truth
    pairs = torch.view_as_real(decoded.reshape(-1, 16, 16)).movedim(-1, 1).reshape(-1, 16, 16)
    kspace = data.kspace(pairs)
    torch.testing.assert_close(
        kspace, fft(model.maps * truth, (-2, -1)), rtol=1e-4, atol=1e-4)
    image = data.image(kspace, torch.zeros_like(kspace))
    torch.testing.assert_close(image[2:], truth[2:], rtol=1e-4, atol=1e-4)
    assert bool((image[:2] == 0).all())


def test_early_stopping_stops_before_noise_is_fitted() -> None:
    scan = simulate_scan((20, 16), 3, 1.0, snr=4.0, with_maps=True)
    truth = brain_phantom((20, 16), seeded(0))
    for seed in (0, 1):
        errors: list[float] = []

        def watch(made: int, total: int, image: torch.Tensor, errors: list = errors) -> None:
            assert total == 300
            errors.append(error(image, truth))

        recon = ConvDecoder(
            layers=4, channels=16, iterations=300, patience=300, held_out=0.1, warm_iterations=0,
            consistency=False, progress=watch)
        bound = recon.bind(scan, seeded(seed))
        stopped = error(bound(scan.kspace), truth)
        assert len(errors) == 6
        # The end fits the noise; the weights kept are far from there, and near the best seen.
        assert stopped < 0.75 * errors[-1]
        assert stopped < 1.1 * min(errors)
        (chosen,) = bound.details["fitted_iterations"]
        assert 0 < chosen < 100


def test_patience_ends_the_fit() -> None:
    made: list[int] = []
    recon = ConvDecoder(
        layers=4, channels=16, iterations=5000, patience=40, held_out=0.1, warm_iterations=0,
        progress=lambda i, n, image: made.append(i))
    recon(simulate_scan((20, 16), 3, 1.0, snr=4.0, with_maps=True))
    assert len(made) < 10


def test_measured_samples_are_kept() -> None:
    scan = replace(half_scan(), noise=None)
    one = replace(scan, kspace=scan.kspace[:1], maps=torch.ones_like(scan.maps[:1]))
    size = float(one.kspace.norm())
    image = ConvDecoder(**SMALL)(one)
    assert float(((fft(image, (-2, -1)) - one.kspace[0]) * one.sampled).norm()) < 1e-5 * size
    free = ConvDecoder(consistency=False, **SMALL)(one)
    assert float(((fft(free, (-2, -1)) - one.kspace[0]) * one.sampled).norm()) > 1e-2 * size
    data = DecoderData.of(half_scan(), "coils", "rss", True)
    white = data.measured(half_scan().kspace)
    kept = data.consistent(torch.randn_like(white), white)
    assert torch.equal(kept[:, scan.sampled], white[:, scan.sampled])


def test_seed_decides_and_the_call_does_not_matter() -> None:
    scan = half_scan()
    recon = ConvDecoder(**SMALL)
    bound = recon.bind(scan, seeded(4))
    first = bound(scan.kspace)
    assert torch.equal(first, recon.bind(scan, seeded(4))(scan.kspace))
    with torch.no_grad():
        assert torch.equal(first, recon.bind(scan, seeded(4))(scan.kspace))
    with torch.inference_mode():
        assert torch.equal(first, recon.bind(scan, seeded(4))(scan.kspace.clone()))
    other = recon.bind(scan, seeded(5))(scan.kspace)
    assert error(other, first) > 1e-4
    # Another k-space in between leaves no trace.
    moved = bound(1.1 * scan.kspace)
    assert error(moved, first) > 1e-4
    assert torch.equal(bound(scan.kspace), first)
    sampled = bound.sample(scan.kspace, [4, 5])
    assert torch.equal(sampled, torch.stack([first, other]))


def test_units_of_kspace_and_maps() -> None:
    scan = half_scan()
    recon = ConvDecoder(**{**SMALL, "iterations": 20, "warm_iterations": 2})
    image = recon(scan)
    scaled = replace(scan, kspace=scan.kspace * 64, noise=scan.noise.scaled(64))
    assert error(recon(scaled) / 64, image) < 1e-6
    larger = replace(scan, maps=scan.maps * 4)
    assert error(recon(larger) * 4, image) < 1e-6


def test_the_mean_of_restarts_is_nearer_than_they_are() -> None:
    scan, truth = half_scan(), brain_phantom((16, 16), seeded(0))
    recon = ConvDecoder(**SMALL, restarts=4)
    images = recon.restart_images(scan)
    assert float(images.std(dim=0).mean()) > 0.01 * float(images.abs().mean())
    bound = recon.bind(scan)
    torch.testing.assert_close(bound(scan.kspace), images.mean(0))
    assert len(bound.details["fitted_iterations"]) == 4
    single = [error(image, truth) for image in images]
    assert error(images.mean(0), truth) < 0.8 * sum(single) / 4
    torch.testing.assert_close(images[0], ConvDecoder(**SMALL)(scan))


def test_a_warm_start_answers_to_new_data_and_a_cold_one_begins_anew() -> None:
    scan = half_scan()
    warm = ConvDecoder(**SMALL).bind(scan)
    assert "start of the fit" in warm.frozen
    cold = ConvDecoder(**SMALL, warm_start=False)
    assert cold.bind(scan).frozen == ()
    torch.testing.assert_close(cold(scan), warm(scan.kspace))
    other = replace(scan, kspace=scan.kspace.flip(0) * (1 + 0.2j))
    # Cold: nothing is left of the scan that f is bound to.
    torch.testing.assert_close(cold.bind(scan)(other.kspace), cold(other))
    assert error(warm(other.kspace), cold(other)) > 1e-3


def test_replicas_map_its_noise() -> None:
    scan = half_scan()
    recon = ConvDecoder(**{**SMALL, "warm_iterations": 5})
    maps = [
        snrecon.noise_map(recon, scan, tolerance=0, max_passes=6, seed=seed) for seed in (1, 1, 2)
    ]
    assert maps[0].estimator == "replicas"
    assert "start of the fit" in maps[0].frozen
    assert torch.equal(maps[0].sigma, maps[1].sigma)
    assert not torch.equal(maps[0].sigma, maps[2].sigma)
    # By hand, from the same draws.
    problem = Problem.of(recon, scan)
    bound = recon.bind(scan)
    image = bound(scan.kspace)
    noise = problem.noise(1, range(6), 2)
    moved = torch.stack([bound(scan.kspace + one) for one in noise]) - image
    turned = (moved * torch.where(image == 0, 1, image.sgn().conj())).real
    torch.testing.assert_close(maps[0].sigma, turned.std(dim=0), rtol=1e-3, atol=1e-6)


def test_it_says_that_it_has_no_derivative() -> None:
    scan = half_scan()
    with pytest.raises(InputError, match="'replicas'"):
        snrecon.noise_map(ConvDecoder(**SMALL), scan, estimator="sketch", max_passes=2)


def test_the_optimum_moves_as_the_implicit_function_theorem_says() -> None:
    scan = simulate_scan((8, 8), 2, 2.0, 4, snr=20.0, with_maps=True).to(torch.complex128)
    for combine in ("matched", "rss"):
        recon = ConvDecoder(
            combine=combine, layers=3, channels=3, iterations=60, activation="silu", implicit=True)
        bound = recon.bind(scan)
        assert bound.linearize is not None
        image, jvp = bound.linearize(scan.kspace)
        torch.testing.assert_close(image, bound(scan.kspace), rtol=1e-8, atol=1e-10)
        noise = Problem(bound, scan).noise(0, range(1), 2)
        (pushed,) = jvp(noise)
        step = 1e-4 * noise[0]
        numeric = (bound(scan.kspace + step) - bound(scan.kspace - step)) / 2e-4
        assert float((pushed - numeric).norm() / numeric.norm()) < 1e-6


def test_the_sketch_of_an_optimum_runs_in_single_precision() -> None:
    scan = simulate_scan((8, 8), 2, 2.0, 4, snr=20.0, with_maps=True)
    recon = ConvDecoder(layers=3, channels=3, iterations=60, activation="silu", implicit=True)
    result = snrecon.noise_map(recon, scan, estimator="sketch", tolerance=0, max_passes=3)
    assert result.estimator == "sketch"
    assert result.image.dtype == torch.complex64
    assert bool((result.sigma[scan.maps.abs().sum(0) > 0] > 0).all())


def test_held_out_samples_are_lines_of_line_masks_off_the_centre() -> None:
    lines = make_mask("gaussian1d", (64, 48), 2, 8, seed=1).tensor
    held = held_out_samples(lines, 0.1, seeded(0))
    assert bool((held <= lines).all())
    rows = held.all(dim=1)
    assert int(rows.sum()) == round(0.1 * 32)
    assert bool((held == rows[:, None]).all())
    assert not bool(rows[32 - 4 : 32 + 5].any())
    turned = held_out_samples(lines.mT.contiguous(), 0.1, seeded(0))
    assert torch.equal(turned, held.mT)
    points = make_mask("gaussian2d", (32, 48), 4, 8, seed=1).tensor
    held = held_out_samples(points, 0.1, seeded(0))
    assert bool((held <= points).all())
    assert int(held.sum()) == round(0.1 * int(points.sum()))
    assert not bool(held[14:19, 21:28].any())
    assert not torch.equal(held, held_out_samples(points, 0.1, seeded(1)))
    # Too few lines to spare: single samples.
    few = lines & (torch.arange(64) % 8 == 0)[:, None]
    held = held_out_samples(few, 0.05, seeded(0))
    assert int(held.sum()) == round(0.05 * int(few.sum()))
    assert len(held.any(dim=1).nonzero()) > 2
    assert not bool(held_out_samples(points, 0, seeded(0)).any())


def test_by_name_with_the_published_settings() -> None:
    recon = load("convdecoder", decode="coils", channels=160, start="8x4", iterations=25000,
                 held_out=0, warm_iterations=0)
    assert isinstance(recon, ConvDecoder)
    assert (recon.combine, recon.start, recon.layers) == ("rss", (8, 4), 7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 0}, "iterations of convdecoder must be a whole .* at least 1, not 0"),
        ({"layers": 1}, "layers .* at least 2"),
        ({"channels": 2.5}, r"channels .* whole number .* 2\.5"),
        ({"restarts": True}, "restarts .* whole number"),
        ({"rate": 0.0}, "rate of convdecoder is a number above 0"),
        ({"warm_rate": float("nan")}, "warm_rate of convdecoder is a number above 0"),
        ({"held_out": 0.9}, r"from 0 to 0\.5"),
        ({"decode": "slices"}, "'image' or 'coils'"),
        ({"combine": "sum"}, "'matched' or 'rss'"),
        ({"start": "8by4"}, "size such as '8x4'"),
        ({"start": 8}, "size such as '8x4'"),
        ({"rate": "fast"}, "rate of convdecoder is a number above 0, not 'fast'"),
        ({"held_out": "few"}, r"from 0 to 0\.5, not 'few'"),
        ({"warm_start": "no"}, "warm_start of convdecoder is true or false, not 'no'"),
        ({"start": (0, 4)}, "size such as '8x4'"),
        ({"activation": "tanh"}, "'relu' or 'silu'"),
        ({"implicit": True}, "needs activation='silu'"),
        ({"implicit": True, "activation": "silu", "warm_start": False}, "warm_start"),
    ],
)
def test_options_that_make_no_sense(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ConvDecoder(**options)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="widht"):
        load("convdecoder", widht=3)


def test_a_3d_grid_is_refused() -> None:
    scan = simulate_scan((4, 8, 8), 2, 1.0)
    with pytest.raises(InputError, match=r"2D scans, not a grid of 4x8x8; use sense"):
        ConvDecoder().bind(scan)


def test_what_the_progress_raises_ends_the_fit_and_leaves_nothing() -> None:
    scan = half_scan()

    class Stop(Exception):
        pass

    calls = []

    def stop_once(made: int, total: int, image: torch.Tensor) -> None:
        calls.append(made)
        if len(calls) == 1:
            raise Stop

    bound = ConvDecoder(**SMALL, progress=stop_once).bind(scan)
    with pytest.raises(Stop):
        bound(scan.kspace)
    assert torch.equal(bound(scan.kspace), ConvDecoder(**SMALL)(scan))


def test_an_optimum_in_single_precision_has_a_root_sum_of_squares() -> None:
    scan = simulate_scan((8, 8), 2, 2.0, 4, snr=20.0, with_maps=True)
    recon = ConvDecoder(layers=3, channels=3, iterations=60, activation="silu", implicit=True,
                        decode="coils", combine="rss")
    bound = recon.bind(scan)
    image = bound(scan.kspace)
    assert image.dtype == torch.float32
    result = snrecon.noise_map(recon, scan, estimator="sketch", tolerance=0, max_passes=3)
    assert bool((result.sigma > 0).any())
