"""Priors from images alone: what they are shown, that they learn, resume, and draw."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from snrecon.errors import InputError
from snrecon.networks.ncsnpp import NCSNpp
from snrecon.networks.store import load_weights
from snrecon.training import train
from snrecon.training.config import (
    Config,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    PriorConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.config_check import check
from snrecon.training.prior import LOUDER, Images
from snrecon.training.score_matching import (
    denoising_error,
    draw_levels,
    samples,
    score_loss,
)
from snrecon.training.stream import find_data


def configuration(images, folder, **trainer) -> Config:
    settings = {"max_minutes": 0.0, "max_steps": 9, "batch": 2, "interval": 3,
                "precision": "float32", "warmup": 2, "seed": 5}
    return Config(
        data=DataConfig([images], [images], voxel_sizes={"heads": 5.0}),
        scheme="score_matching",
        simulation=SimulationConfig(grids=[[32, 32]], pool=4),
        network=NetworkConfig("ncsnpp", {"features": 8, "multipliers": 12, "blocks": 1,
                                         "preconditioned": 1}),
        prior=PriorConfig(sigma=[0.02, 10.0]),
        trainer=TrainerConfig(**{**settings, **trainer}),
        output=OutputConfig(str(folder), "prior"),
    )


def test_images_are_magnitudes_of_order_one_and_real_parts(images, tmp_path):
    config = configuration(images, tmp_path)
    for signed, lowest in ((0.0, -1e-6), (1.0, -2.0)):
        shown = Images(replace(config, prior=PriorConfig(signed=signed)),
                       find_data(config, "train"), 0, 6)
        batch = shown.draw(40, torch.Generator().manual_seed(1))
        assert batch.shape == (40, 32, 32)
        assert batch.dtype == torch.float32
        assert float(batch.min()) >= lowest
        bright = torch.stack([one.abs().flatten().quantile(0.99) for one in batch])
        if signed:
            assert float(batch.min()) < -0.3
            assert float(bright.max()) <= 1 + LOUDER + 1e-5
        else:
            assert 1 - LOUDER - 1e-5 <= float(bright.min()) < 0.85
            assert 1.15 < float(bright.max()) <= 1 + LOUDER + 1e-5
        again = shown.draw(40, torch.Generator().manual_seed(1))
        assert torch.equal(batch, again)


def test_narrow_grids_are_cut_from_the_middle(images, tmp_path):
    config = configuration(images, tmp_path)
    config = replace(config, simulation=SimulationConfig(grids=[[32, 20]], pool=4))
    shown = Images(config, find_data(config, "train"), 0, 4)
    assert shown.draw(3, torch.Generator().manual_seed(1)).shape == (3, 32, 20)


def test_noise_levels_are_drawn_as_stated():
    prior = PriorConfig(sigma=[0.01, 50.0], even=0.25, centre=0.2, spread=0.5)
    count = 40000
    logs = draw_levels(prior, count, torch.Generator().manual_seed(0)).double().log()
    assert float(logs.min()) >= math.log(0.01) - 1e-6
    assert float(logs.max()) <= math.log(50) + 1e-6
    low, high = math.log(0.01), math.log(50)
    # Beyond four spreads of the centre only the even quarter is.
    far = (logs > math.log(0.2) + 2.0).double().mean()
    share = 0.25 * (high - math.log(0.2) - 2.0) / (high - low)
    assert abs(float(far) - share) < 4 * (share * (1 - share) / count) ** 0.5
    even = draw_levels(replace(prior, even=1.0), count, torch.Generator().manual_seed(0)).log()
    width = (high - low) / 12**0.5
    assert abs(float(even.mean()) - (low + high) / 2) < 4 * width / count**0.5


def test_both_losses_are_the_same_up_to_their_weight():
    torch.manual_seed(0)
    images, noise = torch.randn(2, 3, 16, 16).unbind()
    sigma = torch.tensor([0.05, 0.4, 9.0])
    net = NCSNpp(8, 12, 1, 1, 1)
    loss = score_loss(net, images, sigma, noise)
    spread = sigma.reshape(-1, 1, 1)
    with torch.no_grad():
        plain = 0.5 * (spread * net(images + spread * noise, sigma) + noise).square()
    weight = 2 * (sigma**2 + 0.09) / 0.09
    torch.testing.assert_close(loss, weight * plain.mean((1, 2)), rtol=1e-3, atol=0)
    published = NCSNpp(8, 12, 1, 1, 0)
    wanted = 0.5 * (spread * published(images + spread * noise, sigma) + noise).square()
    torch.testing.assert_close(score_loss(published, images, sigma, noise), wanted.mean((1, 2)))


def test_it_learns_to_denoise_and_shows_what_it_draws(images, tmp_path):
    config = configuration(images, tmp_path / "run", max_steps=220, interval=110, batch=4,
                           learning_rate=4e-3, ema=0.95)
    path = train(config)
    with (tmp_path / "run" / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    net = load_weights("ncsnpp", path)
    assert isinstance(net, NCSNpp)
    assert net.sigma_range == pytest.approx((0.02, 10.0))
    shown = Images(config, find_data(config, "validation"), 7, 8)
    held_out = shown.draw(8, torch.Generator().manual_seed(3))
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(4))
    new = NCSNpp(8, 12, 1, 1, 1, 0.02, 10.0)
    for level in (0.2, 0.5):
        before = denoising_error(new, held_out, level, noise)
        assert denoising_error(net, held_out, level, noise) < 0.75 * before
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert (tmp_path / "run" / "samples.png").stat().st_size > 100
    drawn = samples(net, (2, 32, 32), seed=1)
    assert torch.equal(drawn, samples(net, (2, 32, 32), seed=1))
    assert not torch.equal(drawn, samples(net, (2, 32, 32), seed=2))
    assert float(drawn.abs().max()) < 3


def test_sampling_a_gaussian_gives_its_spread():
    """The probability flow carries white noise into the density of the score."""
    spread = torch.full((24, 24), 0.4)
    spread[:, 12:] = 0.1

    def score(x, sigma):
        return -(x - 0.5) / (spread**2 + sigma**2)

    drawn = samples(score, (400, 24, 24), steps=60)
    for part, wanted in ((drawn[:, :, :12], 0.4), (drawn[:, :, 12:], 0.1)):
        values = part.flatten()
        assert float(values.std()) == pytest.approx(wanted, rel=0.02)
        assert abs(float(values.mean()) - 0.5) < 4 * wanted / values.numel() ** 0.5 + 2e-4


def test_an_interrupted_run_continues_bit_for_bit(images, tmp_path):
    """Also under a limit in time that it does not reach."""
    whole = train(configuration(images, tmp_path / "whole", max_minutes=3.0))

    def stop(done, total, message):
        if message.startswith("step 5,"):
            raise KeyboardInterrupt

    parts = configuration(images, tmp_path / "parts", max_minutes=3.0)
    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=stop)
    again = train(parts, resume=True)
    one, two = load_file(whole), load_file(again)
    assert all(torch.equal(one[key], two[key]) for key in one)
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert [line.split(",", 1)[1] for line in logs[0]] == [
        line.split(",", 1)[1] for line in logs[1]]
    other = replace(parts, trainer=replace(parts.trainer, max_steps=12, seed=8))
    with pytest.raises(InputError, match=r"began with trainer\.seed = "):
        train(other, resume=True)
    checkpoint = tmp_path / "parts" / "last.ckpt"
    found = torch.load(checkpoint, weights_only=True)
    del found["settings"]
    torch.save(found, checkpoint)  # as one that kept no settings
    assert train(other, resume=True) == again


def test_it_starts_from_trained_weights(images, tmp_path):
    first = train(configuration(images, tmp_path / "first"))
    wider = NetworkConfig("ncsnpp", {"features": 12, "multipliers": 12, "blocks": 1,
                                     "preconditioned": 1})
    other = replace(configuration(images, tmp_path / "x", initial=str(first)), network=wider)
    with pytest.raises(InputError, match="do not fit"):
        train(other)
    assert not (tmp_path / "x").exists()
    second = configuration(images, tmp_path / "second", initial=str(first), max_steps=1,
                           learning_rate=1e-12)
    one, two = load_file(first), load_file(train(second))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


@pytest.mark.parametrize(("change", "sentence"), [
    ({"network": NetworkConfig("varnet")}, "belong together"),
    ({"scheme": "supervised"}, "belong together"),
    ({"prior": PriorConfig(sigma=[1.0, 0.1])}, "prior.sigma must be two rising"),
    ({"prior": PriorConfig(signed=1.5)}, "prior.signed must lie between 0 and 1"),
    ({"prior": PriorConfig(centre=0.0)}, "prior.centre must be positive"),
    ({"trainer": TrainerConfig(patience=3)}, "not for the scheme score_matching"),
])
def test_what_cannot_work_is_said(change, sentence, images, tmp_path):
    with pytest.raises(InputError, match=sentence):
        check(replace(configuration(images, tmp_path), **change))
