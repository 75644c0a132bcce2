"""The certified estimator on small networks, against the dense matrix."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from benchmarks.dense_noise import covariance_maps, difference_matrix
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan

import networks_at_hand as nets
from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import merge, noise_map
from snrecon.noise.certified import schedule
from snrecon.noise.folds import FoldMoments
from snrecon.noise.state import load_states, save_states
from snrecon.recon import E2EVarNet, MoDL, Sense, UNet, VarNet
from snrecon.recon.base import Reconstructor
from snrecon.report.result_text import describe_result

RECONS = {
    "modl": (lambda: MoDL(nets.modl()), irregular_mask),
    "modl plane": (lambda: MoDL(nets.modl()), plane_mask),
    "varnet": (lambda: VarNet(nets.varnet()), irregular_mask),
    "unet magnitude": (lambda: UNet(nets.unet(1)), irregular_mask),
    "unet published": (lambda: UNet(nets.unet(1), published=True, crop=(10, 11)), irregular_mask),
    "e2e_varnet": (lambda: E2EVarNet(nets.e2e_varnet()), irregular_mask),
}


@cache
def solved(name: str) -> tuple[Reconstructor, Scan, np.ndarray]:
    make, mask = RECONS[name]
    recon, scan = make(), small_scan(mask())
    bound = recon.bind(scan)
    image = bound(scan.kspace)
    return recon, scan, covariance_maps(difference_matrix(bound.function, scan), scan, image)


def relative(found: torch.Tensor, dense: np.ndarray) -> np.ndarray:
    true = np.sqrt(dense)
    inside = true > 0.02 * true.max()
    return found.numpy()[inside] / true[inside] - 1


@pytest.mark.parametrize("name", RECONS)
def test_it_converges_to_the_dense_matrix(name):
    recon, scan, dense = solved(name)
    result = noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=1600)
    assert result.passes == 1600
    certificate = result.details["certificate"]
    assert certificate["bound"] < 0.06
    error = relative(result.sigma, dense[0])
    # The certificate is of voxels with signal; a few more are compared here.
    assert np.sqrt(np.mean(error**2)) < 1.5 * certificate["bound"]
    total = relative(result.sigma_complex, dense[0] + dense[1])
    assert np.sqrt(np.mean(total**2)) < 1.5 * certificate["bound"]
    if result.image.is_complex():
        scale = np.abs(dense[:2]).max()
        np.testing.assert_allclose(result.covariance[2], dense[2], rtol=0, atol=0.1 * scale)
    else:
        assert result.sigma_phase is None


def test_the_tolerance_is_a_certified_error():
    recon, scan, dense = solved("modl")
    holds = 0
    for seed in range(12):
        result = noise_map(recon, scan, estimator="certified", tolerance=0.15, seed=seed)
        assert schedule(int(result.passes))
        assert result.details["certificate"]["bound"] <= 0.15
        bright = (result.image.abs() >= 3 * result.sigma) & (result.sigma > 0)
        true = np.sqrt(dense[0])[bright.numpy()]
        error = true / result.sigma[bright].numpy() - 1
        holds += np.sqrt(np.mean(error**2)) <= 0.15
    assert holds >= 10  # of 95 %, with a chance of 2 %


def test_it_says_when_the_passes_were_not_enough():
    recon, scan, _ = solved("varnet")
    with pytest.warns(SnreconWarning, match="error is at most .* after 24 passes"):
        result = noise_map(recon, scan, estimator="certified", tolerance=0.001, max_passes=24)
    assert result.details["certificate"]["bound"] > 0.001
    few = noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=4)
    assert few.details["certificate"] is None
    assert bool(torch.isfinite(few.sigma).all())


def test_the_same_seed_gives_the_same_map():
    recon, scan, _ = solved("modl")
    one, two = (noise_map(recon, scan, estimator="certified", tolerance=0.3, seed=4)
                for _ in range(2))
    assert one.estimator == "certified"
    assert one.details["control_variate"].startswith("edge-adaptive")
    assert torch.equal(one.sigma, two.sigma)
    other = noise_map(recon, scan, estimator="certified", tolerance=0.3, seed=5)
    assert not torch.equal(one.sigma, other.sigma)
    recon, scan, _ = solved("modl plane")
    plane = noise_map(recon, scan, estimator="certified", tolerance=0.3)
    assert plane.details["control_variate"] == "none"


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    recon, scan, _ = solved("modl")
    options = {"estimator": "certified", "tolerance": 0, "max_passes": 40, "chunk": 4}
    whole = noise_map(recon, scan, **options)
    path = tmp_path / "state.h5"

    def stop(done: int, total: int | None, message: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noise_map(recon, scan, state=path, progress=stop, **options)
    again = noise_map(recon, scan, state=path, **options)
    torch.testing.assert_close(again.sigma, whole.sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(again.standard_error, whole.standard_error)
    with pytest.raises(InputError, match="another estimator"):
        noise_map(recon, scan, estimator="sketch", state=path, tolerance=0.5)


def test_states_of_two_seeds_merge(tmp_path):
    recon, scan, dense = solved("modl")
    paths = [tmp_path / f"{seed}.h5" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=160, seed=seed,
                  state=path)
    merged = merge(paths)
    assert merged.passes == 320
    assert merged.estimator == "certified"
    error = np.sqrt(np.mean(relative(merged.sigma, dense[0]) ** 2))
    assert error < 1.5 * merged.details["certificate"]["bound"]
    noise_map(recon, scan, estimator="sketch", tolerance=0, max_passes=4, seed=3,
              state=tmp_path / "sketch.h5")
    with pytest.raises(InputError, match="different estimator"):
        merge([paths[0], tmp_path / "sketch.h5"])


def test_the_schedule_is_fixed_and_grows_by_a_quarter():
    stops = [n for n in range(1, 700) if schedule(n)]
    assert stops[:6] == [16, 24, 32, 40, 56, 72]
    assert all(n % 8 == 0 for n in stops)
    assert all(1.2 <= b / a <= 1.5 for a, b in pairwise(stops))


def test_regions_of_a_slice_and_of_a_stack(tmp_path):
    recon, scan, _ = solved("modl")
    region = torch.zeros(scan.grid, dtype=torch.bool)
    region[4:9, 4:9] = True
    path = tmp_path / "state.h5"
    options = {"estimator": "certified", "tolerance": 0}
    noise_map(recon, scan, max_passes=16, regions={"centre": region}, state=path, **options)
    result = noise_map(recon, scan, max_passes=32, state=path, **options)
    found = result.details["certificate"]["regions"]
    assert set(found) == {"centre"}  # the state knows its regions
    assert 0 < found["centre"]["error"] < found["centre"]["bound"]
    other = noise_map(recon, scan, max_passes=32, state=path, regions={"rim": ~region}, **options)
    assert set(other.details["certificate"]["regions"]) == {"rim"}
    assert torch.equal(other.sigma, result.sigma)  # no probe was drawn again
    result.save(tmp_path / "out.h5")
    assert NoiseMap.load(tmp_path / "out.h5").details["certificate"]["regions"] == found
    stack = replace(scan, kspace=torch.stack([scan.kspace, 2 * scan.kspace]), layout="stack",
                    maps=None if scan.maps is None else torch.stack([scan.maps, scan.maps]))
    both = torch.stack([region, torch.zeros_like(region)])
    several = noise_map(recon, stack, max_passes=16, regions={"centre": both}, **options)
    assert set(several.details["certificate"]["regions"]) == {"centre"}
    for wrong, sentence in (({"a": region[1:]}, "has shape"), ({"a": region & False}, "is empty")):
        with pytest.raises(InputError, match=sentence):
            noise_map(recon, scan, max_passes=8, regions=wrong, **options)
    with pytest.raises(InputError, match="2 slices"):
        noise_map(recon, stack, max_passes=8, regions={"centre": region}, **options)
    with pytest.raises(InputError, match="certified estimator only"):
        noise_map(recon, scan, estimator="sketch", regions={"centre": region})


def test_an_image_that_never_answers_has_no_noise_and_ends_the_run() -> None:
    _, scan, _ = solved("modl")
    still = torch.ones(scan.grid, dtype=scan.kspace.dtype)
    result = noise_map(lambda y: still + 0 * y.sum(-3), scan, estimator="certified", tolerance=0.1)
    assert result.passes == 16
    assert not bool(result.sigma.any())
    assert not bool(result.standard_error.any())


def test_a_warning_is_given_only_where_the_error_is_too_large(recwarn) -> None:
    recon, scan, _ = solved("modl")
    noise_map(recon, scan, estimator="sketch", tolerance=0.9, max_passes=10)
    noise_map(recon, scan, estimator="certified", tolerance=0.9, max_passes=9)
    assert not [w for w in recwarn if issubclass(w.category, SnreconWarning)]
    with pytest.warns(SnreconWarning, match="5 passes are too few"):
        noise_map(recon, scan, estimator="certified", tolerance=0.9, max_passes=5)


def test_a_state_in_low_precision_says_which_tolerance_it_cannot_reach(tmp_path) -> None:
    recon, scan, _ = solved("modl")
    path = tmp_path / "state.h5"
    noise_map(recon, scan, estimator="certified", tolerance=0, max_passes=24, state=path)
    (state,) = load_states(path).values()
    moments = state.moments
    assert isinstance(moments, FoldMoments)
    lost = replace(moments, left_out=1e-4 * moments.sums["aa"].mean(0))
    save_states({0: replace(state, moments=lost)}, path)
    with pytest.raises(InputError, match="low precision, which leave out"):
        noise_map(recon, scan, estimator="certified", tolerance=1e-3, state=path)


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_where_it_ends_does_not_depend_on_how_many_fit_at_once(chunk):
    recon, scan, _ = solved("modl")
    options = {"estimator": "certified", "seed": 2}
    at_eight = noise_map(recon, scan, tolerance=0.001, max_passes=40, chunk=8, **options)
    tolerance = 1.001 * at_eight.details["certificate"]["bound"]  # reached at 40, if not before
    found = noise_map(recon, scan, tolerance=tolerance, chunk=chunk, **options)
    wanted = noise_map(recon, scan, tolerance=tolerance, chunk=8, **options)
    assert found.passes == wanted.passes <= 40
    torch.testing.assert_close(found.sigma, wanted.sigma)


def test_regions_of_any_name_survive_in_a_state(tmp_path):
    recon, scan, _ = solved("modl")
    inside = torch.zeros(scan.grid, dtype=torch.bool)
    inside[4:8, 3:9] = True
    names = ["kidney/left", "50%2F", "a/b/c"]
    options = {"estimator": "certified", "tolerance": 0, "seed": 1, "state": tmp_path / "s.h5"}
    noise_map(recon, scan, max_passes=16, regions=dict.fromkeys(names, inside), **options)
    again = noise_map(recon, scan, max_passes=24, **options)
    assert sorted(again.details["certificate"]["regions"]) == sorted(names)


def test_a_certified_map_says_what_is_certified() -> None:
    result = noise_map(Sense(lamda=0.2), small_scan(irregular_mask()), estimator="certified",
                       tolerance=0, max_passes=32)
    told = result.details["certificate"]
    assert f"at most {told['bound']:.2%} (95 %)" in repr(result)
    unseen = replace(result, details={**result.details, "certificate": {**told, "error": 0.0}})
    assert "too small to see, at most" in describe_result(unseen)
