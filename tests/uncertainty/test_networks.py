"""The epistemic part of networks: ensembles, and dropout left on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan
from torch import Tensor, nn

from networks_at_hand import unet
from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.noise import noise_map
from snrecon.recon.adapters import ImageModule
from snrecon.recon.sense import Sense
from snrecon.recon.unet import UNet
from snrecon.recon.zero_filled import ZeroFilled
from snrecon.uncertainty import Dropout, SpreadMap, decompose, ensemble, posterior
from uncertainty.samplers import Gaussian, flat_scan


@pytest.fixture(scope="module")
def scan() -> Scan:
    return small_scan(irregular_mask())


class Shared(nn.Module):
    """One dropout layer used twice, a batch norm, two dropout layers of their own."""

    def __init__(self, seed: int = 0, p: float = 0.4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.shared = nn.Dropout2d(p)
        self.ends = nn.Sequential(nn.Tanh(), nn.Dropout(p))
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.norm(self.first(x)).tanh())
        return self.last(self.ends(self.shared(self.middle(x).tanh())))


@pytest.fixture
def shared() -> Iterator[Shared]:
    network = Shared().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    yield network
    # Whatever was done with it, the user's network is as it was.
    assert [type(m) for m in network.modules()].count(nn.Dropout2d) == 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_posterior_runs_on_dropout(scan: Scan, shared: Shared) -> None:
    recon = Dropout(shared)
    assert recon.layers == 2
    result = posterior(recon, scan, 6, keep=True)
    assert result.method == "dropout:image_module:Shared"
    assert result.samples is not None
    inside = result.mean.abs() > 0
    assert float((result.spread[inside] > 0).double().mean()) > 0.95
    # One at a time, bound by themselves, samples are the same.
    for seed, sample in zip(result.seeds, result.samples, strict=True):
        again = recon.bind(scan, torch.Generator().manual_seed(seed))(scan.kspace)
        torch.testing.assert_close(again, sample, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(posterior(recon, scan, 6).mean, result.mean)


def test_one_draw_is_a_function(scan: Scan, shared: Shared) -> None:
    bound = Dropout(shared).bind(scan, torch.Generator().manual_seed(5))
    image = bound(scan.kspace)
    assert torch.equal(bound(scan.kspace), image)
    # Every entry of a batch sees the same draw, and other samples leave it as it is.
    batch = bound(torch.stack([scan.kspace, 2 * scan.kspace, scan.kspace]))
    torch.testing.assert_close(batch[0], image, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(batch[2], image, rtol=1e-10, atol=1e-12)
    assert bound.sample is not None
    bound.sample(scan.kspace, [1, 2])
    assert torch.equal(bound(scan.kspace), image)
    assert not torch.equal(Dropout(shared).bind(scan)(scan.kspace), image)


def test_masks_keep_the_mean_and_whole_channels() -> None:
    from snrecon.uncertainty.dropout import FixedDropout, _Seed

    seed = _Seed(0)
    single, channels = (FixedDropout(0.3, kind, 0, seed) for kind in (False, True))
    x = torch.ones(2, 40, 30, 30, dtype=torch.float64)
    y = single(x)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.7}
    voxels = y[0].numel()
    assert abs(float(y.mean()) - 1) < 4 * (0.3 / 0.7 / voxels) ** 0.5
    assert torch.equal(y[0], y[1])
    flat = channels(x)[0].flatten(1)
    assert bool((flat == flat[:, :1]).all())
    assert 0 < int((flat[:, 0] == 0).sum()) < 40
    seed.value = 1
    assert not torch.equal(single(x), y)
    other = FixedDropout(0.3, False, 1, seed)
    assert not torch.equal(other(x), single(x))


def test_derivatives_of_one_draw(scan: Scan, shared: Shared) -> None:
    recon = Dropout(ImageModule(shared))
    bound = recon.bind(scan, torch.Generator().manual_seed(8))
    v = torch.randn(2, *scan.kspace.shape, dtype=scan.kspace.dtype,
                    generator=torch.Generator().manual_seed(1))
    many = torch.vmap(lambda t: torch.func.jvp(bound.function, (scan.kspace,), (t,))[1])(v)
    step = 1e-5
    for one, product in zip(v, many):
        plus, minus = (bound.function(scan.kspace + s * step * one) for s in (1, -1))
        numeric = (plus - minus) / (2 * step)
        assert float((product - numeric).norm() / numeric.norm()) < 1e-6
    sketched = noise_map(recon, scan, estimator="sketch", tolerance=0, max_passes=16)
    assert float(sketched.sigma.max()) > 0
    parts = decompose(recon, scan, rounds=2, seeds=2)
    assert parts.estimator == "jacobian"
    assert parts.posterior.regions["all"][2] > 0


def test_methods_that_hold_networks(scan: Scan) -> None:
    dropped = unet(drop=0.2).double()
    recon = Dropout(UNet(dropped))
    assert posterior(recon, scan, 3).method.startswith("dropout:unet")
    alone = Dropout(nn.Dropout(0.5))
    assert float(posterior(alone, scan, 3).spread.max()) > 0


def test_what_cannot_drop() -> None:
    for what in (unet(), nn.Dropout(0.0), ImageModule(nn.Identity()), Sense()):
        with pytest.raises(InputError, match=r"no network with a dropout layer.*ensemble"):
            Dropout(what)
    with pytest.raises(InputError, match="needs a network"):
        Dropout("varnet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="are for a bare network"):
        Dropout(ImageModule(Shared()), channels="pairs")


def test_an_ensemble(scan: Scan, tmp_path: Path) -> None:
    members = [ImageModule(Shared(seed)) for seed in range(5)]
    calls: list[int] = []
    result = ensemble(members, scan, progress=lambda *c: calls.append(c[0]))
    assert calls == [1, 2, 3, 4, 5]
    images = torch.stack([member(scan) for member in members])
    torch.testing.assert_close(result.samples, images)
    torch.testing.assert_close(result.mean, images.mean(0))
    torch.testing.assert_close(result.spread, images.abs().std(0))
    inside = result.spread > 0
    relative = result.spread_error[inside] / result.spread[inside]
    # About 1/sqrt(2 (n - 1)) if Gaussian.
    assert float(relative.median()) == pytest.approx((1 / 8) ** 0.5, rel=0.5)
    assert result.interval == "student"
    assert "Spread of several reconstructions" in result.convention
    assert ", ensemble of image_module:Shared, 5 samples" in repr(result)
    assert (result.seed, result.seeds) == (None, ())
    result.save(tmp_path / "e.h5")
    assert SpreadMap.load(tmp_path / "e.h5").seed is None


def test_members_that_draw_have_a_draw_each() -> None:
    recon = Gaussian()
    scan = flat_scan(torch.full((6, 6), 30 - 40j, dtype=torch.complex128), 0.5)
    found = ensemble([recon, recon, recon], scan, seed=4)
    assert bool((found.spread > 0).all())
    assert found.seed == 4
    assert len(set(found.seeds)) == 3
    for image, seed in zip(found.samples, found.seeds, strict=True):
        again = recon.bind(scan, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(again(scan.kspace), image)
    # The spread of one sampler's copies is that of its samples.
    torch.testing.assert_close(found.spread, posterior(recon, scan, 3, seed=4).spread)
    same = ensemble([recon.bind(scan)] * 2, scan)  # bound to a draw, they stay with it
    assert not same.spread.any()


def test_members_that_do_not_fit(scan: Scan) -> None:
    with pytest.raises(InputError, match="at least 2 members"):
        ensemble([Sense()], scan)
    with pytest.raises(InputError, match="an ensemble is a list of reconstructions, not Sense"):
        ensemble(Sense(), scan)
    with pytest.raises(InputError, match="differ in units"):
        ensemble([Sense(lamda=0.1), ZeroFilled()], scan)
    with pytest.raises(InputError, match="the members' images differ"):
        ensemble([Sense(lamda=0.1), ZeroFilled("rss")], scan)
    with pytest.raises(InputError, match="choose one slice"):
        ensemble([Sense(), Sense()], replace(scan, kspace=scan.kspace[None], maps=None,
                                             layout="stack"))
