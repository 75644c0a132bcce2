"""Posterior mean, spread and intervals: closed forms, error bars, states, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from score_scans import example
from snrecon.data import Geometry, Scan
from snrecon.errors import InputError
from snrecon.noise import merge
from snrecon.noise.state import load_states
from snrecon.recon.base import Reconstructor
from snrecon.recon.langevin import Langevin
from snrecon.recon.score import Score
from snrecon.recon.sense import Sense
from snrecon.uncertainty import SpreadMap, posterior
from snrecon.uncertainty.draws import _stable
from uncertainty.samplers import Gaussian, flat_scan, without_noise

NAMES = ("mean", "magnitude", "spread", "spread_error", "spread_complex", "lower", "upper")


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Bright enough that magnitudes are those of the component along the phase."""
    return flat_scan(torch.full((16, 16), 30 - 40j, dtype=torch.complex128), 0.5)


def same(one: SpreadMap, other: SpreadMap, rtol: float = 1e-12) -> None:
    for name in NAMES:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=rtol, atol=0)


def test_an_exact_sampler(scan: Scan) -> None:
    recon, samples = Gaussian(fast=True), 64
    result = posterior(recon, scan, samples)
    variance = recon.gain * recon.noise
    voxels = result.mean.numel()
    mean_error = (variance / samples / voxels) ** 0.5
    assert abs(complex(result.mean.mean()) - recon.gain * (30 - 40j)) < 4 * mean_error
    for found, expected, degrees in ((result.spread, variance / 2, samples - 1),
                                     (result.spread_complex, variance, 2 * (samples - 1))):
        error = expected * (2 / degrees / voxels) ** 0.5
        assert abs(float((found**2).mean()) - expected) < 4 * error
    # The magnitude of 50 K with spread s across it gains s^2 / (2 x 50 K), a hundredth of s.
    assert float(result.magnitude.mean()) == pytest.approx(50 * recon.gain, abs=6 * mean_error)
    # Its stated standard error is the scatter over voxels.
    ratio = float(result.spread_error.square().mean().sqrt() / result.spread.std())
    assert ratio == pytest.approx(1, abs=4 * (1 / (2 * voxels)) ** 0.5)
    assert result.interval == "order statistics"
    truth = recon.gain * (30 - 40j) + recon.bind(scan, torch.Generator().manual_seed(4)).function(
        0 * scan.kspace)
    inside = ((result.lower <= truth.abs()) & (truth.abs() <= result.upper)).double().mean()
    assert abs(float(inside) - 0.95) < 4 * (0.95 * 0.05 / voxels) ** 0.5
    assert "posterior of gaussian, 64 samples" in repr(result)


def test_samples_belong_to_their_seeds(scan: Scan) -> None:
    recon = Gaussian()
    result = posterior(recon, scan, 5, seed=3, keep=True)
    assert result.samples is not None
    for seed, sample in zip(result.seeds, result.samples, strict=True):
        again = recon.bind(scan, torch.Generator().manual_seed(seed))(scan.kspace)
        torch.testing.assert_close(again, sample, rtol=1e-12, atol=0)
    assert len(set(result.seeds)) == 5
    torch.testing.assert_close(result.mean, result.samples.mean(0))
    torch.testing.assert_close(result.spread, result.samples.abs().std(0))
    torch.testing.assert_close(result.magnitude, result.samples.abs().mean(0))
    assert result.interval == "student"
    # However they are batched, and however many there are.
    for options in ({"chunk": 1}, {"chunk": 4}, {}):
        same(posterior(Gaussian(fast=True), scan, 5, seed=3, **options), result)
    more = posterior(recon, scan, 7, seed=3, keep=True)
    assert more.samples is not None
    torch.testing.assert_close(more.samples[:5], result.samples)
    assert not torch.equal(posterior(recon, scan, 5, seed=4).mean, result.mean)


def test_a_bound_with_its_fast_path_will_do(scan: Scan) -> None:
    bound = Gaussian(fast=True).bind(scan)
    same(posterior(bound, scan, 4), posterior(Gaussian(), scan, 4))
    with pytest.raises(InputError, match="bound to one draw already"):
        posterior(Gaussian().bind(scan), scan, 4)


