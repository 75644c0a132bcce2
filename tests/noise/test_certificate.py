"""Certificates against maps whose truth is known: Gaussian samples of a rough variance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from snrecon.noise.blur import blur
from snrecon.noise.certificate import T95, T98, _certificate, certified, judged
from snrecon.noise.crossfit import coefficients, controlled, fitted_prior, limited, shrunk
from snrecon.noise.folds import FOLDS, FoldMoments

SIZE = (40, 36)


def truth(roughness: float = 0.4) -> Tensor:
    """Variances of the component along the phase: smooth, with detail from voxel to voxel."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    return (1 + 0.5 * x - 0.3 * y**2
            + roughness * torch.randn(SIZE, generator=generator)).clamp_min(0.2)


def samples(count: int, seed: int, surrogate: bool = True) -> tuple[FoldMoments, Tensor]:
    """Fold sums of ``count`` samples with components of unequal variance, and an image."""
    generator = torch.Generator().manual_seed(seed)
    variance = truth()
    f = torch.randn((2, count, *SIZE), generator=generator)
    rest = torch.randn((2, count, *SIZE), generator=generator)
    root = variance.sqrt()
    a = root * (0.8 * f[0] + 0.6 * rest[0])
    b = 0.7 * root * (0.3 * f[0] + 0.6 * f[1] + 0.55**0.5 * rest[1])
    image = torch.full(SIZE, 50.0) + 0j
    power = torch.ones(SIZE) if surrogate else None
    moments = FoldMoments.empty(image, power)
    answer = torch.complex(f[0], f[1]) if surrogate else None
    return moments.added(0, a, b, answer), image


def error(variance: Tensor) -> float:
    """Relative RMS error of sigma, relative to the map."""
    return float(((truth() / variance).sqrt() - 1).square().mean().sqrt())


def test_sums_are_those_of_their_folds():
    whole, image = samples(37, 1)
    assert whole.samples == 37
    assert whole.counts.tolist() == [3] * 5 + [2] * 11
    part = whole.part([0, 5])
    assert part.count == 5
    # In two pieces the same, wherever they are cut.
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn((2, 20, *SIZE), generator=generator)
    once = FoldMoments.empty(image).added(0, a, b)
    twice = FoldMoments.empty(image).added(0, a[:7], b[:7]).added(7, a[7:], b[7:])
    torch.testing.assert_close(once.sums, twice.sums)
    assert torch.equal(once.counts, twice.counts)
    torch.testing.assert_close(once.part([3]).products["aa"], (a[[3, 19]] ** 2).mean(0))
    merged = once.merged(twice)
    assert merged.samples == 40
    torch.testing.assert_close(merged.sums["ab"], 2 * once.sums["ab"])


def test_the_control_variate_is_unbiased_and_less_noisy():
    plain, better = [], []
    inside = torch.ones(SIZE, dtype=torch.bool)
    for seed in range(40):
        moments, _ = samples(16, seed)
        one, two = moments.part(list(range(8))), moments.part(list(range(8, 16)))
        plain.append(controlled(one, None))
        better.append(controlled(one, coefficients(two, inside)))
    plain_maps, maps = torch.stack(plain), torch.stack(better)
    true = torch.stack([truth(), 0.49 * truth(), 0.7 * 0.24 * truth()])
    deviation = (maps.mean(0) - true) / (maps.std(0) / len(maps) ** 0.5)
    # Student's t with 39 degrees of freedom in every voxel: mean 0, SD 1.03.
    assert abs(float(deviation.mean())) < 4 / true.numel() ** 0.5
    assert float(deviation.std()) == pytest.approx(1.03, abs=0.06)
    ratio = maps.var(0).mean((1, 2)) / plain_maps.var(0).mean((1, 2))
    assert float(ratio[0]) < 0.75  # 1 - 0.64^2, and what the fit costs
    assert bool((ratio < 0.85).all())


@pytest.mark.parametrize("surrogate", [True, False])
def test_the_bound_holds_and_is_not_slack(surrogate):
    holds, ratios = 0, []
    runs = 40
    for seed in range(runs):
        moments, image = samples(32, seed, surrogate)
        found = certified(moments, image)
        assert found is not None
        true = error(found.covariance[0])
        holds += true <= found.certificate.bound
        ratios.append(found.certificate.bound / true)
    assert holds >= runs - 5  # of 95 %, with a chance of 0.3 %
    assert np.median(ratios) < 1.3


def test_the_map_is_better_than_the_mean():
    moments, image = samples(32, 3)
    found = certified(moments, image)
    assert found is not None
    plain = moments.part(list(range(FOLDS))).products["aa"]
    assert error(found.covariance[0]) < 0.85 * error(plain)


