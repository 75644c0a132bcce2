"""Interrupting, resuming and merging runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from benchmarks.small_problems import irregular_mask, regular_mask, small_scan

from snrecon.data import Geometry, NoiseMap, NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import load
from snrecon.noise import merge, noise_map
from snrecon.noise.problem import Problem
from snrecon.noise.state import load_states
from snrecon.recon.registry import load as load_method
from snrecon.recon.sense import Sense
from snrecon.recon.zero_filled import ZeroFilled

RECON = ZeroFilled("rss")


@pytest.fixture(scope="module")
def scan() -> Scan:
    return small_scan(irregular_mask())


def run(scan: Scan, passes: int, estimator: str = "sketch", **kwargs: object) -> NoiseMap:
    return noise_map(
        kwargs.pop("recon", RECON),  # type: ignore[arg-type]
        scan,
        estimator=estimator,  # type: ignore[arg-type]
        tolerance=0,
        max_passes=passes,
        **kwargs,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
def test_resuming_equals_one_run(scan: Scan, tmp_path: Path, estimator: str) -> None:
    state = tmp_path / "state.h5"
    run(scan, 21, estimator, state=state)
    resumed = run(scan, 50, estimator, state=state)
    whole = run(scan, 50, estimator)
    assert resumed.passes == 50
    torch.testing.assert_close(resumed.sigma, whole.sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(resumed.standard_error, whole.standard_error, rtol=1e-10, atol=0)


def test_a_state_is_no_scan(scan: Scan, tmp_path: Path) -> None:
    run(scan, 2, state=tmp_path / "one.state")
    with pytest.raises(InputError, match=r"one\.state: this is a state file.*--state or merge"):
        load(tmp_path / "one.state")


def test_a_stack_without_a_state_warns_once(scan: Scan, tmp_path: Path) -> None:
    stack = replace(
        scan, kspace=torch.stack([scan.kspace] * 2), maps=torch.stack([scan.maps] * 2),
        layout="stack",
    )  # fmt: skip
    with pytest.warns(SnreconWarning, match="is not written") as caught:
        noise_map(Sense(), stack, state=tmp_path / "state.h5")
    assert len(caught) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_state_costs_no_more_passes(scan: Scan, tmp_path: Path) -> None:
    state = tmp_path / "state.h5"
    first = noise_map(RECON, scan, estimator="sketch", tolerance=0.1, state=state)
    again = noise_map(RECON, scan, estimator="sketch", tolerance=0.1, state=state)
    assert again.passes == first.passes
    assert torch.equal(again.sigma, first.sigma)


def test_an_interrupt_loses_nothing(scan: Scan, tmp_path: Path) -> None:
    state = tmp_path / "state.h5"

    def stop(done: int, total: int | None, message: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scan, 100, state=state, progress=stop, chunk=4)
    assert load_states(state)[0].moments.count == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.h5"]
    resumed = run(scan, 40, state=state)
    torch.testing.assert_close(resumed.sigma, run(scan, 40).sigma, rtol=1e-12, atol=0)


def test_exact_rows_resume_where_they_were_interrupted(scan: Scan, tmp_path: Path) -> None:
    state = tmp_path / "rows.h5"
    calls = []

    def stop(done: int, total: int | None, message: str) -> None:
        calls.append(done)
        if done >= 80:
            raise KeyboardInterrupt

    recon = Sense(lamda=0.2)
    with pytest.raises(KeyboardInterrupt):
        noise_map(recon, scan, estimator="exact", state=state, progress=stop, chunk=8)
    assert load_states(state)[0].moments.count == 40  # two rows a voxel
    calls.clear()
    resumed = noise_map(
        recon, scan, estimator="exact", state=state, chunk=8, progress=lambda *c: calls.append(c[0])
    )
    assert min(calls) == 96
    whole = noise_map(recon, scan, estimator="exact")
    torch.testing.assert_close(resumed.covariance, whole.covariance, rtol=1e-10, atol=1e-14)
    some = torch.zeros(12, 12, dtype=torch.bool)
    some[5, 5] = True
    with pytest.raises(InputError, match="choice of voxels"):
        noise_map(recon, scan, estimator="exact", state=state, voxels=some)
    with pytest.raises(InputError, match="exact"):
        merge([state])


def test_merging_two_seeds_equals_their_pooled_moments(scan: Scan, tmp_path: Path) -> None:
    a = run(scan, 32, seed=1, state=tmp_path / "a.h5")
    b = run(scan, 64, seed=2, state=tmp_path / "b.h5")
    both = merge([tmp_path / "a.h5", tmp_path / "b.h5"])
    pooled = (32 * a.sigma**2 + 64 * b.sigma**2) / 96
    torch.testing.assert_close(both.sigma**2, pooled)
    assert both.passes == 96
    assert both.details["seeds"] == {"1": 32, "2": 64}
    assert both.relative_error < min(a.relative_error, b.relative_error)
    assert both.method == a.method
    torch.testing.assert_close(both.image, a.image)


def test_a_merged_result_keeps_g_factor_geometry_and_stack(scan: Scan, tmp_path: Path) -> None:
    geometry = Geometry((0.003, 0.001, 0.002), position=(0.01, 0.02, 0.03))
    stack = Scan(
        torch.stack([scan.kspace, scan.kspace * 2]),
        scan.sampled,
        torch.stack([scan.maps, scan.maps]),
        scan.noise,
        geometry,
        layout="stack",
    )
    results = [
        run(stack, 16, seed=s, state=tmp_path / f"{s}.h5", recon=Sense(lamda=0.2)) for s in (0, 1)
    ]
    both = merge([tmp_path / "0.h5", tmp_path / "1.h5"])
    assert both.sigma.shape == (2, 12, 12)
    assert both.geometry == geometry
    assert both.layout == "stack"
    torch.testing.assert_close(
        both.g_factor**2, (results[0].g_factor ** 2 + results[1].g_factor ** 2) / 2
    )


def test_states_that_do_not_belong_together_are_refused(scan: Scan, tmp_path: Path) -> None:
    run(scan, 8, seed=1, state=tmp_path / "a.h5")
    run(scan, 8, seed=1, state=tmp_path / "same.h5")
    run(small_scan(regular_mask()), 8, seed=2, state=tmp_path / "other.h5")
    run(scan, 8, "replicas", seed=2, state=tmp_path / "replicas.h5")
    with pytest.raises(InputError, match="seed 1"):
        merge([tmp_path / "a.h5", tmp_path / "same.h5"])
    with pytest.raises(InputError, match="different scan or method"):
        merge([tmp_path / "a.h5", tmp_path / "other.h5"])
    with pytest.raises(InputError, match="different estimator"):
        merge([tmp_path / "a.h5", tmp_path / "replicas.h5"])
    with pytest.raises(InputError, match="no such state"):
        merge([tmp_path / "a.h5", tmp_path / "absent.h5"])
    with pytest.raises(InputError, match="of another scan or method"):
        run(small_scan(regular_mask()), 8, seed=1, state=tmp_path / "a.h5")
    with pytest.raises(InputError, match="seed 1, not 5"):
        run(scan, 8, seed=5, state=tmp_path / "a.h5")
    with pytest.raises(InputError, match="folder"):
        run(scan, 8, state=tmp_path / "nowhere" / "a.h5")


def test_another_function_of_the_same_name_is_refused(scan: Scan, tmp_path: Path) -> None:
    inner = RECON.bind(scan)

    def make(factor: float):  # type: ignore[no-untyped-def]
        def f(kspace: torch.Tensor) -> torch.Tensor:
            return factor * inner(kspace)

        return f

    run(scan, 8, state=tmp_path / "a.h5", recon=make(1.0))
    run(scan, 16, state=tmp_path / "a.h5", recon=make(1.0000001))
    with pytest.raises(InputError, match="another reconstruction"):
        run(scan, 16, state=tmp_path / "a.h5", recon=make(2.0))
    run(scan, 8, seed=1, state=tmp_path / "b.h5", recon=make(2.0))
    with pytest.raises(InputError, match="images differ"):
        merge([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_other_maps_and_settings_are_refused(scan: Scan, tmp_path: Path) -> None:
    """Where the image does not tell: without noise, lambda hardly shows in it."""
    clean = replace(scan, maps=scan.maps / 10, noise=NoiseModel(1e-8 * scan.noise.covariance))
    state = tmp_path / "a.h5"
    run(clean, 8, state=state, recon=Sense(lamda=1e-6))
    run(clean, 16, state=state, recon=Sense(lamda=1e-6))
    with pytest.raises(InputError, match="of another scan or method"):
        run(clean, 16, state=state, recon=Sense(lamda=0.0))
    turned = replace(clean, maps=clean.maps.conj().conj())
    run(turned, 16, state=state, recon=Sense(lamda=1e-6))  # the same numbers
    inner = RECON.bind(clean)
    run(clean, 8, state=tmp_path / "b.h5", recon=inner)  # which does not look at the maps
    for other in (replace(clean, maps=2 * clean.maps), replace(clean, maps=None)):
        with pytest.raises(InputError, match="of another scan or method"):
            run(other, 16, state=tmp_path / "b.h5", recon=inner)


def test_settings_that_are_computed_may_differ_in_their_last_digits(scan: Scan) -> None:
    bound = load_method("tv").bind(scan)
    assert "lambda" in bound.frozen

    def fingerprint(**details: object) -> str:
        return Problem(replace(bound, details=bound.details | details), scan).fingerprint

    near = bound.details["lambda"] * (1 + 1e-7)
    assert fingerprint() == fingerprint(condition=3.0) == fingerprint(**{"lambda": near})
    assert fingerprint() != fingerprint(**{"lambda": 1.1 * near})
    assert fingerprint() != fingerprint(weights="others")


def test_damaged_states_are_refused(scan: Scan, tmp_path: Path) -> None:
    run(scan, 8, seed=1, state=tmp_path / "a.h5")
    content = (tmp_path / "a.h5").read_bytes()
    broken = tmp_path / "broken.h5"
    for damaged in (content[: len(content) // 2], b"", b"hello" * 100):
        broken.write_bytes(damaged)
        with pytest.raises(InputError, match=r"broken\.h5"):
            merge([broken])


def test_a_noise_map_that_is_no_number_is_not_returned(scan: Scan) -> None:
    """An image that is, of the measured data but of no others."""

    def recon(kspace: torch.Tensor) -> torch.Tensor:
        measured = bool((kspace == scan.kspace).all())
        return RECON.bind(scan)(kspace) * (1 if measured else torch.nan)

    with pytest.raises(ValueError, match="has NaN or infinite voxels"):
        run(scan, 4, "replicas", recon=recon)


def test_replicas_of_different_noise_scales_are_not_mixed(scan: Scan, tmp_path: Path) -> None:
    small, full = tmp_path / "small.h5", tmp_path / "full.h5"
    run(scan, 4, "replicas", state=small, noise_scale=0.1, seed=1)
    run(scan, 4, "replicas", state=full, seed=2)
    with pytest.raises(InputError, match=r"noise_scale = 0\.1, not 1"):
        run(scan, 8, "replicas", state=small, seed=1)
    with pytest.raises(InputError, match=r"noise scaled by 0\.1 and 1"):
        merge([small, full])
    run(scan, 8, "replicas", state=small, noise_scale=0.1, seed=1)


def test_slices_keep_their_states_in_one_file(scan: Scan, tmp_path: Path) -> None:
    stack = Scan(torch.stack([scan.kspace, 2 * scan.kspace, 3 * scan.kspace]),
                 mask=scan.mask, maps=torch.stack([scan.maps] * 3), noise=scan.noise,
                 layout="stack")
    one, two, part = (tmp_path / f"{name}.h5" for name in ("one", "two", "part"))
    whole = run(stack, 8, state=one, seed=1)
    assert sorted(load_states(one)) == [0, 1, 2]
    assert list(load_states(one, only=1)) == [1]
    assert not load_states(one, only=7)
    run(stack, 8, state=two, seed=2)
    merged = merge([one, two])
    assert merged.sigma.shape == whole.sigma.shape
    assert merged.layout == "stack"

    class Enough(Exception):
        pass

    def stop(done: int, total: int | None, message: str) -> None:
        if "slice 3" in message or "3/3" in message or "3 of 3" in message:
            raise Enough

    with pytest.raises(Enough):
        run(stack, 8, state=part, seed=3, progress=stop)
    run(stack, 8, state=part, seed=3)  # goes on
    assert {k: s.moments.samples for k, s in load_states(part).items()} == {0: 8, 1: 8, 2: 8}
    with h5py.File(part, "r+") as file:
        del file["slice_2"]
    with pytest.warns(SnreconWarning, match="2 of 3 slices"):
        assert merge([part]).sigma.shape[0] == 2
    single = Scan(scan.kspace[None], mask=scan.mask, maps=scan.maps[None], noise=scan.noise,
                  layout="stack")
    alone = run(single, 8, state=tmp_path / "single.h5", seed=1)
    assert merge([tmp_path / "single.h5"]).sigma.shape == alone.sigma.shape == (1, *scan.grid)
