"""Trainings that diverge: a sentence, and files that stay as they were."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch

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
from snrecon.training.divergence import Diverged, check_number, check_weights

SENTENCE = r"the training diverged: after step \d+ .*; a smaller trainer\.learning_rate may help\.$"


def configuration(images, folder, name, **trainer) -> Config:
    """A training of a few steps of the network ``name``."""
    settings = {"max_minutes": 0.0, "max_steps": 4, "batch": 2, "interval": 2, "workers": 0,
                "precision": "float32", "warmup": 1, "seed": 5}
    common = {
        "simulation": SimulationConfig(grids=[[32, 32]], coils=[2, 2], accelerations=[2.0], pool=4,
                                       kinds=["random"]),
        "trainer": TrainerConfig(**{**settings, **trainer}),
        "output": OutputConfig(str(folder), "net"),
        "data": DataConfig([images], [], voxel_sizes={"heads": 5.0}),
    }
    if name == "ncsnpp":
        return Config(scheme="score_matching", prior=PriorConfig(sigma=[0.02, 10.0]),
                      network=NetworkConfig("ncsnpp", {"features": 4, "multipliers": 1, "blocks": 1,
                                                       "patch": 2, "preconditioned": 1}), **common)
    pytest.importorskip("lightning")
    return Config(network=NetworkConfig("varnet", {"unrolls": 1, "features": 2}), **common)


@pytest.fixture(params=["varnet", "ncsnpp"])
def good(request, images, tmp_path) -> Config:
    """A run that worked, in both loops."""
    config = configuration(images, tmp_path / "run", request.param)
    train(config)
    return config


def later(config: Config, **trainer) -> Config:
    return replace(config, trainer=replace(config.trainer, max_steps=40, **trainer))


def test_what_is_finite_stays_when_a_loss_is_not(good, tmp_path):
    """The weights, the log and the checkpoint are those of the last good interval."""
    names = ("net.safetensors", "last.ckpt", "log.csv")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    with pytest.raises(Diverged, match=SENTENCE):
        train(later(good, learning_rate=1e30), resume=True)
    after = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    for name in ("net.safetensors", "last.ckpt"):
        assert after[name] == before[name], name
    with (tmp_path / "run" / "log.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2", "4"]
    train(replace(good, trainer=replace(good.trainer, max_steps=6)), resume=True)
    load_weights(good.network.name, tmp_path / "run" / "net.safetensors")  # which wants numbers


def test_weights_that_are_not_finite_are_not_written(good, tmp_path, monkeypatch):
    """They are seen at the end of their interval, before a loss shows them."""
    def follow(average, network, decay, steps):
        with torch.no_grad():
            next(average.parameters()).fill_(math.inf)

    for part in ("module", "loop"):
        monkeypatch.setattr(f"snrecon.training.{part}.follow", follow)
    names = ("net.safetensors", "last.ckpt")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    with pytest.raises(Diverged, match="after step 6 the weights are not finite"):
        train(later(good), resume=True)
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in names}


def test_another_run_replaces_files_once_its_first_step_worked(good, tmp_path, monkeypatch):
    names = ("net.safetensors", "last.ckpt", "log.csv")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    other = replace(good, trainer=replace(good.trainer, seed=6))

    def fail(name, value, step):
        raise Diverged(f"the {name} is nan", step)

    with monkeypatch.context() as broken:
        for part in ("module", "loop"):
            broken.setattr(f"snrecon.training.{part}.check_number", fail)
        with pytest.raises(Diverged, match="after step"):
            train(other, replace=True)
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in names}
    train(other, replace=True)
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() != before[name], name


def test_with_patience_there_are_weights_or_an_error(images, tmp_path, monkeypatch):
    from snrecon.training import run

    few = run.validation_batches
    monkeypatch.setattr(run, "validation_batches", lambda config, found: few(config, 1, found))
    config = configuration(images, tmp_path / "run", "varnet", patience=3, learning_rate=1e30,
                           max_steps=40)
    config = replace(config, data=replace(config.data, validation=[images]))
    with pytest.raises(Diverged, match=SENTENCE):
        train(config)
    assert not (tmp_path / "run" / "net.safetensors").exists()


def test_what_is_finite():
    network = torch.nn.Linear(2, 2)
    check_number("loss", 1e30, 3)
    check_weights(network, 3)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(Diverged, match=f"after step 3 the loss is {value}"):
            check_number("loss", value, 3)
        with torch.no_grad():
            network.bias[1] = value
        with pytest.raises(Diverged, match="after step 3 the weights are not finite"):
            check_weights(network, 3)
