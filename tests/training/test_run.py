"""Training learns, resumes exactly, and exports what it averaged."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from snrecon.errors import InputError
from snrecon.networks.varnet import VarNet
from snrecon.training.config import (
    Config,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.gram import batch_gram
from snrecon.training.scores import logarithmic_error, nmse, sense_nmse
from snrecon.training.simulate import Simulator


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    inner = (x / 0.3) ** 2 + (y / 0.4) ** 2 < 1
    volume = (500 * head + 400 * inner) * (1 + 0.2 * rng.random((6, 48, 40)))
    np.savez(tmp_path / "heads.npz", x=volume.astype(np.uint16))
    return f"{tmp_path / 'heads.npz'}:x"


def configuration(images, folder, **trainer) -> Config:
    settings = {"max_minutes": 0.0, "max_steps": 9, "batch": 2, "interval": 3, "workers": 0,
                "precision": "float32", "warmup": 2, "seed": 5}
    return Config(
        data=DataConfig([images], [], voxel_sizes={"heads": 5.0}),
        simulation=SimulationConfig(grids=[[32, 32]], coils=[3, 3], accelerations=[2.0], pool=4,
                                    kinds=["random"]),
        network=NetworkConfig("varnet", {"unrolls": 2, "features": 3}),
        trainer=TrainerConfig(**{**settings, **trainer}),
        output=OutputConfig(str(folder), "net"),
    )


def test_one_slice_can_be_learnt(generator):
    """Overfitting one measurement: its error falls far below that of SENSE."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float() * (1 + 0.5 * torch.sin(9 * x))
    settings = SimulationConfig(grids=[[32, 32]], coils=[4, 4], accelerations=[4.0],
                                kinds=["random"], snr=[20.0, 20.0])
    batch = Simulator({32: head[None]}, settings, 1).draw(0, 1)
    gram = batch_gram(batch.maps, batch.mask)
    torch.manual_seed(0)
    network = VarNet(3, 8)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        answer = network(batch.b, gram, batch.support)
        logarithmic_error(answer, batch.target, batch.support).mean().backward()
        optimiser.step()
    learnt = float(nmse(network(batch.b, gram, batch.support).detach(), batch.target))
    sense = float(sense_nmse(batch.b, gram, batch.target))
    assert learnt < 0.2 * sense
    assert sense < float(nmse(batch.b, batch.target))


def test_an_interrupted_run_continues_bit_for_bit(images, tmp_path):
    pytest.importorskip("lightning")
    from snrecon.training import train

    whole = train(configuration(images, tmp_path / "whole"))

    class Interrupted(Exception):
        pass

    def stop(done, total, message):
        if message.startswith("step 5,"):
            raise Interrupted

    parts = configuration(images, tmp_path / "parts")
    with pytest.raises(Interrupted):
        train(parts, progress=stop)
    resumed = train(parts, resume=True)
    a, b = load_file(whole), load_file(resumed)
    assert set(a) == set(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    other = train(replace(parts, trainer=replace(parts.trainer, seed=6)))
    assert not torch.equal(load_file(other)["steps"], a["steps"])


def test_log_and_time_limit(images, tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from snrecon.training import run, train

    few = run.validation_batches
    monkeypatch.setattr(run, "validation_batches", lambda config: few(config, count=1))

    config = configuration(images, tmp_path / "run", max_minutes=0.02, max_steps=0, interval=100)
    config = replace(config, data=replace(config.data, validation=[images]))
    config = replace(config, simulation=replace(config.simulation, coils=[3, 3]))
    path = train(config)
    assert path.name == "net.safetensors"
    with (path.parent / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert 0.02 <= float(rows[-1]["minutes"]) < 2
    assert 0 < float(rows[-1]["val_nmse_R4"]) < 5
    with (path.parent / "baselines.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert 0 < float(row["sense_nmse"]) < 1
            assert 0 < float(row["zero_filled_nmse"]) < 1


def test_missing_images_are_a_sentence(tmp_path):
    pytest.importorskip("lightning")
    from snrecon.training import train

    with pytest.raises(InputError, match="SNRECON_DATA"):
        train(configuration("nowhere.npz:x", tmp_path / "run"))


def test_a_missing_library_names_its_extra(images, tmp_path, monkeypatch):
    import sys

    from snrecon.training import train

    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(InputError, match=r"snrecon\[train\]"):
        train(configuration(images, tmp_path / "run"))


def test_held_out_scores_are_those_of_the_network(images, tmp_path):
    """With silent CNNs and steps of zero the network is zero-filling, and scores like it."""
    from snrecon.networks.store import save_weights
    from snrecon.training.held_out import held_out

    network = VarNet(1, 2)
    torch.nn.init.zeros_(network.steps)
    torch.nn.init.zeros_(network.cnns[0].leave.weight)
    save_weights(network, tmp_path / "net.safetensors")
    config = configuration(images, tmp_path)
    config = replace(config, data=replace(config.data, validation=[images]))
    rows = held_out(config, tmp_path / "net.safetensors", count=1)
    assert len(rows) == 8
    for row in rows:
        assert row.varnet == pytest.approx(row.zero_filled, rel=1e-3)
        assert row.acceleration >= 2


def test_training_starts_from_given_weights(images, tmp_path):
    pytest.importorskip("lightning")
    from snrecon.networks.store import save_weights
    from snrecon.training import train

    torch.manual_seed(9)
    network = VarNet(2, 3)
    save_weights(network, tmp_path / "first.safetensors")
    config = configuration(images, tmp_path / "run", initial=str(tmp_path / "first.safetensors"),
                           max_steps=1, learning_rate=1e-9, weight_decay=0.0)
    trained = load_file(train(config))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-5, atol=1e-6)
    other = replace(config, network=NetworkConfig("varnet", {"unrolls": 2, "features": 4}))
    with pytest.raises(InputError, match="do not fit"):
        train(other)
    missing = replace(config, trainer=replace(config.trainer, initial="absent.safetensors"))
    with pytest.raises(InputError, match="no such weights file"):
        train(missing)