def test_with_many_probes_the_map_converges():
    errors = []
    for count in (64, 512):
        moments, image = samples(count, 4)
        found = certified(moments, image)
        assert found is not None
        errors.append(error(found.covariance[0]))
    assert errors[1] < 0.45 * errors[0]  # 1 / sqrt(8) = 0.35, and shrinkage helps the first


def test_the_standard_error_is_that_of_the_map():
    inside = []
    for seed in range(10):
        moments, image = samples(48, 100 + seed)
        found = certified(moments, image)
        assert found is not None
        deviation = (found.covariance[0].sqrt() - truth().sqrt()) / found.standard_error
        inside.append(float((deviation.abs() < 1.96).double().mean()))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_a_true_map_passes_and_wrong_ones_do_not():
    """Negative controls: a map 5 % too high, and one without its detail, at a tolerance of 3 %."""
    moments, image = samples(512, 7)
    sigma = truth().sqrt()
    weight = torch.ones(SIZE)
    verdicts = [judged(moments, m, image) for m in (sigma, 1.05 * sigma, blur(sigma, 1.5, weight))]
    good, scaled, smooth = (v.bound for v in verdicts if v is not None)
    assert good < 0.03
    assert scaled > 0.03
    assert smooth > 0.03
    assert verdicts[1] is not None
    assert verdicts[1].error == pytest.approx(0.0476, abs=0.01)  # relative to the map: 1 - 1 / 1.05


def test_too_few_probes_certify_nothing():
    moments, image = samples(5, 1)
    assert certified(moments, image) is None
    assert judged(moments, truth().sqrt(), image) is None


def test_shrinkage_keeps_what_both_halves_show_and_drops_what_they_do_not():
    generator = torch.Generator().manual_seed(2)
    prior, inside = torch.ones(SIZE), torch.ones(SIZE, dtype=torch.bool)
    detail = 0.5 * torch.randn(SIZE, generator=generator)
    noise = 0.5 * torch.randn((2, 3, *SIZE), generator=generator)
    shared = torch.stack([1 + detail] * 3)
    kept = shrunk(shared, shared, 0.5, prior, inside)
    torch.testing.assert_close(kept, shared, atol=1e-4, rtol=0)
    dropped = shrunk(1 + noise[0], 1 + noise[1], 0.5, prior, inside)
    assert float((dropped - 1).std()) < 0.4 * float(noise.mean(0).std())


def test_the_prior_is_the_maximum_of_its_likelihood():
    generator = torch.Generator().manual_seed(3)
    inside = torch.ones(SIZE, dtype=torch.bool)
    x = torch.randn(SIZE, generator=generator)
    features = torch.stack([torch.ones(SIZE), x])
    true = torch.exp(0.3 + 0.8 * x)
    target = true * (torch.randn((4, *SIZE), generator=generator) ** 2).mean(0)
    from snrecon.noise.crossfit import Setting

    prior = fitted_prior(target, Setting(features, inside))
    assert float((prior / true).log().abs().max()) < 0.2
    score = ((target / prior - 1) * features).mean((1, 2))
    assert float(score.abs().max()) < 1e-4