def test_an_interrupt_loses_nothing(scan: Scan, tmp_path: Path) -> None:
    state = tmp_path / "p.state"

    def stop(done: int, total: int | None, message: str) -> None:
        assert total == 45
        if done >= 20:
            raise KeyboardInterrupt

    recon = Gaussian(fast=True)
    with pytest.raises(KeyboardInterrupt):
        posterior(recon, scan, 45, state=state, progress=stop, chunk=4)
    assert load_states(state)[0].moments.samples == 20
    assert state.stat().st_size < 40 * scan.kspace.numel() * 16  # sums, not samples
    calls: list[int] = []
    resumed = posterior(recon, scan, 45, state=state, progress=lambda *c: calls.append(c[0]))
    assert min(calls) > 20
    whole = posterior(recon, scan, 45)
    same(resumed, whole, rtol=1e-9)
    assert resumed.seeds == whole.seeds
    calls.clear()
    same(posterior(recon, scan, 45, state=state, progress=lambda *c: calls.append(c[0])), whole,
         rtol=1e-9)
    assert calls == []


def test_states_are_not_mixed_up(scan: Scan, tmp_path: Path) -> None:
    state = tmp_path / "p.state"
    posterior(Gaussian(), scan, 3, state=state)
    with pytest.raises(InputError, match="another reconstruction"):
        posterior(Gaussian(noise=5.0), scan, 3, state=state)
    with pytest.raises(InputError, match="drawn with seed 0, not 1"):
        posterior(Gaussian(), scan, 3, seed=1, state=state)
    with pytest.raises(InputError, match="another scan or method"):
        posterior(Gaussian(), without_noise(scan), 3, state=state)
    with pytest.raises(InputError, match="without keeping the samples"):
        posterior(Gaussian(), scan, 4, state=state, keep=True)
    with pytest.raises(InputError, match=r"too few for 0\.5 intervals of 60 samples"):
        posterior(Gaussian(), scan, 60, state=state, level=0.5)
    with pytest.raises(InputError, match="no noise"):
        merge([state])


def test_states_are_of_one_set_of_options(tmp_path: Path) -> None:
    """Also where the image hardly shows them."""
    prior, scan, _ = example("dds", noise=0.05)
    known = {"score": prior, "levels": 3, "steps": 1, "settle": 2}

    def posterior_of(recon: Reconstructor, known: Scan = scan) -> SpreadMap:
        return posterior(recon, known, 3, state=tmp_path / f"{recon.name}.state")

    for first, again, others in (
        (Score(prior, steps=4, cg_steps=30), Score(prior, steps=4, cg_steps=30, at_once=3),
         [{"weights": prior, "steps": 4, "cg_steps": n} for n in (29, 31)] +
         [{"weights": prior, "steps": 4, "cg_steps": 30, "eta": 1 - 1e-9}]),
        (Langevin(**known), Langevin(**known, at_once=3),
         [{**known, "settle": 4}, {**known, "sigma_max": 2 + 1e-9}]),
    ):
        posterior_of(first)
        posterior_of(again)  # how much is computed together is no matter
        for options in others:
            with pytest.raises(InputError, match="another scan or method"):
                posterior_of(type(first)(**options))
        with pytest.raises(InputError, match="another scan or method"):
            posterior_of(first, replace(scan, maps=scan.maps * (1 + 1e-9)))


def test_numbers_that_a_machine_computed_do_not_tell_states_apart() -> None:
    facts = {"scale": 0.1, "n": 3, "parts": [0.1, "a"], "options": {"eta": 0.1}}
    again = {"scale": 0.1 + 1e-16, "n": 3, "parts": [0.2, "a"], "options": {"eta": 0.1}}
    assert _stable(facts) == _stable(again)
    assert _stable(facts) != _stable({**facts, "options": {"eta": 0.2}})
    assert _stable(facts) != _stable({**facts, "n": 4})


def test_the_noise_need_not_be_known(scan: Scan) -> None:
    same(posterior(Gaussian(), without_noise(scan), 3), posterior(Gaussian(), scan, 3))


def test_files(scan: Scan, tmp_path: Path) -> None:
    geometry = Geometry((1e-3, 2e-3, 3e-3))
    result = posterior(Gaussian(), replace(scan, geometry=geometry), 40, seed=9, keep=True)
    for name in ("r.h5", "r.npz"):
        result.save(tmp_path / name)
        loaded = SpreadMap.load(tmp_path / name)
        for field in (*NAMES, "samples"):
            torch.testing.assert_close(getattr(loaded, field), getattr(result, field),
                                       check_dtype=False, rtol=1e-6, atol=0)
        for field in ("level", "interval", "count", "kind", "seed", "seeds", "method", "units",
                      "frozen", "acceleration", "geometry", "details", "convention"):
            assert getattr(loaded, field) == getattr(result, field), field
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["image"].dtype == np.complex64
        assert file["spread"].dtype == np.float32
        assert file["samples"].shape == (40, 16, 16)
        assert file["spread"].attrs["units"] == "object"
        assert "not thermal noise" in file.attrs["convention"]
        assert "snrecon_version" in file.attrs
    result.save(tmp_path / "n.nii.gz")
    written = {path.name for path in tmp_path.glob("n_*.nii.gz")}
    assert written == {f"n_{name}.nii.gz" for name in
                       ("image", *(set(NAMES) - {"mean"}))}
    double = result.scale(2.0)
    torch.testing.assert_close(double.upper, 2 * result.upper)
    assert double.units == "2 x (object)"


def test_damaged_and_foreign_files(scan: Scan, tmp_path: Path) -> None:
    result = posterior(Gaussian(), scan, 3)
    result.save(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "a") as file:
        file.attrs["kind"] = "guess"
    with pytest.raises(InputError, match="attributes are damaged"):
        SpreadMap.load(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "a") as file:
        del file["spread"]
    with pytest.raises(InputError, match="no posterior result: 'spread' is missing"):
        SpreadMap.load(tmp_path / "r.h5")
    broken = replace(result, spread=result.spread / 0)
    with pytest.raises(ValueError, match="spread contains"):
        broken.save(tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


def test_bad_input(scan: Scan) -> None:
    with pytest.raises(InputError, match=r"sense is deterministic.*sampler.*dropout.*ensemble"):
        posterior(Sense(), scan)
    with pytest.raises(InputError, match="is deterministic"):
        posterior(lambda kspace: kspace.sum(0), scan)
    with pytest.raises(InputError, match="at least 2 samples"):
        posterior(Gaussian(), scan, 1)
    with pytest.raises(InputError, match="between 0 and 1"):
        posterior(Gaussian(), scan, 3, level=95)
    for options, words in (
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"seed": 2**70}, "seed must be below"),  # not cut down to another
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"level": "a"}, "between 0 and 1, not 'a'"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            posterior(Gaussian(), scan, **{"samples": 3, **options})
    stack = Scan(scan.kspace[None], layout="stack")
    with pytest.raises(InputError, match="choose one slice"):
        posterior(Gaussian(), stack)

    bound = Gaussian(fast=True).bind(scan)
    seen: list[int] = []

    def failing(kspace: Tensor, seeds: list[int]) -> Tensor:
        assert bound.sample is not None
        seen.extend(seeds)
        return bound.sample(kspace, seeds) * (1 if len(seen) < 3 else float("nan"))

    with pytest.raises(ValueError, match="NaN or infinite"):
        posterior(replace(bound, sample=failing), scan, 12)


def test_maps_may_be_lazy_conjugates(scan: Scan) -> None:
    assert scan.maps is not None
    lazy = replace(scan, maps=scan.maps.conj())
    assert torch.equal(posterior(Gaussian(), lazy, 3).mean, posterior(
        Gaussian(), replace(scan, maps=scan.maps.conj().resolve_conj()), 3).mean)