@pytest.mark.parametrize("shape", [(30,), (24, 31), (40, 3), (11, 12, 13), (16, 16, 1)])
@pytest.mark.parametrize("scale", [0.7, 4.0])
def test_blur_averages(shape, scale):
    weight = torch.ones(shape, dtype=torch.float64)
    constant = torch.full((2, *shape), 3.0, dtype=torch.float64)
    torch.testing.assert_close(blur(constant, scale, weight), constant)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[: shape[0] // 2] = 0
    smooth = blur(noise, scale, weight)
    assert smooth.shape == noise.shape
    changed = noise.clone()
    changed[: shape[0] // 2] = 1e6
    torch.testing.assert_close(blur(changed, scale, weight), smooth)
    assert float(smooth[shape[0] // 2 :].std()) < float(noise.std())


def test_regions_have_certificates_of_their_own():
    """One half of the image is known badly, the other well: the regions tell."""
    half = torch.zeros(SIZE, dtype=torch.bool)
    half[:, : SIZE[1] // 2] = True
    quiet = torch.zeros(SIZE, dtype=torch.bool)
    quiet[0, 0] = True
    held = {"left": 0, "right": 0}
    for seed in range(20):
        moments, image = samples(32, 100 + seed)
        image = image.clone()
        image[0, 0] = 0  # no voxel with signal in this region
        moments = replace(moments, regions={"left": half, "right": ~half, "quiet": quiet})
        found = certified(moments, image)
        assert found is not None
        assert set(found.regions) == {"left", "right", "quiet"}
        for name, region in (("left", half), ("right", ~half)):
            ratio = (truth() / found.covariance[0]).sqrt() - 1
            own = float(ratio[region].square().mean().sqrt())
            held[name] += own <= found.regions[name].bound
            assert found.regions[name].probes == 32
    assert min(held.values()) >= 17  # of 95 %, with a chance of 1.6 %


def test_voxels_unlike_all_others_are_found():
    """Noise smaller by orders of magnitude in single voxels: whatever their surroundings are."""
    dark = torch.rand(SIZE, generator=torch.Generator().manual_seed(9)) < 0.05
    scale = torch.where(dark, 1e-3, 1.0)
    generator = torch.Generator().manual_seed(3)
    a = scale * torch.randn((256, *SIZE), generator=generator)
    b = scale * torch.randn((256, *SIZE), generator=generator)
    f = torch.complex(*torch.randn((2, 256, *SIZE), generator=generator))
    image = torch.full(SIZE, 50.0) + 0j
    for power in (None, torch.ones(SIZE)):
        moments = FoldMoments.empty(image, power).added(0, a, b, None if power is None else f)
        found = certified(moments, image)
        assert found is not None
        ratio = found.covariance[0].sqrt() / scale - 1
        # Three SDs of what 256 probes say of a voxel alone.
        assert float(ratio[dark].square().mean().sqrt()) < 3.5 / 512**0.5 * 1.2
        own = float((scale / found.covariance[0].sqrt() - 1).square().mean().sqrt())
        assert own < found.certificate.bound < 0.1


def test_a_map_is_kept_within_what_chance_allows():
    plain = torch.ones(3, 4, 5)
    plain[2] = 0.5
    fitted = plain.clone()
    fitted[:, 0, 0] *= 100
    fitted[:, 1, 1] /= 100
    kept = limited(fitted, plain, 50)
    assert 1.5 < float(kept[0, 0, 0]) < 3
    assert 0.3 < float(kept[0, 1, 1]) < 0.7
    assert torch.equal(kept[:, 2:], fitted[:, 2:])
    assert bool((kept[2].abs() <= (kept[0] * kept[1]).sqrt() + 1e-6).all())
    assert float(limited(fitted, plain, 5000)[0, 0, 0]) < 1.1


def test_beyond_the_surrogate_the_map_is_the_plain_mean():
    """A reconstruction may answer where the surrogate's coil maps are zero; nowhere is sigma 0."""
    moments, image = samples(128, 4)
    reached = torch.zeros(SIZE, dtype=torch.bool)
    reached[:, 6:] = True
    assert moments.power is not None
    sums = {name: torch.where(reached, total, 0) if set(name) & set("ri") else total
            for name, total in moments.sums.items()}
    moments = replace(moments, power=moments.power * reached, sums=sums)
    found = certified(moments, image)
    assert found is not None
    plain = moments.sums["aa"].sum(0) / 128
    torch.testing.assert_close(found.covariance[0][~reached].float(), plain[~reached],
                               rtol=0.02, atol=0)
    assert float((found.covariance[0] / truth() - 1)[reached].abs().mean()) < 0.1
    relative = (found.standard_error / found.covariance[0].sqrt())[:, :3]
    assert 0.5 / 16 < float(relative.mean()) < 2 / 16  # 1 / sqrt(2 * 128) is 1 / 16
    nowhere = replace(moments, power=torch.zeros(SIZE), sums={
        name: total * 0 if set(name) & set("ri") else total for name, total in sums.items()})
    found = certified(nowhere, image)
    assert found is not None
    assert bool((found.covariance[0] > 0).all())


def test_no_certificate_is_tighter_than_the_scatter_of_its_estimate() -> None:
    """Squared errors that come out negative by chance must not certify an error of 0."""
    squares = [-4e-4, -2e-4, 1e-4, -3e-4, -1e-4, -5e-4, -2e-4, -2e-4]
    found = _certificate(squares, 64)
    spread = float(torch.tensor(squares, dtype=torch.float64).std()) / 8**0.5
    assert found.error == 0
    assert found.bound == pytest.approx((T95[6] * spread) ** 0.5)
    shifted = _certificate([s + 1e-3 for s in squares], 64)
    assert shifted.bound > found.bound


def test_air_around_the_object_changes_nothing_but_its_own_voxels() -> None:
    moments, image = samples(32, 7)
    margins = (5, 9, 8, 3)

    def padded(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, margins)

    half = torch.zeros(SIZE, dtype=torch.bool)
    half[:, : SIZE[1] // 2] = True
    moments = replace(moments, regions={"left": half}, left_out=1e-4 * torch.ones(SIZE))
    assert moments.power is not None
    assert moments.left_out is not None
    wide = replace(
        moments, sums={name: padded(total) for name, total in moments.sums.items()},
        power=padded(moments.power), left_out=padded(moments.left_out),
        regions={"left": padded(half)})
    found = certified(moments, image)
    around = certified(wide, padded(image.real) + 0j)
    assert found is not None
    assert around is not None
    inner = (slice(8, 8 + SIZE[0]), slice(5, 5 + SIZE[1]))
    # Averages over wide surroundings are taken on a coarser grid, which is counted from elsewhere.
    change = around.covariance[0][inner] / found.covariance[0] - 1
    assert float(change.square().mean().sqrt()) < 0.03
    assert abs(around.certificate.bound / found.certificate.bound - 1) < 0.05
    assert abs(around.regions["left"].bound / found.regions["left"].bound - 1) < 0.05
    outside = torch.ones(wide.sums["aa"].shape[1:], dtype=torch.bool)
    outside[inner] = False
    assert float(around.covariance[:, outside].abs().max()) == 0
    assert float(around.standard_error[outside].abs().max()) == 0


def test_a_surrogate_that_fades_out_beyond_its_maps_leaves_no_holes() -> None:
    """Its variance underflows column by column, earlier than its answers to single probes."""
    moments, image = samples(32, 5)
    assert moments.power is not None
    fading = torch.ones(SIZE)
    fading[:, :12] = 10.0 ** torch.arange(-48.0, 0, 4)
    assert float(fading[:, 1].max()) < torch.finfo(torch.float32).tiny
    answer = torch.where(fading < 1, 300 * fading.sqrt(), 1).clamp_max(1)
    amplitude = {"r": answer, "i": answer}
    sums = {}
    for name, total in moments.sums.items():
        for letter in name:
            total = total * amplitude.get(letter, torch.ones(SIZE))
        sums[name] = total
    faded = certified(replace(moments, power=moments.power * fading, sums=sums), image)
    whole = certified(moments, image)
    assert faded is not None
    assert whole is not None
    assert bool(torch.isfinite(faded.covariance).all())
    assert bool(torch.isfinite(faded.standard_error).all())
    assert float(faded.covariance[0].min()) > 0
    torch.testing.assert_close(
        faded.covariance[0][:, 24:], whole.covariance[0][:, 24:], rtol=0.3, atol=0)


@pytest.mark.parametrize("scale", [1e-13, 1e-11, 1e12])
def test_the_unit_of_the_image_does_not_matter(scale) -> None:
    """Variances of 1e-26 and 1e24 are numbers of single precision; their squares are not."""
    moments, image = samples(24, 2)
    assert moments.power is not None
    other = replace(
        moments, power=moments.power * scale**2,
        sums={name: total * scale**2 for name, total in moments.sums.items()})
    found, scaled = certified(moments, image), certified(other, image * scale)
    assert found is not None
    assert scaled is not None
    assert scaled.certificate.bound == pytest.approx(found.certificate.bound, rel=2e-2)
    ratio = scaled.standard_error / scale / found.standard_error
    assert float((ratio - 1).square().mean().sqrt()) < 0.05


def test_every_look_of_a_run_to_a_tolerance_is_more_careful(tmp_path) -> None:
    squares = [4e-4, 2e-4, 1e-4, 3e-4, 1e-4, 5e-4, 2e-4, 2e-4]
    fixed, look = _certificate(squares, 64), _certificate(squares, 64, adaptive=True)
    mean, spread = 2.5e-4, float(torch.tensor(squares, dtype=torch.float64).std()) / 8**0.5
    assert look.error == fixed.error
    assert fixed.bound == pytest.approx((mean + T95[6] * spread) ** 0.5)
    assert look.bound == pytest.approx((mean + T98[6] * spread) ** 0.5)
    moments, image = samples(24, 2)
    run = replace(moments, adaptive=True)
    found, stopped = certified(moments, image), certified(run, image)
    assert found is not None
    assert stopped is not None
    assert stopped.certificate.bound > found.certificate.bound
    assert FoldMoments.restored(run.arrays(), {}).adaptive
    assert not FoldMoments.restored(moments.arrays(), {}).adaptive
    assert moments.merged(run).adaptive


def test_what_cannot_be_judged_is_not_certified() -> None:
    moments, image = samples(24, 2)
    broken = replace(moments, predicted=torch.full(SIZE, torch.nan))
    found = certified(broken, image)  # the plain means are still there
    assert found is not None
    assert found.certificate.error > 0.05
    nan = {name: total * torch.nan for name, total in moments.sums.items()}
    assert certified(replace(moments, sums=nan), image) is None
    assert judged(moments, torch.full(SIZE, torch.nan), image) is None
    lone = torch.zeros(SIZE)
    lone[20, 20] = 1
    single = replace(moments, sums={name: total * lone for name, total in moments.sums.items()})
    found = certified(single, image)
    assert found is not None
    assert bool(found.covariance.isfinite().all())
    assert found.certificate.bound > 0.01
